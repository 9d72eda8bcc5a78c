//! String instructions with a device at one end or both: ports (INS, OUTS), memory where no RAM is (MOVS, STOS, LODS, CMPS, SCAS).
//!
//! An exit carries out a bounded number of elements; the registers say where to go on, as after an interrupt on a CPU. Both ends in
//! memory are found as a CPU finds them, by segment and page tables, with the faults that it would raise there, before anything is
//! read from a device. Where one end is RAM its elements are moved at once.
//!
//! Source: Intel SDM Vol. 3, "Exit Qualification for I/O Instructions", "Instruction-Information Field" (which not all CPUs fill in:
//! the instruction is fetched instead).

use guest_abi::PAGE_BYTES;
use nagaya_devices::GuestRam;
use nagaya_devices::pci::Width;
use nagaya_mem::{Access, AccessFault, Gpa, Hpa, access_and_mark};
use nagaya_vmm::cpu::{CpuState, SegmentFault};
use nagaya_vmm::exit::PortAccess;
use nagaya_vmm::mmio::{CodeSize, Decoded, MAX_ELEMENTS, Segment, StringInstruction, StringKind};
use nagaya_vmm::outcome::{Cause, Outcome};
use x86_defs::interrupt::{EventInjection, EventKind, vector};

use super::Running;
use super::exits::GENERAL_PROTECTION;
use crate::arch::LoadedVcpu;
use crate::host::memory::{self, Tables};
use crate::vmx::xstate;

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;
/// Numbers of registers.
const COUNT: u8 = 1;
const SOURCE: u8 = 6;
const TARGET: u8 = 7;
/// Bytes of the most elements of an exit.
const BUFFER_BYTES: usize = MAX_ELEMENTS as usize * 8;

/// Why elements are not carried out.
type Stop = Outcome;

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// RAM of the guest's.
    Ram(Gpa),
    /// A page of the hypervisor's that the guest may read.
    Platform(Hpa),
    /// Registers of a device, or nobody.
    Registers(u64),
}

impl Place {
    /// What is so many bytes further on, which may be backwards, in the same page.
    fn further(self, distance: u64) -> Place {
        match self {
            Place::Ram(gpa) => Place::Ram(Gpa::new(gpa.get().wrapping_add(distance))),
            Place::Platform(hpa) => Place::Platform(Hpa::new(hpa.get().wrapping_add(distance))),
            Place::Registers(gpa) => Place::Registers(gpa.wrapping_add(distance)),
        }
    }
}

/// An end in memory: where its first element is.
#[derive(Clone, Copy, Debug)]
struct End {
    place: Place,
    /// Bytes of that element in its page, and where the others are, if they are in the next.
    rest: Option<(usize, Place)>,
}

impl End {
    fn is_ram(&self) -> bool {
        matches!(self.place, Place::Ram(_)) && self.rest.is_none()
    }
}

