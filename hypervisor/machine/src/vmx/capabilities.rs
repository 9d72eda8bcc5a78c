//! What this CPU's VMX can do, and the controls fitted to it.
//!
//! Source: Intel SDM Vol. 3, appendix "VMX Capability Reporting Facility"; Vol. 2, CPUID.

use alloc::format;
use alloc::string::{String, ToString};

use raw_cpuid::CpuId;
use spin::Once;
use x86_64::registers::model_specific::Msr;
use x86_defs::controls::{Entry, Exit, PinBased, Primary, Secondary, adjust};
use x86_defs::msr::{self, EptVpidCapabilities, VmxBasic, VmxMisc};

/// Everything that is read once and used for every VMCS.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Revision and format of a VMCS.
    pub basic: VmxBasic,
    /// Shift of the preemption timer and more.
    pub misc: VmxMisc,
    /// EPT and VPID.
    pub ept_vpid: EptVpidCapabilities,
    /// Bits of CR0 that must be 1.
    pub cr0_fixed0: u64,
    /// Bits of CR0 that may be 1.
    pub cr0_fixed1: u64,
    /// Bits of CR4 that must be 1.
    pub cr4_fixed0: u64,
    /// Bits of CR4 that may be 1.
    pub cr4_fixed1: u64,
    /// Pin-based controls for every vCPU.
    pub pin: PinBased,
    /// Primary controls.
    pub primary: Primary,
    /// Secondary controls.
    pub secondary: Secondary,
    /// Exit controls.
    pub exit: Exit,
    /// Entry controls.
    pub entry: Entry,
    /// What of XCR0 guests may set: what the CPU has, up to AVX-512.
    pub xcr0: u64,
    /// Where each component of it lies in an XSAVE area of the standard format: a digest, to be compared.
    pub xsave_layout: u64,
    /// CPUID offers XSAVES.
    pub has_xsaves: bool,
    /// CPUID offers IBPB (IA32_PRED_CMD).
    pub has_ibpb: bool,
    /// CPUID offers MD_CLEAR and the CPU is not known to be free of the leaks it is for.
    pub needs_md_clear: bool,
}

/// x87, SSE, AVX, AVX-512. AMX and PKRU are left out: their state is large or is not hidden from other features yet.
const XCR0_ALLOWED: u64 = 0b1110_0111;

static PUBLISHED: Once<Capabilities> = Once::new();

/// Remembers the boot CPU's capabilities for all. Those of another CPU must be the same: a vCPU's VMCS and its XSAVE area go from one to
/// another.
///
/// # Errors
/// What differs.
pub fn publish(capabilities: Capabilities) -> Result<(), String> {
    let common = PUBLISHED.call_once(|| capabilities);
    match common.difference(&capabilities) {
        None => Ok(()),
        Some(what) => Err(format!(
            "it differs from the boot CPU in {what}, and vCPUs could not move between them"
        )),
    }
}

/// The capabilities common to all CPUs.
///
/// # Panics
/// Before the boot CPU has entered VMX operation.
#[must_use]
pub fn get() -> &'static Capabilities {
    match PUBLISHED.get() {
        Some(capabilities) => capabilities,
        None => panic!("VMX capabilities are used before the boot CPU is in VMX operation"),
    }
}

fn read(number: u32) -> u64 {
    // SAFETY: only numbers of VMX capability MSRs come here, after CPUID and IA32_VMX_BASIC have said that they exist.
    unsafe { Msr::new(number).read() }
}

/// All processor-based controls that the executing CPU lets be set, in VMX operation.
#[must_use]
pub fn allowed_processor_controls() -> (Primary, Secondary) {
    let primary = processor_controls(get().basic);
    // The upper halves say what may be 1.
    let [primary, secondary] = [primary, secondary_controls(primary)].map(|raw| (raw >> 32) as u32);
    (
        Primary::from_bits_retain(primary),
        Secondary::from_bits_retain(secondary),
    )
}

/// What IA32_VMX_PROCBASED_CTLS says, or its true form.
fn processor_controls(basic: VmxBasic) -> u64 {
    read(if basic.has_true_controls() {
        msr::IA32_VMX_TRUE_PROCBASED_CTLS
    } else {
        msr::IA32_VMX_PROCBASED_CTLS
    })
}

