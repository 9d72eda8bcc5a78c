//! APIC virtualisation: the CPU keeps a vCPU's interrupts and priorities in a page and delivers from there. The guest ends
//! interrupts and changes its priority without an exit, and none is needed to wait until it can take one.
//!
//! Used while the guest's APIC is in x2APIC mode, on CPUs that have all parts of it, unless the scenario says otherwise;
//! everywhere else [`LocalApic`] does it all. Messages to other vCPUs and the timer exit in either case.
//!
//! Concurrency: page and controls belong to the CPU that has the vCPU loaded. There are no posted interrupts of the CPU's: others
//! post into `Handle::posted`, and what is collected from there is staged into the page before an entry.
//! Source: Intel SDM Vol. 3, "APIC Virtualization and Virtual Interrupts".

use core::sync::atomic::{AtomicBool, Ordering};

use nagaya_devices::apic::page::{self, Page};
use nagaya_devices::apic::{LocalApic, Mode};
use nagaya_mem::Hpa;
use nagaya_vmm::config::MachineConfig;
use x86_defs::controls::{Primary, Secondary};
use x86_defs::vmcs as field;

use crate::host::memory::{self, Whose};
use crate::vmx::bitmaps::Bitmaps;
use crate::vmx::capabilities;
use crate::vmx::vmcs::LoadedVmcs;

/// The CPU has it, and it is to be used.
static IS_USED: AtomicBool = AtomicBool::new(false);

