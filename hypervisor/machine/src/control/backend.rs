//! What the control port's requests do to the machine.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use guest_abi::PAGE_BYTES;
use nagaya_sched::{Affinity, GroupId, Kicks, VmId};
use nagaya_vmm::config::{GroupConfig, is_valid_name, ram_disk_bytes};
use nagaya_vmm::control::{
    Backend, Completion, ConsoleChunk, ControlError, CreateVm, DebugAnswer, DebugOrder, ErrorCode,
    Event, FrameCounts, GroupChange, GroupMode, GroupRow, Hello, ImageRow, Selector, Step, Ticket,
    VcpuDump, VmAction, VmChange, VmRow,
};
use nagaya_vmm::outcome::Cause;
use spin::Mutex;

use super::debug::Debugging;
use super::refusal::{find_vcpu, no_vcpu, refuse};
use super::rows::{ended_row, ids, row};
use crate::dispatch;
use crate::host::cpu::{percpu, time};
use crate::host::memory;
use crate::lifecycle::{self, create};
use crate::objects::archive;
use crate::objects::convert;
use crate::objects::devices::console::Attached;
use crate::objects::group::Group;
use crate::objects::handle::Handle;
use crate::objects::identity;
use crate::objects::notices;
use crate::objects::registry::{self, Known};
use crate::objects::snapshot::Snapshot;
use crate::objects::vcpu::Vcpu;
use crate::objects::vm::Vm;
use crate::run::service;

/// What is under way.
enum Pending {
    /// A VM that is being made; `None` while it waits for another's making to end.
    Created(Box<CreateVm>, Option<Arc<Making>>),
    /// A VM that is to be gone.
    Gone(u16),
    /// A VM that had so many resets before this one.
    Again(u16, u32),
    /// A vCPU that is to show its registers.
    Dump {
        vm: u16,
        vcpu: u32,
        /// The one that was asked: a reset of the VM makes others.
        handle: Arc<Handle>,
    },
}

/// A VM that is made on a worker: what came of it.
#[derive(Default)]
struct Making(Mutex<Option<Result<u16, ControlError>>>);

/// The machine as the control port sees it.
pub(super) struct Machine {
    deterministic: bool,
    pending: BTreeMap<Ticket, Pending>,
    debugging: Debugging,
}

fn gone() -> ControlError {
    refuse(ErrorCode::State, "the VM has ended")
}

/// A VM that is not over, between two lives as well.
fn find(vm: u32) -> Result<Known, ControlError> {
    u16::try_from(vm)
        .ok()
        .and_then(registry::known)
        .ok_or_else(gone)
}

/// The life of a VM.
fn find_life(vm: u32) -> Result<Arc<Vm>, ControlError> {
    find(vm)?.life.ok_or_else(|| {
        refuse(
            ErrorCode::State,
            "the VM is being made, or made again after a reset: try again",
        )
    })
}

impl Machine {
    pub(super) fn new(deterministic: bool) -> Machine {
        Machine {
            deterministic,
            pending: BTreeMap::new(),
            debugging: Debugging::default(),
        }
    }

    /// Begins to make a VM; `None` while another is being made: both may want the same new group.
    ///
    /// # Errors
    /// That there are too many.
    fn begin(&self, order: &CreateVm) -> Result<Option<Arc<Making>>, ControlError> {
        let is_busy = self
            .pending
            .values()
            .any(|pending| matches!(pending, Pending::Created(_, Some(_))));
        if is_busy {
            return Ok(None);
        }
        let number = registry::number_for_vm()
            .ok_or_else(|| refuse(ErrorCode::Exhausted, "there is no free number for a VM"))?;
        let id = number.get();
        let making = Arc::new(Making::default());
        let hard = convert::to_scheduler(order.affinity);
        let (deterministic, order, result) =
            (self.deterministic, order.clone(), Arc::clone(&making));
        identity::work_for(id, hard, time::ticks(), move || {
            let made = make(id, &order, deterministic);
            drop(number);
            *result.0.lock() = Some(made.map(|()| id));
            service::look_soon();
        });
        Ok(Some(making))
    }
}

