//! Ends of interrupts by a word in the guest's memory: what the APIC knows afterwards is what it would know of the register.

use nagaya_devices::GuestRam;
use nagaya_devices::apic::{EoiWord, GeneralProtection, LocalApic, Signal, Trigger};
use nagaya_devices::test_support::TestRam;
use nagaya_mem::Gpa;
use proptest::prelude::*;

use crate::apic::{enabled, write};

const WORD: u64 = 0x100;
const RAM_BYTES: usize = 0x1000;
const EOI: u16 = 0xB0;

fn word(ram: &TestRam) -> u16 {
    ram.load_u16(Gpa::new(WORD)).expect("is RAM")
}

/// What the guest does at the end of an interrupt: whether it had to write the register.
fn end(eoi: &mut EoiWord, apic: &mut LocalApic, ram: &TestRam) -> bool {
    if word(ram) & 1 != 0 {
        ram.store_u16(Gpa::new(WORD), word(ram) & !1)
            .expect("is RAM");
        return false;
    }
    eoi.settle(apic, ram);
    let _ = write(apic, EOI, 0);
    true
}

/// Before the guest goes on, an interrupt that it can take is injected.
fn enter(eoi: &mut EoiWord, apic: &mut LocalApic, ram: &TestRam) -> Option<u8> {
    let vector = apic.acknowledge();
    eoi.offer(apic, ram);
    vector
}

fn on(apic: &mut LocalApic, ram: &TestRam) -> EoiWord {
    let mut eoi = EoiWord::default();
    eoi.set(WORD | 1, apic, ram).expect("is RAM");
    eoi
}

#[test]
fn a_single_interrupt_ends_by_the_word() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    assert_eq!(eoi.register(), WORD | 1);
    assert_eq!(apic.accept(0x40, Trigger::Edge), Signal::Interrupt);
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x40));
    assert!(!end(&mut eoi, &mut apic, &ram));
    assert_eq!(apic.highest_in_service(), Some(0x40), "nobody told it yet");
    eoi.settle(&mut apic, &ram);
    assert_eq!(apic.highest_in_service(), None);
    assert!(end(&mut eoi, &mut apic, &ram), "nothing is left to end");
}

#[test]
fn who_waits_for_the_end_makes_it_be_told() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    // An I/O APIC does.
    let _ = apic.accept(0x40, Trigger::Level);
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x40));
    assert_eq!(word(&ram), 0);
    assert!(end(&mut eoi, &mut apic, &ram));
    // So does another interrupt of no higher class, also one that comes while the word is set.
    let _ = apic.accept(0x51, Trigger::Edge);
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x51));
    assert_eq!(word(&ram), 1);
    let _ = apic.accept(0x50, Trigger::Edge);
    assert_eq!(enter(&mut eoi, &mut apic, &ram), None);
    assert_eq!(word(&ram), 0);
    assert!(end(&mut eoi, &mut apic, &ram));
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x50));
    assert_eq!(word(&ram), 1);
}

#[test]
fn nested_interrupts_end_by_the_word_from_the_inside_out() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    for vector in [0x40, 0x50, 0x60] {
        eoi.settle(&mut apic, &ram);
        let _ = apic.accept(vector, Trigger::Edge);
        assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(vector));
        assert_eq!(word(&ram), 1);
    }
    // Each end but the first comes when the word has been used: no exit came between to set it again.
    assert!(!end(&mut eoi, &mut apic, &ram));
    assert!(end(&mut eoi, &mut apic, &ram));
    assert_eq!(apic.highest_in_service(), Some(0x40));
    let _ = enter(&mut eoi, &mut apic, &ram);
    assert!(!end(&mut eoi, &mut apic, &ram));
    eoi.settle(&mut apic, &ram);
    assert_eq!(apic.highest_in_service(), None);
}

#[test]
fn a_delivery_that_was_cut_short_comes_again() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    let _ = apic.accept(0x40, Trigger::Edge);
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x40));
    eoi.settle(&mut apic, &ram);
    apic.undo_acknowledge(0x40);
    // It cannot be let in now: nothing is in service, and it waits.
    eoi.offer(&apic, &ram);
    assert_eq!((word(&ram), eoi.is_offered()), (0, false));
    assert_eq!(enter(&mut eoi, &mut apic, &ram), Some(0x40));
    assert!(!end(&mut eoi, &mut apic, &ram));
}

