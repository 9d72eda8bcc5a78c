//! The scenario: what machine, groups and VMs a run consists of, and the checks on it.
//!
//! `xtask` parses a TOML file into a [`Scenario`], checks it with [`check_scenario`] and packs it into the boot archive; the
//! hypervisor decodes it and checks again, VM by VM, with [`check_vm`], so that a bad entry refuses only the VM concerned.
//! Both sides use this one module: what passes on the host passes in the machine.
//!
//! Concurrency: none; plain values.

mod check;
mod device;
mod error;
mod guest;
mod rights;
#[cfg(test)]
mod tests;

pub use check::{Limits, check_group, check_scenario, check_vm};
pub use device::{MAX_NICS, MIN_RATE, MTU_RANGE, Mac, NicConfig, NoMac};
pub use error::{ConfigError, KeyPath, Problem};
pub use guest::{
    DiskConfig, DiskSource, GuestKind, MAX_DISKS, MAX_MODULE_CMDLINE_BYTES, MAX_MODULES,
    ModuleConfig, RAM_DISK_BYTES, ram_disk_bytes,
};

pub use rights::{DEFAULT_CHILDREN, MAX_CHILDREN, Right, Rights};

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::control::{CpuSet, GroupMode};
pub use crate::control::{MAX_CAP_PERCENT, MAX_WEIGHT};
use crate::layout::Layout;

/// A run: the machine, its groups and its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// What concerns the whole machine.
    pub machine: MachineConfig,
    /// The groups; a VM names its group by [`GroupConfig::name`].
    pub groups: Vec<GroupConfig>,
    /// The VMs, started in this order.
    pub vms: Vec<VmConfig>,
}

/// Share of CPU time against others, unless the scenario says otherwise.
pub const DEFAULT_WEIGHT: u32 = 256;
/// Length of a time slice in microseconds, unless the scenario says otherwise.
pub const DEFAULT_SLICE_US: u32 = 10_000;
/// Shortest time slice in microseconds: below, switching costs more than the guests get.
pub const MIN_SLICE_US: u32 = 100;
/// Longest time slice in microseconds.
pub const MAX_SLICE_US: u32 = 1_000_000;
/// How long a vCPU runs at least before one that wakes up may take its CPU, in microseconds, unless the scenario says otherwise.
pub const DEFAULT_RATE_LIMIT_US: u32 = 1_000;

/// What concerns the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Length of a time slice in microseconds: 100 to 1,000,000.
    pub slice_us: u32,
    /// How long a vCPU runs at least before one that wakes up may take its CPU, in microseconds; at most the slice.
    pub rate_limit_us: u32,
    /// Serve the control port (docs/CONTROL.md).
    pub control: bool,
    /// Go on when the last VM has ended, until the control port says `shutdown`. Needs `control`.
    pub linger: bool,
    /// Hide from guests what differs from run to run (RDRAND, RDSEED).
    pub deterministic: bool,
    /// Let the CPU keep guests' interrupts where it can (APIC virtualisation); else software does everywhere.
    pub apic_virtualization: bool,
    /// A fault that the hypervisor makes on purpose, to show that it is caught.
    pub selftest: Option<SelfTest>,
    /// Allow VMs with [`VmConfig::bare`], which run with the hypervisor's own rights.
    pub allow_bare: bool,
    /// How to end the run; `None` on real hardware: power off by ACPI, or halt.
    pub debug_exit: Option<DebugExit>,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            slice_us: DEFAULT_SLICE_US,
            rate_limit_us: DEFAULT_RATE_LIMIT_US,
            control: false,
            linger: false,
            deterministic: false,
            apic_virtualization: true,
            selftest: None,
            allow_bare: false,
            debug_exit: None,
        }
    }
}

/// What the hypervisor can be asked to do wrong, or to prove, before it starts the first VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelfTest {
    /// Panic.
    Panic,
    /// Recurse until the stack's guard page stops it.
    StackOverflow,
    /// Write to its own code.
    WriteCode,
    /// Run bytes of its heap.
    RunData,
    /// Start the first VM with a guest state that no CPU enters.
    EntryFailure,
    /// Keep a CPU away from its run loop for longer than the watchdog allows.
    Stall,
    /// Change a mapping of its own that all CPUs have in use, a number of times.
    Shootdown,
    /// Refuse every allocation of frames in its turn: while VMs and groups are made, and then to what guests ask for.
    OutOfMemory,
    /// Start a CPU that is not there.
    AbsentCpu,
}

impl SelfTest {
    /// All of them.
    pub const ALL: [SelfTest; 9] = [
        SelfTest::Panic,
        SelfTest::StackOverflow,
        SelfTest::WriteCode,
        SelfTest::RunData,
        SelfTest::EntryFailure,
        SelfTest::Shootdown,
        SelfTest::Stall,
        SelfTest::OutOfMemory,
        SelfTest::AbsentCpu,
    ];

