//! The local APIC of each CPU: IPIs, NMIs and the one-shot timer of the idle loop. A thin owner of the crate `x2apic`.
//!
//! Source: Intel SDM Vol. 3, "Advanced Programmable Interrupt Controller (APIC)". The APIC is never disabled once enabled:
//! in Bochs it would not come back, and nothing on hardware needs it.

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_clock::Countdown;
use x2apic::lapic::{LocalApic, LocalApicBuilder, TimerDivide, TimerMode};

use x86_defs::apic::ApicMode;

use crate::host::cpu::time;
use crate::host::physical_map;

/// Vector of kicks.
pub const KICK_VECTOR: u8 = 0xF0;
/// Vector of the local timer.
pub const TIMER_VECTOR: u8 = 0xF1;
/// Vector of APIC errors.
pub const ERROR_VECTOR: u8 = 0xFE;
/// Vector of spurious interrupts (its low four bits must be ones on old CPUs).
pub const SPURIOUS_VECTOR: u8 = 0xFF;

const XAPIC_BASE: u64 = 0xFEE0_0000;

/// Timer counts per millisecond at divide-by-1, measured once.
static TIMER_PER_MS: AtomicU64 = AtomicU64::new(0);

/// Masks both legacy interrupt controllers for good: the firmware leaves them on, with vectors that mean exceptions here.
/// Source: 8259A data sheet, operation control word 1.
pub fn mask_legacy_controllers() {
    for data_port in [0x21, 0xA1] {
        // SAFETY: the data ports of the two 8259A; all ones mask every line. Nothing in the hypervisor uses them.
        unsafe { x86_64::instructions::port::Port::<u8>::new(data_port).write(0xFF) };
    }
}

/// The executing CPU's local APIC.
pub struct Apic {
    local: LocalApic,
    mode: ApicMode,
}

impl Apic {
    /// Enables the executing CPU's local APIC, in x2APIC mode where there is one.
    ///
    /// # Errors
    /// What the crate says is missing.
    pub fn enable() -> Result<Apic, &'static str> {
        let mut local = LocalApicBuilder::new()
            .timer_vector(usize::from(TIMER_VECTOR))
            .error_vector(usize::from(ERROR_VECTOR))
            .spurious_vector(usize::from(SPURIOUS_VECTOR))
            .timer_mode(TimerMode::OneShot)
            .timer_divide(TimerDivide::Div1)
            .timer_initial(0)
            .set_xapic_base(physical_map::device_address(XAPIC_BASE))
            .build()?;
        // SAFETY: the IDT has handlers for the four vectors (`traps::load` ran before), interrupts are off, and each CPU
        // enables its own APIC once.
        unsafe {
            local.enable();
            // Once more: while an APIC is disabled by software, as after INIT, its local vectors stay masked whatever is
            // written (SDM, "Local APIC State After It Has Been Software Disabled"), and `enable` unmasks the timer first.
            local.enable_timer();
        }
        // The crate decides by the same bit: CPUID.1:ECX[21].
        let mode = if core::arch::x86_64::__cpuid(1).ecx >> 21 & 1 == 1 {
            ApicMode::X2Apic
        } else {
            ApicMode::XApic
        };
        Ok(Apic { local, mode })
    }

    /// Sends the kick IPI.
    pub fn send_kick(&mut self, apic_id: u32) {
        let destination = self.destination(apic_id);
        // SAFETY: every CPU that can be named here has a handler for the vector that only acknowledges it.
        unsafe { self.local.send_ipi(KICK_VECTOR, destination) };
    }

    /// Sends an NMI.
    pub fn send_nmi(&mut self, apic_id: u32) {
        let destination = self.destination(apic_id);
        // SAFETY: the NMI handler (`traps`) runs on a stack of its own, takes no lock and may interrupt anything.
        unsafe { self.local.send_nmi(destination) };
    }

    /// Sends INIT.
    pub fn send_init(&mut self, apic_id: u32) {
        let destination = self.destination(apic_id);
        // SAFETY: only `smp::start` calls this, for CPUs that have not been started.
        unsafe { self.local.send_init_ipi(destination) };
    }

    /// Sends a start-up IPI: the CPU begins in real mode at `page << 12`.
    pub fn send_startup(&mut self, page: u8, apic_id: u32) {
        let destination = self.destination(apic_id);
        // SAFETY: as above; the trampoline is in place at that page.
        unsafe { self.local.send_sipi(page, destination) };
    }

    /// Acknowledges the interrupt in service.
    pub fn end_of_interrupt(&mut self) {
        // SAFETY: called from the handlers of fixed interrupts only, once for each.
        unsafe { self.local.end_of_interrupt() };
    }

    /// Arms the one-shot timer to fire in about that many TSC ticks, at most what its 32-bit counter can hold.
    pub fn arm_timer(&mut self, ticks_from_now: u64) {
        let per_ms = TIMER_PER_MS.load(Ordering::Relaxed);
        let khz = time::khz().max(1);
        let counts = u128::from(ticks_from_now) * u128::from(per_ms) / u128::from(khz);
        let counts = u32::try_from(counts.max(1)).unwrap_or(u32::MAX);
        // SAFETY: the timer's vector has a handler that only acknowledges it.
        unsafe { self.local.set_timer_initial(counts) };
    }

    /// Stops the timer.
    pub fn disarm_timer(&mut self) {
        // SAFETY: writing 0 to the initial count stops a one-shot timer.
        unsafe { self.local.set_timer_initial(0) };
    }

    /// Finds the timer's rate beside the calibrated TSC. All CPUs' timers share one clock, so once is enough.
    pub fn calibrate_timer(&mut self) {
        let per_ms = nagaya_clock::measure_countdown(self, time::khz(), &time::told_apic_khz());
        self.disarm_timer();
        TIMER_PER_MS.store(per_ms, Ordering::Relaxed);
        log::debug!("local APIC timer: {per_ms} counts per ms");
    }

    /// The executing CPU's APIC ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        // SAFETY: reads a register.
        let register = unsafe { self.local.id() };
        self.mode.id_of(register)
    }

    /// What the crate, which writes it to bits 63:32 of the ICR, is to be told to reach that CPU.
    fn destination(&self, apic_id: u32) -> u32 {
        self.mode.icr_destination(apic_id)
    }
}

impl Countdown for Apic {
    fn ticks(&mut self) -> u64 {
        time::ticks()
    }

    fn start(&mut self, from: u32) {
        // SAFETY: as in `arm_timer`; the shots are far shorter than it takes to count 2^32, and an interrupt would only be
        // acknowledged.
        unsafe { self.local.set_timer_initial(from) };
    }

    fn current(&mut self) -> u32 {
        // SAFETY: reads a counter.
        unsafe { self.local.timer_current() }
    }
}
