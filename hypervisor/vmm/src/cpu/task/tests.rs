use super::*;
use std::cell::RefCell;
use std::vec;
use std::vec::Vec;

/// 64 KiB of memory, in which single pages may be absent or read-only.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    absent: Vec<u32>,
    read_only: Vec<u32>,
    /// The CR3 under which the last access was.
    cr3: RefCell<u64>,
}

impl Memory {
    fn fault(&self, cr3: u64, linear: u32, length: usize, writes: bool) -> Result<(), PageFault> {
        *self.cr3.borrow_mut() = cr3;
        for at in [linear, linear + length as u32 - 1] {
            let code = if writes { 2 } else { 0 };
            if self.absent.contains(&(at >> 12)) {
                return Err(PageFault { linear: at, code });
            }
            if writes && self.read_only.contains(&(at >> 12)) {
                let code = code | 1;
                return Err(PageFault { linear: at, code });
            }
        }
        Ok(())
    }

    fn get(&self, at: u32, bytes: usize) -> u64 {
        let memory = self.bytes.borrow();
        let found = memory[at as usize..at as usize + bytes].iter().rev();
        found.fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn put(&self, at: u32, bytes: usize, value: u64) {
        let value = value.to_le_bytes();
        self.bytes.borrow_mut()[at as usize..at as usize + bytes].copy_from_slice(&value[..bytes]);
    }

    fn copy(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }
}

impl LinearMemory for Memory {
    fn read(&self, cr3: u64, linear: u32, buffer: &mut [u8]) -> Result<(), PageFault> {
        self.fault(cr3, linear, buffer.len(), false)?;
        let at = linear as usize;
        buffer.copy_from_slice(&self.bytes.borrow()[at..at + buffer.len()]);
        Ok(())
    }
    fn write(&self, cr3: u64, linear: u32, bytes: &[u8], _: Privilege) -> Result<(), PageFault> {
        self.fault(cr3, linear, bytes.len(), true)?;
        let at = linear as usize;
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn probe_write(&self, cr3: u64, linear: u32, bytes: usize) -> Result<(), PageFault> {
        self.fault(cr3, linear, bytes, true)
    }
}

const GDT: u32 = 0x1000;
const OLD: u32 = 0x2000;
const NEW: u32 = 0x3000;
const STACK: u32 = 0x5000;
const LDT: u32 = 0x6000;
// Selectors.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD_TSS: u16 = 0x18;
const NEW_TSS: u16 = 0x20;
const USER_CODE: u16 = 0x2B;
const USER_DATA: u16 = 0x33;
const LDT_SELECTOR: u16 = 0x38;
/// Free for a test.
const SPARE: u16 = 0x40;

const FLAT_CODE: u64 = 0x00CF_9A00_0000_FFFF;
const FLAT_DATA: u64 = 0x00CF_9200_0000_FFFF;

fn system(kind: u64, base: u32, limit: u64) -> u64 {
    let base = u64::from(base);
    (0x80 | kind) << 40 | limit | (base & 0xFF_FFFF) << 16 | base >> 24 << 56
}

fn set_descriptor(memory: &Memory, selector: u16, value: u64) {
    memory.put(GDT + u32::from(selector & !7), 8, value);
}

/// A new task whose TSS has 32 bits.
fn machine() -> (TaskRegisters, Memory) {
    let memory = Memory {
        bytes: RefCell::new(vec![0; 0x1_0000]),
        absent: Vec::new(),
        read_only: Vec::new(),
        cr3: RefCell::new(0),
    };
    for (selector, value) in [
        (CODE, FLAT_CODE),
        (DATA, FLAT_DATA),
        (OLD_TSS, system(11, OLD, 0x67)),
        (NEW_TSS, system(9, NEW, 0x67)),
        (USER_CODE, FLAT_CODE | 3 << 45),
        (USER_DATA, FLAT_DATA | 3 << 45),
        (LDT_SELECTOR, system(2, LDT, 0xF)),
    ] {
        set_descriptor(&memory, selector, value);
    }
    for (at, value) in [
        (0x1C, 0x9000),
        (0x20, 0xAABB_0011),
        (0x24, 0x0202),
        (0x28, 0x1001),
        (0x2C, 0x1002),
        (0x38, STACK),
        (0x44, 0x1008),
        (0x48, DATA.into()),
        (0x4C, CODE.into()),
        (0x50, DATA.into()),
        (0x54, DATA.into()),
        (0x60, LDT_SELECTOR.into()),
    ] {
        memory.put(NEW + at, 4, value.into());
    }
    let flat = |selector, rights| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        rights,
    };
    let data = flat(DATA, 0xC093);
    let registers = TaskRegisters {
        general: [1, 2, 3, 4, 5, 6, 7, 8],
        eip: 0x100,
        eflags: 0x46,
        cr0: 1 | 1 << 31,
        cr3: 0x8000,
        dr7: 0x7FF,
        segments: [data, flat(CODE, 0xC09B), data, data, data, data],
        ldtr: Segment {
            rights: 1 << 16,
            ..Segment::default()
        },
        tr: Segment {
            selector: OLD_TSS,
            base: OLD.into(),
            limit: 0x67,
            rights: 0x8B,
        },
        gdtr: (GDT, 0x47),
    };
    (registers, memory)
}

fn request(initiator: Initiator) -> TaskSwitch {
    TaskSwitch {
        selector: NEW_TSS,
        initiator,
        return_eip: 0x107,
        event: None,
    }
}

fn fault(vector: u8, code: u32) -> Ending {
    let event = EventInjection {
        vector,
        kind: EventKind::HardwareException,
        error_code: Some(code),
    };
    Ending::Exception(event, None)
}

fn is_busy(memory: &Memory, selector: u16) -> bool {
    memory.get(GDT + u32::from(selector) + 5, 1) & 2 != 0
}

#[test]
fn a_jump_leaves_one_task_and_enters_the_other() {
    let (registers, memory) = machine();
    let done = switch(&registers, &memory, request(Initiator::Jump));
    assert_eq!(done.ending, Ending::Runs);
    let after = done.registers.expect("it switches");
    assert_eq!((after.eip, after.eflags), (0xAABB_0011, 0x202));
    assert_eq!(after.general, [0x1001, 0x1002, 0, 0, STACK, 0, 0, 0x1008]);
    assert_eq!((after.cr3, after.cr0), (0x9000, registers.cr0 | 8));
    assert_eq!(*memory.cr3.borrow(), 0x9000, "segments are of the new task");
    assert_eq!(after.dr7, 0x7FF & !0x155);
    assert_eq!(after.tr.rights, 0x8B);
    assert_eq!((after.tr.selector, after.tr.base), (NEW_TSS, NEW.into()));
    assert_eq!((after.ldtr.base, after.ldtr.limit), (LDT.into(), 0xF));
    let code = after.segment(SegmentRegister::Cs);
    assert_eq!(
        (code.selector, code.rights, code.limit),
        (CODE, 0xC09B, u32::MAX)
    );
    // Null selectors.
    let gs = after.segment(SegmentRegister::Gs);
    assert!(gs.selector == 0 && gs.rights & 1 << 16 != 0);
    // The old one, as it goes on.
    assert_eq!(memory.get(OLD + 0x20, 8), 0x46 << 32 | 0x107);
    for (index, value) in (1..9).enumerate() {
        assert_eq!(memory.get(OLD + 0x28 + index as u32 * 4, 4), value);
    }
    assert_eq!(memory.get(OLD + 0x4C, 2), CODE.into());
    assert_eq!(memory.get(OLD + 0x5C, 2), DATA.into());
    assert!(!is_busy(&memory, OLD_TSS) && is_busy(&memory, NEW_TSS));
    // Segments are marked as accessed.
    assert_eq!(memory.get(GDT + u32::from(DATA) + 5, 1), 0x93);
}

#[test]
fn a_call_nests_and_iret_comes_back() {
    let (registers, memory) = machine();
    let done = switch(&registers, &memory, request(Initiator::Call));
    let inner = done.registers.expect("it switches");
    assert_eq!(inner.eflags, 0x4202, "NT");
    assert_eq!(memory.get(NEW, 2), OLD_TSS.into());
    assert!(is_busy(&memory, OLD_TSS) && is_busy(&memory, NEW_TSS));
    // The old task has CR3 in its TSS as software put it there: none is saved.
    memory.put(OLD + 0x1C, 4, 0x8000);
    let back = TaskSwitch {
        selector: OLD_TSS,
        return_eip: 0x200,
        ..request(Initiator::Iret)
    };
    let done = switch(&inner, &memory, back);
    assert_eq!(done.ending, Ending::Runs);
    let outer = done.registers.expect("it switches");
    assert_eq!((outer.eip, outer.eflags), (0x107, 0x46));
    assert_eq!((outer.general, outer.cr3), (registers.general, 0x8000));
    assert_eq!(memory.get(NEW + 0x24, 4), 0x202, "NT is not saved");
    assert!(is_busy(&memory, OLD_TSS) && !is_busy(&memory, NEW_TSS));
}

#[test]
fn a_tss_of_16_bits_has_the_lower_halves() {
    let (mut registers, memory) = machine();
    set_descriptor(&memory, NEW_TSS, system(1, NEW, 0x2B));
    for at in (0..0x68).step_by(4) {
        memory.put(NEW + at, 4, 0);
    }
    for (at, value) in [
        (0x0E, 0x1234),
        (0x10, 0x0202),
        (0x12, 0xAAAA),
        (0x1A, 0x5000),
        (0x22, DATA.into()),
        (0x24, CODE.into()),
        (0x26, DATA.into()),
        (0x28, DATA.into()),
    ] {
        memory.put(NEW + at, 2, value);
    }
    let done = switch(&registers, &memory, request(Initiator::Call));
    assert_eq!(done.ending, Ending::Runs);
    let after = done.registers.expect("it switches");
    assert_eq!((after.eip, after.eflags), (0x1234, 0x4202));
    assert_eq!(after.general, [0xAAAA, 0, 0, 0, 0x5000, 0, 0, 0]);
    assert_eq!((after.cr3, after.tr.rights), (registers.cr3, 0x83));
    // And from one of 16 bits.
    registers.tr = after.tr;
    registers.eflags = 0x1_0046;
    let before = memory.get(NEW + 0x2A, 2);
    set_descriptor(&memory, OLD_TSS, system(9, OLD, 0x67));
    for at in (0..0x68).step_by(4) {
        memory.put(OLD + at, 4, 0);
    }
    memory.put(OLD + 0x4C, 2, CODE.into());
    memory.put(OLD + 0x50, 2, DATA.into());
    let to_old = TaskSwitch {
        selector: OLD_TSS,
        ..request(Initiator::Jump)
    };
    assert_eq!(switch(&registers, &memory, to_old).ending, Ending::Runs);
    assert_eq!(memory.get(NEW + 0x0E, 8), 0x0002_0001_0046_0107);
    assert_eq!(memory.get(NEW + 0x28, 2), DATA.into());
    assert_eq!(memory.get(NEW + 0x2A, 2), before);
}

/// What a test does to the machine before the attempt.
type Spoil = fn(&mut TaskRegisters, &Memory);

/// SDM, table "Exception Conditions Checked During a Task Switch", up to where nothing has changed yet.
#[test]
fn what_is_wrong_with_the_tss_is_the_old_tasks_fault() {
    let sel = u32::from(NEW_TSS);
    let cases: [(Initiator, Spoil, u8, u32); 8] = [
        (Initiator::Jump, |r, _| r.gdtr.1 = 0x26, 13, sel),
        (Initiator::Iret, |r, _| r.gdtr.1 = 0x26, 10, sel),
        (
            Initiator::Call,
            |_, m| set_descriptor(m, NEW_TSS, system(11, NEW, 0x67)),
            13,
            sel,
        ),
        // Not busy.
        (Initiator::Iret, |_, _| {}, 10, sel),
        (
            Initiator::Gate,
            |_, m| set_descriptor(m, NEW_TSS, FLAT_DATA),
            13,
            sel,
        ),
        (
            Initiator::Jump,
            |_, m| set_descriptor(m, NEW_TSS, system(9, NEW, 0x67) & !(1 << 47)),
            11,
            sel,
        ),
        (
            Initiator::Jump,
            |_, m| set_descriptor(m, NEW_TSS, system(9, NEW, 0x66)),
            10,
            sel,
        ),
        (
            Initiator::Jump,
            |r, _| r.tr.limit = 0x66,
            10,
            OLD_TSS as u32,
        ),
    ];
    for (initiator, spoil, vector, code) in cases {
        let (mut registers, memory) = machine();
        spoil(&mut registers, &memory);
        let before = memory.copy();
        let done = switch(&registers, &memory, request(initiator));
        assert_eq!(done.registers, None);
        assert_eq!(done.ending, fault(vector, code), "{initiator:?}");
        assert_eq!(memory.copy(), before);
    }
    // A selector of the LDT, and null.
    for selector in [NEW_TSS | 4, 3] {
        let (registers, memory) = machine();
        let attempt = TaskSwitch {
            selector,
            ..request(Initiator::Jump)
        };
        let ending = switch(&registers, &memory, attempt).ending;
        assert_eq!(ending, fault(13, u32::from(selector & !3)));
    }
}

#[test]
fn a_page_that_is_missing_changes_nothing() {
    type Case = (Vec<u32>, Vec<u32>, PageFault);
    let at = |linear, code| PageFault { linear, code };
    let cases: [Case; 5] = [
        (vec![OLD >> 12], vec![], at(OLD + 0x20, 2)),
        (vec![], vec![OLD >> 12], at(OLD + 0x20, 3)),
        (vec![NEW >> 12], vec![], at(NEW, 0)),
        (vec![], vec![NEW >> 12], at(NEW, 3)),
        (vec![GDT >> 12], vec![], at(GDT + u32::from(NEW_TSS), 0)),
    ];
    for (absent, read_only, wanted) in cases {
        let (registers, mut memory) = machine();
        (memory.absent, memory.read_only) = (absent, read_only);
        let before = memory.copy();
        let done = switch(&registers, &memory, request(Initiator::Call));
        let event = EventInjection {
            vector: 14,
            kind: EventKind::HardwareException,
            error_code: Some(wanted.code),
        };
        assert_eq!(done.registers, None);
        assert_eq!(done.ending, Ending::Exception(event, Some(wanted.linear)));
        assert_eq!(memory.copy(), before);
    }
}

/// The same table, where faults are the new task's.
#[test]
fn what_is_wrong_with_a_segment_is_the_new_tasks_fault() {
    const SET: u32 = SPARE as u32;
    let set = |at: u32, selector: u16, descriptor: u64| {
        move |m: &Memory| {
            m.put(NEW + at, 2, selector.into());
            set_descriptor(m, SPARE, descriptor);
        }
    };
    type Spoil = std::boxed::Box<dyn Fn(&Memory)>;
    let absent = 1_u64 << 47;
    let cases: Vec<(&str, Spoil, u8, u32)> = vec![
        (
            "LDT outside",
            std::boxed::Box::new(set(0x60, 0x48, 0)),
            10,
            0x48,
        ),
        (
            "LDT of another type",
            std::boxed::Box::new(set(0x60, SPARE, FLAT_DATA)),
            10,
            SET,
        ),
        (
            "LDT absent",
            std::boxed::Box::new(set(0x60, SPARE, system(2, LDT, 7) & !absent)),
            10,
            SET,
        ),
        (
            "LDT in itself",
            std::boxed::Box::new(set(0x60, 4, 0)),
            10,
            4,
        ),
        ("SS null", std::boxed::Box::new(set(0x50, 0, 0)), 10, 0),
        (
            "SS read-only",
            std::boxed::Box::new(set(0x50, SPARE, FLAT_DATA & !(1 << 41))),
            10,
            SET,
        ),
        (
            "SS absent",
            std::boxed::Box::new(set(0x50, SPARE, FLAT_DATA & !absent)),
            12,
            SET,
        ),
        (
            "SS of others",
            std::boxed::Box::new(set(0x50, SPARE, FLAT_DATA | 3 << 45)),
            10,
            SET,
        ),
        (
            "SS with RPL",
            std::boxed::Box::new(set(0x50, SPARE | 3, FLAT_DATA)),
            10,
            SET,
        ),
        ("CS null", std::boxed::Box::new(set(0x4C, 0, 0)), 10, 0),
        (
            "CS data",
            std::boxed::Box::new(set(0x4C, SPARE, FLAT_DATA)),
            10,
            SET,
        ),
        (
            "CS absent",
            std::boxed::Box::new(set(0x4C, SPARE, FLAT_CODE & !absent)),
            11,
            SET,
        ),
        (
            "CS of others",
            std::boxed::Box::new(set(0x4C, SPARE, FLAT_CODE | 3 << 45)),
            10,
            SET,
        ),
        (
            "DS outside",
            std::boxed::Box::new(set(0x54, 0x48, 0)),
            10,
            0x48,
        ),
        (
            "DS execute-only",
            std::boxed::Box::new(set(0x54, SPARE, FLAT_CODE & !(1 << 41))),
            10,
            SET,
        ),
        (
            "DS absent",
            std::boxed::Box::new(set(0x54, SPARE, FLAT_DATA & !absent)),
            11,
            SET,
        ),
        (
            "DS with RPL",
            std::boxed::Box::new(set(0x54, SPARE | 3, FLAT_DATA)),
            10,
            SET,
        ),
        (
            "ES of the LDT",
            std::boxed::Box::new(set(0x48, 0x14, 0)),
            10,
            0x14,
        ),
        (
            "GS of a TSS",
            std::boxed::Box::new(set(0x5C, SPARE, system(9, 0, 0x67))),
            10,
            SET,
        ),
    ];
    for (name, spoil, vector, code) in cases {
        let (registers, memory) = machine();
        spoil(&memory);
        let done = switch(&registers, &memory, request(Initiator::Jump));
        assert_eq!(done.ending, fault(vector, code), "{name}");
        let after = done.registers.expect("the switch is done");
        assert_eq!(
            (after.eip, after.tr.selector),
            (0xAABB_0011, NEW_TSS),
            "{name}"
        );
        // The CPU takes such a state: CS is usable and has the DPL of SS.
        let (code, stack) = (
            after.segment(SegmentRegister::Cs),
            after.segment(SegmentRegister::Ss),
        );
        assert!(code.rights & 1 << 16 == 0 && code.rights >> 5 & 3 == stack.rights >> 5 & 3);
    }
}

#[test]
fn a_task_of_user_mode_or_virtual_8086_mode() {
    let (registers, memory) = machine();
    memory.put(NEW + 0x4C, 2, USER_CODE.into());
    for at in [0x48, 0x50, 0x54] {
        memory.put(NEW + at, 2, USER_DATA.into());
    }
    let done = switch(&registers, &memory, request(Initiator::Jump));
    assert_eq!(done.ending, Ending::Runs);
    let after = done.registers.expect("it switches");
    assert_eq!(after.segment(SegmentRegister::Ss).rights, 0xC0F3);

    let (registers, memory) = machine();
    memory.put(NEW + 0x24, 4, 0x2_0202);
    memory.put(NEW + 0x4C, 2, 0x1234);
    let done = switch(&registers, &memory, request(Initiator::Jump));
    assert_eq!(done.ending, Ending::Runs);
    let code = done
        .registers
        .expect("it switches")
        .segment(SegmentRegister::Cs);
    assert_eq!(
        (code.base, code.limit, code.rights),
        (0x1_2340, 0xFFFF, 0xF3)
    );
}

#[test]
fn the_trap_flag_stops_the_new_task_before_its_first_instruction() {
    let (registers, memory) = machine();
    memory.put(NEW + 0x64, 2, 1);
    let done = switch(&registers, &memory, request(Initiator::Jump));
    assert_eq!(done.ending, Ending::DebugTrap);
    // A fault on the way comes first.
    memory.put(NEW + 0x50, 2, 0);
    let (registers, _) = machine();
    let done = switch(
        &registers,
        &memory,
        TaskSwitch {
            selector: OLD_TSS,
            ..request(Initiator::Iret)
        },
    );
    assert!(matches!(done.ending, Ending::Exception(..)));
}

#[test]
fn an_exception_through_a_gate_brings_its_error_code_along() {
    let (registers, memory) = machine();
    let mut attempt = request(Initiator::Gate);
    attempt.return_eip = registers.eip;
    attempt.event = Some(EventInjection {
        vector: 14,
        kind: EventKind::HardwareException,
        error_code: Some(0x1_0006),
    });
    let done = switch(&registers, &memory, attempt);
    let after = done.registers.expect("it switches");
    assert_eq!((done.ending, after.general[4]), (Ending::Runs, STACK - 4));
    assert_eq!(memory.get(STACK - 4, 4), 0x1_0006);
    assert_eq!(memory.get(OLD + 0x20, 4), 0x100, "at the instruction");
    assert_eq!(after.eflags, 0x4202);
    // No room for it: a stack fault after a page fault is a double fault.
    let (registers, memory) = machine();
    set_descriptor(&memory, SPARE, 0x0040_9200_0000_00FF);
    memory.put(NEW + 0x50, 2, SPARE.into());
    let done = switch(&registers, &memory, attempt);
    assert_eq!(done.ending, fault(8, 0));
}

#[test]
fn what_comes_from_outside_is_said_in_error_codes_and_faults_add_up() {
    let event = |kind, vector| {
        Some(EventInjection {
            vector,
            kind,
            error_code: None,
        })
    };
    for (kind, vector, wanted) in [
        (EventKind::ExternalInterrupt, 0x20, fault(10, 1)),
        (EventKind::Nmi, 2, fault(10, 1)),
        (EventKind::SoftwareInterrupt, 0x80, fault(10, 0)),
        (EventKind::SoftwareException, 3, fault(10, 0)),
        (EventKind::HardwareException, 6, fault(10, 1)),
        (EventKind::HardwareException, 0, fault(8, 0)),
        (EventKind::HardwareException, 8, Ending::Shutdown),
    ] {
        let (registers, memory) = machine();
        memory.put(NEW + 0x50, 2, 0);
        let mut attempt = request(Initiator::Gate);
        attempt.event = event(kind, vector);
        let ending = switch(&registers, &memory, attempt).ending;
        assert_eq!(ending, wanted, "{kind:?} {vector}");
    }
}

#[test]
fn any_memory_whatever_ends_in_a_state_that_the_cpu_takes() {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..20_000_u32 {
        let (mut registers, memory) = machine();
        for _ in 0..next() % 6 {
            let at = [GDT, OLD, NEW][next() as usize % 3] + next() as u32 % 0x68;
            memory.put(at, 1, next() & 0xFF);
        }
        registers.tr.limit = next() as u32 & 0xFF;
        let initiator = Initiator::from_qualification(next());
        let attempt = TaskSwitch {
            selector: [NEW_TSS, OLD_TSS, next() as u16][next() as usize % 3],
            ..request(initiator)
        };
        // Bases and stacks go anywhere.
        let memory = Wrapping(memory);
        let done = switch(&registers, &memory, attempt);
        if let Some(after) = done.registers {
            let is_8086 = after.eflags & 1 << 17 != 0;
            let level = if is_8086 {
                3
            } else {
                after.segments[1].selector & 3
            };
            assert_eq!(after.segments[2].rights >> 5 & 3, level.into(), "{round}");
            assert!(after.eflags & 0x2 != 0 && after.eflags & !0x3F_7FD7 == 0);
            assert!(after.tr.rights & 0x9F == 0x8B || after.tr.rights & 0x9F == 0x83);
        }
    }
}

/// The same memory again and again.
struct Wrapping(Memory);

impl LinearMemory for Wrapping {
    fn read(&self, cr3: u64, linear: u32, buffer: &mut [u8]) -> Result<(), PageFault> {
        self.0.read(cr3, linear & 0x7FFF, buffer)
    }
    fn write(&self, cr3: u64, linear: u32, bytes: &[u8], by: Privilege) -> Result<(), PageFault> {
        self.0.write(cr3, linear & 0x7FFF, bytes, by)
    }
    fn probe_write(&self, _: u64, _: u32, _: usize) -> Result<(), PageFault> {
        Ok(())
    }
}
