//! VMX operation: entering it, and the proof that a CPU is in it.
//!
//! Source: Intel SDM Vol. 3, "Introduction to Virtual Machine Extensions", "VMX Instruction Reference" (VMXON).

use alloc::string::String;
use core::marker::PhantomData;

use nagaya_mem::{HostMemory, Hpa};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;
use x86_defs::msr;

use crate::host::cpu::protect::HostSegments;
use crate::host::memory::{self, Whose};
use crate::vmx::capabilities::{self, Capabilities};

/// Proof that the executing CPU is in VMX operation. Not `Send`: it belongs to its CPU. At most one VMCS is current on a CPU;
/// `Vmcs::load` borrows this exclusively for as long as one is.
#[derive(Debug)]
pub struct VmxCpu {
    /// What the host area of a VMCS on this CPU must hold.
    pub segments: HostSegments,
    not_send: PhantomData<*const ()>,
}

/// Brings the executing CPU into VMX operation; `segments` are its own.
///
/// # Errors
/// What the CPU or its firmware lacks, by name.
pub fn enable(segments: HostSegments) -> Result<VmxCpu, String> {
    let capabilities = Capabilities::of_this_cpu()?;
    capabilities::publish(capabilities)?;
    allow_by_firmware()?;
    // SAFETY: CR0 and CR4 get the bits that VMX operation demands ("Restrictions on VMX Operation"); all are set or harmless
    // for this kernel (NE, PE, PG, VMXE), and OSXSAVE only enables XSETBV and XSAVE.
    unsafe {
        let cr0 = (Cr0::read_raw() | capabilities.cr0_fixed0) & capabilities.cr0_fixed1;
        Cr0::write_raw(cr0);
        let cr4 = (Cr4::read_raw() | capabilities.cr4_fixed0) & capabilities.cr4_fixed1;
        Cr4::write_raw(
            cr4 | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.bits() | Cr4Flags::OSXSAVE.bits(),
        );
    }
    debug_assert!(Cr0::read().contains(Cr0Flags::WRITE_PROTECT));
    let region = new_region(capabilities).ok_or("no frame for the VMXON region")?;
    // SAFETY: the region is a frame of the hypervisor with the right revision, never freed; CR4.VMXE is set and the firmware
    // allows VMXON.
    if !unsafe { vmxon(region) } {
        return Err("VMXON failed".into());
    }
    Ok(VmxCpu {
        segments,
        not_send: PhantomData,
    })
}

/// Sees to it that IA32_FEATURE_CONTROL lets VMXON run outside SMX: firmware has locked it so, or has left it open to us.
fn allow_by_firmware() -> Result<(), String> {
    let mut control = Msr::new(msr::IA32_FEATURE_CONTROL);
    // SAFETY: the MSR exists on every CPU with VMX (checked by `Capabilities`). Setting enable and lock bits is what firmware
    // would do.
    unsafe {
        let value = control.read();
        if value & msr::FEATURE_CONTROL_LOCKED == 0 {
            control
                .write(value | msr::FEATURE_CONTROL_VMX_OUTSIDE_SMX | msr::FEATURE_CONTROL_LOCKED);
            return Ok(());
        }
        if value & msr::FEATURE_CONTROL_VMX_OUTSIDE_SMX == 0 {
            return Err("the firmware has locked VT-x off (IA32_FEATURE_CONTROL): switch it on in the firmware's set-up".into());
        }
    }
    Ok(())
}

/// # Safety
/// As the SDM demands of VMXON: CR4.VMXE set, `region` a 4 KiB frame with the revision identifier, not otherwise used.
unsafe fn vmxon(region: Hpa) -> bool {
    let ok: u8;
    let address = region.get();
    // SAFETY: the caller keeps the contract; the operand is a valid pointer to the region's address.
    unsafe {
        core::arch::asm!("vmxon [{address}]", "seta {ok}", address = in(reg) &raw const address, ok = out(reg_byte) ok,
            options(nostack));
    }
    ok != 0
}

/// A frame with the revision identifier, fit for VMXON or a VMCS.
#[must_use]
pub fn new_region(capabilities: Capabilities) -> Option<Hpa> {
    let frame = memory::allocate_hypervisor_frame()?;
    // SAFETY: the frame was just allocated here.
    unsafe { memory::writer(Whose::Hypervisor) }
        .write(frame, &capabilities.basic.revision().to_le_bytes());
    Some(frame)
}
