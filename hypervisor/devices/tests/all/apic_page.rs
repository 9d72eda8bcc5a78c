//! The virtual-APIC page: an APIC whose interrupts the CPU keeps does what one in software does.

use std::cell::RefCell;

use nagaya_devices::apic::page::{self, Page};
use nagaya_devices::apic::{ApicConfig, ApicEffect, LocalApic, Trigger};
use proptest::prelude::*;

/// The page, and the CPU that works with it (SDM, "Virtual-Interrupt Delivery"), written down from the manual's pseudo-code.
struct Cpu {
    page: RefCell<[u32; 256]>,
    /// RVI and SVI.
    requesting: u8,
    servicing: u8,
}

impl Page for Cpu {
    fn load(&self, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(16) && offset < 4096);
        self.page.borrow()[usize::from(offset / 16)]
    }

    fn store(&self, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(16) && offset < 4096);
        self.page.borrow_mut()[usize::from(offset / 16)] = value;
    }
}

const TPR: u16 = 0x80;
const PPR: u16 = 0xA0;
const ISR: u16 = 0x100;
const IRR: u16 = 0x200;

impl Cpu {
    fn bit(&self, register: u16, vector: u8, to: bool) {
        let at = register + u16::from(vector / 32) * 16;
        let bit = 1 << (vector % 32);
        let word = self.load(at);
        self.store(at, if to { word | bit } else { word & !bit });
    }

    fn highest(&self, register: u16) -> u8 {
        let set = |vector: &u8| {
            self.load(register + u16::from(vector / 32) * 16) >> (vector % 32) & 1 == 1
        };
        (0..=u8::MAX).rev().find(set).unwrap_or(0)
    }

    /// "PPR Virtualization".
    fn virtualise_ppr(&self) {
        let (task, served) = (self.load(TPR), u32::from(self.servicing) & 0xF0);
        let ppr = if task & 0xF0 >= served {
            task & 0xFF
        } else {
            served
        };
        self.store(PPR, ppr);
    }

    fn enter(&mut self) {
        [self.requesting, self.servicing] = page::status(self).to_le_bytes();
        self.virtualise_ppr();
    }

    fn is_recognised(&self) -> bool {
        u32::from(self.requesting) >> 4 > self.load(PPR) >> 4
    }

    fn deliver(&mut self) -> Option<u8> {
        if !self.is_recognised() {
            return None;
        }
        let vector = self.requesting;
        self.bit(ISR, vector, true);
        self.servicing = vector;
        self.store(PPR, u32::from(vector & 0xF0));
        self.bit(IRR, vector, false);
        self.requesting = self.highest(IRR);
        Some(vector)
    }

    fn end(&mut self) {
        self.bit(ISR, self.servicing, false);
        self.servicing = self.highest(ISR);
        self.virtualise_ppr();
    }
}

fn apic() -> LocalApic {
    let mut apic = LocalApic::new(ApicConfig {
        id: 0,
        is_bootstrap: true,
        physical_bits: 40,
        ticks_per_count: 1,
        least_period_ticks: 1,
    });
    let base = apic.base_msr();
    apic.set_base_msr(base | 1 << 10).expect("to x2APIC");
    let _ = apic.msr_write(0x80F, 0x1FF, 0).expect("is there");
    apic
}

#[derive(Clone, Debug)]
enum Step {
    /// Interrupts come from elsewhere, between two runs of the guest.
    Accept(Vec<(u8, bool)>),
    /// The guest can take one.
    Take,
    /// ... and its delivery is cut short.
    TakeAndUndo,
    End,
    Priority(u8),
    /// The guest's APIC goes back to software and to the page again.
    Switch,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec((16_u8.., any::<bool>()), 1..4).prop_map(Step::Accept),
        4 => Just(Step::Take),
        1 => Just(Step::TakeAndUndo),
        3 => Just(Step::End),
        2 => any::<u8>().prop_map(Step::Priority),
        1 => Just(Step::Switch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_cpu_and_the_software_agree(steps in prop::collection::vec(step(), 1..100)) {
        let mut plain = apic();
        let mut virtualised = apic();
        let mut cpu = Cpu { page: RefCell::new([0; 256]), requesting: 0, servicing: 0 };
        virtualised.give_to(&cpu);
        cpu.enter();
        for step in steps {
            match step {
                Step::Accept(vectors) => {
                    for (vector, is_level) in vectors {
                        let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
                        let _ = plain.accept(vector, trigger);
                        let _ = virtualised.accept(vector, trigger);
                    }
                    let before = u16::from_le_bytes([cpu.requesting, cpu.servicing]);
                    let highest = virtualised.stage(&cpu).expect("some");
                    prop_assert_eq!(virtualised.stage(&cpu), None, "once");
                    prop_assert_eq!(page::with_requested(before, highest), page::status(&cpu));
                    cpu.enter();
                }
                Step::Take => prop_assert_eq!(cpu.deliver(), plain.acknowledge()),
                Step::TakeAndUndo => {
                    let taken = cpu.deliver();
                    prop_assert_eq!(taken, plain.acknowledge());
                    if let Some(vector) = taken {
                        prop_assert!(page::undo_delivery(&cpu, vector));
                        plain.undo_acknowledge(vector);
                        cpu.enter();
                    }
                }
                Step::End => {
                    let ended = cpu.servicing;
                    let effect = plain.msr_write(0x80B, 0, 0);
                    if ended == 0 {
                        prop_assert_eq!(effect, Ok(ApicEffect::None));
                    } else {
                        let trigger = virtualised.trigger(ended);
                        prop_assert_eq!(effect, Ok(ApicEffect::EndOfInterrupt { vector: ended, trigger }));
                        let told = virtualised.ends_to_tell()[usize::from(ended / 64)] >> (ended % 64) & 1;
                        prop_assert_eq!(told == 1, trigger == Trigger::Level);
                        cpu.end();
                    }
                }
                Step::Priority(priority) => {
                    cpu.store(TPR, priority.into());
                    cpu.virtualise_ppr();
                    let _ = plain.msr_write(0x808, priority.into(), 0).expect("is there");
                }
                Step::Switch => {
                    virtualised.take_from(&cpu);
                    prop_assert_eq!(virtualised.pending(), plain.pending());
                    prop_assert_eq!(virtualised.processor_priority(), plain.processor_priority());
                    cpu.page.borrow_mut().fill(0xFFFF_FFFF);
                    virtualised.give_to(&cpu);
                    cpu.enter();
                }
            }
            let status = u16::from_le_bytes([cpu.requesting, cpu.servicing]);
            prop_assert_eq!(status, page::status(&cpu));
            prop_assert_eq!(page::pending(&cpu, status), plain.pending());
            prop_assert_eq!(cpu.is_recognised(), plain.pending().is_some());
            // ID, version, LDR.
            for register in [0x02_u16, 0x03, 0x0D] {
                let by_msr = plain.msr_read(0x800 + u32::from(register), 0);
                prop_assert_eq!(Ok(u64::from(cpu.load(register * 16))), by_msr);
            }
            prop_assert_eq!(cpu.load(PPR), u32::from(plain.processor_priority()));
        }
    }
}
