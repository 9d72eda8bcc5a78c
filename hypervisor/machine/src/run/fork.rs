//! VMs as processes: `fork` and what belongs to it, and writes to memory that a family shares.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use guest_abi::{ChildStatus, Errno};
use nagaya_mem::share::Write;
use nagaya_mem::{Gpa, Gva};
use nagaya_sched::VcpuId;
use nagaya_vmm::config::Right;
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::outcome::{Block, Outcome};
use nagaya_vmm::process::Found;
use x86_defs::interrupt::{EventKind, Interruptibility};

use super::Running;
use crate::arch::LoadedVcpu;
use crate::dispatch;
use crate::host::cpu::time;
use crate::host::stop;
use crate::lifecycle::fork::{self, Newborn};
use crate::lifecycle::{self, starvation};
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::vmx::guest_area::GuestArea;

/// One vCPU of a VM at a time makes a child.
struct Turn<'a>(&'a AtomicBool);

impl Turn<'_> {
    fn take(vm: &Vm) -> Result<Turn<'_>, Errno> {
        if vm.is_forking.swap(true, Ordering::SeqCst) {
            return Err(Errno::Again);
        }
        Ok(Turn(&vm.is_forking))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// A VM whose vCPUs but one are on no CPU, and stay there.
struct Quiet<'a> {
    vm: &'a Vm,
    others: Vec<VcpuId>,
}

impl<'a> Quiet<'a> {
    /// Waits until all vCPUs but `me` have left their CPUs. `None` if the VM ends meanwhile.
    fn wait(vm: &'a Vm, me: VcpuId) -> Option<Quiet<'a>> {
        let ids = vm.vcpus.iter().map(|vcpu| vcpu.id);
        let quiet = Quiet {
            vm,
            others: ids.filter(|id| *id != me).collect(),
        };
        if quiet.others.is_empty() {
            return Some(quiet);
        }
        dispatch::pause(&quiet.others, true);
        loop {
            let loaded_on = dispatch::loaded_on(&quiet.others);
            if loaded_on.is_empty() {
                return Some(quiet);
            }
            if vm.is_ending() {
                return None;
            }
            if stop::is_stopping() {
                stop::halt_stopped();
            }
            // One that sleeps with a vCPU that waits keeps it loaded until it is asked for it.
            for cpu in loaded_on {
                dispatch::ask_to_release(cpu);
            }
            core::hint::spin_loop();
        }
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Whoever pauses it meanwhile marks it first.
        if !self.others.is_empty() && !self.vm.identity.paused.load(Ordering::SeqCst) {
            dispatch::pause(&self.others, false);
        }
    }
}

impl Running<'_, '_> {
    /// `fork`: answers by itself, in the parent and in the child. Not from [`Runner::quick`](crate::arch::Runner::quick), where some of the
    /// guest's registers are in the CPU still.
    #[cold]
    #[inline(never)]
    pub(super) fn fork(&mut self) -> Outcome {
        // Both go on behind the call.
        let _ = self.advance();
        let answer = match self.make_child() {
            Ok(child) => u64::from(child),
            Err(errno) => errno.to_rax() as u64,
        };
        self.vcpu.registers.rax = answer;
        Outcome::Resume
    }

    fn make_child(&mut self) -> Result<u16, Errno> {
        let vm = Arc::clone(&self.vcpu.vm);
        if !vm.config.may.has(Right::Fork) {
            return Err(Errno::Perm);
        }
        if vm.debugger.is_attached() {
            // The child would have the debugger's breakpoints in its memory and its CPUs, and nobody who minds them.
            return Err(Errno::Busy);
        }
        let _turn = Turn::take(&vm)?;
        let newborn = Newborn::new(&vm.identity)?;
        let quiet = Quiet::wait(&vm, self.vcpu.handle.id).ok_or(Errno::Again)?;
        let child = newborn.life(&vm)?;
        let mut vcpus = Vec::new();
        let mut runs = Vec::new();
        for handle in &vm.vcpus {
            let index = vcpus.len() as u32;
            let forked = if index == self.vcpu.index {
                self.fork_this(&child)
            } else {
                self.fork_parked(handle.id, &child)
            };
            let vcpu = match forked {
                Some(forked) => {
                    runs.push(index);
                    forked
                }
                // It has not been started.
                None if index != self.vcpu.index && handle.start_up.waits() => {
                    Vcpu::create(&child, index, None).ok_or(Errno::NoMem)?
                }
                None => return Err(Errno::NoMem),
            };
            vcpus.push(vcpu);
        }
        let number = newborn.start(&child, vcpus, &runs);
        drop(quiet);
        Ok(number)
    }

    fn fork_this(&mut self, child: &Arc<Vm>) -> Option<Vcpu> {
        self.collect_interrupts();
        let area = GuestArea::of_loaded(&self.state);
        self.vcpu.extended.save();
        let forked = self.vcpu.fork(child, area);
        self.vcpu.extended.load();
        let mut forked = forked?;
        forked.registers.rax = 0;
        Some(forked)
    }