    /// Its name in scenario files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SelfTest::Panic => "panic",
            SelfTest::StackOverflow => "stack-overflow",
            SelfTest::WriteCode => "write-code",
            SelfTest::RunData => "run-data",
            SelfTest::EntryFailure => "entry-failure",
            SelfTest::Shootdown => "shootdown",
            SelfTest::Stall => "stall",
            SelfTest::OutOfMemory => "out-of-memory",
            SelfTest::AbsentCpu => "absent-cpu",
        }
    }

    /// The one with that name in scenario files.
    #[must_use]
    pub fn from_name(name: &str) -> Option<SelfTest> {
        SelfTest::ALL.into_iter().find(|test| test.name() == name)
    }
}

/// An emulator's way to be ended from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DebugExit {
    /// Bochs: the bytes of `Shutdown` to port 0x8900.
    BochsShutdownPort,
    /// QEMU's `isa-debug-exit` at port 0xF4: 0x10 for success, 0x11 for failure.
    QemuIsaDebugExit,
}

/// Who chooses the guest-virtual address of a group's region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddressPolicy {
    /// The first member that maps fixes it for all.
    #[default]
    Fixed,
    /// Every member may choose its own.
    Any,
}

/// Doorbells a second that one member may ring at another unless the scenario says otherwise.
pub const DEFAULT_DOORBELLS_PER_SECOND: u32 = 1_000_000;

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// Its name, unique among groups: [`NAME_RULE`].
    pub name: String,
    /// Pages of 4 KiB of the shared region: 1 to [`MAX_REGION_PAGES`].
    pub pages: u64,
    /// Who chooses the region's address.
    pub address: AddressPolicy,
    /// Doorbells a second that one member may ring at another before it is throttled; at least 1.
    pub doorbells_per_second: u32,
    /// How its members are scheduled.
    pub mode: GroupMode,
    /// Turn a member's spinning (pause-loop exits) into a yield to the member that should run.
    pub directed_yield: bool,
    /// Share of CPU time of the group as one account: 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// The most the group gets, in percent of one CPU; 0 for no bound.
    pub cap_percent: u32,
}

impl GroupConfig {
    /// A group with the defaults of a scenario file.
    #[must_use]
    pub fn new(name: &str) -> GroupConfig {
        GroupConfig {
            name: name.into(),
            pages: guest_abi::DEFAULT_REGION_PAGES,
            address: AddressPolicy::Fixed,
            doorbells_per_second: DEFAULT_DOORBELLS_PER_SECOND,
            mode: GroupMode::Relaxed,
            directed_yield: true,
            weight: DEFAULT_WEIGHT,
            cap_percent: 0,
        }
    }
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Its name, unique among VMs: [`NAME_RULE`].
    pub name: String,
    /// The group it is a member of, if any.
    pub group: Option<String>,
    /// Its image: the file `images/<image>` of the boot archive.
    pub image: String,
    /// Bytes of RAM: a multiple of 2 MiB, [`GuestKind::min_memory_bytes`] to [`GuestKind::max_memory_bytes`].
    pub memory_bytes: u64,
    /// How much of it lies below the devices, in bytes, if that is to be less than could: the rest is from 4 GiB on. For kinds that
    /// see a PC.
    pub memory_below_4g_bytes: Option<u64>,
    /// Number of vCPUs: 1 to 8.
    pub vcpus: u32,
    /// The CPU that each vCPU is pinned to, one for each vCPU; empty if they are not pinned.
    pub cpus: Vec<u32>,
    /// The CPUs that its vCPUs may run on if they are not pinned.
    pub affinity: CpuSet,
    /// The CPUs that its vCPUs run on rather than on others.
    pub soft_affinity: CpuSet,
    /// Share of CPU time, within its group if it is in one: 1 to [`MAX_WEIGHT`].
    pub weight: u32,
    /// The most it gets, in percent of one CPU; 0 for no bound.
    pub cap_percent: u32,
    /// What the guest gets as its command line: at most 4096 bytes.
    pub cmdline: String,
    /// Run the image as a bare loop outside VMX, to measure the floor. Needs [`MachineConfig::allow_bare`].
    pub bare: bool,
    /// Its network cards, in the order in which they are on its bus.
    pub nics: Vec<NicConfig>,
    /// It has a virtio source of entropy.
    pub rng: bool,
    /// It has a virtio console.
    pub virtio_console: bool,
    /// What its image is.
    pub kind: GuestKind,
    /// The file `images/<initramfs>` of the boot archive as a Linux kernel's first file system. Only of [`GuestKind::Linux`].
    pub initramfs: Option<String>,
    /// What a multiboot kernel is handed beside its image. Only of [`GuestKind::Multiboot`].
    pub modules: Vec<ModuleConfig>,
    /// Its virtio disks, in the order in which they are on its bus.
    pub disks: Vec<DiskConfig>,
    /// How often its guest may reset it before it is given up. With a number a triple fault resets it, too, as it does a PC; without
    /// one it ends the VM, and resets are bounded by [`crate::restarts::DEFAULT_LIMIT`].
    pub restarts: Option<u32>,
    /// A write to port 0xF4 ends it with that value as its exit code. Only of kinds with a PC.
    pub debug_exit: bool,
    /// A write to port 0xE9 goes to its console. Only of kinds with a PC.
    pub debug_console: bool,
    /// What it may do with VMs of its own (docs/PROCESSES.md). Only of native VMs without devices.
    pub may: Rights,
    /// How many VMs may live at a time that descend from it: at most [`MAX_CHILDREN`].
    pub max_children: u32,
    /// Bytes of RAM that it and its descendants may have together, in whatever shares; `None`: twice its own.
    pub max_memory_bytes: Option<u64>,
}

