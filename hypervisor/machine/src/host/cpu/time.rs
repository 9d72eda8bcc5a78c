//! Time: the TSC, calibrated once against the PIT.
//!
//! CPUID's own figure is not used: under emulation it names the modelled CPU's clock while simulated time runs at another
//! rate (on hardware the measured value differs from it by less than the PIT's error). Source: Intel SDM Vol. 3, "Time-Stamp
//! Counter"; 8254 data sheet, mode 0.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::instructions::port::Port;

static TICKS_PER_MS: AtomicU64 = AtomicU64::new(0);
static BOOT_TICKS: AtomicU64 = AtomicU64::new(0);

/// The TSC now, in ticks.
#[inline]
#[must_use]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a counter; CR4.TSD does not matter at CPL 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Marks the hypervisor's entry as time 0.
pub fn mark_boot() {
    BOOT_TICKS.store(ticks(), Ordering::Relaxed);
}

/// The TSC at the hypervisor's entry.
#[must_use]
pub fn boot_ticks() -> u64 {
    BOOT_TICKS.load(Ordering::Relaxed)
}

/// TSC frequency in kHz (ticks per millisecond); 0 before [`calibrate`].
#[inline]
#[must_use]
pub fn khz() -> u64 {
    TICKS_PER_MS.load(Ordering::Relaxed)
}

/// Microseconds since the hypervisor's entry; 0 before calibration.
#[must_use]
pub fn micros_since_boot() -> u64 {
    ticks()
        .wrapping_sub(boot_ticks())
        .saturating_mul(1000)
        .checked_div(khz())
        .unwrap_or(0)
}

/// Ticks in that many nanoseconds, saturating.
#[must_use]
pub fn ns_to_ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(khz()) / 1_000_000).unwrap_or(u64::MAX)
}

/// Frequency of the PIT's input in Hz.
const PIT_HZ: u64 = 1_193_182;
/// How long one calibration takes, in PIT input clocks: about 10 ms.
const PIT_CLOCKS: u16 = 11_932;

/// Measures the TSC against channel 2 of the PIT (its gate is port 0x61's bit 0, its output bit 5). Returns kHz.
///
/// # Errors
/// The message says that the PIT's output never came: a machine without PIT.
pub fn calibrate() -> Result<u64, &'static str> {
    let mut gate: Port<u8> = Port::new(0x61);
    let mut command: Port<u8> = Port::new(0x43);
    let mut channel2: Port<u8> = Port::new(0x42);
    let (start, end);
    // SAFETY: the ports are the PIT's and the system control port's; channel 2 drives only the speaker, which stays off
    // (bit 1 of port 0x61 is 0). Called once, on the boot CPU.
    unsafe {
        let before = gate.read() & 0xFC;
        gate.write(before);
        command.write(0b1011_0000);
        let [low, high] = PIT_CLOCKS.to_le_bytes();
        channel2.write(low);
        channel2.write(high);
        gate.write(before | 1);
        start = ticks();
        let mut polls = 0_u64;
        while gate.read() & 0x20 == 0 {
            polls += 1;
            if polls > 100_000_000 {
                return Err("the PIT's channel 2 does not count");
            }
        }
        end = ticks();
        gate.write(before);
    }
    let khz = (end - start) * PIT_HZ / u64::from(PIT_CLOCKS) / 1000;
    if khz == 0 {
        return Err("the TSC does not count");
    }
    TICKS_PER_MS.store(khz, Ordering::Relaxed);
    Ok(khz)
}

/// Spins for that many microseconds (needs calibration).
pub fn spin_micros(micros: u64) {
    let end = ticks() + micros * khz() / 1000;
    while ticks() < end {
        core::hint::spin_loop();
    }
}
