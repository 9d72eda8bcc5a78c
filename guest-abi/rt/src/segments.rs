//! Segments of the guest's own.
//!
//! The hypervisor starts a guest on a minimal GDT without a task-state segment. This one keeps its two selectors and adds
//! user segments, and a TSS whose stack serves double faults and page faults, so that a stack that overflowed into its guard
//! page is reported instead of ending in a triple fault.
//!
//! Concurrency: written once, on vCPU 0.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Interrupt-stack-table index of the emergency stack.
pub(crate) const EMERGENCY_STACK: u64 = 1;
/// Data of ring 3.
pub(crate) const USER_DATA: u64 = 0x18 | 3;
/// 64-bit code of ring 3.
pub(crate) const USER_CODE: u64 = 0x20 | 3;
const TASK: u16 = 0x28;

#[repr(C, align(16))]
struct Stack([AtomicU64; 1024]);

static GDT: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
/// The TSS's 104 bytes as words; fields straddle them: RSP0 at byte 4, IST1 at byte 36.
static TSS: [AtomicU64; 13] = [const { AtomicU64::new(0) }; 13];
static EMERGENCY: Stack = Stack([const { AtomicU64::new(0) }; 1024]);
static KERNEL: Stack = Stack([const { AtomicU64::new(0) }; 1024]);

fn top(stack: &'static Stack) -> u64 {
    (&raw const *stack).expose_provenance() as u64 + size_of::<Stack>() as u64
}

/// Stores a 64-bit field at byte `offset` = 4 modulo 8 of the TSS.
fn set_tss(offset: usize, value: u64) {
    TSS[offset / 8].fetch_or(value << 32, Ordering::Relaxed);
    TSS[offset / 8 + 1].fetch_or(value >> 32, Ordering::Relaxed);
}

/// Loads the tables.
pub(crate) fn init() {
    set_tss(4, top(&KERNEL));
    set_tss(36, top(&EMERGENCY));
    let tss = (&raw const TSS).expose_provenance() as u64;
    let low = 103 | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
    for (slot, descriptor) in GDT.iter().zip([
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
        low,
        tss >> 32,
    ]) {
        slot.store(descriptor, Ordering::Relaxed);
    }
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: size_of_val(&GDT) as u16 - 1,
        base: (&raw const GDT).expose_provenance() as u64,
    };
    // SAFETY: the table repeats the descriptors of the two selectors in use and lives for ever; the TSS is not busy.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags));
        asm!("ltr {0:x}", in(reg) TASK, options(nostack, preserves_flags));
    }
}
