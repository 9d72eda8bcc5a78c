//! A machine of the imagination, for tests of the server and of clients. It is stricter than the real one: what the server
//! must never ask makes it panic.

mod debug;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{
    Backend, Completion, ConsoleChunk, ControlError, CpuSet, CreateVm, DebugAnswer, DebugOrder,
    DoorbellCounts, ErrorCode, Event, ExitCount, FrameCounts, GroupChange, GroupMode, GroupRow,
    GroupTag, Hello, ImageRow, LastExit, Registers, Selector, Step, Ticket, Ticks, VcpuDump,
    VmAction, VmChange, VmRow, VmState,
};
use debug::DebuggedGuest;

/// Bytes that a console keeps for who follows it.
const CONSOLE_BYTES: usize = 4096;

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    polls_left: u32,
    result: Result<Completion, ControlError>,
}

/// A console as the backend keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Console {
    attached: bool,
    output: VecDeque<u8>,
    lost: u64,
    input: Vec<u8>,
}

/// The machine. Its clock stands still unless [`MockBackend::pass`] moves it, so that what it tells repeats exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MockBackend {
    /// CPUs.
    pub cpus: u32,
    /// VMs by number.
    pub vms: BTreeMap<u32, VmRow>,
    /// Groups by number.
    pub groups: BTreeMap<u32, GroupRow>,
    /// The boot archive.
    pub images: Vec<ImageRow>,
    /// Polls that creation, actions and dumps stay under way.
    pub slowness_polls: u32,
    /// Whether it has been shut down.
    pub is_shut_down: bool,
    consoles: BTreeMap<u32, Console>,
    work: BTreeMap<Ticket, Work>,
    last_ticket: Option<Ticket>,
    events: VecDeque<Event>,
    debugged: Option<DebuggedGuest>,
    events_wanted: bool,
    now: u64,
    next_vm: u32,
    next_group: u32,
}

impl Default for MockBackend {
    fn default() -> MockBackend {
        MockBackend::new()
    }
}

impl MockBackend {
    /// A machine with four CPUs, 512 MiB, two images and no VM.
    #[must_use]
    pub fn new() -> MockBackend {
        let images = [("hog", 81_920), ("pi", 131_072)].map(|(name, bytes)| ImageRow {
            name: name.into(),
            bytes,
        });
        MockBackend {
            cpus: 4,
            vms: BTreeMap::new(),
            groups: BTreeMap::new(),
            images: images.into(),
            slowness_polls: 0,
            is_shut_down: false,
            consoles: BTreeMap::new(),
            work: BTreeMap::new(),
            last_ticket: None,
            events: VecDeque::new(),
            debugged: None,
            events_wanted: false,
            now: 1_000_000,
            next_vm: 0,
            next_group: 0,
        }
    }

    /// Lets time pass: running VMs run, others wait.
    pub fn pass(&mut self, ticks: u64) {
        self.now += ticks;
        for row in self.vms.values_mut() {
            let ticks = ticks * u64::from(row.vcpus);
            row.ticks.total += ticks;
            match row.state {
                VmState::Running => row.ticks.running += ticks,
                VmState::Runnable => row.ticks.runnable += ticks,
                VmState::Blocked => row.ticks.blocked += ticks,
                VmState::Creating
                | VmState::Paused
                | VmState::Resetting
                | VmState::Panicked
                | VmState::Ended => row.ticks.idle += ticks,
            }
        }
    }

    /// Makes a VM without being asked by the server; gives its number.
    pub fn add(&mut self, vm: &CreateVm) -> u32 {
        match self.make(vm) {
            Ok(Completion::Created(id)) => id,
            other => panic!("{vm:?} cannot be made: {other:?}"),
        }
    }

    /// A guest says something on its console.
    pub fn say(&mut self, vm: u32, bytes: &[u8]) {
        let console = self.consoles.entry(vm).or_default();
        if console.attached {
            console.output.extend(bytes);
            let surplus = console.output.len().saturating_sub(CONSOLE_BYTES);
            console.output.drain(..surplus);
            console.lost += surplus as u64;
        }
    }

    /// What has been typed into a console.
    #[must_use]
    pub fn typed_so_far(&self, vm: u32) -> &[u8] {
        self.consoles.get(&vm).map_or(&[], |console| &console.input)
    }

    /// Whether the server has fetched all that a console said.
    #[must_use]
    pub fn has_said_all(&self, vm: u32) -> bool {
        self.consoles
            .get(&vm)
            .is_none_or(|console| console.output.is_empty())
    }

