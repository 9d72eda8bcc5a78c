//! Accesses to devices: memory where no RAM is, and ports.
//!
//! Source: Intel SDM Vol. 3, "Exit Qualification for EPT Violations". The length of the instruction is not among what such an
//! exit tells, nor is its operand: the instruction is fetched and decoded (`code`, `nagaya_vmm::mmio`).

use guest_abi::boot;
use nagaya_devices::apic::{Mode, PAGE_BYTES};
use nagaya_devices::pc::{self, PcEffect};
use nagaya_devices::pci::{Width, bus};
use nagaya_vmm::cpu::{CpuState, SegmentRegister};
use nagaya_vmm::exit::{MemoryAccess, PortAccess};
use nagaya_vmm::mmio::{CodeSize, Decoded, Instruction, OperandAddress};
use nagaya_vmm::outcome::{Cause, Outcome};

use super::Running;
use super::interrupts::settle_eoi;
use crate::arch::LoadedVcpu;
use crate::host::cpu::time;
use crate::objects::code::{self, Fetched};

/// Group page and info pages, the hypervisor's own: an access that the EPT refuses there is the guest's mistake.
const PLATFORM_PAGES: core::ops::Range<u64> =
    boot::GROUP_PAGE_GPA..boot::INFO_PAGE_GPA + boot::MAX_VCPUS as u64 * guest_abi::PAGE_BYTES;

/// CS's access rights: 64-bit code.
const LONG_MODE_CODE: u32 = 1 << 13;

/// Whether a port is the PCI bus's. The reset register lies among them, which have nothing of that width there.
fn is_bus(port: u16, width: Width) -> bool {
    let is_reset = port == pc::port::RESET && width == Width::Byte;
    bus::PORTS.contains(&port) && !is_reset
}

fn fits_its_page(instruction: &Instruction, gpa: u64) -> bool {
    gpa % guest_abi::PAGE_BYTES + instruction.width.bytes() as u64 <= guest_abi::PAGE_BYTES
}

/// Whether the access to the first bytes of a page may be the second half of one that began in the page before.
fn may_begin_before(instruction: &Instruction, gpa: u64) -> bool {
    gpa.is_multiple_of(guest_abi::PAGE_BYTES) && instruction.width != Width::Byte
}

impl Running<'_, '_> {
    /// Whether an access that the EPT does not allow is the guest's own mistake: its RAM, as far as it knows, or pages that it may
    /// only read. A native guest knows where its RAM ends. Kernels for PCs look for more, and for what else there may be: to them
    /// what is nobody's floats.
    pub(super) fn is_refused(&self, gpa: u64) -> bool {
        let vm = &self.vcpu.vm;
        let is_own = if vm.config.kind.is_pc() {
            vm.layout.is_ram(gpa, 1)
        } else {
            gpa < boot::DEVICE_SPACE_GPA
        };
        is_own || PLATFORM_PAGES.contains(&gpa)
    }

    /// An access that the EPT does not allow: a device's memory, nobody's, or the end of the VM. Not inlined, so that the run
    /// loop's frame stays small for shorter exits.
    #[inline(never)]
    pub(super) fn memory_violation(&mut self, gpa: u64, access: MemoryAccess) -> Outcome {
        if let Some(outcome) = self.break_sharing(gpa) {
            return outcome;
        }
        if self.is_refused(gpa) {
            return Outcome::End(Cause::MemoryViolation {
                gpa,
                access: access.bits(),
            });
        }
        let is_delivery = self.state.interrupted_delivery().is_some();
        // Code, page tables, and the stack or the table of an event's delivery.
        if access.execute || !access.is_final || is_delivery {
            return self.step(gpa, access);
        }
        // EFER is not looked at for what is remembered: that was 64-bit code at this address under the same tables.
        let is_long = self.state.code_rights() & LONG_MODE_CODE != 0;
        let known = if is_long {
            let rip = self.state.rip();
            let cr3 = self.state.cr3();
            let ram = self.vcpu.vm.devices.ram.view();
            self.vcpu.known.find(rip, cr3, &ram)
        } else {
            None
        };
        let fits = |instruction: &Instruction| {
            fits_its_page(instruction, gpa) && instruction.explains(access)
        };
        if let Some(instruction) = known.filter(fits)
            && (!may_begin_before(&instruction, gpa) || {
                let address = self.vcpu.known.operand_address(self.state.rip());
                address.is_some_and(|address| self.begins_with_page(&address, CodeSize::Bits64))
            })
        {
            self.carry_out(&instruction, gpa, CodeSize::Bits64);
            return Outcome::Resume;
        }
        self.fetch_and_carry_out(gpa, access)
    }