#[test]
fn a_word_that_cannot_be_is_refused_and_one_that_is_left_is_cleared() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    let _ = apic.accept(0x40, Trigger::Edge);
    let _ = enter(&mut eoi, &mut apic, &ram);
    for wrong in [WORD | 3, RAM_BYTES as u64 | 1, !3 | 1] {
        let before = eoi;
        assert_eq!(
            eoi.set(wrong, &mut apic, &ram),
            Err(GeneralProtection),
            "{wrong:#x}"
        );
        assert_eq!((eoi, word(&ram)), (before, 1));
    }
    assert_eq!(eoi.set(0, &mut apic, &ram), Ok(()));
    assert_eq!(word(&ram), 0);
    assert!(!eoi.is_stale(&apic) && !eoi.is_offered());
    // Where the switched-off one lay does not matter.
    assert_eq!(eoi.set(RAM_BYTES as u64, &mut apic, &ram), Ok(()));
}

#[test]
fn an_end_that_was_told_the_word_survives_its_being_set_anew() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    for ended in [true, false] {
        let _ = apic.accept(0x40, Trigger::Edge);
        let _ = enter(&mut eoi, &mut apic, &ram);
        if ended {
            assert!(!end(&mut eoi, &mut apic, &ram));
        }
        eoi.set(WORD | 1, &mut apic, &ram).expect("is RAM");
        assert_eq!(apic.highest_in_service().is_none(), ended);
        assert_eq!(word(&ram), 0);
    }
}

#[test]
fn ram_that_is_taken_away_ends_nothing() {
    let (mut apic, ram) = (enabled(0), TestRam::new(RAM_BYTES));
    let mut eoi = on(&mut apic, &ram);
    let _ = apic.accept(0x40, Trigger::Edge);
    let _ = enter(&mut eoi, &mut apic, &ram);
    ram.make_hole(WORD..WORD + 4);
    eoi.settle(&mut apic, &ram);
    assert_eq!(apic.highest_in_service(), Some(0x40));
    let _ = write(&mut apic, EOI, 0);
    eoi.offer(&apic, &ram);
    let _ = apic.accept(0x41, Trigger::Edge);
    let _ = enter(&mut eoi, &mut apic, &ram);
    assert!(!eoi.is_offered(), "it could not be said");
}

#[derive(Clone, Debug)]
enum Step {
    /// An interrupt arrives.
    Accept(u8, bool),
    /// The guest ends the one that it serves.
    End,
    /// An exit for another reason.
    Exit,
    /// The guest sets its priority.
    Priority(u8),
}

fn step() -> impl Strategy<Value = Step> {
    // Few vectors, so that they meet.
    prop_oneof![
        3 => (prop::sample::select(vec![0x40, 0x41, 0x50, 0x61, 0x62]), any::<bool>())
            .prop_map(|(vector, is_level)| Step::Accept(vector, is_level)),
        3 => Just(Step::End),
        1 => Just(Step::Exit),
        1 => prop::sample::select(vec![0, 0x40, 0x50, 0x60]).prop_map(Step::Priority),
    ]
}

proptest! {
    /// Two guests do the same, one with the word and one without: both get the same interrupts at the same moments, and their
    /// APICs agree whenever somebody looks.
    #[test]
    fn a_guest_with_the_word_gets_what_one_without_gets(steps in prop::collection::vec(step(), 1..200)) {
        let (mut plain, mut apic, ram) = (enabled(0), enabled(0), TestRam::new(RAM_BYTES));
        let mut eoi = on(&mut apic, &ram);
        for step in steps {
            // What an exit is for begins with the APIC's learning what there is to learn; an end by the word alone is no exit.
            match step {
                Step::Accept(vector, is_level) => {
                    eoi.settle(&mut apic, &ram);
                    let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
                    let _ = (apic.accept(vector, trigger), plain.accept(vector, trigger));
                }
                Step::End => {
                    let is_told = end(&mut eoi, &mut apic, &ram);
                    let _ = write(&mut plain, EOI, 0);
                    if !is_told {
                        prop_assert_eq!(plain.acknowledge(), None, "it would have been let in");
                        continue;
                    }
                }
                Step::Exit => eoi.settle(&mut apic, &ram),
                Step::Priority(value) => {
                    eoi.settle(&mut apic, &ram);
                    let _ = (write(&mut apic, 0x80, value.into()), write(&mut plain, 0x80, value.into()));
                }
            }
            prop_assert_eq!(&apic.highest_in_service(), &plain.highest_in_service());
            prop_assert_eq!(apic.highest_requested(), plain.highest_requested());
            prop_assert_eq!(enter(&mut eoi, &mut apic, &ram), plain.acknowledge());
        }
    }
}
