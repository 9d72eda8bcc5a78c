//! The bodies. The order of the variants and fields is the wire format: a change is a new [`super::VERSION`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::{
    ControlError, CpuSet, DebugAnswer, DebugOrder, FrameCounts, GroupRow, ImageRow, VcpuDump, VmRow,
};
use crate::config::{
    AddressPolicy, DiskConfig, DiskSource, GuestKind, ModuleConfig, NicConfig, VmConfig,
};

/// Largest weight.
pub const MAX_WEIGHT: u32 = 65_535;
/// Largest cap: all of 64 CPUs.
pub const MAX_CAP_PERCENT: u32 = 6_400;
/// Most bytes of [`Request::ConsoleInput`].
pub const MAX_CONSOLE_INPUT_BYTES: usize = 1024;
/// Most bytes of [`Notice::ConsoleOutput`].
pub const MAX_CONSOLE_OUTPUT_BYTES: usize = 256;

/// A VM or a group, as the operator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// By number.
    Id(u32),
    /// By name.
    Name(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Id(id) => write!(f, "{id}"),
            Selector::Name(name) => write!(f, "{name:?}"),
        }
    }
}

/// How the members of a group are scheduled (docs/SCHEDULING.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GroupMode {
    /// As if they were in no group.
    #[default]
    Off,
    /// After a member ran, another member of its group goes first (paper 004).
    Prefer,
    /// Members on different CPUs.
    Balance,
    /// Members that are runnable start together, and keep within a bounded skew.
    Relaxed,
    /// All or none.
    Strict,
}

impl GroupMode {
    /// All of them.
    pub const ALL: [GroupMode; 5] = [
        GroupMode::Off,
        GroupMode::Prefer,
        GroupMode::Balance,
        GroupMode::Relaxed,
        GroupMode::Strict,
    ];

    /// Its name, in tables, scenario files and JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            GroupMode::Off => "off",
            GroupMode::Prefer => "prefer",
            GroupMode::Balance => "balance",
            GroupMode::Relaxed => "relaxed",
            GroupMode::Strict => "strict",
        }
    }

    /// The mode of that name.
    #[must_use]
    pub fn from_word(word: &str) -> Option<GroupMode> {
        GroupMode::ALL.into_iter().find(|mode| mode.word() == word)
    }
}

impl fmt::Display for GroupMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What a group gets that is made with its first member. For a group that is there already nothing of it may be named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Pages of the region; without: the default, 1025.
    pub pages: Option<u64>,
    /// Who chooses the region's address.
    pub address: AddressPolicy,
    /// How it is scheduled; without: the default.
    pub mode: Option<GroupMode>,
    /// Whether a member's spinning is turned into a yield to the member that should run; without: the default.
    pub directed_yield: Option<bool>,
}

impl GroupPlan {
    /// What of it is named, in words; nothing for the default.
    #[must_use]
    pub fn named(&self) -> String {
        let named = [
            (self.pages.is_some(), "pages"),
            (self.address != AddressPolicy::default(), "address"),
            (self.mode.is_some(), "mode"),
            (self.directed_yield.is_some(), "directed yield"),
        ];
        let words: Vec<&str> = named
            .into_iter()
            .filter_map(|(is_named, word)| is_named.then_some(word))
            .collect();
        words.join(", ")
    }
}

/// What a VM's image is and which devices it gets: the keys of a scenario file. The default is a native guest without any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformPlan {
    /// What its image is.
    pub kind: GuestKind,
    /// A Linux kernel's first file system, a file of the boot archive.
    pub initramfs: Option<String>,
    /// What a multiboot kernel is handed.
    pub modules: Vec<ModuleConfig>,
    /// Its network cards.
    pub nics: Vec<NicConfig>,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// It has a virtio source of entropy.
    pub rng: bool,
    /// It has a virtio console.
    pub virtio_console: bool,
    /// It has the debug exit port, 0xF4.
    pub debug_exit: bool,
    /// It has the debug console port, 0xE9.
    pub debug_console: bool,
}

