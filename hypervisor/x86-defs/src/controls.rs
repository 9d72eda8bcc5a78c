//! VMX controls and the one function that fits them to what the CPU offers.
//!
//! Source: SDM volume 3, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields"; the rule of
//! allowed settings is appendix A.2 ("Pin-Based VM-Execution Controls") and the sections after it.

use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// Pin-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PinBased: u32 {
        /// Interrupts exit.
        const EXTERNAL_INTERRUPT_EXITING = 1 << 0;
        /// NMIs exit.
        const NMI_EXITING = 1 << 3;
        /// The CPU keeps track of virtual-NMI blocking.
        const VIRTUAL_NMIS = 1 << 5;
        /// The preemption timer counts down in the guest.
        const PREEMPTION_TIMER = 1 << 6;
        /// Posted interrupts are delivered without an exit.
        const POSTED_INTERRUPTS = 1 << 7;
    }
}

bitflags! {
    /// Primary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW_EXITING = 1 << 2;
        /// TSC_OFFSET is added to what the guest reads.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT exits.
        const HLT_EXITING = 1 << 7;
        /// INVLPG exits.
        const INVLPG_EXITING = 1 << 9;
        /// MWAIT exits.
        const MWAIT_EXITING = 1 << 10;
        /// RDPMC exits.
        const RDPMC_EXITING = 1 << 11;
        /// RDTSC and RDTSCP exit.
        const RDTSC_EXITING = 1 << 12;
        /// MOV to CR3 exits.
        const CR3_LOAD_EXITING = 1 << 15;
        /// MOV from CR3 exits.
        const CR3_STORE_EXITING = 1 << 16;
        /// The tertiary controls count.
        const ACTIVATE_TERTIARY_CONTROLS = 1 << 17;
        /// MOV to CR8 exits.
        const CR8_LOAD_EXITING = 1 << 19;
        /// MOV from CR8 exits.
        const CR8_STORE_EXITING = 1 << 20;
        /// TPR accesses go to the virtual-APIC page.
        const USE_TPR_SHADOW = 1 << 21;
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW_EXITING = 1 << 22;
        /// MOV to and from debug registers exits.
        const MOV_DR_EXITING = 1 << 23;
        /// Every I/O instruction exits.
        const UNCONDITIONAL_IO_EXITING = 1 << 24;
        /// The I/O bitmaps say which ports exit.
        const USE_IO_BITMAPS = 1 << 25;
        /// Exit after each instruction.
        const MONITOR_TRAP_FLAG = 1 << 27;
        /// The MSR bitmaps say which MSRs exit; without, all do.
        const USE_MSR_BITMAPS = 1 << 28;
        /// MONITOR exits.
        const MONITOR_EXITING = 1 << 29;
        /// PAUSE exits.
        const PAUSE_EXITING = 1 << 30;
        /// The secondary controls count.
        const ACTIVATE_SECONDARY_CONTROLS = 1 << 31;
    }
}

bitflags! {
    /// Secondary processor-based VM-execution controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Accesses to the APIC-access page are treated specially.
        const VIRTUALIZE_APIC_ACCESSES = 1 << 0;
        /// Extended page tables.
        const ENABLE_EPT = 1 << 1;
        /// LGDT, SGDT and the like exit.
        const DESCRIPTOR_TABLE_EXITING = 1 << 2;
        /// RDTSCP and RDPID work; without, #UD.
        const ENABLE_RDTSCP = 1 << 3;
        /// MSRs of the x2APIC are treated specially.
        const VIRTUALIZE_X2APIC_MODE = 1 << 4;
        /// TLB entries are tagged by VPID.
        const ENABLE_VPID = 1 << 5;
        /// WBINVD and WBNOINVD exit.
        const WBINVD_EXITING = 1 << 6;
        /// The guest may run unpaged and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// APIC registers are read from the virtual-APIC page.
        const APIC_REGISTER_VIRTUALIZATION = 1 << 8;
        /// Pending virtual interrupts are delivered by the CPU.
        const VIRTUAL_INTERRUPT_DELIVERY = 1 << 9;
        /// A loop of PAUSEs exits.
        const PAUSE_LOOP_EXITING = 1 << 10;
        /// RDRAND exits.
        const RDRAND_EXITING = 1 << 11;
        /// INVPCID works; without, #UD.
        const ENABLE_INVPCID = 1 << 12;
        /// VMFUNC works.
        const ENABLE_VM_FUNCTIONS = 1 << 13;
        /// VMREAD and VMWRITE of the guest go to a shadow VMCS.
        const VMCS_SHADOWING = 1 << 14;
        /// ENCLS may exit.
        const ENCLS_EXITING = 1 << 15;
        /// RDSEED exits.
        const RDSEED_EXITING = 1 << 16;
        /// Writes are logged by page.
        const ENABLE_PML = 1 << 17;
        /// EPT violations may become #VE.
        const EPT_VIOLATION_VE = 1 << 18;
        /// Intel PT does not show VMX operation.
        const CONCEAL_VMX_FROM_PT = 1 << 19;
        /// XSAVES and XRSTORS work; without, #UD.
        const ENABLE_XSAVES = 1 << 20;
        /// ENQCMD translates PASIDs.
        const PASID_TRANSLATION = 1 << 21;
        /// EPT execute permission by user and supervisor mode.
        const MODE_BASED_EPT_EXECUTE = 1 << 22;
        /// EPT write permission by 128 bytes.
        const SUB_PAGE_WRITE_PERMISSIONS = 1 << 23;
        /// Intel PT uses guest-physical addresses.
        const PT_USES_GUEST_PHYSICAL = 1 << 24;
        /// TSC_MULTIPLIER scales what the guest reads.
        const USE_TSC_SCALING = 1 << 25;
        /// TPAUSE, UMONITOR and UMWAIT work; without, #UD.
        const ENABLE_USER_WAIT_AND_PAUSE = 1 << 26;
        /// PCONFIG works.
        const ENABLE_PCONFIG = 1 << 27;
        /// ENCLV may exit.
        const ENCLV_EXITING = 1 << 28;
        /// Bus locks exit.
        const BUS_LOCK_DETECTION = 1 << 30;
        /// Instructions that hold everything up exit.
        const INSTRUCTION_TIMEOUT = 1 << 31;
    }
}