/// What IA32_VMX_PROCBASED_CTLS2 says; none may be 1 on a CPU without secondary controls, where there is no such MSR ("Secondary
/// Processor-Based VM-Execution Controls").
fn secondary_controls(processor_controls: u64) -> u64 {
    let allowed = Primary::from_bits_retain((processor_controls >> 32) as u32);
    if allowed.contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
        read(msr::IA32_VMX_PROCBASED_CTLS2)
    } else {
        0
    }
}

/// Whether the CPU has VT-x at all.
///
/// # Errors
/// The message for the person at the console.
pub fn check_vt_x() -> Result<(), &'static str> {
    match CpuId::new().get_feature_info() {
        Some(features) if features.has_vmx() => Ok(()),
        _ => Err(
            "this CPU has no VT-x (CPUID.1:ECX.VMX = 0): Nagaya needs an Intel CPU with VT-x and EPT, \
                  or nested virtualisation switched on in the hypervisor below",
        ),
    }
}

impl Capabilities {
    /// Reads the executing CPU's capabilities and fits Nagaya's controls to them.
    ///
    /// # Errors
    /// Names everything that is required and missing.
    pub fn of_this_cpu() -> Result<Capabilities, String> {
        check_vt_x()?;
        let cpuid = CpuId::new();
        if !cpuid
            .get_feature_info()
            .is_some_and(|features| features.has_xsave())
        {
            return Err("this CPU has no XSAVE (CPUID.1:ECX.XSAVE = 0)".into());
        }
        let basic = VmxBasic(read(msr::IA32_VMX_BASIC));
        let truth = |true_msr, plain_msr| {
            read(if basic.has_true_controls() {
                true_msr
            } else {
                plain_msr
            })
        };
        let mut missing = String::new();
        let mut fit = |outcome: Result<u32, String>| {
            outcome.unwrap_or_else(|names| {
                missing = format!(
                    "{missing}{}{names}",
                    if missing.is_empty() { "" } else { "; " }
                );
                0
            })
        };
        macro_rules! fit {
            ($type:ident, $required:expr, $optional:expr, $capability:expr) => {
                $type::from_bits_retain(fit(adjust::<$type>($required, $optional, $capability)
                    .map(|controls| controls.bits())
                    .map_err(|bits| bits.to_string())))
            };
        }
        let pin = fit!(
            PinBased,
            PinBased::EXTERNAL_INTERRUPT_EXITING
                | PinBased::NMI_EXITING
                // The guest's NMIs are not ours. Every CPU with EPT has it.
                | PinBased::VIRTUAL_NMIS
                | PinBased::PREEMPTION_TIMER,
            PinBased::empty(),
            truth(
                msr::IA32_VMX_TRUE_PINBASED_CTLS,
                msr::IA32_VMX_PINBASED_CTLS
            )
        );
        // HLT always exits: entering a guest in activity state HLT hangs in Bochs, and a halted guest's CPU is better
        // slept on in the hypervisor, where doorbells and deadlines wake it.
        let primary = fit!(
            Primary,
            Primary::HLT_EXITING
                | Primary::USE_IO_BITMAPS
                | Primary::TSC_OFFSETTING
                | Primary::USE_MSR_BITMAPS
                | Primary::ACTIVATE_SECONDARY_CONTROLS
                | Primary::MWAIT_EXITING
                | Primary::MONITOR_EXITING
                // CR8 is the CPU's own task priority: a guest that raised it would keep our interrupts away.
                | Primary::CR8_LOAD_EXITING
                | Primary::CR8_STORE_EXITING
                | Primary::RDPMC_EXITING,
            Primary::empty(),
            processor_controls(basic)
        );
        let secondary = fit!(
            Secondary,
            Secondary::ENABLE_EPT,
            Secondary::ENABLE_VPID
                | Secondary::UNRESTRICTED_GUEST
                | Secondary::ENABLE_RDTSCP
                | Secondary::ENABLE_INVPCID
                | Secondary::WBINVD_EXITING
                | Secondary::PAUSE_LOOP_EXITING
                | Secondary::RDRAND_EXITING
                | Secondary::RDSEED_EXITING,
            secondary_controls(processor_controls(basic))
        );
        let exit = fit!(
            Exit,
            Exit::HOST_ADDRESS_SPACE_SIZE
                | Exit::ACKNOWLEDGE_INTERRUPT_ON_EXIT
                | Exit::SAVE_IA32_EFER
                | Exit::LOAD_IA32_EFER
                | Exit::SAVE_IA32_PAT
                | Exit::LOAD_IA32_PAT
                // Without it an exit would begin the slice anew. Every CPU with the timer has it.
                | Exit::SAVE_PREEMPTION_TIMER,
            Exit::SAVE_DEBUG_CONTROLS,
            truth(msr::IA32_VMX_TRUE_EXIT_CTLS, msr::IA32_VMX_EXIT_CTLS)
        );
        let entry = fit!(
            Entry,
            Entry::IA32E_MODE_GUEST | Entry::LOAD_IA32_EFER | Entry::LOAD_IA32_PAT,
            Entry::LOAD_DEBUG_CONTROLS,
            truth(msr::IA32_VMX_TRUE_ENTRY_CTLS, msr::IA32_VMX_ENTRY_CTLS)
        );
        let ept_vpid = if secondary.contains(Secondary::ENABLE_EPT) {
            EptVpidCapabilities::from_bits_retain(read(msr::IA32_VMX_EPT_VPID_CAP))
        } else {
            EptVpidCapabilities::empty()
        };
        for (bit, name) in [
            (EptVpidCapabilities::WALK_4, "EPT page walk of length 4"),
            (
                EptVpidCapabilities::WRITE_BACK,
                "EPT structures of memory type write-back",
            ),
            (EptVpidCapabilities::INVEPT, "INVEPT"),
            (
                EptVpidCapabilities::INVEPT_SINGLE_CONTEXT,
                "INVEPT of a single context",
            ),
        ] {
            if !ept_vpid.contains(bit) {
                missing = format!(
                    "{missing}{}{name}",
                    if missing.is_empty() { "" } else { "; " }
                );
            }
        }
        if !missing.is_empty() {
            return Err(format!(
                "this CPU's VT-x lacks what Nagaya requires: {missing}"
            ));
        }
        let state = cpuid.get_extended_state_info();
        let leaf7 = cpuid.cpuid_leaf7_edx();
        Ok(Capabilities {
            basic,
            misc: VmxMisc(read(msr::IA32_VMX_MISC)),
            ept_vpid,
            cr0_fixed0: read(msr::IA32_VMX_CR0_FIXED0),
            cr0_fixed1: read(msr::IA32_VMX_CR0_FIXED1),
            cr4_fixed0: read(msr::IA32_VMX_CR4_FIXED0),
            cr4_fixed1: read(msr::IA32_VMX_CR4_FIXED1),
            pin,
            primary,
            secondary,
            exit,
            entry,
            xcr0: core::arch::x86_64::__cpuid_count(0xD, 0).eax as u64 & XCR0_ALLOWED,
            xsave_layout: xsave_layout(),
            has_xsaves: state.is_some_and(|state| state.has_xsaves_xrstors()),
            has_ibpb: leaf7 & (1 << 26) != 0,
            needs_md_clear: leaf7 & (1 << 10) != 0 && !free_of_mds(leaf7),
        })
    }