impl PlatformPlan {
    /// All files of the boot archive that it names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let modules = self.modules.iter().map(|module| module.image.as_str());
        let disks = self.disks.iter().filter_map(|disk| match &disk.source {
            DiskSource::Image(name) => Some(name.as_str()),
            DiskSource::Ram { .. } => None,
        });
        self.initramfs
            .as_deref()
            .into_iter()
            .chain(modules)
            .chain(disks)
    }
}

/// A VM to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVm {
    /// Its name: a name that is free, and no number.
    pub name: String,
    /// Its image: a file of the boot archive.
    pub image: String,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Its group, which is made if it is not there.
    pub group: Option<Selector>,
    /// What the group is like if it is made.
    pub group_plan: GroupPlan,
    /// The guest's command line.
    pub cmdline: String,
    /// Its weight, 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// The most it gets, in percent of one CPU; 0: no bound.
    pub cap_percent: u32,
    /// The CPUs it may run on.
    pub affinity: CpuSet,
    /// The CPUs it prefers.
    pub soft_affinity: CpuSet,
    /// Whether it waits for [`Request::Resume`] before its first instruction.
    pub paused: bool,
    /// What its image is, and its devices.
    pub platform: PlatformPlan,
}

impl CreateVm {
    /// An order with the defaults of a scenario file: 128 MiB, one vCPU, weight 256, any CPU.
    #[must_use]
    pub fn new(name: &str, image: &str) -> CreateVm {
        CreateVm {
            name: name.into(),
            image: image.into(),
            memory_bytes: crate::config::DEFAULT_MEMORY_BYTES,
            vcpus: 1,
            group: None,
            group_plan: GroupPlan::default(),
            cmdline: String::new(),
            weight: 256,
            cap_percent: 0,
            affinity: CpuSet::ALL,
            soft_affinity: CpuSet::ALL,
            paused: false,
            platform: PlatformPlan::default(),
        }
    }

    /// The same as a scenario file would have it, in the group of that name.
    #[must_use]
    pub fn config(&self, group: Option<&str>) -> VmConfig {
        let platform = self.platform.clone();
        VmConfig {
            group: group.map(Into::into),
            memory_bytes: self.memory_bytes,
            vcpus: self.vcpus,
            cmdline: self.cmdline.clone(),
            weight: self.weight,
            cap_percent: self.cap_percent,
            affinity: self.affinity,
            soft_affinity: self.soft_affinity,
            kind: platform.kind,
            initramfs: platform.initramfs,
            modules: platform.modules,
            nics: platform.nics,
            disks: platform.disks,
            rng: platform.rng,
            virtio_console: platform.virtio_console,
            debug_exit: platform.debug_exit,
            debug_console: platform.debug_console,
            ..VmConfig::new(&self.name, &self.image)
        }
    }
}

/// What is to change of a group; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChange {
    /// How it is scheduled.
    pub mode: Option<GroupMode>,
    /// Whether a member's spinning is turned into a yield to the member that should run.
    pub directed_yield: Option<bool>,
    /// Its weight, 1 to [`MAX_WEIGHT`].
    pub weight: Option<u32>,
    /// The most it gets, in percent of one CPU; 0: no bound.
    pub cap_percent: Option<u32>,
}

