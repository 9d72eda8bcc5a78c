//! What the control port's requests do to the machine.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use guest_abi::{ExitKind, PAGE_BYTES};
use nagaya_sched::{Affinity, CpuId, GroupId, Kicks, VcpuId, VmId};
use nagaya_vmm::config::{GroupConfig, VmConfig, is_valid_name, ram_disk_bytes};
use nagaya_vmm::control::{
    Backend, Completion, ConsoleChunk, ControlError, CpuSet, CreateVm, DoorbellCounts, ErrorCode,
    Event, ExitCount, FrameCounts, GroupChange, GroupMode, GroupRow, GroupTag, Hello, ImageRow,
    Selector, Step, Ticket, Ticks, VcpuDump, VmAction, VmChange, VmRow, VmState,
};
use nagaya_vmm::outcome::Cause;

use crate::dispatch;
use crate::host::cpu::{percpu, time};
use crate::host::memory;
use crate::lifecycle::reset::ResetPlan;
use crate::lifecycle::{self, create};
use crate::objects::archive;
use crate::objects::convert;
use crate::objects::devices::ResetPersistentDevices;
use crate::objects::devices::console::Attached;
use crate::objects::group::Group;
use crate::objects::handle::Handle;
use crate::objects::snapshot::Snapshot;
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::objects::{notices, registry};
use crate::run::service;

/// What is under way.
enum Pending {
    /// A VM that is to be gone.
    Gone(u16),
    /// A VM that is to be made again when it is gone.
    Again(Box<ResetPlan>),
    /// A vCPU that is to show its registers.
    Dump {
        vm: u16,
        vcpu: u32,
        /// The one that was asked: a reset of the VM makes others.
        handle: Arc<Handle>,
    },
}

/// The machine as the control port sees it.
pub(super) struct Machine {
    deterministic: bool,
    pending: BTreeMap<Ticket, Pending>,
}

fn refuse(code: ErrorCode, text: impl Into<String>) -> ControlError {
    ControlError::new(code, text)
}

fn gone() -> ControlError {
    refuse(ErrorCode::State, "the VM has ended")
}

fn find(vm: u32) -> Result<Arc<Vm>, ControlError> {
    u16::try_from(vm)
        .ok()
        .and_then(registry::vm)
        .ok_or_else(gone)
}

fn ids(vm: &Vm) -> Vec<VcpuId> {
    vm.vcpus.iter().map(|vcpu| vcpu.id).collect()
}

impl Machine {
    pub(super) fn new(deterministic: bool) -> Machine {
        Machine {
            deterministic,
            pending: BTreeMap::new(),
        }
    }

    fn make(
        &self,
        id: u16,
        config: &VmConfig,
        group: Option<&Arc<Group>>,
        paused: bool,
    ) -> Result<u32, ControlError> {
        let vm = create::vm_beside_others(
            id,
            config,
            group,
            self.deterministic,
            &ResetPersistentDevices::default(),
        )
        .map_err(|reason| refuse(ErrorCode::Exhausted, reason))?;
        vm.paused.store(paused, Ordering::SeqCst);
        lifecycle::start(&vm);
        Ok(u32::from(id))
    }

    /// The group that a new VM is to be in, made if it is not there.
    fn group_for(&self, order: &CreateVm) -> Result<Option<Arc<Group>>, ControlError> {
        let Some(selector) = &order.group else {
            return Ok(None);
        };
        let found = match selector {
            Selector::Id(id) => u16::try_from(*id).ok().and_then(registry::group),
            Selector::Name(name) => registry::group_named(name),
        };
        if found.is_some() {
            return Ok(found);
        }
        let Selector::Name(name) = selector else {
            return Err(refuse(
                ErrorCode::NoSuchGroup,
                format!("there is no group {selector}; a new one is made by name"),
            ));
        };
        if !is_valid_name(name) {
            return Err(refuse(
                ErrorCode::Invalid,
                format!("{name:?} is no name; use {}", nagaya_vmm::config::NAME_RULE),
            ));
        }
        let plan = &order.group_plan;
        let mut config = GroupConfig::new(name);
        config.pages = plan.pages.unwrap_or(config.pages);
        config.address = plan.address;
        config.mode = plan.mode.unwrap_or(config.mode);
        config.directed_yield = plan.directed_yield.unwrap_or(config.directed_yield);
        create::group(&config)
            .map(Some)
            .map_err(|reason| refuse(ErrorCode::Exhausted, reason))
    }