    /// The same, for an instruction that is another than the last.
    #[cold]
    #[inline(never)]
    fn fetch_and_carry_out(&mut self, gpa: u64, access: MemoryAccess) -> Outcome {
        let size = self.state.code_size();
        let fetched = self.fetch(size);
        if let Some(known) = fetched.known {
            self.vcpu.known.keep(known);
        }
        match fetched.decoded {
            Ok(Decoded::Single(instruction, address))
                if fits_its_page(&instruction, gpa)
                    && instruction.explains(access)
                    && (!may_begin_before(&instruction, gpa)
                        || self.begins_with_page(&address, size)) =>
            {
                self.carry_out(&instruction, gpa, size);
                Outcome::Resume
            }
            Ok(Decoded::String(instruction)) if instruction.explains(access) => {
                self.vcpu.known.mismatches.clear();
                self.string(&instruction, size, 0)
            }
            // Another instruction, or another than exited: another vCPU may have changed it since.
            _ => self.step(gpa, access),
        }
    }

    /// Whether an operand begins where a page does.
    #[cold]
    fn begins_with_page(&mut self, address: &OperandAddress, size: CodeSize) -> bool {
        let rip = self.state.rip();
        let offset = address.page_offset(rip, |part| self.address_part(part, size));
        offset == 0
    }

    /// The instruction that the guest is at.
    pub(super) fn fetch(&self, size: CodeSize) -> Fetched {
        let base = self.state.segment_base(SegmentRegister::Cs);
        let linear = size.linear(base, self.state.rip());
        code::fetch(
            linear,
            size,
            &self.paging(),
            &self.vcpu.vm.devices.ram.view(),
        )
    }

    fn carry_out(&mut self, instruction: &Instruction, gpa: u64, size: CodeSize) {
        self.vcpu.known.mismatches.clear();
        let register = instruction.register();
        let value = register
            .and_then(|number| self.general(number))
            .unwrap_or(0);
        let flags = self.state.rflags();
        let memory = if instruction.reads_memory() {
            self.device_read(gpa, instruction.width)
        } else {
            0
        };
        let change = instruction.execute(value, memory, flags);
        if let (Some(number), Some(value)) = (register, change.register) {
            self.set_general(number, value);
        }
        if let Some(flags) = change.flags {
            self.state.set_rflags(flags);
        }
        let rip = self.state.rip();
        self.state.set_rip(size.step(rip, instruction.length));
        self.end_instruction();
        if let Some(value) = change.memory {
            self.device_write(gpa, instruction.width, value);
        }
    }

    /// The offset in the local APIC's page, if that is where the address is and the APIC answers there.
    fn apic_offset(&self, gpa: u64) -> Option<u16> {
        let apic = &self.vcpu.apic;
        let offset = gpa
            .checked_sub(apic.base())
            .filter(|_| apic.mode() == Mode::XApic)?;
        u16::try_from(offset)
            .ok()
            .filter(|offset| u64::from(*offset) < PAGE_BYTES)
    }

    /// Whether a device, or the local APIC, has registers in a page.
    pub(super) fn has_registers_in(&self, page: u64) -> bool {
        self.apic_offset(page).is_some() || self.vcpu.vm.devices.has_registers_in(page)
    }

