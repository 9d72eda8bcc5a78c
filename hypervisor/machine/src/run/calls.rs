//! Hypercalls: what `nagaya_vmm::hypercall` decoded is carried out here.

use alloc::sync::Arc;
use alloc::vec;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use guest_abi::{ABI_VERSION, Errno, GroupInfo, PAGE_BYTES};
use nagaya_mem::{GuestMemory, Gva, Hpa, PagingState, PhysMap, walk};
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::hypercall::{Call, Channel, Forget, Registers, decode};
use nagaya_vmm::outcome::{Block, Cause, Outcome};
use nagaya_vmm::shared::{self, Plan};

use super::Running;
use crate::arch::{GuestRegisters, LoadedVcpu};
use crate::host::cpu::time;
use crate::host::memory::{self, Tables, Whose};
use crate::lifecycle;
use crate::objects::vm::{Membership, Memory, Vm};
use crate::vmx::start::Start;

impl Running<'_, '_> {
    pub(super) fn hypercall(&mut self) -> Outcome {
        let size = self.state.code_size();
        let registers = &self.vcpu.registers;
        let call = Registers {
            number: registers.rax,
            arguments: [
                registers.rdi,
                registers.rsi,
                registers.rdx,
                registers.r10,
                registers.r8,
            ],
        }
        .taken_by(size);
        let cpl = self.state.cpl();
        let answer = match decode(call, cpl) {
            Ok(Call::Version) => Ok(i64::from(ABI_VERSION)),
            Ok(Call::Wait { timeout_ns }) => return self.wait(timeout_ns),
            Ok(Call::YieldTo { member }) => return self.yield_to(member),
            Ok(Call::Exit { code }) => return Outcome::End(Cause::Exit(code)),
            Ok(Call::Doorbell { member }) => self.doorbell(member),
            Ok(Call::DoorbellMaskMany { members }) => self.doorbells(members),
            Ok(Call::HaltEvents { wanted }) => {
                let endpoint = &self.vcpu.vm.endpoint;
                endpoint.halt_takes_events.store(wanted, Ordering::SeqCst);
                Ok(0)
            }
            Ok(Call::MapShared { va }) => self.map_shared(va),
            Ok(Call::UnmapShared { va }) => self.unmap_shared(va),
            Ok(Call::GroupInfo { buffer }) => self.group_info(buffer),
            Ok(Call::Console {
                buffer,
                bytes,
                channel,
            }) => self.console(buffer, bytes, channel),
            Ok(Call::StartVcpu {
                index,
                entry,
                stack,
                argument,
            }) => self.start_vcpu(index, entry, stack, argument),
            Ok(Call::DoorbellMask { masked }) => {
                self.vcpu.vm.endpoint.mailbox.set_masked(masked);
                Ok(0)
            }
            Ok(Call::DoorbellVector { vector }) => {
                self.doorbell_vector(vector);
                Ok(0)
            }
            Ok(Call::SetDeadline { tsc }) => {
                self.vcpu.deadline = tsc.map(|tsc| self.vcpu.msrs.host_tsc(tsc));
                Ok(0)
            }
            Ok(Call::Forget(what)) => self.forget(what).map(|()| 0),
            Ok(Call::Fork) => return self.fork(),
            Ok(Call::WaitChild {
                child,
                timeout_ns,
                buffer,
            }) => return self.wait_child(child, timeout_ns, buffer),
            Ok(Call::Kill { vm }) => self.kill(vm),
            Ok(Call::VmSelf) => Ok(self.vcpu.vm.id.into()),
            Ok(Call::Parent) => self.parent(),
            Ok(Call::Children { buffer, most }) => self.children(buffer, most),
            Err(errno) => Err(errno),
        };
        self.vcpu.registers.rax = match answer {
            Ok(value) => value as u64,
            Err(errno) => errno.to_rax() as u64,
        };
        Outcome::Next
    }