    fn row(vm: &Vm) -> VmRow {
        let (account, now) = dispatch::with_scheduler(|scheduler, now| {
            let account = scheduler.vm_account(VmId(u32::from(vm.id)), now);
            (account.unwrap_or_default(), now)
        });
        // What was not in the scheduler's hands yet, or is not any more, is idle.
        let total = now.saturating_sub(vm.made_at) * vm.vcpus.len() as u64;
        let busy = account.running + account.runnable + account.co_stopped + account.blocked;
        let on: Vec<u32> = dispatch::loaded_on(&ids(vm));
        let affinities = vm.affinities.lock();
        let none = nagaya_sched::CpuSet::EMPTY;
        let (hard, soft) = affinities
            .iter()
            .fold((none, none), |(hard, soft), affinity| {
                (hard.union(affinity.hard), soft.union(affinity.soft))
            });
        let (running, ready) = dispatch::with_scheduler(|scheduler, _| {
            let running = on
                .iter()
                .filter_map(|cpu| scheduler.current(CpuId(*cpu)))
                .any(|id| vm.vcpus.iter().any(|vcpu| vcpu.id == id));
            let ready = vm.vcpus.iter().any(|vcpu| scheduler.is_ready(vcpu.id));
            (running, ready)
        });
        let state = if vm.paused.load(Ordering::SeqCst) {
            VmState::Paused
        } else if running {
            VmState::Running
        } else if ready {
            VmState::Runnable
        } else {
            // vCPUs that have not been started are not in the scheduler.
            VmState::Blocked
        };
        let (weight, cap_percent) = *vm.share.lock();
        let endpoint = &vm.endpoint;
        VmRow {
            id: u32::from(vm.id),
            name: vm.name.clone(),
            group: vm.membership.as_ref().map(|membership| GroupTag {
                id: u32::from(membership.group.id),
                name: membership.group.name.clone(),
            }),
            state,
            vcpus: vm.vcpus.len() as u32,
            memory_bytes: vm.memory_bytes,
            cpus: on.iter().fold(CpuSet::NONE, |set, cpu| set.with(*cpu)),
            affinity: convert::from_scheduler(hard),
            soft_affinity: convert::from_scheduler(soft),
            ticks: Ticks {
                running: account.running,
                runnable: account.runnable,
                co_stopped: account.co_stopped,
                blocked: account.blocked,
                idle: total.saturating_sub(busy),
                total,
            },
            exits: exits(vm),
            doorbells: DoorbellCounts {
                sent: endpoint.sent.load(Ordering::Relaxed),
                delivered: endpoint.delivered.load(Ordering::Relaxed),
                throttled: endpoint.throttled.load(Ordering::Relaxed),
            },
            switches: account.switches,
            migrations: account.migrations,
            weight,
            cap_percent,
            cause: None,
        }
    }
}

/// Exits by basic reason. Kinds that cover several reasons are told under the one that is usual for them.
fn exits(vm: &Vm) -> Vec<ExitCount> {
    let reason = |kind: ExitKind| match kind {
        ExitKind::Exception | ExitKind::Nmi => 0,
        ExitKind::ExternalInterrupt => 1,
        ExitKind::InterruptWindow => 7,
        ExitKind::Cpuid => 10,
        ExitKind::Halt => 12,
        ExitKind::Hypercall => 18,
        ExitKind::ControlRegister => 28,
        ExitKind::Port => 30,
        ExitKind::MsrRead => 31,
        ExitKind::MsrWrite => 32,
        ExitKind::Instruction => 40,
        ExitKind::MemoryViolation => 48,
        ExitKind::PreemptionTimer => 52,
        ExitKind::Other => 2,
    };
    let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
    for (kind, count) in ExitKind::ALL.into_iter().zip(vm.exits()) {
        *counts.entry(reason(kind)).or_default() += count;
    }
    counts
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .map(|(reason, count)| ExitCount { reason, count })
        .collect()
}