/// What stays the same for all elements of an exit.
struct Context<'a> {
    instruction: &'a StringInstruction,
    size: CodeSize,
    flags: u64,
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
                self.string(&found, size, access.port)
            }
            _ => GENERAL_PROTECTION,
        }
    }

    /// Carries out elements of a string instruction. `port` is for INS and OUTS.
    #[cold]
    #[inline(never)]
    pub(super) fn string(
        &mut self,
        instruction: &StringInstruction,
        size: CodeSize,
        port: u16,
    ) -> Outcome {
        let flags = self.state.rflags();
        let context = Context {
            instruction,
            size,
            flags,
        };
        let count = self.general(COUNT).unwrap_or(0);
        let mut most = instruction.at_a_time(count);
        let (mut source, mut target) = (None, None);
        if most > 0 && instruction.has_source() {
            match self.end_in_memory(&context, instruction.source, SOURCE, &mut most) {
                Ok(end) => source = Some(end),
                Err(stop) => return stop,
            }
        }
        if most > 0 && instruction.has_target() {
            match self.end_in_memory(&context, Segment::Es, TARGET, &mut most) {
                Ok(end) => target = Some(end),
                Err(stop) => return stop,
            }
        }
        // What is written at one end may be what is read at the other.
        if let (Some(source), Some(target)) = (&source, &target)
            && source.is_ram() == target.is_ram()
        {
            most = most.min(1);
        }
        let (done, flags, outcome) = self.elements(&context, port, most, source, target);
        self.move_on(&context, count, done, flags);
        outcome
    }

    /// Carries out so many elements, or fewer: how many, RFLAGS after them, and what follows.
    fn elements(
        &mut self,
        context: &Context<'_>,
        port: u16,
        most: u64,
        source: Option<End>,
        target: Option<End>,
    ) -> (u64, u64, Outcome) {
        let StringInstruction { kind, width, .. } = *context.instruction;
        let bytes = width.bytes();
        let mut buffer = [0; BUFFER_BYTES];
        let mut flags = context.flags;
        // RAM that is read comes at once, RAM that is written goes at once.
        let ram_source = source.filter(End::is_ram);
        let ram_target = target.filter(|end| end.is_ram() && context.instruction.writes_target());
        if let Some(end) = ram_source {
            self.copy(context, end, most, &mut buffer, false);
        }
        let mut outcome = Outcome::Resume;
        let mut done = 0;
        while done < most {
            let distance = context.instruction.distance(done, context.flags);
            let at = place_in_buffer(context, done, most, bytes);
            let value = match (kind, source) {
                (StringKind::In, _) => self.port_in(port, width).into(),
                (StringKind::Store | StringKind::Scan, _) => self.vcpu.registers.rax,
                (_, Some(_)) if ram_source.is_some() => from_bytes(&buffer, at, bytes),
                (_, Some(end)) => self.load(end, distance, bytes),
                (_, None) => 0,
            };
            done += 1;
            match kind {
                StringKind::Out => {
                    // Each may begin a device's work, which has a bound; 64 of them would have 64 bounds.
                    if self.bus_port_out(port, width, value as u32) {
                        break;
                    }
                    match self.board_port_out(port, width, value as u32) {
                        Some(Outcome::Next) => {}
                        Some(after) => {
                            outcome = after;
                            break;
                        }
                        // Where nobody is all of them go.
                        None => {
                            done = most;
                            break;
                        }
                    }
                }
                StringKind::Load => {
                    let rax = &mut self.vcpu.registers.rax;
                    *rax = context.instruction.loaded(*rax, value);
                }
                StringKind::Compare | StringKind::Scan => {
                    let second = target.map_or(0, |end| self.load(end, distance, bytes));
                    flags = context.instruction.compared(value, second, flags);
                    if context.instruction.ends_with(flags) {
                        break;
                    }
                }
                StringKind::Move | StringKind::Store | StringKind::In => match target {
                    Some(_) if ram_target.is_some() => to_bytes(&mut buffer, at, bytes, value),
                    Some(end) => self.store(end, distance, bytes, value),
                    None => {}
                },
            }
        }
        if let Some(end) = ram_target {
            self.copy(context, end, most, &mut buffer, true);
        }
        (done, flags, outcome)
    }

    /// Sets the registers after so many elements.
    fn move_on(&mut self, context: &Context<'_>, count: u64, done: u64, after: u64) {
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
        if after != *flags {
            self.state.set_rflags(after);
        }
        if done == instruction.left(count) || done > 0 && instruction.ends_with(after) {
            let next = context.size.step(self.state.rip(), instruction.length);
            self.state.set_rip(next);
            self.end_instruction();
        }
    }

    /// Finds an end in memory, and makes `most` no more than what of it lies in one page and one segment.
    fn end_in_memory(
        &mut self,
        context: &Context<'_>,
        segment: Segment,
        register: u8,
        most: &mut u64,
    ) -> Result<End, Stop> {
        let Context {
            instruction, flags, ..
        } = *context;
        let bytes = instruction.width.bytes() as u64;
        let pointer = self.general(register).unwrap_or(0);
        let writes = register == TARGET && instruction.writes_target();
        let addressing = self.state.addressing();
        let parts = self.state.segment(segment);
        let linear = |index: u64| {
            let offset = instruction.offset(pointer, index, flags);
            addressing.linear(segment, &parts, offset, bytes, writes)
        };
        let start = linear(0).map_err(refused)?;
        // All of them where the first is, or one by one: the address register may turn over on the way, or the segment end.
        let last = most.saturating_sub(1);
        let is_straight = linear(last) == Ok(start.wrapping_add(instruction.distance(last, flags)));
        let here = instruction.in_page(start, flags).max(1);
        *most = (*most).min(if is_straight { here } else { 1 });
        let inside = (PAGE_BYTES - start % PAGE_BYTES).min(bytes);
        let place = self.find(start, writes, flags)?;
        let rest = if inside < bytes {
            let next = addressing.further(start, inside);
            *most = (*most).min(1);
            Some((inside as usize, self.find(next, writes, flags)?))
        } else {
            None
        };
        Ok(End { place, rest })
    }

    /// What is at a linear address, by the guest's page tables, which learn of the access.
    fn find(&mut self, linear: u64, writes: bool, flags: u64) -> Result<Place, Stop> {
        let wanted = Access {
            writes,
            is_user: self.state.cpl() == 3,
            is_smap_off: flags & ALIGNMENT_CHECK != 0,
        };
        let paging = self.paging();
        let ram = self.vcpu.vm.devices.ram.view();
        let gpa = match access_and_mark(&paging, &*ram, linear, wanted) {
            Ok(gpa) => gpa,
            Err(AccessFault::NotCanonical) => return Err(GENERAL_PROTECTION),
            Err(AccessFault::Page(code)) => return Err(page_fault(linear, code)),
            // Tables where nobody answers are ones: present, with reserved bits.
            Err(AccessFault::Unreadable) => {
                let code = u32::from(wanted.writes) << 1 | u32::from(wanted.is_user) << 2;
                return Err(page_fault(linear, code | PRESENT_AND_RESERVED));
            }
        };
        if ram.is_ram(gpa) {
            return Ok(Place::Ram(gpa));
        }
        drop(ram);
        if !self.is_refused(gpa.get()) {
            return Ok(Place::Registers(gpa.get()));
        }
        let vm = &self.vcpu.vm;
        let lock = (vm.memory.lock(), vm.space.hold());
        let found = vm.space.ept.translate(&Tables, gpa).filter(|_| !writes);
        drop(lock);
        match found {
            // These stay where they are as long as the VM lives.
            Some(found) => Ok(Place::Platform(found.hpa)),
            None => Err(Outcome::End(Cause::MemoryViolation {
                gpa: gpa.get(),
                access: if writes { 2 } else { 1 },
            })),
        }
    }

    /// Copies all elements of an end in RAM from it to the buffer, or back.
    fn copy(
        &self,
        context: &Context<'_>,
        end: End,
        elements: u64,
        buffer: &mut [u8; BUFFER_BYTES],
        to_ram: bool,
    ) {
        let Place::Ram(first) = end.place else { return };
        let bytes = elements as usize * context.instruction.width.bytes();
        let Some(buffer) = buffer.get_mut(..bytes) else {
            return;
        };
        // Downwards the last element is the lowest.
        let last = context
            .instruction
            .distance(elements.saturating_sub(1), context.flags);
        let lowest = Gpa::new(first.get().min(first.get().wrapping_add(last)));
        let ram = self.vcpu.vm.devices.ram.view();
        // What stops being RAM meanwhile is the guest's own doing: the element goes where it was found to be, or nowhere.
        let _ = if to_ram {
            ram.write(lowest, buffer)
        } else {
            ram.read(lowest, buffer)
        };
    }

    /// Reads an element.
    fn load(&mut self, end: End, distance: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        let (now, later) = value.split_at_mut(end.rest.map_or(bytes, |(inside, _)| inside));
        self.load_part(end.place.further(distance), now);
        if let Some((inside, place)) = end.rest
            && let Some(later) = later.get_mut(..bytes - inside)
        {
            self.load_part(place, later);
        }
        u64::from_le_bytes(value)
    }

    fn load_part(&mut self, place: Place, bytes: &mut [u8]) {
        match place {
            Place::Ram(gpa) => {
                let _ = self.vcpu.vm.devices.ram.view().read(gpa, bytes);
            }
            Place::Platform(hpa) => memory::phys().read(hpa, bytes),
            Place::Registers(gpa) => self.read_registers(gpa, bytes),
        }
    }

    /// Writes an element.
    fn store(&mut self, end: End, distance: u64, bytes: usize, value: u64) {
        let value = value.to_le_bytes();
        let value = value.get(..bytes).unwrap_or(&value);
        let (now, later) = value.split_at(end.rest.map_or(bytes, |(inside, _)| inside));
        self.store_part(end.place.further(distance), now);
        if let Some((_, place)) = end.rest {
            self.store_part(place, later);
        }
    }

    fn store_part(&mut self, place: Place, bytes: &[u8]) {
        match place {
            Place::Ram(gpa) => {
                let _ = self.vcpu.vm.devices.ram.view().write(gpa, bytes);
            }
            // Refused when it was found.
            Place::Platform(_) => {}
            Place::Registers(gpa) => self.write_registers(gpa, bytes),
        }
    }
}