    fn doorbell(&self, member: u64) -> Result<i64, Errno> {
        let membership = self.membership()?;
        let answer = membership
            .group
            .ring(membership.index, member, time::ticks());
        let endpoint = &self.vcpu.vm.endpoint;
        endpoint.sent.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok(()) => endpoint.delivered.fetch_add(1, Ordering::Relaxed),
            Err(Errno::Again) => endpoint.throttled.fetch_add(1, Ordering::Relaxed),
            Err(_) => 0,
        };
        answer.map(|()| 0)
    }

    /// Rings several members; those that were not reached.
    fn doorbells(&self, members: u64) -> Result<i64, Errno> {
        let membership = self.membership()?;
        let now = time::ticks();
        let (mut delivered, mut throttled, mut missed) = (0, 0, 0);
        let mut left = members;
        while left != 0 {
            let member = left.trailing_zeros();
            left &= left - 1;
            let answer = membership
                .group
                .ring(membership.index, u64::from(member), now);
            delivered += u64::from(answer.is_ok());
            throttled += u64::from(answer == Err(Errno::Again));
            missed |= u64::from(answer.is_err()) << member;
        }
        let endpoint = &self.vcpu.vm.endpoint;
        let sent = u64::from(members.count_ones());
        endpoint.sent.fetch_add(sent, Ordering::Relaxed);
        endpoint.delivered.fetch_add(delivered, Ordering::Relaxed);
        endpoint.throttled.fetch_add(throttled, Ordering::Relaxed);
        // Members' numbers are small: the sign is free.
        Ok(missed as i64)
    }

    fn doorbell_vector(&self, vector: Option<u8>) {
        let endpoint = &self.vcpu.vm.endpoint;
        endpoint.vector.store(vector.unwrap_or(0), Ordering::SeqCst);
        if vector.is_some() && endpoint.mailbox.has_pending() {
            // What came before is not lost.
            endpoint.interrupt_now();
        }
    }

    fn membership(&self) -> Result<&Membership, Errno> {
        self.vcpu.vm.membership.as_ref().ok_or(Errno::Perm)
    }

    fn yield_to(&mut self, member: Option<u64>) -> Outcome {
        let answer = match (member, &self.vcpu.vm.membership) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Errno::Perm),
            (Some(member), Some(membership)) => membership
                .group
                .vcpu_of(member)
                .map(drop)
                .ok_or(Errno::NoPeer),
        };
        match answer {
            Ok(()) => {
                self.vcpu.registers.rax = 0;
                Outcome::Yield { to: member }
            }
            Err(errno) => {
                self.vcpu.registers.rax = errno.to_rax() as u64;
                Outcome::Next
            }
        }
    }

    fn wait(&mut self, timeout_ns: u64) -> Outcome {
        self.vcpu.publish_doorbells();
        let pending = self.vcpu.vm.endpoint.mailbox.take();
        if pending != 0 {
            self.vcpu.registers.rax = pending;
            return Outcome::Next;
        }
        if timeout_ns == 0 {
            self.vcpu.registers.rax = Errno::TimedOut.to_rax() as u64;
            return Outcome::Next;
        }
        Outcome::Block(Block::Wait {
            deadline: time::ticks().saturating_add(time::ns_to_ticks(timeout_ns)),
        })
    }

    pub(super) fn paging(&self) -> PagingState {
        PagingState {
            cr0: self.state.guest_cr0(),
            cr3: self.state.cr3(),
            cr4: self.state.guest_cr4(),
            efer: self.state.efer(),
        }
    }

    fn guest_memory(&self) -> GuestMemory<'_, Tables, PhysMap> {
        // SAFETY: `GuestMemory` writes where the VM's EPT lets the guest write: RAM of the VM's, or its group's region. The EPT keeps frames
        // that are mapped from being given back.
        let writer = unsafe { memory::writer(Whose::Vm) };
        GuestMemory::new(&self.vcpu.vm.space.ept, &Tables, writer)
    }

    fn map_shared(&mut self, va: Gva) -> Result<i64, Errno> {
        let paging = self.paging();
        let vm = Arc::clone(&self.vcpu.vm);
        let membership = vm.membership.as_ref().ok_or(Errno::Perm)?;
        let mut memory = vm.memory.lock();
        let current = memory.shared.as_ref().map(|plan| plan.va);
        let pages = membership.group.update(|state, _| state.region_pages());
        // What could be right nowhere, before anybody is asked where it would be right.
        shared::check_range(va, pages)?;
        membership
            .group
            .update(|state, _| state.may_map(va, current))?;
        let plan = {
            let _held = vm.space.hold();
            shared::plan(&paging, &self.guest_memory(), vm.layout, va, pages)?
        };
        if let Some(before) = memory.shared.take() {
            if *before == plan {
                memory.shared = Some(before);
                return Ok(0);
            }
            // Other pages stand behind the address now, or another kernel does: the region goes with the address.
            if let Err(errno) = uninstall(&vm, &memory, &before) {
                memory.shared = Some(before);
                return Err(errno);
            }
        }
        // Between the question above and here another member may have fixed another address: ask and claim in one step.
        let claimed = membership.group.update(|state, page| {
            state.may_map(va, None)?;
            state.mapped(page, membership.index, va);
            Ok::<(), Errno>(())
        });
        let installed =
            claimed.and_then(|()| install(&vm, &memory, &plan, membership.group.region));
        if let Err(errno) = installed {
            membership
                .group
                .update(|state, page| state.unmapped(page, membership.index));
            return Err(errno);
        }
        let plan = Arc::new(plan);
        vm.devices
            .ram
            .share(Arc::clone(&plan), membership.group.region);
        memory.shared = Some(plan);
        Ok(0)
    }

    fn unmap_shared(&mut self, va: Gva) -> Result<i64, Errno> {
        let vm = Arc::clone(&self.vcpu.vm);
        let membership = vm.membership.as_ref().ok_or(Errno::Perm)?;
        if give_back(&vm, membership, |plan| plan.va == va)? {
            Ok(0)
        } else {
            Err(Errno::Inval)
        }
    }

    /// Takes back what software that ran here before has left.
    fn forget(&mut self, what: Forget) -> Result<(), Errno> {
        let vm = Arc::clone(&self.vcpu.vm);
        if what.region
            && let Some(membership) = &vm.membership
        {
            give_back(&vm, membership, |_| true)?;
        }
        if what.doorbells {
            self.doorbell_vector(None);
            vm.endpoint.mailbox.set_masked(false);
            vm.endpoint.halt_takes_events.store(false, Ordering::SeqCst);
        }
        if what.vcpu {
            let vcpu = &mut *self.vcpu;
            vcpu.deadline = None;
            vcpu.msrs.steal_time = 0;
            let ram = vm.devices.ram.view();
            // Zero names no word, and is refused nowhere.
            let _ = vcpu.eoi_word.set(0, &mut vcpu.apic, &*ram);
        }
        Ok(())
    }

    fn group_info(&mut self, buffer: Gva) -> Result<i64, Errno> {
        let membership = self.membership()?;
        let info = membership
            .group
            .update(|state, _| state.info(membership.index));
        let mut bytes = [0; size_of::<GroupInfo>()];
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(slot) = bytes.get_mut(offset..offset + value.len()) {
                slot.copy_from_slice(value);
            }
        };
        put(
            offset_of!(GroupInfo, abi_version),
            &info.abi_version.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, group_id),
            &info.group_id.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, member_index),
            &info.member_index.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, member_count),
            &info.member_count.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, region_pages),
            &info.region_pages.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, region_va),
            &info.region_va.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, group_page_gpa),
            &info.group_page_gpa.to_le_bytes(),
        );
        put(
            offset_of!(GroupInfo, generation),
            &info.generation.to_le_bytes(),
        );
        self.write_guest(buffer, &bytes)?;
        Ok(bytes.len() as i64)
    }

    /// Copies to where the guest may write; what others of its family hold, too, is copied before.
    pub(super) fn write_guest(&self, buffer: Gva, bytes: &[u8]) -> Result<(), Errno> {
        let vm = &self.vcpu.vm;
        // The locks keep tables that another vCPU's call retires from being freed under this walk.
        let _memory = vm.memory.lock();
        if vm.space.family().is_some() {
            let mut done = 0;
            while done < bytes.len() as u64 {
                let at = buffer.get().checked_add(done).ok_or(Errno::Fault)?;
                let found = {
                    let _held = vm.space.hold();
                    walk(&self.paging(), &self.guest_memory(), Gva::new(at))
                };
                let found = found.map_err(|_| Errno::Fault)?;
                if let Some(Err(_)) = vm.space.break_sharing(found.gpa) {
                    return Err(Errno::NoMem);
                }
                done += PAGE_BYTES - at % PAGE_BYTES;
            }
        }
        let _held = vm.space.hold();
        self.guest_memory()
            .write_virtual(&self.paging(), buffer, bytes)
            .map_err(|_| Errno::Fault)
    }

    fn console(&mut self, buffer: Gva, bytes: usize, channel: Channel) -> Result<i64, Errno> {
        let mut text = vec![0; bytes];
        {
            // As in `write_guest`.
            let _memory = self.vcpu.vm.memory.lock();
            let _held = self.vcpu.vm.space.hold();
            self.guest_memory()
                .read_virtual(&self.paging(), buffer, &mut text)
                .map_err(|_| Errno::Fault)?;
        }
        match channel {
            Channel::Text => self.vcpu.vm.console.text(&text),
            Channel::Event => self.vcpu.vm.console.event(&text),
        }
        Ok(bytes as i64)
    }

    fn start_vcpu(
        &mut self,
        index: u32,
        entry: Gva,
        stack: Gva,
        argument: u64,
    ) -> Result<i64, Errno> {
        let start = Start {
            entry: entry.get(),
            stack: stack.get(),
            registers: GuestRegisters {
                rdi: argument,
                ..GuestRegisters::default()
            },
            ..Start::beside(
                self.state.cr3(),
                self.state.guest_cr4(),
                self.state.efer(),
                self.state.gdtr(),
                self.state.idtr(),
            )
        };
        let vm = &self.vcpu.vm;
        let Some(handle) = vm.vcpus.get(index as usize) else {
            return Err(Errno::Inval);
        };
        let is_to_reset = handle.start_up.is_to_reset();
        if lifecycle::start_vcpu(vm, index, Some(start)) {
            return Ok(0);
        }
        // INIT was on its way to it.
        Err(if is_to_reset || handle.start_up.is_to_reset() {
            Errno::Again
        } else {
            Errno::Inval
        })
    }
}

