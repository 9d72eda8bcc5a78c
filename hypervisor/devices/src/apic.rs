//! A local APIC in software: registers by memory (xAPIC) and by MSRs (x2APIC), interrupts by priority, IPIs, the timer.
//!
//! It is given accesses, messages and the time in TSC ticks, and answers what is to be done: messages to other APICs, an EOI
//! that an I/O APIC waits for, a timer to be set. After each of them its owner asks [`LocalApic::pending`] and
//! [`LocalApic::timer_deadline`] again.
//!
//! Source: Intel SDM volume 3, "Advanced Programmable Interrupt Controller (APIC)"; sections are given by their titles.

mod access;
mod eoi_word;
mod message;
pub mod page;
mod register;
mod state;
mod timer;
mod vectors;

pub use eoi_word::{EoiWord, EoiWordState};
pub use message::{Acceptance, BusMessage, Delivery, Recipients, Route, Trigger, lowest_priority};
use register::{Lvt, error, lvt};
use serde::{Deserialize, Serialize};
pub use state::ApicState;
use timer::Timer;
pub use timer::TimerMode;
use vectors::Vectors;

/// Where the registers are after power-on.
pub const DEFAULT_BASE: u64 = 0xFEE0_0000;
/// Bytes that they take.
pub const PAGE_BYTES: u64 = 4096;

/// Vectors below are not for interrupts.
const FIRST_VECTOR: u8 = 16;

/// What an APIC is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApicConfig {
    /// Its ID. From 255 on only x2APIC can name it.
    pub id: u32,
    /// Whether its vCPU is the one that boots.
    pub is_bootstrap: bool,
    /// Bits of a physical address, as CPUID says it.
    pub physical_bits: u8,
    /// TSC ticks of one count of the timer when it is divided by 1.
    pub ticks_per_count: u32,
    /// A periodic timer does not come more often.
    pub least_period_ticks: u64,
}

/// How the registers are reached ("Local APIC Status and Location", "x2APIC State Transitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Not at all: there is no APIC.
    Disabled,
    /// By memory.
    XApic,
    /// By MSRs.
    X2Apic,
}

/// An access that gets #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What follows from an access.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicEffect {
    /// Nothing beyond what the APIC itself keeps.
    None,
    /// A message to be brought to all APICs of the VM that take it, perhaps this one too.
    Send(BusMessage),
    /// An interrupt has been served.
    EndOfInterrupt {
        /// Its vector.
        vector: u8,
        /// How it was triggered: level-triggered ones are told to I/O APICs.
        trigger: Trigger,
    },
}

/// What a message means to the vCPU.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Nothing.
    None,
    /// There is an interrupt that was not there before: ask [`LocalApic::pending`].
    Interrupt,
    /// An NMI.
    Nmi,
    /// INIT: the vCPU is reset, and so is the APIC, by [`LocalApic::init`].
    Init,
    /// Start-up: a vCPU that waits for it begins at this page.
    StartUp {
        /// Number of the page, below 1 MiB.
        page: u8,
    },
}

/// Interrupts of the core itself that have an entry in the local vector table, besides timer and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalSource {
    /// The thermal sensor.
    Thermal,
    /// Performance counters.
    Performance,
    /// Pin LINT0.
    Lint0,
    /// Pin LINT1.
    Lint1,
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    config: ApicConfig,
    mode: Mode,
    base: u64,
    /// TPR.
    task_priority: u8,
    /// LDR of xAPIC, in bits 31 to 24. x2APIC derives it from the ID.
    logical_id: u32,
    /// DFR.
    destination_format: u32,
    /// SVR.
    spurious: u32,
    /// IRR.
    requested: Vectors,
    /// ISR.
    in_service: Vectors,
    /// TMR: the vectors that were triggered by level.
    level: Vectors,
    /// ESR as software reads it.
    errors: u32,
    /// Errors since ESR was written.
    new_errors: u32,
    /// ICR.
    command: u64,
    lvt: [u32; Lvt::COUNT],
    timer: Timer,
}

impl LocalApic {
    /// An APIC after power-on: xAPIC, disabled by software.
    #[must_use]
    pub fn new(config: ApicConfig) -> LocalApic {
        LocalApic {
            mode: Mode::XApic,
            base: DEFAULT_BASE,
            task_priority: 0,
            logical_id: 0,
            destination_format: register::FLAT_MODEL,
            spurious: register::SPURIOUS_RESET,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            errors: 0,
            new_errors: 0,
            command: 0,
            lvt: [lvt::MASKED; Lvt::COUNT],
            timer: Timer::new(config.ticks_per_count, config.least_period_ticks),
            config,
        }
    }