bitflags! {
    /// VM-exit controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Exit: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG_CONTROLS = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_ADDRESS_SPACE_SIZE = 1 << 9;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 12;
        /// The interrupt controller is acknowledged and the vector stored.
        const ACKNOWLEDGE_INTERRUPT_ON_EXIT = 1 << 15;
        /// IA32_PAT is saved.
        const SAVE_IA32_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_IA32_PAT = 1 << 19;
        /// IA32_EFER is saved.
        const SAVE_IA32_EFER = 1 << 20;
        /// IA32_EFER is loaded.
        const LOAD_IA32_EFER = 1 << 21;
        /// What is left of the preemption timer is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
        /// IA32_BNDCFGS is cleared.
        const CLEAR_IA32_BNDCFGS = 1 << 23;
        /// Intel PT does not show the exit.
        const CONCEAL_VMX_FROM_PT = 1 << 24;
        /// IA32_RTIT_CTL is cleared.
        const CLEAR_IA32_RTIT_CTL = 1 << 25;
        /// IA32_LBR_CTL is cleared.
        const CLEAR_IA32_LBR_CTL = 1 << 26;
        /// The user-interrupt notification vector is cleared.
        const CLEAR_UINV = 1 << 27;
        /// The state of control-flow enforcement is loaded.
        const LOAD_CET_STATE = 1 << 28;
        /// IA32_PKRS is loaded.
        const LOAD_PKRS = 1 << 29;
        /// IA32_PERF_GLOBAL_CTRL is saved.
        const SAVE_IA32_PERF_GLOBAL_CTRL = 1 << 30;
        /// The secondary exit controls count.
        const ACTIVATE_SECONDARY_CONTROLS = 1 << 31;
    }
}

bitflags! {
    /// VM-entry controls.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entry: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG_CONTROLS = 1 << 2;
        /// The guest is in IA-32e mode after entry.
        const IA32E_MODE_GUEST = 1 << 9;
        /// The guest is in SMM after entry.
        const ENTRY_TO_SMM = 1 << 10;
        /// Ends the dual-monitor treatment.
        const DEACTIVATE_DUAL_MONITOR = 1 << 11;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_IA32_PERF_GLOBAL_CTRL = 1 << 13;
        /// IA32_PAT is loaded.
        const LOAD_IA32_PAT = 1 << 14;
        /// IA32_EFER is loaded.
        const LOAD_IA32_EFER = 1 << 15;
        /// IA32_BNDCFGS is loaded.
        const LOAD_IA32_BNDCFGS = 1 << 16;
        /// Intel PT does not show the entry.
        const CONCEAL_VMX_FROM_PT = 1 << 17;
        /// IA32_RTIT_CTL is loaded.
        const LOAD_IA32_RTIT_CTL = 1 << 18;
        /// The user-interrupt notification vector is loaded.
        const LOAD_UINV = 1 << 19;
        /// The state of control-flow enforcement is loaded.
        const LOAD_CET_STATE = 1 << 20;
        /// IA32_LBR_CTL is loaded.
        const LOAD_IA32_LBR_CTL = 1 << 21;
        /// IA32_PKRS is loaded.
        const LOAD_PKRS = 1 << 22;
    }
}

/// Which word of controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlWord {
    /// [`PinBased`].
    PinBased,
    /// [`Primary`].
    Primary,
    /// [`Secondary`].
    Secondary,
    /// [`Exit`].
    Exit,
    /// [`Entry`].
    Entry,
}