    /// What was typed into a console, taken out.
    pub fn typed(&mut self, vm: u32) -> Vec<u8> {
        core::mem::take(&mut self.consoles.entry(vm).or_default().input)
    }

    /// Something happens.
    pub fn happen(&mut self, name: &str, vm: Option<u32>, text: &str) {
        if self.events_wanted {
            self.events.push_back(Event {
                ticks: self.now,
                name: name.into(),
                vm,
                text: text.into(),
                lost: 0,
            });
        }
    }

    fn vm(&mut self, vm: u32) -> &mut VmRow {
        self.vms.get_mut(&vm).expect("the server has looked it up")
    }

    fn begin(
        &mut self,
        ticket: Ticket,
        result: Result<Completion, ControlError>,
    ) -> Result<Step, ControlError> {
        assert!(!self.is_shut_down, "asked after the end");
        assert!(self.last_ticket < Some(ticket), "a ticket used twice");
        self.last_ticket = Some(ticket);
        if self.slowness_polls == 0 {
            return result.map(Step::Finished);
        }
        let polls_left = self.slowness_polls;
        self.work.insert(ticket, Work { polls_left, result });
        Ok(Step::Pending)
    }

    fn group_for(&mut self, vm: &CreateVm) -> Result<Option<GroupTag>, ControlError> {
        let Some(selector) = &vm.group else {
            return Ok(None);
        };
        if let Some(id) = self.find_group(selector) {
            let name = self.groups.get(&id).map(|row| row.name.clone());
            return Ok(name.map(|name| GroupTag { id, name }));
        }
        let (id, name) = match selector {
            Selector::Id(id) => (*id, format!("group{id}")),
            Selector::Name(name) => (self.next_group, name.clone()),
        };
        self.next_group = self.next_group.max(id) + 1;
        self.groups.insert(
            id,
            GroupRow {
                id,
                name: name.clone(),
                mode: vm.group_plan.mode.unwrap_or(GroupMode::Relaxed),
                directed_yield: vm.group_plan.directed_yield.unwrap_or(true),
                weight: 256,
                cap_percent: 0,
                members: vec![],
                generation: 0,
                address: 0,
                region_pages: vm
                    .group_plan
                    .pages
                    .unwrap_or(guest_abi::DEFAULT_REGION_PAGES),
                run_ticks: 0,
                hazard_ticks: 0,
            },
        );
        Ok(Some(GroupTag { id, name }))
    }

    fn make(&mut self, vm: &CreateVm) -> Result<Completion, ControlError> {
        assert!(self.vms.values().all(|row| row.name != vm.name));
        if !self.images.iter().any(|image| image.name == vm.image) {
            return Err(ControlError::new(
                ErrorCode::NoSuchImage,
                format!(
                    "there is no image {:?}: `nagayactl images` lists them",
                    vm.image
                ),
            ));
        }
        let region = match &vm.group {
            Some(group) if self.find_group(group).is_none() => vm
                .group_plan
                .pages
                .unwrap_or(guest_abi::DEFAULT_REGION_PAGES),
            _ => 0,
        };
        let free = self.frames().free;
        if (vm.memory_bytes >> 12) + region > free {
            return Err(ControlError::new(
                ErrorCode::Exhausted,
                format!("{} frames are free", free),
            ));
        }
        let group = self.group_for(vm)?;
        let id = self.next_vm;
        self.next_vm += 1;
        if let Some(row) = group.as_ref().and_then(|tag| self.groups.get_mut(&tag.id)) {
            row.members.push(id);
            row.generation += 1;
        }
        let all = CpuSet::first(self.cpus);
        self.vms.insert(
            id,
            VmRow {
                id,
                name: vm.name.clone(),
                group,
                state: if vm.paused {
                    VmState::Paused
                } else {
                    VmState::Running
                },
                vcpus: vm.vcpus,
                memory_bytes: vm.memory_bytes,
                cpus: CpuSet::NONE.with(id % self.cpus),
                affinity: vm.affinity.and(all),
                soft_affinity: vm.soft_affinity.and(all),
                ticks: Ticks::default(),
                exits: vec![
                    ExitCount {
                        reason: 12,
                        count: 3,
                    },
                    ExitCount {
                        reason: 18,
                        count: 5,
                    },
                ],
                doorbells: DoorbellCounts::default(),
                switches: 1,
                migrations: 0,
                weight: vm.weight,
                cap_percent: vm.cap_percent,
                resets: 0,
                cause: None,
            },
        );
        Ok(Completion::Created(id))
    }

