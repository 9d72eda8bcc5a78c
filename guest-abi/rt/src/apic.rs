//! The local APIC of the calling vCPU: by MSRs (x2APIC) where CPUID has them, else by memory (xAPIC).
//!
//! An access costs an exit, so that registers are not read without need. Only plain 32-bit MOVs touch the register page: that
//! is what emulators of it know best.
//!
//! Concurrency: each vCPU has its own; the mode is the VM's, and each vCPU calls [`Apic::enable`] for itself.
//!
//! Source: Intel SDM Vol. 3, "Advanced Programmable Interrupt Controller (APIC)".

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use guest_abi::boot;
use guest_abi::cpuid::{FEATURE_EOI_WORD, LEAF_VERSION, MSR_EOI_WORD};

use crate::time;

const IA32_APIC_BASE: u32 = 0x1B;
const IA32_TSC_DEADLINE: u32 = 0x6E0;
const IA32_GS_BASE: u32 = 0xC000_0101;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
/// Where the registers are unless moved.
const PAGE: usize = 0xFEE0_0000;

/// Vector of interrupts that were withdrawn; they are not acknowledged.
const SPURIOUS: u8 = 0xFF;

const ID: u32 = 0x020;
const TASK_PRIORITY: u32 = 0x080;
const END_OF_INTERRUPT: u32 = 0x0B0;
const SPURIOUS_VECTOR: u32 = 0x0F0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3E0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 1 << 18;
/// Divide by 1.
const BY_ONE: u32 = 0b1011;

const NONE: u8 = 0;
const BY_MEMORY: u8 = 1;
const BY_MSR: u8 = 2;
static MODE: AtomicU8 = AtomicU8::new(NONE);
/// Ticks of 2^16 counts of the timer; 0 before it has been measured.
static TICKS_OF_COUNTS: AtomicU64 = AtomicU64::new(0);
const MEASURED_SHIFT: u32 = 16;

fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only MSRs that the APIC of this vCPU has are read; reading changes no memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    };
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(msr: u32, value: u64) {
    // SAFETY: MSRs of the APIC decide about interrupts, and every vector has a handler; GS and the word that the hypervisor writes
    // are used by this module alone, and that word lives for ever. Not `nomem`: a message to another vCPU comes after the stores
    // before it.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    };
}

/// To whom an inter-processor interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The vCPU with that APIC ID.
    One(u32),
    /// The sender.
    Own,
    /// All vCPUs but the sender.
    Others,
    /// All vCPUs.
    All,
}

/// The calling vCPU's local APIC, enabled.
#[derive(Clone, Copy, Debug)]
pub struct Apic(());

impl Apic {
    /// Switches it on, with x2APIC if there is one. `None` if CPUID says that there is no APIC.
    #[must_use]
    pub fn enable() -> Option<Apic> {
        Apic::enable_as(time::cpuid(1)[2] & 1 << 21 != 0)
    }

    /// As [`Apic::enable`], by memory even if x2APIC is there. Once by MSRs, always by MSRs.
    #[must_use]
    pub fn enable_by_memory() -> Option<Apic> {
        Apic::enable_as(false)
    }

    fn enable_as(by_msr: bool) -> Option<Apic> {
        if time::cpuid(1)[3] & 1 << 9 == 0 {
            return None;
        }
        let base = read_msr(IA32_APIC_BASE);
        let by_msr = by_msr || base & BASE_X2APIC != 0;
        let extended = if by_msr { BASE_X2APIC } else { 0 };
        let wanted = base | BASE_ENABLE | extended;
        if wanted != base {
            write_msr(IA32_APIC_BASE, wanted);
        }
        MODE.store(if by_msr { BY_MSR } else { BY_MEMORY }, Ordering::Release);
        offer_word();
        // An interrupt that is withdrawn comes with this vector and wants no answer.
        crate::traps::set_handler(SPURIOUS, |_| ());
        write(SPURIOUS_VECTOR, SOFTWARE_ENABLE | u32::from(SPURIOUS));
        write(TASK_PRIORITY, 0);
        Some(Apic(()))
    }

