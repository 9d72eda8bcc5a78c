//! String instructions with a device at one end: a port (INS, OUTS), or memory where no RAM is (MOVS, STOS, LODS).
//!
//! Elements are carried out one by one, a bounded number for each exit; the registers say where to go on, as after an interrupt on a
//! CPU. The other end is memory that the guest's page tables lead to, with the faults that a CPU would raise there, before anything
//! is read from a device. Limits and rights of segments are not checked: a CPU that exits by a port has not either, and what is
//! reached is in any case the guest's own.
//!
//! Source: Intel SDM Vol. 3, "Exit Qualification for I/O Instructions", "Instruction-Information Field" (which not all CPUs fill in:
//! the instruction is fetched instead).

use guest_abi::boot;
use nagaya_devices::GuestRam;
use nagaya_devices::pci::{Width, bus};
use nagaya_mem::{Access, AccessFault, Gpa, access_and_mark};
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::exit::PortAccess;
use nagaya_vmm::mmio::{CodeSize, Decoded, Segment, StringInstruction, StringKind};
use nagaya_vmm::outcome::Outcome;
use x86_defs::interrupt::{EventInjection, EventKind, vector};

use super::Running;
use super::exits::{GENERAL_PROTECTION, unknown_access};
use crate::arch::LoadedVcpu;
use crate::objects::code::Bytes;
use crate::vmx::xstate;

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// Numbers of registers.
const COUNT: u8 = 1;
const SOURCE: u8 = 6;
const TARGET: u8 = 7;

/// The end that is a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Device {
    /// A port.
    Port(u16),
    /// Memory.
    Memory {
        /// Of the first element.
        gpa: u64,
        /// It is written.
        is_target: bool,
    },
}

/// Why an element is not carried out.
type Stop = Outcome;

/// Where an element is: its bytes may be in two pages.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: Gpa,
    /// Bytes there.
    bytes: usize,
    rest: Option<Gpa>,
}

/// What stays the same for all elements of an exit.
struct Context<'a> {
    instruction: &'a StringInstruction,
    size: CodeSize,
    flags: u64,
    bytes: &'a Bytes,
}

impl Running<'_, '_> {
    /// INS or OUTS. What is not the instruction that exited any more, since another vCPU has changed it, faults.
    #[cold]
    #[inline(never)]
    pub(super) fn string_port(&mut self, access: PortAccess, width: Width) -> Outcome {
        let size = self.state.code_size();
        let fetched = self.fetch(size);
        let kind = if access.input {
            StringKind::In
        } else {
            StringKind::Out
        };
        match fetched.decoded {
            Ok(Decoded::String(found)) if found.kind == kind && found.width == width => {
                self.string(&found, size, Device::Port(access.port), &fetched.bytes)
            }
            _ => GENERAL_PROTECTION,
        }
    }

    /// Carries out elements of a string instruction.
    #[cold]
    #[inline(never)]
    pub(super) fn string(
        &mut self,
        instruction: &StringInstruction,
        size: CodeSize,
        device: Device,
        bytes: &Bytes,
    ) -> Outcome {
        let context = Context {
            instruction,
            size,
            flags: self.state.rflags(),
            bytes,
        };
        let count = self.general(COUNT).unwrap_or(0);
        let mut most = instruction.at_a_time(count);
        if let Device::Memory { gpa, .. } = device {
            let here = instruction.in_page(gpa, context.flags);
            if here == 0 {
                return unknown_access(gpa, bytes);
            }
            most = most.min(here);
        }
        // Each may begin a device's work, which has a bound; 64 of them would have 64 bounds.
        if let Device::Port(port) = device
            && instruction.kind == StringKind::Out
            && (port >= boot::PCI_FIRST_PORT || bus::PORTS.contains(&port))
        {
            most = most.min(1);
        }
        let mut done = 0;
        let mut outcome = Outcome::Resume;
        while done < most {
            match self.element(&context, device, done) {
                Ok(after) => {
                    done += 1;
                    if !matches!(after, Outcome::Next) {
                        outcome = after;
                        break;
                    }
                }
                Err(stop) => {
                    outcome = stop;
                    break;
                }
            }
        }
        self.move_on(&context, count, done);
        outcome
    }

    /// Sets the registers after so many elements.
    fn move_on(&mut self, context: &Context<'_>, count: u64, done: u64) {
        let Context {
            instruction, flags, ..
        } = context;
        let pointers = [
            (instruction.has_source(), SOURCE),
            (instruction.has_target(), TARGET),
        ];
        for (_, number) in pointers.into_iter().filter(|(is_used, _)| *is_used) {
            if let Some(register) = self.general(number) {
                self.set_general(number, instruction.moved(register, done, *flags));
            }
        }
        self.set_general(COUNT, instruction.counted(count, done));
        if done == instruction.left(count) {
            let rip = self.state.rip();
            let next = context.size.step(rip, instruction.length);
            self.state.set_rip(next);
            self.end_instruction();
        }
    }