    /// In what of that on which a vCPU relies another CPU differs.
    fn difference(&self, other: &Capabilities) -> Option<&'static str> {
        let facts = |of: &Capabilities| {
            [
                ("the VMCS's revision", u64::from(of.basic.revision())),
                ("the pin-based controls", of.pin.bits().into()),
                ("the primary controls", of.primary.bits().into()),
                ("the secondary controls", of.secondary.bits().into()),
                ("the exit controls", of.exit.bits().into()),
                ("the entry controls", of.entry.bits().into()),
                ("EPT and VPID", of.ept_vpid.bits()),
                ("the fixed bits of CR0", of.cr0_fixed0),
                ("the bits that CR0 may have", of.cr0_fixed1),
                ("the fixed bits of CR4", of.cr4_fixed0),
                ("the bits that CR4 may have", of.cr4_fixed1),
                (
                    "the preemption timer's rate",
                    of.misc.preemption_timer_shift().into(),
                ),
                ("XCR0", of.xcr0),
                ("the layout of the XSAVE area", of.xsave_layout),
                ("XSAVES", of.has_xsaves.into()),
                ("IBPB", of.has_ibpb.into()),
                ("MD_CLEAR", of.needs_md_clear.into()),
            ]
        };
        facts(self)
            .into_iter()
            .zip(facts(other))
            .find(|(mine, its)| mine.1 != its.1)
            .map(|(mine, _)| mine.0)
    }

    /// Guests may be offered RDTSCP.
    #[must_use]
    pub fn has_rdtscp(&self) -> bool {
        self.has(Secondary::ENABLE_RDTSCP)
    }

    /// Whether guests may use INVPCID.
    #[must_use]
    pub fn has_invpcid(&self) -> bool {
        self.has(Secondary::ENABLE_INVPCID)
    }

    /// Whether an optional secondary control is on.
    #[must_use]
    pub fn has(&self, control: Secondary) -> bool {
        self.secondary.contains(control)
    }
}

