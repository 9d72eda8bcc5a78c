//! The contents of a new VMCS: controls and host area; the guest area is `start`'s.
//!
//! Source: Intel SDM Vol. 3, "VM-Execution Control Fields", "Checks on VMX Controls and Host-State Area".

use nagaya_mem::Hpa;
use nagaya_vmm::control_registers::CR4_ALLOWED;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr3, Cr4};
use x86_64::registers::model_specific::Msr;
use x86_defs::controls::{Primary, Secondary};
use x86_defs::interrupt::vector;
use x86_defs::{msr, vmcs as field};

use crate::host::cpu::percpu::PerCpu;
use crate::host::cpu::protect::HostSegments;
use crate::host::cpu::time;
use crate::vmx::bitmaps::Bitmaps;
use crate::vmx::capabilities;
use crate::vmx::cr::CR0_OWNED;
use crate::vmx::entry;
use crate::vmx::guest_area::GuestArea;
use crate::vmx::start::Start;
use crate::vmx::vmcs::LoadedVmcs;

/// What of a VM its VMCSs name.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// EPT pointer.
    pub eptp: u64,
    /// VPID, not 0.
    pub vpid: u16,
    /// I/O and MSR bitmaps.
    pub bitmaps: &'a Bitmaps,
    /// RDRAND and RDSEED raise #UD.
    pub deterministic: bool,
    /// What is added to the TSC that the guest reads.
    pub tsc_offset: u64,
}