    /// Carries out one element. [`Outcome::Next`]: the next one follows.
    fn element(
        &mut self,
        context: &Context<'_>,
        device: Device,
        index: u64,
    ) -> Result<Outcome, Stop> {
        let StringInstruction { kind, width, .. } = *context.instruction;
        match (kind, device) {
            (StringKind::In, Device::Port(port)) => {
                let to = self.place(context, index, Segment::Es, TARGET)?;
                let value = self.port_in(port, width);
                self.put(context, to, value.into())?;
            }
            (StringKind::Out, Device::Port(port)) => {
                let from = self.place(context, index, context.instruction.source, SOURCE)?;
                let value = self.get(context, from)?;
                return Ok(self.port_out(port, width, value as u32));
            }
            (_, Device::Memory { gpa, is_target }) => {
                let distance = context.instruction.distance(index, context.flags);
                let gpa = gpa.wrapping_add(distance);
                match kind {
                    StringKind::Move if is_target => {
                        let from =
                            self.place(context, index, context.instruction.source, SOURCE)?;
                        let value = self.get(context, from)?;
                        self.device_write(gpa, width, value);
                    }
                    StringKind::Move => {
                        let to = self.place(context, index, Segment::Es, TARGET)?;
                        let value = self.device_read(gpa, width);
                        self.put(context, to, value)?;
                    }
                    StringKind::Load => {
                        let value = self.device_read(gpa, width);
                        let rax = &mut self.vcpu.registers.rax;
                        *rax = context.instruction.loaded(*rax, value);
                    }
                    _ => {
                        let value = self.vcpu.registers.rax & width.ones();
                        self.device_write(gpa, width, value);
                    }
                }
            }
            // Neither decoder nor exit says such a thing.
            (_, Device::Port(_)) => return Err(GENERAL_PROTECTION),
        }
        Ok(Outcome::Next)
    }

    /// Base of a segment: in 64-bit code only two have one.
    fn segment_base(&self, segment: Segment, size: CodeSize) -> u64 {
        match segment {
            Segment::Fs | Segment::Gs => self.state.segment_base(segment),
            _ if size == CodeSize::Bits64 => 0,
            _ => self.state.segment_base(segment),
        }
    }

    /// Where an element in memory is, by the guest's page tables.
    fn place(
        &mut self,
        context: &Context<'_>,
        index: u64,
        segment: Segment,
        register: u8,
    ) -> Result<Place, Stop> {
        let Context {
            instruction,
            size,
            flags,
            bytes,
        } = *context;
        let offset = instruction.offset(self.general(register).unwrap_or(0), index, flags);
        let start = size.linear(0, self.segment_base(segment, size).wrapping_add(offset));
        let wanted = Access {
            writes: register == TARGET,
            is_user: self.state.cpl() == 3,
            is_smap_off: flags & ALIGNMENT_CHECK != 0,
        };
        let paging = self.paging();
        let find = |linear: u64| {
            let ram = self.vcpu.vm.devices.ram.view();
            access_and_mark(&paging, &*ram, linear, wanted).map_err(|fault| (linear, fault))
        };
        let inside = (start % guest_abi::PAGE_BYTES) as usize;
        let length = instruction.width.bytes();
        let here = length.min(guest_abi::PAGE_BYTES as usize - inside);
        let found = find(start).and_then(|first| {
            let next = size.linear(0, start.wrapping_add(here as u64));
            let rest = (here < length).then(|| find(next)).transpose()?;
            Ok(Place {
                first,
                bytes: here,
                rest,
            })
        });
        found.map_err(|(linear, fault)| match fault {
            AccessFault::Page(code) => {
                xstate::set_cr2(linear);
                Outcome::Inject(EventInjection {
                    vector: vector::PAGE_FAULT,
                    kind: EventKind::HardwareException,
                    error_code: Some(code),
                })
            }
            AccessFault::NotCanonical => GENERAL_PROTECTION,
            AccessFault::Unreadable => unknown_access(linear, bytes),
        })
    }

    /// Reads an element from memory, which has to be RAM.
    fn get(&self, context: &Context<'_>, place: Place) -> Result<u64, Stop> {
        let mut value = [0; 8];
        let (here, beyond) = value.split_at_mut(place.bytes);
        let ram = self.vcpu.vm.devices.ram.view();
        let after = context.instruction.width.bytes() - place.bytes;
        let read = ram.read(place.first, here).and_then(|()| {
            match place.rest.zip(beyond.get_mut(..after)) {
                Some((rest, beyond)) => ram.read(rest, beyond),
                None => Ok(()),
            }
        });
        match read {
            Ok(()) => Ok(u64::from_le_bytes(value)),
            Err(_) => Err(unknown_access(place.first.get(), context.bytes)),
        }
    }

    /// Writes an element to memory, which has to be RAM.
    fn put(&self, context: &Context<'_>, place: Place, value: u64) -> Result<(), Stop> {
        let value = value.to_le_bytes();
        let value = value
            .get(..context.instruction.width.bytes())
            .unwrap_or(&value);
        let (here, beyond) = value.split_at(place.bytes);
        let ram = self.vcpu.vm.devices.ram.view();
        let written = ram
            .write(place.first, here)
            .and_then(|()| place.rest.map_or(Ok(()), |rest| ram.write(rest, beyond)));
        written.map_err(|_| unknown_access(place.first.get(), context.bytes))
    }
}