/// Sizes and offsets of the components from AVX on (SDM Vol. 1, "Processor Extended State Components", CPUID 0xD), in one number.
fn xsave_layout() -> u64 {
    let all = u64::from(core::arch::x86_64::__cpuid_count(0xD, 0).eax) & XCR0_ALLOWED;
    (2..u64::BITS)
        .filter(|component| all >> component & 1 != 0)
        .map(|component| core::arch::x86_64::__cpuid_count(0xD, component))
        .fold(0, |digest, leaf| {
            digest * 0x1_0001 + (u64::from(leaf.eax) << 16 | u64::from(leaf.ebx))
        })
}

/// IA32_ARCH_CAPABILITIES says that the CPU does not leak through microarchitectural buffers.
fn free_of_mds(leaf7_edx: u32) -> bool {
    leaf7_edx & (1 << 29) != 0 && read(msr::IA32_ARCH_CAPABILITIES) & msr::ARCH_CAP_MDS_NO != 0
}

trait Leaf7 {
    fn cpuid_leaf7_edx(&self) -> u32;
}

impl<R: raw_cpuid::CpuIdReader> Leaf7 for CpuId<R> {
    /// EDX of leaf 7, subleaf 0: IBRS/IBPB (26), MD_CLEAR (10), ARCH_CAPABILITIES (29); 0 where there is no such leaf.
    fn cpuid_leaf7_edx(&self) -> u32 {
        let highest = core::arch::x86_64::__cpuid(0).eax;
        if highest >= 7 {
            core::arch::x86_64::__cpuid_count(7, 0).edx
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_cpu() -> Capabilities {
        Capabilities {
            basic: VmxBasic(4),
            misc: VmxMisc(5),
            ept_vpid: EptVpidCapabilities::WALK_4,
            cr0_fixed0: 0x8000_0021,
            cr0_fixed1: u64::MAX,
            cr4_fixed0: 0x2000,
            cr4_fixed1: u64::MAX,
            pin: PinBased::NMI_EXITING,
            primary: Primary::HLT_EXITING,
            secondary: Secondary::ENABLE_EPT,
            exit: Exit::LOAD_IA32_EFER,
            entry: Entry::LOAD_IA32_EFER,
            xcr0: 7,
            xsave_layout: 1,
            has_xsaves: true,
            has_ibpb: false,
            needs_md_clear: false,
        }
    }

    #[test]
    fn a_cpu_on_which_a_vcpu_could_not_go_on_is_told_from_one_like_the_boot_cpu() {
        let boot = boot_cpu();
        assert_eq!(boot.difference(&boot), None);
        // Rates of other timers and the like are each CPU's own.
        let other = Capabilities {
            misc: VmxMisc(5 | 1 << 6),
            ..boot
        };
        assert_eq!(boot.difference(&other), None);
        let other = Capabilities { xcr0: 3, ..boot };
        assert_eq!(boot.difference(&other), Some("XCR0"));
        let other = Capabilities {
            xsave_layout: 2,
            ..boot
        };
        assert_eq!(
            boot.difference(&other),
            Some("the layout of the XSAVE area")
        );
        let other = Capabilities {
            secondary: boot.secondary | Secondary::ENABLE_VPID,
            ..boot
        };
        assert_eq!(boot.difference(&other), Some("the secondary controls"));
        let other = Capabilities {
            misc: VmxMisc(6),
            ..boot
        };
        assert_eq!(boot.difference(&other), Some("the preemption timer's rate"));
    }
}
