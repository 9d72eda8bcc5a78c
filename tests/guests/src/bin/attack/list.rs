//! The attacks that a guest survives itself: each is one step, done again and again for its window of time.

use nagaya_rt::apic::{Apic, Target};
use nagaya_rt::hypercall::{self, Doorbells, raw};
use nagaya_rt::probe::{self, Instruction, memory, state};
use nagaya_rt::{time, traps};

/// One attack; the number of the step is handed in.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) step: fn(u64),
}

const MAP: u64 = 39;
const GROUP_INFO: u64 = 0x101;
const UNMAP: u64 = 0x102;
const DOORBELL: u64 = 0x103;
const WAIT: u64 = 0x104;
const YIELD: u64 = 0x105;
/// Where `main` has mapped as many scattered pages as the region has.
pub(crate) const SCATTERED: u64 = 0x40_0000_0000;
/// The same, with a hole as its last page.
pub(crate) const HOLED: u64 = 0x41_0000_0000;
/// A place between devices where nothing answers.
const NOTHING: u64 = 0xFD00_0000;
const VECTOR: u8 = 0x61;

static ZEROS: [u8; 4096] = [0; 4096];
static ONES: [u8; 4096] = [1; 4096];
static LETTERS: [u8; 4096] = [b'a'; 4096];
static LINES: [u8; 4096] = [b'\n'; 4096];
static INVALID: [u8; 4096] = [0xFF; 4096];