const SECONDARY: Secondary = Secondary::VIRTUALIZE_X2APIC_MODE
    .union(Secondary::APIC_REGISTER_VIRTUALIZATION)
    .union(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
/// With the shadow they would exit for nothing.
const CR8_EXITING: Primary = Primary::CR8_LOAD_EXITING.union(Primary::CR8_STORE_EXITING);

/// Decides whether it is used. Called once, before the first VM.
pub fn init(machine: &MachineConfig) {
    let (primary, secondary) = capabilities::allowed_processor_controls();
    let has_all = primary.contains(Primary::USE_TPR_SHADOW) && secondary.contains(SECONDARY);
    let is_used = has_all && machine.apic_virtualization;
    IS_USED.store(is_used, Ordering::Relaxed);
    log::info!(
        "APIC virtualisation: {}",
        match (has_all, is_used) {
            (false, _) => "the CPU has none, software does it",
            (true, false) => "off, software does it",
            (true, true) => "by the CPU, in x2APIC mode",
        }
    );
}

/// Whether it is used for guests whose APIC is in x2APIC mode.
#[must_use]
pub fn is_used() -> bool {
    IS_USED.load(Ordering::Relaxed)
}

/// A vCPU's virtual-APIC page.
#[derive(Debug)]
pub struct VirtualApic {
    /// Where it is not used there is none.
    page: Option<Registers>,
    is_on: bool,
    /// The EOI-exit bitmap.
    ends_to_tell: [u64; 4],
}

#[derive(Debug)]
struct Registers(Hpa);

impl Registers {
    fn at(&self, offset: u16) -> Hpa {
        Hpa::new(self.0.get() + u64::from(offset))
    }
}

// The upper half of what is accessed is reserved and 0.
impl Page for Registers {
    fn load(&self, offset: u16) -> u32 {
        memory::phys().load_u64(self.at(offset)) as u32
    }

    fn store(&self, offset: u16, value: u32) {
        // SAFETY: the page is this structure's own frame; registers lie inside it.
        unsafe { memory::writer(Whose::Hypervisor) }.store_u64(self.at(offset), value.into());
    }
}

impl VirtualApic {
    /// Switched off. `None` if memory runs out.
    #[must_use]
    pub fn new() -> Option<VirtualApic> {
        let page = if is_used() {
            Some(Registers(memory::allocate_hypervisor_frame()?))
        } else {
            None
        };
        Some(VirtualApic {
            page,
            is_on: false,
            ends_to_tell: [0; 4],
        })
    }

    fn on(&self) -> Option<&Registers> {
        self.page.as_ref().filter(|_| self.is_on)
    }

    /// Whether the CPU keeps the interrupts now.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Follows the mode of the guest's APIC.
    pub fn sync_mode(
        &mut self,
        vmcs: &mut LoadedVmcs<'_>,
        bitmaps: &Bitmaps,
        apic: &mut LocalApic,
    ) {
        let Some(registers) = &self.page else {
            return;
        };
        let is_wanted = apic.mode() == Mode::X2Apic;
        if is_wanted == self.is_on {
            return;
        }
        self.is_on = is_wanted;
        if is_wanted {
            apic.give_to(registers);
            vmcs.write(field::VIRTUAL_APIC_ADDRESS, registers.0.get());
            // With virtual-interrupt delivery it has no meaning, but is checked.
            vmcs.write(field::TPR_THRESHOLD, 0);
            vmcs.write(field::GUEST_INTERRUPT_STATUS, page::status(registers));
            write_ends(vmcs, apic.ends_to_tell());
            self.ends_to_tell = apic.ends_to_tell();
        }
        // x2APIC mode is left only for none, and that resets the APIC: there is nothing to take back from the page.
        set_controls(vmcs, bitmaps, is_wanted);
    }

    /// After the controls have been written from scratch.
    pub fn restart(&mut self, vmcs: &mut LoadedVmcs<'_>, bitmaps: &Bitmaps, apic: &mut LocalApic) {
        if let Some(registers) = self.on() {
            apic.take_from(registers);
        }
        self.is_on = false;
        self.sync_mode(vmcs, bitmaps, apic);
    }

    /// The APIC as a value, with what is in the page.
    #[must_use]
    pub fn whole(&self, apic: &LocalApic) -> LocalApic {
        let mut apic = apic.clone();
        if let Some(registers) = self.on() {
            apic.take_from(registers);
        }
        apic
    }

    /// What is in the page counts no more: the APIC has been reset. Before the controls are written from scratch.
    pub fn forget(&mut self) {
        self.is_on = false;
    }

    /// Brings what the APIC has accepted into the page.
    #[inline]
    pub fn stage(&mut self, vmcs: &mut LoadedVmcs<'_>, apic: &mut LocalApic) {
        let Some(registers) = self.on() else { return };
        let Some(vector) = apic.stage(registers) else {
            return;
        };
        let before = vmcs.read(field::GUEST_INTERRUPT_STATUS);
        let after = page::with_requested(before, vector);
        if after != before {
            vmcs.write(field::GUEST_INTERRUPT_STATUS, after);
        }
        let ends_to_tell = apic.ends_to_tell();
        // Word by word: an array's comparison is a call.
        let words = ends_to_tell.iter().zip(&self.ends_to_tell);
        if words.fold(0, |changed, (new, old)| changed | (new ^ old)) != 0 {
            self.ends_to_tell = ends_to_tell;
            write_ends(vmcs, ends_to_tell);
        }
    }

    /// The interrupt that the CPU delivers next, if the guest's flags let it.
    #[inline]
    #[must_use]
    pub fn pending(&self, vmcs: &LoadedVmcs<'_>) -> Option<u8> {
        page::pending(self.on()?, vmcs.read(field::GUEST_INTERRUPT_STATUS))
    }

    /// Takes an interrupt back whose delivery an exit cut short. `false` if the CPU has not delivered it.
    pub fn undo_delivery(&mut self, vmcs: &mut LoadedVmcs<'_>, vector: u8) -> bool {
        let Some(registers) = self.on() else {
            return false;
        };
        let is_undone = page::undo_delivery(registers, vector);
        if is_undone {
            vmcs.write(field::GUEST_INTERRUPT_STATUS, page::status(registers));
        }
        is_undone
    }
}

impl Drop for VirtualApic {
    fn drop(&mut self) {
        if let Some(registers) = self.page.take() {
            memory::free_hypervisor_frame(registers.0);
        }
    }
}

/// The bitmap that lets the guest at its APIC's MSRs goes with the controls that make them virtual: never one without the others.
fn set_controls(vmcs: &mut LoadedVmcs<'_>, bitmaps: &Bitmaps, is_on: bool) {
    let mut primary = Primary::from_bits_retain(vmcs.read(field::PRIMARY_CONTROLS));
    primary.set(Primary::USE_TPR_SHADOW, is_on);
    primary.set(CR8_EXITING, !is_on);
    let mut secondary = Secondary::from_bits_retain(vmcs.read(field::SECONDARY_CONTROLS));
    secondary.set(SECONDARY, is_on);
    let msr = if is_on {
        bitmaps.msr_with_virtual_apic
    } else {
        bitmaps.msr
    };
    vmcs.write(field::PRIMARY_CONTROLS, primary.bits());
    vmcs.write(field::SECONDARY_CONTROLS, secondary.bits());
    vmcs.write(field::MSR_BITMAPS, msr.get());
}

fn write_ends(vmcs: &mut LoadedVmcs<'_>, [first, second, third, fourth]: [u64; 4]) {
    vmcs.write(field::EOI_EXIT_BITMAP_0, first);
    vmcs.write(field::EOI_EXIT_BITMAP_1, second);
    vmcs.write(field::EOI_EXIT_BITMAP_2, third);
    vmcs.write(field::EOI_EXIT_BITMAP_3, fourth);
}
