//! Random bytes for guests.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::host::cpu::time;

/// A VM's source.
#[derive(Debug)]
pub(super) struct Random {
    /// The CPU's own generator is used.
    has_hardware: bool,
    /// State of a generator for runs that repeat exactly, and for CPUs without one.
    state: AtomicU64,
}

impl Random {
    /// The source of a VM. With `deterministic` its bytes depend on the VM's number only.
    pub(super) fn new(vm_id: u16, deterministic: bool) -> Random {
        let has_rdrand = core::arch::x86_64::__cpuid(1).ecx & 1 << 30 != 0;
        let seed = if deterministic { 0 } else { time::ticks() };
        Random {
            has_hardware: has_rdrand && !deterministic,
            state: AtomicU64::new(seed.rotate_left(16) ^ u64::from(vm_id)),
        }
    }

    pub(super) fn fill(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let word = if self.has_hardware {
                // Fails only for moments, when all CPUs ask at once.
                (0..16).find_map(|_| rdrand())
            } else {
                None
            };
            let word = word.unwrap_or_else(|| self.next()).to_le_bytes();
            for (place, byte) in part.iter_mut().zip(word) {
                *place = byte;
            }
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): not for keys.
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let state = self.state.fetch_add(STEP, Ordering::Relaxed);
        let mut mixed = state.wrapping_add(STEP);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}

fn rdrand() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: called only where CPUID offers RDRAND (`Random::new`); it changes the named register and flags.
    unsafe {
        core::arch::asm!("rdrand {value}", "setc {ok}", value = out(reg) value, ok = out(reg_byte) ok,
            options(nomem, nostack));
    }
    (ok != 0).then_some(value)
}