impl ControlWord {
    /// What people call the word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ControlWord::PinBased => "pin-based controls",
            ControlWord::Primary => "primary processor-based controls",
            ControlWord::Secondary => "secondary processor-based controls",
            ControlWord::Exit => "exit controls",
            ControlWord::Entry => "entry controls",
        }
    }
}

/// A word of controls: implemented by the five flag types of this module.
pub trait Controls: bitflags::Flags<Bits = u32> {
    /// Which word this is.
    const WORD: ControlWord;
}

macro_rules! controls {
    ($($name:ident),*) => {
        $( impl Controls for $name { const WORD: ControlWord = ControlWord::$name; } )*
    };
}

controls!(PinBased, Primary, Secondary, Exit, Entry);

/// Controls that Nagaya cannot do without and this CPU does not offer. Displayed, it lists them by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingBits {
    /// Which word of controls.
    pub word: ControlWord,
    /// The bits that are missing; never 0.
    pub bits: u32,
}

impl MissingBits {
    /// The names of the missing bits, lowest first. Bits that have no name here are left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        (0..32)
            .map(|bit| 1 << bit)
            .filter(move |bit| self.bits & bit != 0)
            .filter_map(move |bit| name_of(self.word, bit))
    }
}

impl fmt::Display for MissingBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.word.name())?;
        for bit in (0..32).filter(|bit| self.bits & (1 << bit) != 0) {
            match name_of(self.word, 1 << bit) {
                Some(name) => write!(f, " {name}")?,
                None => write!(f, " bit-{bit}")?,
            }
        }
        Ok(())
    }
}

fn name_of(word: ControlWord, bit: u32) -> Option<&'static str> {
    fn find<C: Controls>(bit: u32) -> Option<&'static str> {
        C::FLAGS
            .iter()
            .find(|flag| flag.value().bits() == bit)
            .map(bitflags::Flag::name)
    }
    match word {
        ControlWord::PinBased => find::<PinBased>(bit),
        ControlWord::Primary => find::<Primary>(bit),
        ControlWord::Secondary => find::<Secondary>(bit),
        ControlWord::Exit => find::<Exit>(bit),
        ControlWord::Entry => find::<Entry>(bit),
    }
}

/// Fits controls to a CPU: `required` plus what it has of `optional` plus what it insists on.
///
/// `capability` is the capability MSR of that word: IA32_VMX_TRUE_*_CTLS where IA32_VMX_BASIC\[55\] is set, else
/// IA32_VMX_*_CTLS (IA32_VMX_PROCBASED_CTLS2 for [`Secondary`]). Its low half has the bits that must be 1, its high half the
/// bits that may be 1. The answer may have bits set that have no name here: the CPU demands them.
///
/// # Errors
/// [`MissingBits`] names the required controls that may not be 1.
pub fn adjust<C: Controls>(required: C, optional: C, capability: u64) -> Result<C, MissingBits> {
    let must_be_one = capability as u32;
    let may_be_one = (capability >> 32) as u32;
    let missing = required.bits() & !may_be_one;
    if missing != 0 {
        return Err(MissingBits {
            word: C::WORD,
            bits: missing,
        });
    }
    Ok(C::from_bits_retain(
        required.bits() | (optional.bits() & may_be_one) | must_be_one,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const fn capability(must: u32, may: u32) -> u64 {
        (may as u64) << 32 | must as u64
    }

    #[test]
    fn what_the_cpu_demands_is_set_and_what_it_lacks_is_not() {
        let cap = capability(
            0x16,
            0x16 | (PinBased::NMI_EXITING | PinBased::PREEMPTION_TIMER).bits(),
        );
        let got = adjust(
            PinBased::NMI_EXITING,
            PinBased::PREEMPTION_TIMER | PinBased::POSTED_INTERRUPTS,
            cap,
        )
        .expect("all required bits are there");
        assert_eq!(
            got.bits(),
            0x16 | PinBased::NMI_EXITING.bits() | PinBased::PREEMPTION_TIMER.bits()
        );
    }

    #[test]
    fn a_missing_required_control_is_told_by_name() {
        let cap = capability(0, Secondary::ENABLE_VPID.bits());
        let missing = adjust(
            Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST | Secondary::ENABLE_VPID,
            Secondary::empty(),
            cap,
        )
        .expect_err("EPT is not offered");
        assert_eq!(
            missing.to_string(),
            "secondary processor-based controls: ENABLE_EPT UNRESTRICTED_GUEST"
        );
        assert_eq!(missing.names().count(), 2);
    }

    #[test]
    fn a_missing_bit_without_a_name_is_told_by_its_number() {
        let missing = adjust(Entry::from_bits_retain(1 << 25), Entry::empty(), 0)
            .expect_err("nothing is offered");
        assert_eq!(missing.to_string(), "entry controls: bit-25");
    }
}