fn ended_row(ended: registry::Ended) -> VmRow {
    VmRow {
        id: u32::from(ended.id),
        name: ended.name,
        group: None,
        state: VmState::Ended,
        vcpus: ended.vcpus,
        memory_bytes: ended.memory_bytes,
        cpus: CpuSet::NONE,
        affinity: CpuSet::NONE,
        soft_affinity: CpuSet::NONE,
        ticks: Ticks::default(),
        exits: Vec::new(),
        doorbells: DoorbellCounts::default(),
        switches: 0,
        migrations: 0,
        weight: nagaya_vmm::config::DEFAULT_WEIGHT,
        cap_percent: 0,
        cause: Some(ended.cause.to_string()),
    }
}

fn dump(vm: &Vm, vcpu: u32, cpu: Option<u32>, snapshot: Snapshot) -> VcpuDump {
    VcpuDump {
        vm: u32::from(vm.id),
        vcpu,
        vcpus: vm.vcpus.len() as u32,
        cpu,
        registers: snapshot.registers,
        last_exits: snapshot.last_exits,
    }
}

/// The next piece of what a VM said.
fn chunk(attached: &mut Attached, buffer: &mut [u8]) -> ConsoleChunk {
    let bytes = attached.bytes.len().min(buffer.len());
    for (slot, byte) in buffer.iter_mut().zip(attached.bytes.drain(..bytes)) {
        *slot = byte;
    }
    // What found no room comes after what did; it is told when that has gone.
    let lost = if attached.bytes.is_empty() {
        core::mem::take(&mut attached.lost)
    } else {
        0
    };
    ConsoleChunk {
        bytes,
        lost,
        is_over: false,
    }
}

impl Backend for Machine {
    fn cpus(&mut self) -> u32 {
        percpu::count()
    }