    fn fork_parked(&self, id: VcpuId, child: &Arc<Vm>) -> Option<Vcpu> {
        let mut vcpu = dispatch::take_parked(self.cpu, id)?;
        let area = vcpu.vmcs.as_ref().map(GuestArea::of_parked);
        let forked = area.and_then(|area| vcpu.fork(child, area));
        if let Some(gone) = dispatch::park_vcpu(vcpu) {
            lifecycle::leave(gone);
        }
        forked
    }

    /// `wait_child`: it blocks unless the child has ended.
    #[cold]
    pub(super) fn wait_child(
        &mut self,
        child: Option<u64>,
        timeout_ns: u64,
        buffer: Gva,
    ) -> Outcome {
        let child = match child.map(u16::try_from) {
            None => None,
            Some(Ok(child)) => Some(child),
            Some(Err(_)) => return self.answer(Err(Errno::NoPeer)),
        };
        if let Some(answer) = self.look_for_child(child, buffer) {
            return self.answer(answer);
        }
        if timeout_ns == 0 {
            return self.answer(Err(Errno::TimedOut));
        }
        Outcome::Block(Block::Child {
            child,
            deadline: time::ticks().saturating_add(time::ns_to_ticks(timeout_ns)),
            buffer,
        })
    }

    /// What `wait_child` answers, if it is over.
    pub(super) fn look_for_child(
        &mut self,
        child: Option<u16>,
        buffer: Gva,
    ) -> Option<Result<i64, Errno>> {
        let identity = Arc::clone(&self.vcpu.vm.identity);
        loop {
            let status = match fork::find(&identity, child) {
                Found::Ended(status) => status,
                Found::Alive => return None,
                Found::Nobody => return Some(Err(Errno::NoPeer)),
            };
            // First it is written: what cannot be told is not forgotten.
            if let Err(errno) = self.write_guest(buffer, &bytes_of(&status)) {
                return Some(Err(errno));
            }
            if identity.children.lock().told(&status) {
                return Some(Ok(status.vm.into()));
            }
        }
    }

    pub(super) fn kill(&self, number: u64) -> Result<i64, Errno> {
        let vm = &self.vcpu.vm;
        if !vm.config.may.has(Right::Kill) {
            return Err(Errno::Perm);
        }
        fork::kill(&vm.identity, number).map(|()| 0)
    }

    pub(super) fn parent(&self) -> Result<i64, Errno> {
        let parent = self.vcpu.vm.identity.parent().ok_or(Errno::NoPeer)?;
        Ok(parent.id.into())
    }

    pub(super) fn children(&mut self, buffer: Gva, most: usize) -> Result<i64, Errno> {
        let numbers = self.vcpu.vm.identity.children.lock().numbers();
        let bytes: Vec<u8> = numbers
            .iter()
            .take(most)
            .flat_map(|number| number.to_le_bytes())
            .collect();
        if !bytes.is_empty() {
            self.write_guest(buffer, &bytes)?;
        }
        Ok(numbers.len() as i64)
    }

    fn answer(&mut self, answer: Result<i64, Errno>) -> Outcome {
        self.vcpu.registers.rax = match answer {
            Ok(value) => value as u64,
            Err(errno) => errno.to_rax() as u64,
        };
        Outcome::Next
    }

    /// An access to RAM that the EPT does not allow is a write to what others of a family may hold, too. `None` if this is none.
    #[inline]
    pub(super) fn break_sharing(&mut self, gpa: u64) -> Option<Outcome> {
        self.vcpu.vm.space.family()?;
        self.own_page(gpa)
    }

    #[inline(never)]
    fn own_page(&mut self, gpa: u64) -> Option<Outcome> {
        let vm = Arc::clone(&self.vcpu.vm);
        if !vm.layout.is_ram(gpa, 1) {
            return None;
        }
        let done = {
            let _memory = vm.memory.lock();
            vm.space.break_sharing(Gpa::new(gpa))?
        };
        if done == Ok(Write::Absent) {
            return None;
        }
        self.repeat_delivery();
        if done.is_err() {
            starvation::pause(&vm);
        }
        Some(Outcome::Resume)
    }

    /// The event whose delivery an exit cut short comes again.
    fn repeat_delivery(&mut self) {
        let Some(event) = self.state.interrupted_delivery() else {
            if self.state.has_iret_unblocked() {
                let blocking = self.state.blocking() | Interruptibility::BLOCKED_BY_NMI;
                self.state.set_blocking(blocking);
            }
            return;
        };
        if matches!(event.kind, EventKind::Nmi | EventKind::ExternalInterrupt) {
            self.take_back_interrupt();
            return;
        }
        let length = self.state.instruction_length();
        self.inject(event);
        self.state.set_event_length(length);
    }
}

fn bytes_of(status: &ChildStatus) -> [u8; size_of::<ChildStatus>()] {
    let ChildStatus { vm, end, code } = *status;
    let mut bytes = [0; size_of::<ChildStatus>()];
    let fields = vm.to_le_bytes().into_iter().chain(end.to_le_bytes());
    let fields = fields.chain(code.to_le_bytes());
    bytes
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    bytes
}
