//! Time: the TSC, whose rate is found once, by `nagaya-clock`, from CPUID and by measuring it against the PIT.
//!
//! CPUID's figure counts only where no measurement contradicts it: under emulation it names the modelled CPU's clock while simulated
//! time runs at another rate. Source: Intel SDM Vol. 3, "Time-Stamp Counter"; 8254 data sheet, mode 0.

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_clock::{Frequency, Reference, Stuck};
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

/// Channel 2 of the PIT: its gate is port 0x61's bit 0, its output bit 5.
struct Pit {
    gate: Port<u8>,
    command: Port<u8>,
    channel2: Port<u8>,
    /// Port 0x61 with the gate and the speaker off.
    off: u8,
}

impl Pit {
    fn new() -> Pit {
        let mut gate: Port<u8> = Port::new(0x61);
        // SAFETY: reads the system control port, which changes nothing.
        let off = unsafe { gate.read() } & 0xFC;
        Pit {
            gate,
            command: Port::new(0x43),
            channel2: Port::new(0x42),
            off,
        }
    }
}

impl Reference for Pit {
    fn ticks(&mut self) -> u64 {
        ticks()
    }

    fn prepare(&mut self, clocks: u16) {
        let [low, high] = clocks.to_le_bytes();
        // SAFETY: the ports are the PIT's and the system control port's; channel 2 drives only the speaker, which stays off
        // (bit 1 of port 0x61 is 0). Mode 0, low byte first; with the gate off it does not count.
        unsafe {
            self.gate.write(self.off);
            self.command.write(0b1011_0000);
            self.channel2.write(low);
            self.channel2.write(high);
        }
    }

    fn start(&mut self) {
        // SAFETY: as above; opens the gate.
        unsafe { self.gate.write(self.off | 1) };
    }

    fn is_over(&mut self) -> bool {
        // SAFETY: as above; a read.
        unsafe { self.gate.read() & 0x20 != 0 }
    }
}

impl Drop for Pit {
    fn drop(&mut self) {
        // SAFETY: as above; closes the gate.
        unsafe { self.gate.write(self.off) };
    }
}

/// What CPUID says of rates, most trustworthy first: the hypervisor below, which knows at which rate it lets the TSC run, then
/// the CPU.
#[derive(Clone, Copy)]
struct Told {
    tsc_khz: [Option<u64>; 2],
    apic_khz: [Option<u64>; 2],
}

fn told() -> Told {
    let leaf = core::arch::x86_64::__cpuid;
    let crystal = (leaf(0).eax >= 0x15)
        .then(|| leaf(0x15))
        .and_then(|found| nagaya_clock::crystal(found.eax, found.ebx, found.ecx));
    // CPUID.1:ECX[31]: there is a hypervisor.
    let highest = if leaf(1).ecx >> 31 == 1 {
        leaf(0x4000_0000).eax
    } else {
        0
    };
    let timing = leaf(0x4000_0010);
    let (tsc, apic) = nagaya_clock::hypervisor_timing(highest, timing.eax, timing.ebx);
    Told {
        tsc_khz: [tsc, crystal.map(|crystal| crystal.tsc_khz)],
        apic_khz: [apic, crystal.map(|crystal| crystal.hz / 1000)],
    }
}

/// What CPUID says of the APIC timer's rate at divide-by-1, in kHz, most trustworthy first.
#[must_use]
pub fn told_apic_khz() -> [Option<u64>; 2] {
    told().apic_khz
}

/// Finds the TSC's rate. Called once, on the boot CPU.
///
/// # Errors
/// A machine without PIT, or without a TSC that counts.
pub fn calibrate() -> Result<Frequency, Stuck> {
    let found = nagaya_clock::measure(&mut Pit::new(), &told().tsc_khz)?;
    TICKS_PER_MS.store(found.khz, Ordering::Relaxed);
    Ok(found)
}

/// Spins for that many microseconds (needs calibration).
pub fn spin_micros(micros: u64) {
    let end = ticks() + micros * khz() / 1000;
    while ticks() < end {
        core::hint::spin_loop();
    }
}