    pub(super) fn device_read(&mut self, gpa: u64, width: Width) -> u64 {
        if let Some(offset) = self.apic_offset(gpa) {
            settle_eoi(self.vcpu);
            let value = self.vcpu.apic.memory_read(offset, width, time::ticks());
            self.looks_for_interrupts = true;
            return value;
        }
        let found = self.vcpu.vm.devices.memory_read(gpa, width);
        self.board_changed();
        found.unwrap_or(width.ones())
    }

    pub(super) fn device_write(&mut self, gpa: u64, width: Width, value: u64) {
        if let Some(offset) = self.apic_offset(gpa) {
            settle_eoi(self.vcpu);
            let now = time::ticks();
            let effect = self.vcpu.apic.memory_write(offset, width, value, now);
            self.apply_effect(effect);
        } else if self.vcpu.vm.devices.memory_write(gpa, width, value) {
            self.look_at_deferred();
            self.board_changed();
        }
    }

    /// Some work may have been left for later on this CPU.
    fn look_at_deferred(&mut self) {
        if self.cpu.has_deferred_before(self.due) {
            self.arm();
        }
    }

    /// Behind most ports there is nothing: reads float to ones, writes go nowhere, as on an empty bus.
    pub(super) fn port(&mut self, access: PortAccess) -> Outcome {
        let width = Width::of(access.size.into()).unwrap_or(Width::Byte);
        if access.string {
            return self.string_port(access, width);
        }
        if access.input {
            let value = self.port_in(access.port, width);
            let rax = &mut self.vcpu.registers.rax;
            *rax = match width {
                Width::Byte | Width::Word => *rax & !width.ones() | u64::from(value) & width.ones(),
                _ => value.into(),
            };
            return Outcome::Next;
        }
        let value = self.vcpu.registers.rax as u32 & width.ones() as u32;
        self.port_out(access.port, width, value)
    }

    /// Reads a port.
    pub(super) fn port_in(&mut self, port: u16, width: Width) -> u32 {
        let devices = &self.vcpu.vm.devices;
        let of_bar = (port >= boot::PCI_FIRST_PORT)
            .then(|| devices.bar_port_read(port, width))
            .flatten();
        let value = if let Some(value) = of_bar {
            value
        } else if is_bus(port, width) {
            devices.port_read(port, width)
        } else {
            let read = devices.board_port_read(port, width);
            read.unwrap_or(width.ones() as u32)
        };
        self.board_changed();
        value
    }

    /// Writes a port; the next instruction follows unless the VM ends by it.
    pub(super) fn port_out(&mut self, port: u16, width: Width, value: u32) -> Outcome {
        if self.bus_port_out(port, width, value) {
            return Outcome::Next;
        }
        self.board_port_out(port, width, value)
            .unwrap_or(Outcome::Next)
    }

    /// Writes a port if it is the bus's or of a device on it; whether it is.
    #[inline(always)]
    pub(super) fn bus_port_out(&mut self, port: u16, width: Width, value: u32) -> bool {
        let devices = &self.vcpu.vm.devices;
        // First what is written most: the notifications of devices.
        if port >= boot::PCI_FIRST_PORT && devices.bar_port_write(port) {
            self.look_at_deferred();
            self.board_changed();
            return true;
        }
        if is_bus(port, width) {
            devices.port_write(port, width, value);
            self.look_at_deferred();
            return true;
        }
        false
    }

    /// Writes a port that is not the bus's. `None` if nobody is there.
    #[inline(always)]
    pub(super) fn board_port_out(
        &mut self,
        port: u16,
        width: Width,
        value: u32,
    ) -> Option<Outcome> {
        let devices = &self.vcpu.vm.devices;
        let effect = devices.board_port_write(port, width, value);
        self.board_changed();
        Some(match effect? {
            PcEffect::None | PcEffect::Output(_) | PcEffect::DebugOutput(_) => Outcome::Next,
            PcEffect::PowerOff => Outcome::End(Cause::PowerOff),
            PcEffect::Reset => Outcome::End(Cause::Reset),
            PcEffect::Panicked { is_dumping } => {
                self.guest_panicked(is_dumping);
                Outcome::Next
            }
            PcEffect::Exit(code) => Outcome::End(Cause::Exit(i64::from(code))),
        })
    }
}
