//! Time: the TSC, in ticks. Its frequency is what the hypervisor calibrated.

use core::arch::x86_64::{__cpuid, _mm_lfence, _mm_pause, _rdtsc};

/// The TSC now. Not ordered against the instructions around it.
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC is on every x86-64 CPU; it is not restricted at CPL 0.
    unsafe { _rdtsc() }
}

/// The TSC after everything before has been executed (Intel SDM, RDTSC, "LFENCE; RDTSC").
#[must_use]
pub fn ticks_ordered() -> u64 {
    // SAFETY: LFENCE is SSE2's, which is part of x86-64, and uses no vector register.
    unsafe { _mm_lfence() };
    ticks()
}

/// Tells the CPU that this is a waiting loop (PAUSE).
#[inline]
pub fn pause() {
    // SAFETY: PAUSE is a NOP on CPUs that do not know it.
    #[allow(unused_unsafe)]
    unsafe {
        _mm_pause();
    }
}

/// TSC frequency in kHz; 1 on a host, so that it can be divided by.
#[must_use]
pub fn khz() -> u64 {
    crate::boot::try_boot_info().map_or(1, |info| info.tsc_khz.max(1))
}

/// Ticks as nanoseconds, rounded down; cut at `u64::MAX`.
#[must_use]
pub fn ticks_to_ns(ticks: u64) -> u64 {
    scale(ticks, 1_000_000, khz())
}

/// Microseconds as ticks, rounded down; cut at `u64::MAX`.
#[must_use]
pub fn micros_to_ticks(us: u64) -> u64 {
    scale(us, khz(), 1_000)
}

/// Milliseconds as ticks; cut at `u64::MAX`.
#[must_use]
pub fn ms_to_ticks(ms: u64) -> u64 {
    scale(ms, khz(), 1)
}

fn scale(value: u64, by: u64, per: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(by) / u128::from(per)).unwrap_or(u64::MAX)
}

/// A moment on the TSC after which waiting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(u64);

impl Deadline {
    /// `span` ticks from now.
    #[must_use]
    pub fn after(span: u64) -> Deadline {
        Deadline(ticks().saturating_add(span))
    }

    /// `ms` milliseconds from now.
    #[must_use]
    pub fn after_ms(ms: u64) -> Deadline {
        Deadline::after(ms_to_ticks(ms))
    }

    /// The TSC value.
    #[must_use]
    pub fn tsc(self) -> u64 {
        self.0
    }

    /// Whether it has come.
    #[must_use]
    pub fn has_passed(self) -> bool {
        ticks() >= self.0
    }
}

/// Spins for `ms` milliseconds without leaving the guest.
pub fn spin_ms(ms: u64) {
    let deadline = Deadline::after_ms(ms);
    while !deadline.has_passed() {
        pause();
    }
}

/// CPUID's EAX, EBX, ECX, EDX for a leaf (sub-leaf 0).
#[must_use]
pub fn cpuid(leaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has CPUID.
    let answer = unsafe { __cpuid(leaf) };
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn ticks_scale_without_overflow_and_are_cut_at_the_end() {
        assert_eq!(scale(3_500, 1_000_000, 3_500_000), 1_000);
        assert_eq!(scale(u64::MAX, 2, 2), u64::MAX);
        assert_eq!(scale(u64::MAX, 3, 2), u64::MAX);
    }
}