fn mix(step: u64) -> u64 {
    let mixed = (step ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ mixed >> 31
}

fn call(number: u64, first: u64) {
    let _ = raw(number, [first, 0, 0, 0, 0]);
}

fn read_msr(number: u32) {
    let _ = probe::read_msr(number);
}

fn write_msr(number: u32, value: u64) {
    let _ = probe::write_msr(number, value);
}

fn say(bytes: &[u8], channel: u64) {
    let _ = hypercall::console(bytes, channel);
}

fn apic(action: impl FnOnce(Apic)) {
    traps::set_handler(VECTOR, |_| ());
    if let Some(apic) = Apic::enable() {
        action(apic);
    }
}

fn configuration(address: u32, value: Option<u32>) {
    probe::port_write_u32(0xCF8, 0x8000_0000 | address);
    match value {
        Some(value) => probe::port_write_u32(0xCFC, value),
        None => {
            let _ = probe::port_read_u32(0xCFC);
        }
    }
}

macro_rules! attacks {
    ($($name:literal: $step:expr;)*) => {
        /// All of them.
        pub(crate) static ATTACKS: &[Attack] = &[$(Attack { name: $name, step: $step }),*];
    };
}

attacks! {
    // What the others are measured by: no attack.
    "nothing": |_| ();
    // Hypercalls.
    "call-version": |_| call(0x100, 0);
    "call-unknown": |step| call(0x2000 + step % 100, step);
    "call-random-numbers": |step| match mix(step) {
        // `exit` would end it.
        0x106 => {}
        number => call(number | 1 << 40, step),
    };
    "map-unaligned": |_| call(MAP, SCATTERED + 8);
    "map-not-canonical": |_| call(MAP, 0x8000_0000_0000);
    "map-kernel-half-unmapped": |_| call(MAP, 0xFFFF_8000_0000_0000);
    "map-nothing-there": |_| call(MAP, 0x7000_0000_0000);
    "map-wraps": |_| call(MAP, 0xFFFF_FFFF_FFFF_F000);
    "map-hole-at-the-end": |_| call(MAP, HOLED);
    "map-and-unmap-scattered": |_| {
        call(MAP, SCATTERED);
        call(UNMAP, SCATTERED);
    };
    "unmap-what-is-not": |_| call(UNMAP, SCATTERED);
    "group-info-nowhere": |_| {
        let _ = raw(GROUP_INFO, [0x7000_0000_0000, 64, 0, 0, 0]);
    };
    "group-info-across-a-page": |_| {
        let _ = raw(GROUP_INFO, [0x7FFF_FFFF_FFF8, 64, 0, 0, 0]);
    };
    "doorbell-flood": |step| call(DOORBELL, step % 2);
    "doorbell-nobody": |_| call(DOORBELL, u64::MAX);
    "wait-a-nanosecond": |_| call(WAIT, 1);
    "wait-a-microsecond": |_| call(WAIT, 1000);
    "yield-storm": |_| call(YIELD, u64::MAX);
    "yield-to-nobody": |_| call(YIELD, 77);
    "deadline-past": |_| { let _ = hypercall::set_deadline(1); };
    "deadline-far": |_| { let _ = hypercall::set_deadline(u64::MAX); };
    "vector-on-and-off": |step| {
        let _ = hypercall::doorbell_vector(if step.is_multiple_of(2) { 0x60 } else { 0 });
    };
    "vector-wrong": |_| { let _ = hypercall::doorbell_vector(1 << 20); };
    "mask-on-and-off": |step| {
        let masked = step.is_multiple_of(2);
        let _ = hypercall::doorbell_mask(if masked { Doorbells::Masked } else { Doorbells::Open });
    };
    // MSRs.
    "msr-read-all-in-turn": |step| read_msr((step % 0x2000) as u32);
    "msr-read-high": |step| read_msr(0xC000_0000 | (step % 0x2000) as u32);
    "msr-write-unknown": |step| write_msr(0x3000 + (step % 0x1000) as u32, step);
    "msr-hypervisor-range": |step| read_msr(0x4000_0000 | (step % 0x200) as u32);
    "msr-pat-wrong": |_| write_msr(0x277, u64::MAX);
    "msr-apic-base-wrong": |step| write_msr(0x1B, 1 << 52 | step << 12);
    "msr-steal-time-nowhere": |_| write_msr(0x4B56_4D03, 0x7FFF_FFFF_F001);
    "msr-microcode": |_| { write_msr(0x8B, 0); read_msr(0x8B); };
    // The APIC.
    "ipi-to-itself": |_| apic(|apic| apic.send(Target::Own, VECTOR));
    "ipi-to-nobody": |step| apic(|apic| apic.send(Target::One(9 + (step % 200) as u32), VECTOR));
    "ipi-to-all-others": |_| apic(|apic| apic.send(Target::Others, VECTOR));
    "apic-timer-one-tick": |_| apic(|apic| apic.one_shot(VECTOR, 1));
    "apic-timer-periodic-shortest": |_| apic(|apic| apic.periodic(VECTOR, 1));
    "apic-deadline-past": |_| apic(|apic| { let _ = apic.deadline(VECTOR, 1); apic.stop_timer(); });
    "apic-end-of-interrupt-storm": |_| apic(|_| write_msr(0x80B, 0));
    // Ports.
    "port-unassigned": |step| { let _ = probe::port_read_u8(0x5000 | (step & 0xFFF) as u16); };
    "port-every-one": |step| { let _ = probe::port_read_u32((step as u16) & 0xFFFC); };
    "port-emulator-off": |step| {
        let off = b"Shutdown";
        if let Some(byte) = off.get((step % 8) as usize) {
            probe::port_write_u8(0x8900, *byte);
        }
    };
    "port-debug-exit": |_| probe::port_write_u32(0xF4, 0x10);
    "port-reset-register": |_| probe::port_write_u8(0xCF9, 6);
    "port-keyboard-reset": |_| probe::port_write_u8(0x64, 0xFE);
    "port-strings-in": |_| probe::port_read_string(0x80, &mut [0; 4096]);
    "port-strings-out": |_| probe::port_write_string(0x80, &[7; 1024]);
    "pci-every-register": |step| configuration((step as u32 & 0xFFFF) << 2, None);
    "pci-move-what-is-there": |step| configuration(1 << 11 | 0x10, Some(mix(step) as u32));
    // Memory where nothing is.
    "memory-read-nothing": |_| { let _ = memory::loads(NOTHING); };
    "memory-change-nothing": |_| { let _ = memory::changes(NOTHING); };
    "memory-strings-of-nothing": |_| memory::read_string(NOTHING, &mut [0; 1024]);
    // Instructions.
    "cpuid-storm": |step| { let _ = time::cpuid(step as u32); };
    "undefined-instruction": |_| { let _ = probe::execute(Instruction::Undefined); };
    "vmx-instruction": |_| { let _ = probe::execute(Instruction::Vmxon); };
    "flush-all-caches": |_| { let _ = probe::execute(Instruction::Wbinvd); };
    "cr0-cache-bits": |step| { let _ = probe::set_cr0_cache_bits(step << 29); };
    "cr4-forbidden-bit": |_| { let _ = probe::set_cr4_bits(probe::CR4_VMXE); };
    "task-priority": |step| state::set_task_priority(step % 3);
    "pause-storm": |_| time::pause();
    "null-pointer": |_| { let _ = probe::read_null(); };
    // What it says: last, since what else it has to say is dropped then.
    "console-nothing": |_| say(&[], 0);
    "console-letters": |_| say(&LETTERS, 0);
    "console-line-feeds": |_| say(&LINES, 0);
    "console-control-characters": |_| say(&ONES, 0);
    "console-invalid-text": |_| say(&INVALID, 0);
    "console-zeros": |_| say(&ZEROS, 0);
    "event-letters": |_| say(&LETTERS, 1);
    "event-control-characters": |_| say(&ONES, 1);
    "event-invalid-text": |_| say(&INVALID, 1);
    "console-unknown-channel": |step| say(&LETTERS, 2 + step);
    "console-nowhere": |_| { let _ = hypercall::console_at(0x7000_0000_0000, 4096, 0); };
}
