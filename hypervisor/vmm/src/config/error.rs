//! What can be wrong with a scenario: where, what, and what would be right.

use super::{
    GuestKind, MAX_CAP_PERCENT, MAX_CHILDREN, MAX_DISKS, MAX_IMAGE_BYTES, MAX_MODULE_CMDLINE_BYTES,
    MAX_MODULES, MAX_NICS, MAX_REGION_PAGES, MAX_SLICE_US, MAX_WEIGHT, MIN_RATE, MIN_SLICE_US,
    MTU_RANGE, Mac, NAME_RULE, RAM_DISK_BYTES,
};
use crate::archive::PACKED_SUFFIX;
use crate::control::CpuSet;
use alloc::string::String;
use core::fmt;
use guest_abi::MAX_MEMBERS;
use guest_abi::boot::{MAX_CMDLINE_BYTES, MAX_VCPUS};

/// A place in a scenario. `key` is the key of the TOML file (`memory`, not `memory_bytes`; `cpu`, not `cpus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyPath {
    /// The scenario as a whole.
    Scenario,
    /// `[machine]`.
    Machine {
        /// The key.
        key: &'static str,
    },
    /// `[[group]]`, by index from 0.
    Group {
        /// Index of the group.
        index: usize,
        /// The key.
        key: &'static str,
    },
    /// `[[vm]]`, by index from 0.
    Vm {
        /// Index of the VM.
        index: usize,
        /// The key.
        key: &'static str,
    },
    /// `[[vm.nic]]`, by the indices of the VM and of the card in it.
    Nic {
        /// Index of the VM.
        vm: usize,
        /// Index of the card.
        index: usize,
        /// The key.
        key: &'static str,
    },
    /// `[[vm.module]]`, by the indices of the VM and of the module in it.
    Module {
        /// Index of the VM.
        vm: usize,
        /// Index of the module.
        index: usize,
        /// The key.
        key: &'static str,
    },
    /// `[[vm.disk]]`, by the indices of the VM and of the disk in it.
    Disk {
        /// Index of the VM.
        vm: usize,
        /// Index of the disk.
        index: usize,
        /// The key.
        key: &'static str,
    },
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyPath::Scenario => f.write_str("scenario"),
            KeyPath::Machine { key } => write!(f, "machine.{key}"),
            KeyPath::Group { index, key } => write!(f, "group[{index}].{key}"),
            KeyPath::Vm { index, key } => write!(f, "vm[{index}].{key}"),
            KeyPath::Nic { vm, index, key } => write!(f, "vm[{vm}].nic[{index}].{key}"),
            KeyPath::Module { vm, index, key } => write!(f, "vm[{vm}].module[{index}].{key}"),
            KeyPath::Disk { vm, index, key } => write!(f, "vm[{vm}].disk[{index}].{key}"),
        }
    }
}

/// One thing that is wrong with a scenario. Displayed, it names the value and what would be right, but not the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    path: KeyPath,
    problem: Problem,
}

impl ConfigError {
    pub(super) fn new(path: KeyPath, problem: Problem) -> ConfigError {
        ConfigError { path, problem }
    }