/// A page fault's error code: a present entry has reserved bits set.
const PRESENT_AND_RESERVED: u32 = 1 << 0 | 1 << 3;

fn refused(fault: SegmentFault) -> Stop {
    Outcome::Inject(fault.event())
}

fn page_fault(linear: u64, code: u32) -> Stop {
    xstate::set_cr2(linear);
    Outcome::Inject(EventInjection {
        vector: vector::PAGE_FAULT,
        kind: EventKind::HardwareException,
        error_code: Some(code),
    })
}

/// Where an element of RAM is in the buffer, which is in the order of addresses.
fn place_in_buffer(context: &Context<'_>, index: u64, elements: u64, bytes: usize) -> usize {
    let is_down = context.instruction.distance(1, context.flags) > i64::MAX as u64;
    let index = if is_down { elements - 1 - index } else { index };
    index as usize * bytes
}

fn from_bytes(buffer: &[u8], at: usize, bytes: usize) -> u64 {
    let from = buffer.get(at..).unwrap_or_default();
    match bytes {
        1 => from.first().map_or(0, |byte| u64::from(*byte)),
        2 => from
            .first_chunk()
            .map_or(0, |bytes| u64::from(u16::from_le_bytes(*bytes))),
        4 => from
            .first_chunk()
            .map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes))),
        _ => from
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes)),
    }
}

fn to_bytes(buffer: &mut [u8], at: usize, bytes: usize, value: u64) {
    let to = buffer.get_mut(at..at + bytes).unwrap_or_default();
    to.iter_mut()
        .zip(value.to_le_bytes())
        .for_each(|(to, from)| *to = from);
}