impl VmConfig {
    /// Where its RAM is.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        let most_below = match self.memory_below_4g_bytes {
            Some(bytes) => bytes,
            None => u64::MAX,
        };
        Layout::new(self.memory_bytes, most_below)
    }

    /// Bytes of RAM that it and its descendants may have together.
    #[must_use]
    pub const fn family_bytes(&self) -> u64 {
        match self.max_memory_bytes {
            Some(bytes) => bytes,
            None => self.memory_bytes.saturating_mul(2),
        }
    }

    /// A VM with the defaults of a scenario file: 128 MiB and one vCPU, on any CPU.
    #[must_use]
    pub fn new(name: &str, image: &str) -> VmConfig {
        VmConfig {
            name: name.into(),
            group: None,
            image: image.into(),
            memory_bytes: DEFAULT_MEMORY_BYTES,
            memory_below_4g_bytes: None,
            vcpus: 1,
            cpus: Vec::new(),
            affinity: CpuSet::ALL,
            soft_affinity: CpuSet::ALL,
            weight: DEFAULT_WEIGHT,
            cap_percent: 0,
            cmdline: String::new(),
            bare: false,
            nics: Vec::new(),
            rng: false,
            virtio_console: false,
            kind: GuestKind::Native,
            initramfs: None,
            modules: Vec::new(),
            disks: Vec::new(),
            restarts: None,
            debug_exit: false,
            debug_console: false,
            may: Rights::NONE,
            max_children: DEFAULT_CHILDREN,
            max_memory_bytes: None,
        }
    }
}

/// RAM of a VM unless the scenario says otherwise (paper 000: 128 MiB).
pub const DEFAULT_MEMORY_BYTES: u64 = 128 << 20;
/// RAM comes in pieces of this size, so that the EPT can map it by large pages.
pub const MEMORY_GRANULE_BYTES: u64 = 2 << 20;
/// Most pages of a region (4 GiB).
pub const MAX_REGION_PAGES: u64 = 1 << 20;
/// Longest name in bytes: a shared structure holds it with a zero behind it.
pub const MAX_NAME_BYTES: usize = guest_abi::NAME_BYTES - 1;
/// What a name may look like, in words.
pub const NAME_RULE: &str = "1 to 31 of the characters A-Z a-z 0-9 - _, the first no -";
/// Longest image name in bytes: what a tar header holds besides `images/` and `.lz4`.
pub const MAX_IMAGE_BYTES: usize = 88;

/// Whether a name follows [`NAME_RULE`], so that it can prefix a console line, stand in JSON as it is, and is no option on a command
/// line.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// The boot archive's scenario cannot be read: made by another version, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedScenario;

impl core::fmt::Display for MalformedScenario {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(
            "the scenario in the boot archive is damaged or was made by another version of xtask",
        )
    }
}

impl Scenario {
    /// The scenario as the boot archive carries it (`scenario.postcard`).
    ///
    /// # Errors
    /// [`MalformedScenario`] if it cannot be encoded; the types of this module always can.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MalformedScenario> {
        postcard::to_allocvec(self).map_err(|_| MalformedScenario)
    }

    /// Reads what [`Scenario::to_bytes`] wrote. The content is as yet unchecked.
    ///
    /// # Errors
    /// [`MalformedScenario`] if the bytes are too few, too many, or no scenario.
    pub fn from_bytes(bytes: &[u8]) -> Result<Scenario, MalformedScenario> {
        match postcard::take_from_bytes(bytes) {
            Ok((scenario, [])) => Ok(scenario),
            _ => Err(MalformedScenario),
        }
    }

    /// The index of the group that the VM with this index is in; `None` if it is in none or names one that is not there.
    #[must_use]
    pub fn group_of(&self, vm: usize) -> Option<usize> {
        let name = self.vms.get(vm)?.group.as_ref()?;
        self.groups.iter().position(|group| group.name == *name)
    }
}