    /// Where it is wrong.
    #[must_use]
    pub fn key_path(&self) -> KeyPath {
        self.path
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl core::error::Error for ConfigError {}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no VM.
    NoVms,
    /// A name that breaks the rule of names.
    BadName(String),
    /// A name that an earlier entry has.
    DuplicateName {
        /// The name.
        name: String,
        /// Index of the entry that has it.
        first: usize,
    },
    /// A region of no pages, or of too many.
    RegionPages(u64),
    /// A doorbell rate of 0.
    NoDoorbells,
    /// A group that is not there.
    UnknownGroup {
        /// The name given.
        name: String,
        /// The names there are, `", "` between.
        known: String,
    },
    /// A group with more members than a group page holds.
    TooManyMembers {
        /// The group's name.
        group: String,
    },
    /// An image name that cannot be in the archive.
    BadImage(String),
    /// RAM below the least of the guest's kind or above the most.
    MemoryRange {
        /// What the VM wants.
        wanted_bytes: u64,
        /// What it is.
        kind: GuestKind,
    },
    /// RAM below 4 GiB: less than the kind's least, or more than fits there.
    MemoryBelow4G {
        /// What the VM wants.
        wanted_bytes: u64,
        /// The least of its kind.
        least_bytes: u64,
        /// All that it has, or that fits there.
        most_bytes: u64,
    },
    /// RAM that is no multiple of 2 MiB.
    MemoryGranule(u64),
    /// RAM that the machine does not have left.
    MemoryDoesNotFit {
        /// What the VM wants.
        wanted_bytes: u64,
        /// What the groups and the VMs before it leave.
        left_bytes: u64,
    },
    /// A number of vCPUs out of range.
    Vcpus(u32),
    /// Not one CPU for each vCPU.
    CpuCount {
        /// CPUs given.
        cpus: usize,
        /// vCPUs there are.
        vcpus: u32,
    },
    /// A CPU that the machine does not have.
    NoSuchCpu {
        /// The CPU given.
        cpu: u32,
        /// How many CPUs the machine has.
        cpus: u32,
    },
    /// A CPU that a bare VM is pinned to, or that one would share.
    CpuTaken {
        /// The CPU.
        cpu: u32,
        /// Name of the VM that has it.
        by: String,
    },
    /// A command line that does not fit its page. Bytes of it.
    CommandLine(usize),
    /// A bare VM where the machine does not allow them.
    BareNotAllowed,
    /// A bare VM with several vCPUs.
    BareVcpus(u32),
    /// A bare VM that is not pinned.
    BareUnpinned,
    /// A slice out of range, in microseconds.
    Slice(u32),
    /// A rate limit longer than the slice.
    RateLimit {
        /// The rate limit in microseconds.
        rate_limit_us: u32,
        /// The slice in microseconds.
        slice_us: u32,
    },
    /// A machine that would go on without a port to end it by.
    LingerWithoutControl,
    /// A weight out of range.
    Weight(u32),
    /// A cap out of range.
    Cap(u32),
    /// An affinity with none of the machine's CPUs.
    NoCpuLeft {
        /// The CPUs given.
        set: CpuSet,
        /// How many CPUs the machine has.
        cpus: u32,
    },
    /// A bare VM with devices.
    BareDevices,
    /// More network cards than a VM can have.
    TooManyNics(usize),
    /// A card on no segment, of a VM in no group.
    NoSegment,
    /// An address that no card can have.
    NoStation(Mac),
    /// An address that an earlier card of the segment has.
    MacTaken {
        /// The address.
        mac: Mac,
        /// Name of that card's VM.
        by: String,
    },
    /// An MTU out of range.
    Mtu(u16),
    /// A rate that is too low, in bits a second.
    Rate(u64),
    /// A key that goes with another kind of guest.
    NotOfKind {
        /// The key.
        key: &'static str,
        /// What the VM is.
        kind: GuestKind,
        /// What the key goes with, in words.
        wanted: &'static str,
    },
    /// A bare VM of a kind that needs a PC.
    BareKind(GuestKind),
    /// More modules than a kernel is handed.
    TooManyModules(usize),
    /// A module's command line that is too long. Bytes of it.
    ModuleCommandLine(usize),
    /// A command line with a zero in it, which would end it there.
    ZeroInCommandLine,
    /// More disks than a VM can have.
    TooManyDisks(usize),
    /// A VM that may have VMs of its own, and is bare or has devices.
    RightsWithDevices,
    /// More descendants than a VM can have at a time.
    TooManyChildren(u32),
    /// A family that may have less memory than its first VM has.
    FamilyMemory {
        /// Bytes that it may have.
        family_bytes: u64,
        /// Bytes of the VM.
        memory_bytes: u64,
    },
    /// The size of a RAM disk, out of range or no whole number of pages.
    RamDisk(u64),
    /// A RAM disk that the machine does not have the memory for.
    RamDiskDoesNotFit {
        /// What the disk wants.
        wanted_bytes: u64,
        /// What groups, VMs and disks before it leave.
        left_bytes: u64,
    },
}

/// A number of bytes as a scenario file would spell it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoVms => f.write_str("there is no VM; a scenario needs at least one [[vm]]"),
            Problem::BadName(name) => write!(f, "{name:?} is no name; use {NAME_RULE}"),
            Problem::DuplicateName { name, first } => {
                write!(
                    f,
                    "{name:?} is the name of entry {} already; names are unique",
                    first + 1
                )
            }
            Problem::RegionPages(pages) => {
                write!(
                    f,
                    "{pages} pages: a region has 1 to {MAX_REGION_PAGES} pages"
                )
            }
            Problem::NoDoorbells => {
                f.write_str("0 doorbells a second: the least is 1; leave the key out for 1000000")
            }
            Problem::UnknownGroup { name, known } if known.is_empty() => {
                write!(
                    f,
                    "{name:?} is no group: the scenario has none; add a [[group]] of that name"
                )
            }
            Problem::UnknownGroup { name, known } => {
                write!(f, "{name:?} is no group; there are: {known}")
            }
            Problem::TooManyMembers { group } => {
                write!(
                    f,
                    "group {group:?} is full: a group has at most {MAX_MEMBERS} members"
                )
            }
            Problem::BadImage(image) => {
                write!(
                    f,
                    "{image:?} is no image name; use 1 to {MAX_IMAGE_BYTES} bytes without control characters, and not {PACKED_SUFFIX:?} at the end"
                )
            }
            Problem::MemoryRange { wanted_bytes, kind } => write!(
                f,
                "{} of memory: a {} VM has {} to {}",
                Bytes(*wanted_bytes),
                kind.word(),
                Bytes(kind.min_memory_bytes()),
                Bytes(kind.max_memory_bytes())
            ),
            Problem::MemoryBelow4G {
                wanted_bytes,
                least_bytes,
                most_bytes,
            } => write!(
                f,
                "{} of memory below 4G: this VM can have {} to {} there",
                Bytes(*wanted_bytes),
                Bytes(*least_bytes),
                Bytes(*most_bytes)
            ),
            Problem::MemoryGranule(bytes) => {
                write!(
                    f,
                    "{} of memory: it must be a multiple of 2M",
                    Bytes(*bytes)
                )
            }
            Problem::MemoryDoesNotFit {
                wanted_bytes,
                left_bytes,
            } => write!(
                f,
                "{} of memory do not fit: the machine has {}M left for this VM",
                Bytes(*wanted_bytes),
                left_bytes >> 20
            ),
            Problem::Vcpus(vcpus) => {
                write!(f, "{vcpus} vCPUs: a VM has 1 to {MAX_VCPUS}")
            }
            Problem::CpuCount { cpus, vcpus } => {
                write!(
                    f,
                    "{cpus} CPUs for {vcpus} vCPUs: give one CPU for each vCPU"
                )
            }
            Problem::NoSuchCpu { cpu, cpus } => match cpus {
                0 | 1 => write!(f, "CPU {cpu} is not there: the machine has only CPU 0"),
                _ => write!(
                    f,
                    "CPU {cpu} is not there: the machine has CPUs 0 to {}",
                    cpus - 1
                ),
            },
            Problem::CpuTaken { cpu, by } => write!(
                f,
                "CPU {cpu} is that of {by:?} already, and a bare loop shares its CPU with nobody: choose another CPU"
            ),
            Problem::CommandLine(bytes) => {
                write!(
                    f,
                    "a command line of {bytes} bytes: at most {MAX_CMDLINE_BYTES}"
                )
            }
            Problem::BareNotAllowed => f.write_str(
                "bare = true runs the image with the hypervisor's rights; it needs allow_bare = true under [machine]",
            ),
            Problem::BareVcpus(vcpus) => {
                write!(f, "{vcpus} vCPUs: a bare VM has exactly 1")
            }
            Problem::BareUnpinned => {
                f.write_str("a bare VM is not scheduled: pin it to a CPU of its own by cpu = N")
            }
            Problem::Slice(us) => write!(
                f,
                "a slice of {us} us: it must be {MIN_SLICE_US} us to {} ms",
                MAX_SLICE_US / 1000
            ),
            Problem::RateLimit {
                rate_limit_us,
                slice_us,
            } => write!(
                f,
                "a rate limit of {rate_limit_us} us is longer than the slice, {slice_us} us"
            ),
            Problem::LingerWithoutControl => f.write_str(
                "linger = true needs control = true: without the control port nothing could end the machine",
            ),
            Problem::Weight(weight) => {
                write!(f, "a weight of {weight}: it must be 1 to {MAX_WEIGHT}")
            }
            Problem::Cap(cap) => write!(
                f,
                "a cap of {cap} percent of one CPU: it must be at most {MAX_CAP_PERCENT}; 0 is none"
            ),
            Problem::BareDevices => f.write_str(
                "a bare VM runs outside VMX, where nothing emulates devices: leave nic, disk, rng and virtio_console out",
            ),
            Problem::TooManyNics(count) => {
                write!(f, "{count} network cards: a VM has at most {MAX_NICS}")
            }
            Problem::NoSegment => f.write_str(
                "this VM is in no group, whose segment its card could be on: add segment = \"...\"",
            ),
            Problem::NoStation(mac) => write!(
                f,
                "{mac} is no address of a card: the lowest bit of the first byte must be 0, and not all bytes"
            ),
            Problem::MacTaken { mac, by } => write!(
                f,
                "{mac} is the address of a card of {by:?} on the same segment already"
            ),
            Problem::Mtu(mtu) => write!(
                f,
                "an MTU of {mtu} bytes: it must be {} to {}",
                MTU_RANGE.start(),
                MTU_RANGE.end()
            ),
            Problem::Rate(rate) => write!(
                f,
                "a rate of {rate} bits a second: the least is {}K",
                MIN_RATE / 1000
            ),
            Problem::NotOfKind { key, kind, wanted } => write!(
                f,
                "{key} goes with {wanted}, but this VM's kind is {:?}: change kind, or leave {key} out",
                kind.word()
            ),
            Problem::BareKind(kind) => write!(
                f,
                "a bare VM runs outside VMX, where no kernel of kind {:?} can: leave bare or kind out",
                kind.word()
            ),
            Problem::TooManyModules(count) => {
                write!(f, "{count} modules: a kernel is handed at most {MAX_MODULES}")
            }
            Problem::ModuleCommandLine(bytes) => write!(
                f,
                "a module's command line of {bytes} bytes: at most {MAX_MODULE_CMDLINE_BYTES} are possible"
            ),
            Problem::ZeroInCommandLine => f.write_str(
                "this command line has a zero byte in it, which would end it there: take it out",
            ),
            Problem::TooManyDisks(count) => {
                write!(f, "{count} disks: a VM has at most {MAX_DISKS}")
            }
            Problem::RightsWithDevices => f.write_str(
                "a VM that may have VMs of its own is not bare and has no nic, disk, rng or virtio_console: leave may out, or those",
            ),
            Problem::TooManyChildren(count) => write!(
                f,
                "{count} VMs that descend from one: at most {MAX_CHILDREN} live at a time"
            ),
            Problem::FamilyMemory {
                family_bytes,
                memory_bytes,
            } => write!(
                f,
                "{} for a VM of {} and all that descend from it: it must be at least the VM's own memory",
                Bytes(*family_bytes),
                Bytes(*memory_bytes)
            ),
            Problem::RamDisk(bytes) => write!(
                f,
                "a RAM disk of {}: it must be a multiple of 4K, {} to {}",
                Bytes(*bytes),
                Bytes(*RAM_DISK_BYTES.start()),
                Bytes(*RAM_DISK_BYTES.end())
            ),
            Problem::RamDiskDoesNotFit {
                wanted_bytes,
                left_bytes,
            } => write!(
                f,
                "a RAM disk of {}, but the groups, the VMs and the disks before it leave {}: give the machine more memory, or the disk less",
                Bytes(*wanted_bytes),
                Bytes(*left_bytes)
            ),
            Problem::NoCpuLeft { set, cpus } => write!(
                f,
                "CPUs {set}: none of them is there, the machine has {cpus}"
            ),
        }
    }
}
