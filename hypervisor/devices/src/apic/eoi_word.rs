//! Ends of interrupts without an exit: while nothing follows from the next end of an interrupt, a word of the guest's own memory
//! says so, and the guest clears that instead of writing the EOI register. The APIC learns of it when it is next looked at.
//!
//! The guest clears the word's bit 0 by one instruction (BTR without LOCK) and writes the register if it was 0 already. The word is
//! read and written here only while the vCPU is out of the guest; no other vCPU has a reason to touch it.
//!
//! Source: Linux, Documentation/virt/kvm/x86/msr.rst, "MSR_KVM_PV_EOI_EN", which stock kernels have a driver for.

use nagaya_mem::Gpa;
use serde::{Deserialize, Serialize};

use super::{GeneralProtection, LocalApic, Trigger};
use crate::GuestRam;
use crate::state::{StateError, check};

/// The MSR's bit that switches it on.
const ENABLE: u64 = 1;
/// The word is aligned to 4 bytes; the bit between is reserved.
const RESERVED: u64 = 1 << 1;
/// The word's bit: the next end of an interrupt need not be told.
const NEED_NOT_TELL: u16 = 1;

/// A vCPU's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EoiWord {
    /// The MSR.
    register: u64,
    /// The bit has been set since it was last looked at: if it is not any more, the guest has ended an interrupt.
    is_offered: bool,
}

/// The word as a value. That it is offered is in the guest's memory, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EoiWordState {
    register: u64,
    is_offered: bool,
}

impl EoiWord {
    /// What it is.
    #[must_use]
    pub fn save(&self) -> EoiWordState {
        let EoiWord {
            register,
            is_offered,
        } = *self;
        EoiWordState {
            register,
            is_offered,
        }
    }

    /// One that goes on from there.
    ///
    /// # Errors
    /// [`StateError`] for a reserved bit, or for a word that is offered though it is off.
    pub fn restore(state: &EoiWordState) -> Result<EoiWord, StateError> {
        let EoiWordState {
            register,
            is_offered,
        } = *state;
        check(
            register & RESERVED == 0,
            "register",
            register,
            "without its reserved bit",
        )?;
        check(
            !is_offered || register & ENABLE != 0,
            "is_offered",
            is_offered,
            "0 while it is off",
        )?;
        Ok(EoiWord {
            register,
            is_offered,
        })
    }

    /// The MSR as it is read.
    #[must_use]
    pub fn register(&self) -> u64 {
        self.register
    }

    /// Whether the APIC may have to hear of an end: [`EoiWord::settle`] is to come before any look at it.
    #[inline]
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.is_offered
    }

    /// Whether [`EoiWord::offer`] would do anything.
    #[inline]
    #[must_use]
    pub fn is_stale(&self, apic: &LocalApic) -> bool {
        self.register & ENABLE != 0 && apic.may_end_unseen() != self.is_offered
    }

    fn gpa(&self) -> Gpa {
        Gpa::new(self.register & !(ENABLE | RESERVED))
    }

    /// WRMSR. What was offered at the old address is taken back.
    ///
    /// # Errors
    /// [`GeneralProtection`], with nothing changed, for a reserved bit or a word that is not in RAM.
    pub fn set(
        &mut self,
        value: u64,
        apic: &mut LocalApic,
        ram: &impl GuestRam,
    ) -> Result<(), GeneralProtection> {
        // First of all, for the new word may be the old one.
        self.settle(apic, ram);
        let new = EoiWord {
            register: value,
            is_offered: false,
        };
        let is_enabled = value & ENABLE != 0;
        if value & RESERVED != 0 || is_enabled && ram.store_u16(new.gpa(), 0).is_err() {
            return Err(GeneralProtection);
        }
        if self.is_offered {
            let _ = ram.store_u16(self.gpa(), 0);
        }
        *self = new;
        Ok(())
    }

    /// Tells the APIC the end that the guest has not told. Before anything else is done with the APIC after an exit.
    pub fn settle(&mut self, apic: &mut LocalApic, ram: &impl GuestRam) {
        // If there is no RAM any more, the guest cannot have cleared anything there.
        let is_untouched = |word: u16| word & NEED_NOT_TELL != 0;
        if self.is_offered && !ram.load_u16(self.gpa()).map_or(true, is_untouched) {
            self.is_offered = false;
            // It was triggered by an edge, and nobody else waits for its end.
            let _ = apic.end_of_interrupt();
        }
    }

    /// Sets or clears the bit, as the APIC is now. Before the guest is entered, if [`EoiWord::is_stale`] says so.
    pub fn offer(&mut self, apic: &LocalApic, ram: &impl GuestRam) {
        if !self.is_stale(apic) {
            return;
        }
        let is_wanted = apic.may_end_unseen();
        let word = if is_wanted { NEED_NOT_TELL } else { 0 };
        let is_stored = ram.store_u16(self.gpa(), word).is_ok();
        self.is_offered = is_wanted && is_stored;
    }
}

impl LocalApic {
    /// Whether nothing follows from the next end of an interrupt but that: no other waits for it, and no I/O APIC.
    fn may_end_unseen(&self) -> bool {
        let is_edge = |vector| self.trigger(vector) == Trigger::Edge;
        self.requested.highest().is_none() && self.in_service.highest().is_some_and(is_edge)
    }
}