/// Makes a VM, and its group if that is not there, and starts it. In slices, on a worker.
fn make(id: u16, order: &CreateVm, deterministic: bool) -> Result<(), ControlError> {
    // The run is not over while a VM is on its way.
    lifecycle::take_run_reference();
    let made = make_in_group(id, order, deterministic);
    lifecycle::drop_run_reference();
    made
}

fn make_in_group(id: u16, order: &CreateVm, deterministic: bool) -> Result<(), ControlError> {
    let exhausted = |reason: String| refuse(ErrorCode::Exhausted, reason);
    let group = group_for(order)?;
    let config = order.config(group.as_ref().map(|group| group.name.as_str()));
    let vm =
        create::vm(id, &config, group.as_ref(), deterministic, order.paused).map_err(exhausted)?;
    lifecycle::start(&vm);
    Ok(())
}

/// The group that a new VM is to be in, made if it is not there.
fn group_for(order: &CreateVm) -> Result<Option<Arc<Group>>, ControlError> {
    let Some(selector) = &order.group else {
        return Ok(None);
    };
    let found = match selector {
        Selector::Id(id) => u16::try_from(*id).ok().and_then(registry::group),
        Selector::Name(name) => registry::group_named(name),
    };
    if let Some(group) = found {
        let ignored = order.group_plan.named();
        return if ignored.is_empty() {
            Ok(Some(group))
        } else {
            Err(refuse(
                ErrorCode::Invalid,
                format!(
                    "group {:?} is there already: leave out {ignored}, or change it by `nagayactl group set`",
                    group.name
                ),
            ))
        };
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
                let is_there = registry::known(number).is_some()
                    || registry::next_ended(number).is_some_and(|ended| ended.id == number);
                is_there.then_some(*id)
            }
            Selector::Name(name) => registry::named(name)
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
        match (registry::next(from), registry::next_ended(from)) {
            (Some(known), Some(ended)) if ended.id < known.identity.id => Some(ended_row(ended)),
            (Some(known), _) => Some(row(&known)),
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
        let members = registry::all()
            .iter()
            .map(|known| &known.identity)
            .filter(|vm| vm.group.as_ref().is_some_and(|own| own.id == group.id))
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
            // What a family shares is VMs'.
            vm: counts.vm + counts.family,
            group: counts.group,
        }
    }

    fn create(&mut self, ticket: Ticket, order: &CreateVm) -> Result<Step, ControlError> {
        if let Some(id) = registry::named(&order.name) {
            return Err(ControlError::name_is_taken(&order.name, id.into()));
        }
        // One that is being made is not in the registry from the start.
        let is_on_its_way = self.pending.values().any(
            |pending| matches!(pending, Pending::Created(other, _) if other.name == order.name),
        );
        if is_on_its_way {
            return Err(refuse(
                ErrorCode::Exists,
                format!("a VM named {:?} is being made", order.name),
            ));
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
        let making = self.begin(order)?;
        self.pending
            .insert(ticket, Pending::Created(Box::new(order.clone()), making));
        Ok(Step::Pending)
    }

    fn act(&mut self, ticket: Ticket, vm: u32, action: VmAction) -> Result<Step, ControlError> {
        let Known { identity, life } = find(vm)?;
        if identity.is_doomed() {
            return Err(refuse(ErrorCode::State, "the VM is ending already"));
        }
        if identity.config.bare {
            return Err(refuse(
                ErrorCode::Unsupported,
                "a bare loop has its CPU for itself until it ends",
            ));
        }
        match action {
            VmAction::Destroy => {
                lifecycle::destroy(&identity);
                self.pending.insert(ticket, Pending::Gone(identity.id));
                Ok(Step::Pending)
            }
            VmAction::Reset => {
                let lives = identity.lives();
                match life {
                    Some(life) => lifecycle::end(&life, Cause::OperatorReset),
                    // It is on its way, perhaps after a pause.
                    None => identity.hurry(),
                }
                self.pending
                    .insert(ticket, Pending::Again(identity.id, lives));
                Ok(Step::Pending)
            }
            VmAction::Pause => {
                if identity.paused.swap(true, Ordering::SeqCst) {
                    return Err(refuse(ErrorCode::State, "the VM is paused already"));
                }
                // A life that begins meanwhile sees the mark.
                if let Some(life) = registry::vm(identity.id) {
                    dispatch::pause(&ids(&life), true);
                }
                Ok(Step::DONE)
            }
            VmAction::Resume => {
                if !identity.paused.swap(false, Ordering::SeqCst) {
                    return Err(refuse(ErrorCode::State, "the VM is not paused"));
                }
                if let Some(life) = registry::vm(identity.id) {
                    dispatch::pause(&ids(&life), false);
                }
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
        let Known { identity, life } = find(vm)?;
        if let Some(vcpu) = change.vcpu
            && vcpu >= identity.config.vcpus
        {
            return Err(no_vcpu(identity.config.vcpus, vcpu));
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
        let mut share = identity.share.lock();
        share.0 = change.weight.unwrap_or(share.0);
        share.1 = change.cap_percent.unwrap_or(share.1);
        let new_share = convert::share(share.0, share.1);
        drop(share);
        let mut affinities = identity.affinities.lock();
        dispatch::change(|scheduler, now| {
            let mut kicks = Kicks::NONE;
            if let Ok(more) = scheduler.set_vm_share(VmId(u32::from(identity.id)), new_share, now) {
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
                if let Some(handle) = life.as_ref().and_then(|life| life.vcpus.get(index))
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
        let vm = find_life(vm)?;
        let handle = find_vcpu(&vm, vcpu)?;
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

    fn debug(&mut self, vm: u32, order: &DebugOrder) -> Result<DebugAnswer, ControlError> {
        let vm = find_life(vm)?;
        if vm.is_ending() {
            return Err(gone());
        }
        self.debugging.serve(&vm, order)
    }

    fn debug_end(&mut self) {
        self.debugging.end();
    }

    fn finished(&mut self, ticket: Ticket) -> Option<Result<Completion, ControlError>> {
        let outcome = match self.pending.get(&ticket)? {
            Pending::Created(order, None) => {
                let order = order.clone();
                let begun = self.begin(&order);
                match begun {
                    Ok(None) => return None,
                    Ok(Some(making)) => {
                        self.pending
                            .insert(ticket, Pending::Created(order, Some(making)));
                        return None;
                    }
                    Err(error) => Err(error),
                }
            }
            Pending::Created(_, Some(making)) => {
                let made = making.0.lock().take()?;
                made.map(|id| Completion::Created(id.into()))
            }
            Pending::Gone(id) if !registry::has_gone(*id) => return None,
            Pending::Gone(_) => Ok(Completion::Done),
            Pending::Again(id, lives) => match registry::known(*id) {
                Some(known) if known.life.is_some() && known.identity.lives() > *lives => {
                    Ok(Completion::Done)
                }
                Some(_) => return None,
                None => Err(gone()),
            },
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
            (Ok(known), true) => {
                *known.identity.console.attached.lock() = Some(Attached::default());
            }
            (Ok(known), false) => *known.identity.console.attached.lock() = None,
            (Err(error), true) => return Err(error),
            (Err(_), false) => {}
        }
        Ok(())
    }

    fn console_input(&mut self, vm: u32, bytes: &[u8]) -> Result<usize, ControlError> {
        find_life(vm)?.devices.console_input(bytes).ok_or_else(|| {
            refuse(
                ErrorCode::Unsupported,
                "the VM has no virtio_console, which would take input",
            )
        })
    }

    fn console_output(&mut self, vm: u32, buffer: &mut [u8]) -> ConsoleChunk {
        if let Ok(known) = find(vm) {
            return known
                .identity
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
        self.pending.clear();
        // The run is not over before all have been told.
        lifecycle::take_run_reference();
        // Those that are being made end when they are.
        lifecycle::close();
        for known in registry::all() {
            lifecycle::destroy(&known.identity);
        }
        // Served by CPU 0 from its idle loop: if no VM is left, nobody else will end the run.
        service::set_due(u64::MAX);
        service::begin();
        lifecycle::drop_run_reference();
    }
}