/// The preemption timer's start value: at most 60 s. It is only a backstop, always armed: urgent kicks are NMIs, which nothing
/// holds back, but in Bochs a guest entered with interrupts off takes no external-interrupt exit, and this bounds the damage of
/// any kick that would go missing. On hardware it costs one exit a minute.
#[must_use]
pub fn backstop() -> u32 {
    let ticks =
        time::khz().saturating_mul(60_000) >> capabilities::get().misc.preemption_timer_shift();
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// PAUSEs that are no further apart belong to one loop: more than the longest way round a waiting loop of `nagaya-rt`, which now and
/// then looks whether all its peers live (over 128), less than anything that does work.
const PLE_GAP_TICKS: u32 = 512;
/// A loop that has lasted longer exits: longer than a lock is held that does work for a few cache misses, a twentieth of a slice
/// in Bochs.
const PLE_WINDOW_TICKS: u32 = 4096;

/// Writes everything: controls, host area for this CPU, guest area.
pub fn write_all(
    vmcs: &mut LoadedVmcs<'_>,
    cpu: &PerCpu,
    segments: &HostSegments,
    binding: &Binding<'_>,
    start: &Start,
) {
    write_controls(vmcs, binding);
    write_host(vmcs, cpu, segments);
    start.write(vmcs);
}

/// The same, with the guest area of another guest.
pub fn write_like(
    vmcs: &mut LoadedVmcs<'_>,
    cpu: &PerCpu,
    segments: &HostSegments,
    binding: &Binding<'_>,
    area: &GuestArea,
) {
    write_controls(vmcs, binding);
    write_host(vmcs, cpu, segments);
    area.write(vmcs);
}

fn physical(address: Hpa) -> u64 {
    address.get()
}

/// #DB and #AC are intercepted only to be injected again: their delivery can loop for ever in microcode, with no way out but an exit on
/// each round. #MC is the machine's, not the guest's.
pub const INTERCEPTED_EXCEPTIONS: u32 =
    1 << vector::DEBUG | 1 << vector::ALIGNMENT_CHECK | 1 << vector::MACHINE_CHECK;

fn write_controls(vmcs: &mut LoadedVmcs<'_>, binding: &Binding<'_>) {
    let capabilities = capabilities::get();
    let mut secondary = capabilities.secondary;
    if !binding.deterministic {
        secondary.remove(Secondary::RDRAND_EXITING | Secondary::RDSEED_EXITING);
    }
    if secondary.contains(Secondary::PAUSE_LOOP_EXITING) {
        vmcs.write(field::PLE_GAP, PLE_GAP_TICKS);
        vmcs.write(field::PLE_WINDOW, PLE_WINDOW_TICKS);
        // Until somebody waits for the CPU: `watch_spinning`.
        secondary.remove(Secondary::PAUSE_LOOP_EXITING);
    }
    vmcs.write(field::PIN_BASED_CONTROLS, capabilities.pin.bits());
    vmcs.write(field::PRIMARY_CONTROLS, capabilities.primary.bits());
    vmcs.write(field::SECONDARY_CONTROLS, secondary.bits());
    vmcs.write(field::EXIT_CONTROLS, capabilities.exit.bits());
    vmcs.write(field::EXCEPTION_BITMAP, INTERCEPTED_EXCEPTIONS);
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs.write(field::CR3_TARGET_COUNT, 0);
    vmcs.write(field::EXIT_MSR_STORE_COUNT, 0);
    vmcs.write(field::EXIT_MSR_LOAD_COUNT, 0);
    vmcs.write(field::ENTRY_MSR_LOAD_COUNT, 0);
    vmcs.write(field::ENTRY_INTERRUPTION_INFO, 0);
    vmcs.write(field::IO_BITMAP_A, physical(binding.bitmaps.io[0]));
    vmcs.write(field::IO_BITMAP_B, physical(binding.bitmaps.io[1]));
    vmcs.write(field::MSR_BITMAPS, physical(binding.bitmaps.msr));
    vmcs.write(field::EPT_POINTER, binding.eptp);
    if secondary.contains(Secondary::ENABLE_VPID) {
        vmcs.write(field::VPID, binding.vpid);
    }
    vmcs.write(field::TSC_OFFSET, binding.tsc_offset);
    vmcs.write(field::PREEMPTION_TIMER_VALUE, backstop());
    vmcs.write(field::CR0_GUEST_HOST_MASK, CR0_OWNED);
    vmcs.write(field::CR4_GUEST_HOST_MASK, !CR4_ALLOWED);
}

/// Writes the host area for the executing CPU.
pub fn write_host(vmcs: &mut LoadedVmcs<'_>, cpu: &PerCpu, segments: &HostSegments) {
    vmcs.write(field::HOST_CR0, Cr0::read_raw());
    vmcs.write(field::HOST_CR3, Cr3::read_raw().0.start_address().as_u64());
    vmcs.write(field::HOST_CR4, Cr4::read_raw());
    vmcs.write(field::HOST_CS_SELECTOR, segments.code);
    vmcs.write(field::HOST_SS_SELECTOR, segments.data);
    vmcs.write(field::HOST_DS_SELECTOR, segments.data);
    vmcs.write(field::HOST_ES_SELECTOR, segments.data);
    vmcs.write(field::HOST_FS_SELECTOR, 0);
    vmcs.write(field::HOST_GS_SELECTOR, 0);
    vmcs.write(field::HOST_TR_SELECTOR, segments.task);
    vmcs.write(field::HOST_FS_BASE, 0);
    vmcs.write(field::HOST_GS_BASE, cpu.address());
    vmcs.write(field::HOST_TR_BASE, segments.task_base);
    vmcs.write(field::HOST_GDTR_BASE, sgdt().base.as_u64());
    vmcs.write(field::HOST_IDTR_BASE, sidt().base.as_u64());
    vmcs.write(field::HOST_IA32_SYSENTER_CS, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_ESP, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_EIP, 0);
    // SAFETY: both MSRs exist on every CPU in long mode.
    unsafe {
        vmcs.write(field::HOST_IA32_EFER, Msr::new(msr::IA32_EFER).read());
        vmcs.write(field::HOST_IA32_PAT, Msr::new(msr::IA32_PAT).read());
    }
    vmcs.write(field::HOST_RIP, entry::exit_address());
}

/// Switches a primary control on or off.
pub fn set_primary(vmcs: &mut LoadedVmcs<'_>, control: Primary, wanted: bool) {
    let mut primary = Primary::from_bits_retain(vmcs.read(field::PRIMARY_CONTROLS));
    primary.set(control, wanted);
    vmcs.write(field::PRIMARY_CONTROLS, primary.bits());
}

/// Switches exits of loops of PAUSEs on or off, where the CPU has them. On only while somebody could use the CPU: who polls with
/// a CPU of its own never exits.
pub fn watch_spinning(vmcs: &mut LoadedVmcs<'_>, wanted: bool) {
    if !capabilities::get().has(Secondary::PAUSE_LOOP_EXITING) {
        return;
    }
    let before = Secondary::from_bits_retain(vmcs.read(field::SECONDARY_CONTROLS));
    let mut after = before;
    after.set(Secondary::PAUSE_LOOP_EXITING, wanted);
    if after != before {
        vmcs.write(field::SECONDARY_CONTROLS, after.bits());
    }
}