    fn hello(&mut self) -> Hello {
        Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            cpus: percpu::count(),
            tsc_khz: time::khz(),
            ticks: time::ticks(),
            frames: self.frames(),
            rejected: 0,
        }
    }

    fn find_vm(&mut self, vm: &Selector) -> Option<u32> {
        match vm {
            Selector::Id(id) => {
                let number = u16::try_from(*id).ok()?;
                let is_there = registry::vm(number).is_some()
                    || registry::next_ended(number).is_some_and(|ended| ended.id == number);
                is_there.then_some(*id)
            }
            Selector::Name(name) => registry::vm_named(name)
                .map(|vm| vm.id)
                .or_else(|| registry::ended_named(name))
                .map(u32::from),
        }
    }

    fn find_group(&mut self, group: &Selector) -> Option<u32> {
        match group {
            Selector::Id(id) => registry::group(u16::try_from(*id).ok()?),
            Selector::Name(name) => registry::group_named(name),
        }
        .map(|group| u32::from(group.id))
    }

    fn next_vm(&mut self, from: u32) -> Option<VmRow> {
        let from = u16::try_from(from).ok()?;
        match (registry::next_vm(from), registry::next_ended(from)) {
            (Some(vm), Some(ended)) if ended.id < vm.id => Some(ended_row(ended)),
            (Some(vm), _) => Some(Machine::row(&vm)),
            (None, Some(ended)) => Some(ended_row(ended)),
            (None, None) => None,
        }
    }

    fn next_group(&mut self, from: u32) -> Option<GroupRow> {
        let group = registry::next_group(u16::try_from(from).ok()?)?;
        let account = dispatch::with_scheduler(|scheduler, now| {
            scheduler.group_account(GroupId(u32::from(group.id)), now)
        })
        .unwrap_or_default();
        let config = group.config.lock();
        let (generation, address) =
            group.update(|state, _| (state.generation(), state.region_va()));
        let members = registry::all_vms()
            .iter()
            .filter(|vm| {
                vm.membership
                    .as_ref()
                    .is_some_and(|membership| membership.group.id == group.id)
            })
            .map(|vm| u32::from(vm.id))
            .collect();
        Some(GroupRow {
            id: u32::from(group.id),
            name: group.name.clone(),
            mode: config.mode,
            directed_yield: config.directed_yield,
            weight: config.weight,
            cap_percent: config.cap_percent,
            members,
            generation,
            address,
            region_pages: config.pages,
            run_ticks: account.ran,
            hazard_ticks: account.hazard,
        })
    }

    fn image(&mut self, index: u32) -> Option<ImageRow> {
        let (name, bytes) = archive::get().ok()?.images().nth(index as usize)?;
        Some(ImageRow { name, bytes })
    }

    fn frames(&mut self) -> FrameCounts {
        let counts = memory::frames().counts();
        FrameCounts {
            total: counts.total,
            free: counts.free,
            reserved: counts.reserved,
            hypervisor: counts.hypervisor,
            vm: counts.vm,
            group: counts.group,
        }
    }

    fn create(&mut self, _ticket: Ticket, order: &CreateVm) -> Result<Step, ControlError> {
        if let Some(vm) = registry::vm_named(&order.name) {
            return Err(ControlError::name_is_taken(&order.name, u32::from(vm.id)));
        }
        // One that is being reset is on its way back.
        for pending in self.pending.values() {
            if let Pending::Again(again) = pending
                && again.name() == order.name
            {
                return Err(ControlError::name_is_taken(&order.name, again.id.into()));
            }
        }
        let files = [order.image.as_str()].into_iter();
        for file in files.chain(order.platform.files()) {
            if !archive::get().is_ok_and(|archive| archive.has_image(file)) {
                return Err(refuse(
                    ErrorCode::NoSuchImage,
                    format!("the boot archive has no image {file:?}"),
                ));
            }
        }
        // Zeroing what does not suffice anyway would keep this CPU's guests waiting for nothing.
        let free = memory::frames().counts().free * PAGE_BYTES;
        let wanted = order
            .memory_bytes
            .saturating_add(ram_disk_bytes(&order.platform.disks));
        if wanted > free {
            return Err(refuse(
                ErrorCode::Exhausted,
                format!(
                    "{} MiB of RAM are more than the {} MiB that are free",
                    wanted >> 20,
                    free >> 20
                ),
            ));
        }
        let group = self.group_for(order)?;
        let config = order.config(group.as_ref().map(|group| group.name.as_str()));
        let id = registry::number_for_vm()
            .ok_or_else(|| refuse(ErrorCode::Exhausted, "there is no free number for a VM"))?;
        let id = self.make(id, &config, group.as_ref(), order.paused)?;
        Ok(Step::Finished(Completion::Created(id)))
    }

    fn act(&mut self, ticket: Ticket, vm: u32, action: VmAction) -> Result<Step, ControlError> {
        let vm = find(vm)?;
        if vm.is_ending() {
            return Err(refuse(ErrorCode::State, "the VM is ending already"));
        }
        if vm.is_bare {
            return Err(refuse(
                ErrorCode::Unsupported,
                "a bare loop has its CPU for itself until it ends",
            ));
        }
        match action {
            VmAction::Destroy => {
                lifecycle::end(&vm, Cause::Destroyed);
                self.pending.insert(ticket, Pending::Gone(vm.id));
                Ok(Step::Pending)
            }
            VmAction::Reset => {
                let again = Pending::Again(Box::new(ResetPlan::of(&vm)));
                // The run is not over when the last VM is reset.
                lifecycle::take_run_reference();
                lifecycle::end(&vm, Cause::Destroyed);
                self.pending.insert(ticket, again);
                Ok(Step::Pending)
            }
            VmAction::Pause => {
                if vm.paused.swap(true, Ordering::SeqCst) {
                    return Err(refuse(ErrorCode::State, "the VM is paused already"));
                }
                dispatch::pause(&ids(&vm), true);
                Ok(Step::DONE)
            }
            VmAction::Resume => {
                if !vm.paused.swap(false, Ordering::SeqCst) {
                    return Err(refuse(ErrorCode::State, "the VM is not paused"));
                }
                dispatch::pause(&ids(&vm), false);
                Ok(Step::DONE)
            }
        }
    }

    fn set_group(&mut self, group: u32, change: &GroupChange) -> Result<(), ControlError> {
        let group = u16::try_from(group)
            .ok()
            .and_then(registry::group)
            .ok_or_else(|| refuse(ErrorCode::NoSuchGroup, "the group has gone"))?;
        let id = GroupId(u32::from(group.id));
        let mut config = group.config.lock();
        config.mode = change.mode.unwrap_or(config.mode);
        config.directed_yield = change.directed_yield.unwrap_or(config.directed_yield);
        config.weight = change.weight.unwrap_or(config.weight);
        config.cap_percent = change.cap_percent.unwrap_or(config.cap_percent);
        let share = convert::share(config.weight, config.cap_percent);
        let mode: GroupMode = config.mode;
        let directed = config.directed_yield;
        dispatch::change(|scheduler, now| {
            let mut kicks = Kicks::NONE;
            if change.mode.is_some()
                && let Ok(more) = scheduler.set_mode(id, convert::mode(mode), now)
            {
                kicks = kicks.and(more);
            }
            if let Ok(more) = scheduler.set_group_share(id, share, now) {
                kicks = kicks.and(more);
            }
            // The group is there: this cannot fail.
            let _ = scheduler.set_directed_yield(id, directed);
            ((), kicks)
        });
        Ok(())
    }

    fn set_vm(&mut self, vm: u32, change: &VmChange) -> Result<(), ControlError> {
        let vm = find(vm)?;
        if let Some(vcpu) = change.vcpu
            && vcpu as usize >= vm.vcpus.len()
        {
            return Err(refuse(
                ErrorCode::NoSuchVm,
                format!(
                    "it has {} vCPUs, and none with number {vcpu}",
                    vm.vcpus.len()
                ),
            ));
        }
        if let Some(wanted) = change.affinity {
            let usable = percpu::all()
                .filter(|cpu| cpu.online.load(Ordering::SeqCst))
                .any(|cpu| wanted.contains(cpu.index));
            if !usable {
                return Err(refuse(
                    ErrorCode::Invalid,
                    format!("none of the CPUs {wanted} has started"),
                ));
            }
        }
        let mut share = vm.share.lock();
        share.0 = change.weight.unwrap_or(share.0);
        share.1 = change.cap_percent.unwrap_or(share.1);
        let new_share = convert::share(share.0, share.1);
        drop(share);
        let mut affinities = vm.affinities.lock();
        dispatch::change(|scheduler, now| {
            let mut kicks = Kicks::NONE;
            if let Ok(more) = scheduler.set_vm_share(VmId(u32::from(vm.id)), new_share, now) {
                kicks = kicks.and(more);
            }
            for (index, affinity) in affinities.iter_mut().enumerate() {
                let is_meant = change.vcpu.is_none_or(|vcpu| vcpu as usize == index);
                if !is_meant || (change.affinity.is_none() && change.soft_affinity.is_none()) {
                    continue;
                }
                let wanted = Affinity {
                    hard: change.affinity.map_or(affinity.hard, convert::to_scheduler),
                    soft: change
                        .soft_affinity
                        .map_or(affinity.soft, convert::to_scheduler),
                };
                *affinity = wanted;
                if let Some(handle) = vm.vcpus.get(index)
                    && let Ok(more) = scheduler.set_affinity(handle.id, wanted, now)
                {
                    kicks = kicks.and(more);
                }
            }
            ((), kicks)
        });
        Ok(())
    }

    fn dump(&mut self, ticket: Ticket, vm: u32, vcpu: u32) -> Result<Step, ControlError> {
        let vm = find(vm)?;
        let handle = vm.vcpus.get(vcpu as usize).ok_or_else(|| {
            refuse(
                ErrorCode::NoSuchVm,
                format!(
                    "it has {} vCPUs, and none with number {vcpu}",
                    vm.vcpus.len()
                ),
            )
        })?;
        match dispatch::inspect(handle.id, Vcpu::snapshot_at_rest) {
            Some(Ok(Some(snapshot))) => Ok(Step::Finished(Completion::Dump(Box::new(dump(
                &vm, vcpu, None, snapshot,
            ))))),
            Some(Err(cpu)) => {
                handle.ask_for_snapshot();
                if let Some(cpu) = percpu::get(cpu) {
                    cpu.kick_to_reschedule();
                }
                let handle = Arc::clone(handle);
                let vm = vm.id;
                self.pending
                    .insert(ticket, Pending::Dump { vm, vcpu, handle });
                Ok(Step::Pending)
            }
            None | Some(Ok(None)) => Err(refuse(ErrorCode::State, "the vCPU has not run yet")),
        }
    }

    fn finished(&mut self, ticket: Ticket) -> Option<Result<Completion, ControlError>> {
        let outcome = match self.pending.get(&ticket)? {
            Pending::Gone(id) if !registry::has_gone(*id) => return None,
            Pending::Again(again) if !registry::has_gone(again.id) => return None,
            Pending::Gone(_) => Ok(Completion::Done),
            Pending::Again(again) => {
                let made = lifecycle::make_again(again);
                lifecycle::drop_run_reference();
                made.map(|()| Completion::Done)
                    .map_err(|reason| refuse(ErrorCode::Exhausted, reason))
            }
            Pending::Dump { vm, vcpu, handle } => {
                let found = registry::vm(*vm).filter(|found| {
                    let now = found.vcpus.get(*vcpu as usize);
                    now.is_some_and(|now| Arc::ptr_eq(now, handle)) && !found.is_ending()
                });
                let Some(found) = found else {
                    self.pending.remove(&ticket);
                    return Some(Err(gone()));
                };
                let snapshot = match dispatch::inspect(handle.id, Vcpu::snapshot_at_rest) {
                    Some(Ok(snapshot)) => snapshot.map(|snapshot| (None, snapshot)),
                    Some(Err(cpu)) => handle.take_snapshot().map(|snapshot| (Some(cpu), snapshot)),
                    None if handle.start_up.waits() => {
                        self.pending.remove(&ticket);
                        let reason = "the vCPU has been reset and waits for its start";
                        return Some(Err(refuse(ErrorCode::State, reason)));
                    }
                    // On its way back from INIT.
                    None => None,
                };
                let (cpu, snapshot) = snapshot?;
                Ok(Completion::Dump(Box::new(dump(
                    &found, *vcpu, cpu, snapshot,
                ))))
            }
        };
        self.pending.remove(&ticket);
        Some(outcome)
    }

    fn console_attach(&mut self, vm: u32, attached: bool) -> Result<(), ControlError> {
        match (find(vm), attached) {
            (Ok(vm), true) => *vm.console.attached.lock() = Some(Attached::default()),
            (Ok(vm), false) => *vm.console.attached.lock() = None,
            (Err(error), true) => return Err(error),
            (Err(_), false) => {}
        }
        Ok(())
    }

    fn console_input(&mut self, vm: u32, bytes: &[u8]) -> Result<usize, ControlError> {
        find(vm)?.devices.console_input(bytes).ok_or_else(|| {
            refuse(
                ErrorCode::Unsupported,
                "the VM has no virtio_console, which would take input",
            )
        })
    }

    fn console_output(&mut self, vm: u32, buffer: &mut [u8]) -> ConsoleChunk {
        if let Ok(vm) = find(vm) {
            return vm
                .console
                .attached
                .lock()
                .as_mut()
                .map_or_else(ConsoleChunk::default, |attached| chunk(attached, buffer));
        }
        let last = u16::try_from(vm).ok().and_then(|id| {
            registry::with_last_words(id, |attached| {
                let mut chunk = chunk(attached, buffer);
                chunk.is_over = attached.bytes.is_empty();
                (chunk, chunk.is_over)
            })
        });
        last.unwrap_or(ConsoleChunk {
            is_over: true,
            ..ConsoleChunk::default()
        })
    }

    fn want_events(&mut self, wanted: bool) {
        notices::want(wanted);
    }

    fn next_event(&mut self) -> Option<Event> {
        notices::take()
    }

    fn shutdown(&mut self) {
        lifecycle::set_lingers(false);
        // Those that are being reset do not come back.
        let held = self
            .pending
            .values()
            .filter(|pending| matches!(pending, Pending::Again(_)))
            .count();
        self.pending.clear();
        let vms = registry::all_vms();
        if vms.is_empty() && held == 0 {
            // Served by CPU 0 from its idle loop: nobody else will end the run.
            service::set_due(u64::MAX);
            service::begin();
            lifecycle::take_run_reference();
            lifecycle::drop_run_reference();
            return;
        }
        for vm in vms {
            lifecycle::end(&vm, Cause::Destroyed);
        }
        for _ in 0..held {
            lifecycle::drop_run_reference();
        }
    }
}