    fn remove(&mut self, vm: u32) {
        self.consoles.remove(&vm);
        let Some(tag) = self.vms.remove(&vm).and_then(|row| row.group) else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&tag.id) {
            group.members.retain(|&member| member != vm);
            group.generation += 1;
            if group.members.is_empty() {
                self.groups.remove(&tag.id);
            }
        }
    }

    fn change_state(&mut self, vm: u32, action: VmAction) -> Result<Completion, ControlError> {
        let row = self.vm(vm);
        row.state = match (action, row.state) {
            (VmAction::Destroy, _) => {
                self.remove(vm);
                return Ok(Completion::Done);
            }
            (VmAction::Reset, _) => VmState::Running,
            (VmAction::Pause, VmState::Running | VmState::Runnable | VmState::Blocked) => {
                VmState::Paused
            }
            (VmAction::Resume, VmState::Paused) => VmState::Running,
            (VmAction::Pause | VmAction::Resume, state) => {
                return Err(ControlError::new(
                    ErrorCode::State,
                    format!("VM {vm} is {state}"),
                ));
            }
        };
        Ok(Completion::Done)
    }
}

impl Backend for MockBackend {
    fn cpus(&mut self) -> u32 {
        self.cpus
    }

    fn hello(&mut self) -> Hello {
        Hello {
            version: String::from("0.1.0"),
            cpus: self.cpus,
            tsc_khz: 10_000,
            ticks: self.now,
            frames: self.frames(),
            rejected: 0,
        }
    }

    fn find_vm(&mut self, vm: &Selector) -> Option<u32> {
        match vm {
            Selector::Id(id) => self.vms.contains_key(id).then_some(*id),
            Selector::Name(name) => self
                .vms
                .values()
                .find(|row| row.name == *name)
                .map(|row| row.id),
        }
    }

    fn find_group(&mut self, group: &Selector) -> Option<u32> {
        match group {
            Selector::Id(id) => self.groups.contains_key(id).then_some(*id),
            Selector::Name(name) => self
                .groups
                .values()
                .find(|row| row.name == *name)
                .map(|row| row.id),
        }
    }

    fn next_vm(&mut self, from: u32) -> Option<VmRow> {
        self.vms.range(from..).next().map(|(_, row)| row.clone())
    }

    fn next_group(&mut self, from: u32) -> Option<GroupRow> {
        self.groups.range(from..).next().map(|(_, row)| row.clone())
    }

    fn image(&mut self, index: u32) -> Option<ImageRow> {
        self.images.get(usize::try_from(index).ok()?).cloned()
    }

    fn frames(&mut self) -> FrameCounts {
        let vm = self.vms.values().map(|row| row.memory_bytes >> 12).sum();
        let group = self.groups.values().map(|row| row.region_pages).sum();
        let (total, reserved, hypervisor) = (131_072, 1_024, 2_048);
        FrameCounts {
            total,
            free: total - reserved - hypervisor - vm - group,
            reserved,
            hypervisor,
            vm,
            group,
        }
    }

    fn create(&mut self, ticket: Ticket, vm: &CreateVm) -> Result<Step, ControlError> {
        let taken = self
            .vms
            .values()
            .find(|row| row.name == vm.name && row.state != VmState::Ended);
        let result = match taken {
            Some(row) => Err(ControlError::name_is_taken(&vm.name, row.id)),
            None => self.make(vm),
        };
        self.begin(ticket, result)
    }

    fn act(&mut self, ticket: Ticket, vm: u32, action: VmAction) -> Result<Step, ControlError> {
        let result = self.change_state(vm, action);
        self.begin(ticket, result)
    }

    fn set_group(&mut self, group: u32, change: &GroupChange) -> Result<(), ControlError> {
        let row = self
            .groups
            .get_mut(&group)
            .expect("the server has looked it up");
        row.mode = change.mode.unwrap_or(row.mode);
        row.directed_yield = change.directed_yield.unwrap_or(row.directed_yield);
        row.weight = change.weight.unwrap_or(row.weight);
        row.cap_percent = change.cap_percent.unwrap_or(row.cap_percent);
        Ok(())
    }

    fn set_vm(&mut self, vm: u32, change: &VmChange) -> Result<(), ControlError> {
        let all = CpuSet::first(self.cpus);
        let row = self.vm(vm);
        if change.vcpu.is_some_and(|vcpu| vcpu >= row.vcpus) {
            return Err(ControlError::new(
                ErrorCode::NoSuchVm,
                format!("VM {vm} has {} vCPUs, numbered from 0", row.vcpus),
            ));
        }
        row.weight = change.weight.unwrap_or(row.weight);
        row.cap_percent = change.cap_percent.unwrap_or(row.cap_percent);
        row.affinity = change.affinity.unwrap_or(row.affinity).and(all);
        row.soft_affinity = change.soft_affinity.unwrap_or(row.soft_affinity).and(all);
        Ok(())
    }