/// Puts the region behind a plan's pages: behind all of them or none.
fn install(vm: &Vm, memory: &Memory, plan: &Plan, region: Hpa) -> Result<(), Errno> {
    if let Some(covered) = vm.space.cover(&plan.runs, region) {
        return covered.map_err(|_| Errno::NoMem);
    }
    let (installed, flush) = memory.backing.install(&vm.space.ept, &Tables, plan, region);
    if let Some(flush) = flush {
        vm.space.flush(flush);
    }
    installed
}

/// Puts what the region covers back. Only a VM that shares memory may lack some for it.
fn uninstall(vm: &Vm, memory: &Memory, plan: &Plan) -> Result<(), Errno> {
    if let Some(uncovered) = vm.space.uncover(&plan.runs) {
        return uncovered.map_err(|_| Errno::NoMem);
    }
    vm.devices.ram.unshare();
    if let Some(flush) = memory.backing.restore(&vm.space.ept, &Tables, plan) {
        vm.space.flush(flush);
    }
    Ok(())
}

/// Gives a VM its own frames back where it has the region, if that is where is meant; says whether it did.
fn give_back(
    vm: &Vm,
    membership: &Membership,
    is_meant: impl FnOnce(&Plan) -> bool,
) -> Result<bool, Errno> {
    let mut memory = vm.memory.lock();
    let Some(plan) = memory.shared.take_if(|plan| is_meant(plan)) else {
        return Ok(false);
    };
    if let Err(errno) = uninstall(vm, &memory, &plan) {
        memory.shared = Some(plan);
        return Err(errno);
    }
    membership
        .group
        .update(|state, page| state.unmapped(page, membership.index));
    Ok(true)
}