    /// Whether it is reached by MSRs.
    #[must_use]
    pub fn is_x2apic(&self) -> bool {
        MODE.load(Ordering::Relaxed) == BY_MSR
    }

    /// Its ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        let id = read(ID);
        if self.is_x2apic() { id } else { id >> 24 }
    }

    /// Sends an interrupt with that vector.
    pub fn send(&self, target: Target, vector: u8) {
        let (shorthand, destination) = match target {
            Target::One(id) => (0, id),
            Target::Own => (1, 0),
            Target::All => (2, 0),
            Target::Others => (3, 0),
        };
        // Fixed, edge, asserted.
        let low = u32::from(vector) | 1 << 14 | shorthand << 18;
        if self.is_x2apic() {
            let value = u64::from(destination) << 32 | u64::from(low);
            write_msr(msr_of(COMMAND_LOW), value);
        } else {
            write(COMMAND_HIGH, destination << 24);
            write(COMMAND_LOW, low);
        }
    }

    /// One interrupt in about `ticks` ticks of the TSC. Another setting of the timer takes its place.
    pub fn one_shot(&self, vector: u8, ticks: u64) {
        let count = self.counts(ticks);
        write(DIVIDE, BY_ONE);
        write(TIMER, u32::from(vector));
        write(INITIAL_COUNT, count);
    }

    /// An interrupt every `ticks` ticks or so.
    pub fn periodic(&self, vector: u8, ticks: u64) {
        let count = self.counts(ticks);
        write(DIVIDE, BY_ONE);
        write(TIMER, u32::from(vector) | PERIODIC);
        write(INITIAL_COUNT, count);
    }

    /// Whether the timer can be set to a TSC value.
    #[must_use]
    pub fn has_deadline(&self) -> bool {
        time::cpuid(1)[2] & 1 << 24 != 0
    }

    /// One interrupt when the TSC reaches `tsc`. `false` if this APIC cannot do that.
    #[must_use]
    pub fn deadline(&self, vector: u8, tsc: u64) -> bool {
        if !self.has_deadline() {
            return false;
        }
        write(TIMER, u32::from(vector) | TSC_DEADLINE);
        write_msr(IA32_TSC_DEADLINE, tsc);
        true
    }

    /// Sets the moment anew after [`Apic::deadline`], by one access.
    pub fn move_deadline(&self, tsc: u64) {
        write_msr(IA32_TSC_DEADLINE, tsc);
    }

    /// Stops the timer.
    pub fn stop_timer(&self) {
        write(TIMER, MASKED);
        write(INITIAL_COUNT, 0);
    }

    /// Ticks of 65,536 counts: measured once, with the timer masked.
    #[must_use]
    pub fn ticks_of_counts(&self) -> u64 {
        let known = TICKS_OF_COUNTS.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        write(DIVIDE, BY_ONE);
        write(TIMER, MASKED);
        write(INITIAL_COUNT, u32::MAX);
        let (start, first) = (time::ticks(), read(CURRENT_COUNT));
        while time::ticks() - start < 1 << 18 {
            time::pause();
        }
        let (end, last) = (time::ticks(), read(CURRENT_COUNT));
        write(INITIAL_COUNT, 0);
        let counted = u64::from(first.wrapping_sub(last)).max(1);
        let measured = (((end - start) << MEASURED_SHIFT) / counted).max(1);
        TICKS_OF_COUNTS.store(measured, Ordering::Relaxed);
        measured
    }

    fn counts(&self, ticks: u64) -> u32 {
        let counts = (u128::from(ticks) << MEASURED_SHIFT) / u128::from(self.ticks_of_counts());
        u32::try_from(counts).unwrap_or(u32::MAX).max(1)
    }
}