/// What is to change of a VM; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmChange {
    /// Its weight, 1 to [`MAX_WEIGHT`].
    pub weight: Option<u32>,
    /// The most it gets, in percent of one CPU; 0: no bound.
    pub cap_percent: Option<u32>,
    /// The vCPU that the affinities are for; without: all of them.
    pub vcpu: Option<u32>,
    /// The CPUs it may run on.
    pub affinity: Option<CpuSet>,
    /// The CPUs it prefers.
    pub soft_affinity: Option<CpuSet>,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Begins a session: consoles that an earlier one attached are detached, its events stop. Answered by [`Answer::Hello`].
    Hello,
    /// The VMs from that number on; [`Answer::Vms`].
    ListVms {
        /// The least number told.
        from: u32,
    },
    /// The groups from that number on; [`Answer::Groups`].
    ListGroups {
        /// The least number told.
        from: u32,
    },
    /// The images of the boot archive from that index on; [`Answer::Images`].
    ListImages {
        /// The first index told.
        from: u32,
    },
    /// Makes a VM; [`Answer::Created`].
    Create(CreateVm),
    /// Ends a VM and takes back all it has.
    Destroy(Selector),
    /// Stops a VM.
    Pause(Selector),
    /// Lets a paused VM go on.
    Resume(Selector),
    /// Starts a VM again from its image, as it was made.
    Reset(Selector),
    /// Changes a group.
    GroupSet {
        /// Which.
        group: Selector,
        /// What.
        change: GroupChange,
    },
    /// Changes a VM.
    VmSet {
        /// Which.
        vm: Selector,
        /// What.
        change: VmChange,
    },
    /// Registers and last exits of a vCPU; [`Answer::Dump`].
    Dump {
        /// Of which VM.
        vm: Selector,
        /// Which vCPU of it.
        vcpu: u32,
    },
    /// From now on the VM's console comes as [`Notice::ConsoleOutput`]; [`Answer::Attached`].
    ConsoleAttach(Selector),
    /// Ends that.
    ConsoleDetach(Selector),
    /// Types into a VM's console; [`Answer::Accepted`].
    ConsoleInput {
        /// Which VM's.
        vm: Selector,
        /// What; at most [`MAX_CONSOLE_INPUT_BYTES`].
        bytes: Vec<u8>,
    },
    /// Frames of memory by owner; [`Answer::Frames`].
    Frames,
    /// Whether events come as [`Notice::Event`].
    Events {
        /// Whether they do.
        wanted: bool,
    },
    /// Ends every VM and then the machine, once the answer has been sent.
    Shutdown,
    /// A debugger's request; [`Answer::Debug`].
    Debug {
        /// Of which VM.
        vm: Selector,
        /// What.
        order: DebugOrder,
    },
}

/// What the machine is, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The hypervisor's version, such as `0.1.0`.
    pub version: String,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Ticks in a millisecond: the TSC's kHz.
    pub tsc_khz: u64,
    /// TSC now.
    pub ticks: u64,
    /// Frames of memory by owner.
    pub frames: FrameCounts,
    /// Pieces of input that were no frames, since the port was opened. Filled in by the server.
    pub rejected: u64,
}

/// What the server answers. Lists come in pages: while `next` is there, ask again from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Ok,
    /// Not done.
    Error(ControlError),
    /// The machine.
    Hello(Hello),
    /// VMs, by number.
    Vms {
        /// The VMs.
        rows: Vec<VmRow>,
        /// Where to go on, if there are more.
        next: Option<u32>,
    },
    /// Groups, by number.
    Groups {
        /// The groups.
        rows: Vec<GroupRow>,
        /// Where to go on, if there are more.
        next: Option<u32>,
    },
    /// Images, in the order of the archive.
    Images {
        /// The images.
        rows: Vec<ImageRow>,
        /// Where to go on, if there are more.
        next: Option<u32>,
    },
    /// A VM has been made.
    Created {
        /// Its number.
        vm: u32,
    },
    /// A vCPU.
    Dump(Box<VcpuDump>),
    /// A console is attached.
    Attached {
        /// The VM's number, which the notices will have.
        vm: u32,
    },
    /// Console input was taken.
    Accepted {
        /// How many bytes of it; the rest is to be sent again, later.
        bytes: u32,
    },
    /// Frames of memory.
    Frames(FrameCounts),
    /// What came of a debugger's request.
    Debug(DebugAnswer),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// TSC when it happened.
    pub ticks: u64,
    /// What, as a word: that of the event stream (docs/TESTING.md), at most 31 characters.
    pub name: String,
    /// The VM concerned.
    pub vm: Option<u32>,
    /// More, in words; at most [`super::MAX_ERROR_TEXT_BYTES`] bytes.
    pub text: String,
    /// Events before this one that were lost.
    pub lost: u64,
}

/// What the server says unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// An attached console said something.
    ConsoleOutput {
        /// The VM.
        vm: u32,
        /// Bytes that were lost before these because nobody fetched them in time.
        lost: u64,
        /// What; at most [`MAX_CONSOLE_OUTPUT_BYTES`].
        bytes: Vec<u8>,
    },
    /// An attached console is attached no more: its VM has ended or been destroyed, and all it said has been told.
    ConsoleClosed {
        /// The VM.
        vm: u32,
    },
    /// Something happened.
    Event(Event),
}