    /// Resets all but ID, mode and base: "Local APIC State After It Receives an INIT-Deassert IPI" and the like.
    pub fn init(&mut self) {
        let (mode, base) = (self.mode, self.base);
        *self = LocalApic::new(self.config);
        (self.mode, self.base) = (mode, base);
    }

    /// Its ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.config.id
    }

    /// How its registers are reached.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Where its registers are in xAPIC mode.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether software has enabled it (SVR).
    #[must_use]
    pub fn is_software_enabled(&self) -> bool {
        self.spurious & register::SPURIOUS_ENABLE != 0
    }

    fn entry(&self, which: Lvt) -> u32 {
        self.lvt.get(which as usize).copied().unwrap_or(lvt::MASKED)
    }

    fn set_entry(&mut self, which: Lvt, value: u32) {
        if let Some(entry) = self.lvt.get_mut(which as usize) {
            *entry = value;
        }
    }

    /// Notes an error, and makes its interrupt ("Error Handling").
    fn note_error(&mut self, bit: u32) {
        self.new_errors |= bit;
        let entry = self.entry(Lvt::Error);
        if entry & lvt::MASKED != 0 {
            return;
        }
        let vector = entry as u8;
        if vector < FIRST_VECTOR {
            // Its own vector is wrong: nothing but a bit can say so.
            self.new_errors |= error::RECEIVED_ILLEGAL_VECTOR;
        } else {
            self.request(vector, Trigger::Edge);
        }
    }

    /// Whether the vector was not requested before.
    fn request(&mut self, vector: u8, trigger: Trigger) -> bool {
        self.level.set(vector, trigger == Trigger::Level);
        let is_new = !self.requested.contains(vector);
        self.requested.set(vector, true);
        is_new
    }

    /// Takes an interrupt with a vector ("Interrupt Acceptance for Fixed Interrupts").
    pub fn accept(&mut self, vector: u8, trigger: Trigger) -> Signal {
        if self.mode == Mode::Disabled || !self.is_software_enabled() {
            return Signal::None;
        }
        if vector < FIRST_VECTOR {
            self.note_error(error::RECEIVED_ILLEGAL_VECTOR);
            return Signal::None;
        }
        if self.request(vector, trigger) {
            Signal::Interrupt
        } else {
            Signal::None
        }
    }

    /// Takes an interrupt that this APIC accepted when it was sent ([`Route`]), whatever software has done to it since: what is
    /// requested stays so when software disables the APIC ("Local APIC State After It Has Been Software Disabled").
    pub fn accept_sent(&mut self, vector: u8, trigger: Trigger) {
        if self.mode == Mode::Disabled {
            return;
        }
        if vector < FIRST_VECTOR {
            self.note_error(error::RECEIVED_ILLEGAL_VECTOR);
        } else {
            self.request(vector, trigger);
        }
    }

    /// Takes a message. Whether it is for this APIC has been asked before ([`LocalApic::is_recipient`]).
    pub fn deliver(&mut self, message: &BusMessage) -> Signal {
        if self.mode == Mode::Disabled {
            return Signal::None;
        }
        match message.delivery {
            Delivery::Fixed { vector } | Delivery::LowestPriority { vector } => {
                self.accept(vector, message.trigger)
            }
            Delivery::Nmi => Signal::Nmi,
            Delivery::Init => Signal::Init,
            Delivery::StartUp { page } => Signal::StartUp { page },
        }
    }

    /// Takes an interrupt of the core itself, as its entry of the local vector table says.
    pub fn raise_local(&mut self, source: LocalSource) -> Signal {
        let which = match source {
            LocalSource::Thermal => Lvt::Thermal,
            LocalSource::Performance => Lvt::Performance,
            LocalSource::Lint0 => Lvt::Lint0,
            LocalSource::Lint1 => Lvt::Lint1,
        };
        let entry = self.entry(which);
        if self.mode == Mode::Disabled || entry & lvt::MASKED != 0 {
            return Signal::None;
        }
        if which == Lvt::Performance {
            // The mask comes with the interrupt.
            self.set_entry(which, entry | lvt::MASKED);
        }
        match entry & lvt::DELIVERY {
            lvt::DELIVERY_FIXED => {
                let is_pin = matches!(which, Lvt::Lint0 | Lvt::Lint1);
                let trigger = if is_pin && entry & lvt::LEVEL != 0 {
                    Trigger::Level
                } else {
                    Trigger::Edge
                };
                self.accept(entry as u8, trigger)
            }
            lvt::DELIVERY_NMI => Signal::Nmi,
            lvt::DELIVERY_INIT => Signal::Init,
            // SMI: there is no SMM. ExtINT: the vector is the 8259A's, see `accepts_pic`.
            _ => Signal::None,
        }
    }

    /// Whether the output of an 8259A at LINT0 reaches the vCPU: the entry is ExtINT and not masked, or there is no APIC between
    /// ("Local Vector Table", "Enabling or Disabling the Local APIC").
    ///
    /// Then, if the vCPU's flags let it, the 8259A is acknowledged and its vector injected. That is before what
    /// [`LocalApic::pending`] says, whatever the priorities, and leaves no trace in the APIC: the guest ends it at the 8259A.
    #[must_use]
    pub fn accepts_pic(&self) -> bool {
        let entry = self.entry(Lvt::Lint0);
        let is_wire = entry & (lvt::MASKED | lvt::DELIVERY) == lvt::DELIVERY_EXTERNAL;
        self.mode == Mode::Disabled || is_wire
    }

    /// Sets the APIC up as firmware leaves that of the bootstrap processor: enabled by software, 8259A at LINT0, NMI at LINT1
    /// (MultiProcessor Specification 1.4, 3.6.2.2 "Virtual Wire Mode"). Kernels that know no APIC get the 8259A's interrupts so.
    pub fn set_virtual_wire(&mut self) {
        self.spurious = register::SPURIOUS_RESET | register::SPURIOUS_ENABLE;
        self.set_entry(Lvt::Lint0, lvt::DELIVERY_EXTERNAL);
        self.set_entry(Lvt::Lint1, lvt::DELIVERY_NMI);
    }

    /// PPR ("Task and Processor Priorities").
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let served = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= served >> 4 {
            self.task_priority
        } else {
            served & 0xF0
        }
    }

    /// TPR as CR8 has it: 0 to 15.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// Sets TPR by CR8; bits above the fourth do not count.
    pub fn set_cr8(&mut self, value: u8) {
        self.task_priority = value << 4;
    }

    /// The highest vector that is requested, whatever its priority.
    #[must_use]
    pub fn highest_requested(&self) -> Option<u8> {
        self.requested.highest()
    }

    /// The highest vector that is being served.
    #[must_use]
    pub fn highest_in_service(&self) -> Option<u8> {
        self.in_service.highest()
    }

    /// The interrupt that the vCPU gets next, if its flags let it.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        if self.mode == Mode::Disabled {
            return None;
        }
        let vector = self.requested.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Hands the pending interrupt over to the vCPU: it is served from now on.
    #[must_use]
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.set(vector, false);
        self.in_service.set(vector, true);
        Some(vector)
    }

    /// Takes back what [`LocalApic::acknowledge`] handed over: the vCPU did not get it.
    pub fn undo_acknowledge(&mut self, vector: u8) {
        if self.in_service.contains(vector) {
            self.in_service.set(vector, false);
            self.requested.set(vector, true);
        }
    }

    /// EOI ("Signaling Interrupt Servicing Completion").
    fn end_of_interrupt(&mut self) -> ApicEffect {
        let Some(vector) = self.in_service.highest() else {
            return ApicEffect::None;
        };
        self.in_service.set(vector, false);
        let trigger = self.trigger(vector);
        ApicEffect::EndOfInterrupt { vector, trigger }
    }

    /// When the timer's interrupt is due, in TSC ticks; `None` if it is off or masked. [`LocalApic::advance`] is called then.
    #[must_use]
    pub fn timer_deadline(&self) -> Option<u64> {
        let is_masked = self.entry(Lvt::Timer) & lvt::MASKED != 0;
        if is_masked || self.mode == Mode::Disabled {
            return None;
        }
        self.timer.expires_at()
    }

    /// Lets the time go on: the timer's interrupt comes if it is due. Periods that were missed come as one.
    pub fn advance(&mut self, now: u64) -> Signal {
        if !self.timer.take_expired(now) {
            return Signal::None;
        }
        let entry = self.entry(Lvt::Timer);
        if entry & lvt::MASKED != 0 {
            return Signal::None;
        }
        self.accept(entry as u8, Trigger::Edge)
    }
}