    fn dump(&mut self, ticket: Ticket, vm: u32, vcpu: u32) -> Result<Step, ControlError> {
        let row = self.vm(vm);
        let (vcpus, is_running) = (row.vcpus, row.state == VmState::Running);
        if vcpu >= vcpus {
            return Err(ControlError::new(
                ErrorCode::NoSuchVm,
                format!("VM {vm} has {vcpus} vCPUs, numbered from 0"),
            ));
        }
        let debugged = self.debugged.as_ref().filter(|guest| guest.vm == vm);
        let core = debugged.and_then(|guest| guest.registers(vcpu));
        let dump = VcpuDump {
            vm,
            vcpu,
            vcpus,
            cpu: is_running.then_some(vcpu),
            registers: Registers {
                general: core.map_or([0; 16], |core| core.general),
                rip: core.map_or(0x20_1234, |core| core.rip),
                rflags: core.map_or(0x202, |core| core.rflags),
                cr0: 0x8001_0033,
                cr4: 0x20,
                efer: 0xD00,
                ..Registers::default()
            },
            last_exits: vec![
                LastExit {
                    ticks: 900_000,
                    reason: 18,
                    rip: 0x20_1000,
                    ..LastExit::default()
                },
                LastExit {
                    ticks: 950_000,
                    reason: 48,
                    qualification: 0x181,
                    rip: 0x20_1200,
                    gpa: 0xFEE0_0000,
                },
            ],
        };
        self.begin(ticket, Ok(Completion::Dump(Box::new(dump))))
    }

    fn debug(&mut self, vm: u32, order: &DebugOrder) -> Result<DebugAnswer, ControlError> {
        let vcpus = self.vm(vm).vcpus;
        let state = |text: &str| ControlError::new(ErrorCode::State, text);
        let answer = match (&mut self.debugged, order) {
            (None, DebugOrder::Attach) => {
                self.debugged = Some(DebuggedGuest::new(vm, vcpus));
                Ok(DebugAnswer::Done)
            }
            (Some(guest), order) if guest.vm == vm => guest.debug(order),
            (Some(_), _) => Err(state("another VM is debugged")),
            (None, _) => Err(state("the VM is not debugged")),
        };
        if *order == DebugOrder::Detach && answer.is_ok() {
            self.debugged = None;
        }
        answer
    }

    fn debug_end(&mut self) {
        self.debugged = None;
    }

    fn finished(&mut self, ticket: Ticket) -> Option<Result<Completion, ControlError>> {
        let work = self
            .work
            .get_mut(&ticket)
            .expect("nothing pending has that ticket");
        work.polls_left -= 1;
        if work.polls_left > 0 {
            return None;
        }
        self.work.remove(&ticket).map(|work| work.result)
    }

    fn console_attach(&mut self, vm: u32, attached: bool) -> Result<(), ControlError> {
        assert!(!attached || self.vms.contains_key(&vm));
        let console = self.consoles.entry(vm).or_default();
        assert_ne!(console.attached, attached);
        console.attached = attached;
        console.output.clear();
        console.lost = 0;
        Ok(())
    }

    fn console_input(&mut self, vm: u32, bytes: &[u8]) -> Result<usize, ControlError> {
        assert!(self.vms.contains_key(&vm));
        // Half at a time, so that clients meet a short count.
        let taken = bytes.len().div_ceil(2);
        let console = self.consoles.entry(vm).or_default();
        console.input.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn console_output(&mut self, vm: u32, buffer: &mut [u8]) -> ConsoleChunk {
        let Some(console) = self.consoles.get_mut(&vm) else {
            return ConsoleChunk::default();
        };
        assert!(console.attached, "output of a console that nobody follows");
        let bytes = console.output.len().min(buffer.len());
        for (slot, byte) in buffer.iter_mut().zip(console.output.drain(..bytes)) {
            *slot = byte;
        }
        ConsoleChunk {
            bytes,
            lost: core::mem::take(&mut console.lost),
            is_over: console.output.is_empty()
                && self
                    .vms
                    .get(&vm)
                    .is_some_and(|row| row.state == VmState::Ended),
        }
    }

    fn want_events(&mut self, wanted: bool) {
        self.events_wanted = wanted;
        self.events.clear();
    }

    fn next_event(&mut self) -> Option<Event> {
        assert!(self.events_wanted);
        self.events.pop_front()
    }

    fn shutdown(&mut self) {
        assert!(!self.is_shut_down, "shut down twice");
        self.is_shut_down = true;
    }
}