/// Resets this VM: INIT from vCPU 0 to itself. It begins its next life as one that was just made, under its name and in its group.
pub fn reset_vm() -> ! {
    const INIT: u32 = 0b101 << 8 | 1 << 14;
    if MODE.load(Ordering::Relaxed) == BY_MSR {
        write_msr(msr_of(COMMAND_LOW), INIT.into());
    } else {
        write(COMMAND_HIGH, 0);
        write(COMMAND_LOW, INIT);
    }
    loop {
        time::pause();
    }
}

/// A vCPU's word for ends of interrupts (`guest_abi::cpuid::MSR_EOI_WORD`); its vCPU's GS base is its address.
#[repr(C, align(64))]
struct Word(AtomicU32);

static WORDS: [Word; boot::MAX_VCPUS as usize] =
    [const { Word(AtomicU32::new(0)) }; boot::MAX_VCPUS as usize];
/// The word of vCPUs that have told the hypervisor none: it is never set.
static NO_WORD: Word = Word(AtomicU32::new(0));
static HAS_WORDS: AtomicBool = AtomicBool::new(false);

fn set_word(word: &'static Word) -> u64 {
    let address = (&raw const *word).expose_provenance() as u64;
    write_msr(IA32_GS_BASE, address);
    address
}

/// Before a vCPU has enabled its APIC: another may have, and interrupts may come past an APIC.
pub(crate) fn init() {
    // With a selector the base would be lost on the way back from ring 3.
    // SAFETY: nothing is reached through GS before its base is set.
    unsafe { asm!("mov gs, {:x}", in(reg) 0_u16, options(nomem, nostack, preserves_flags)) };
    let _ = set_word(&NO_WORD);
}

/// Lets the calling vCPU end interrupts by its word, if the hypervisor looks at one.
fn offer_word() {
    let [_, features, _, index] = time::cpuid(LEAF_VERSION);
    if features & FEATURE_EOI_WORD == 0 {
        return;
    }
    let Some(word) = WORDS.get(index as usize) else {
        return;
    };
    let address = set_word(word);
    write_msr(MSR_EOI_WORD, address | 1);
    HAS_WORDS.store(true, Ordering::Release);
}

/// Whether the word said that the end need not be told; it does not any more.
fn take_word() -> bool {
    let was_set: u8;
    // SAFETY: GS base is the address of this vCPU's word, or of `NO_WORD`: `init` comes before all else.
    unsafe {
        asm!("btr dword ptr gs:[0], 0", "setc {}", out(reg_byte) was_set, options(nostack));
    }
    was_set != 0
}

/// Tells the APIC that the interrupt that is being served is done. Nothing without one.
pub(crate) fn end_of_interrupt() {
    let is_told = HAS_WORDS.load(Ordering::Relaxed) && take_word();
    if !is_told && MODE.load(Ordering::Relaxed) != NONE {
        write(END_OF_INTERRUPT, 0);
    }
}

const fn msr_of(register: u32) -> u32 {
    0x800 + (register >> 4)
}

fn read(register: u32) -> u32 {
    if MODE.load(Ordering::Relaxed) == BY_MSR {
        return read_msr(msr_of(register)) as u32;
    }
    let value: u32;
    // SAFETY: the register page of this vCPU's APIC, in the one-to-one mapping; nothing of Rust's lies there.
    unsafe {
        asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) PAGE + register as usize, options(nostack, preserves_flags));
    };
    value
}

fn write(register: u32, value: u32) {
    if MODE.load(Ordering::Relaxed) == BY_MSR {
        return write_msr(msr_of(register), value.into());
    }
    // SAFETY: as above; what is written decides about interrupts only, and every vector has a handler.
    unsafe {
        asm!("mov dword ptr [{}], {:e}", in(reg) PAGE + register as usize, in(reg) value, options(nostack, preserves_flags));
    };
}
