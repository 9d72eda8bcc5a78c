//! What the hypervisor tells of VMs, groups, images and memory.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::exit::vmx::reason_of_number;
use serde::{Deserialize, Serialize};

use super::{CpuSet, GroupMode};

/// What a VM is doing. Of several vCPUs the first that applies in the order of this list, but `Creating`, `Paused` and `Ended`
/// are the whole VM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VmState {
    /// Its memory is being filled.
    Creating,
    /// A vCPU is on a CPU.
    Running,
    /// A vCPU wants a CPU.
    Runnable,
    /// Every vCPU waits for an event.
    Blocked,
    /// The operator stopped it.
    Paused,
    /// It has been reset and is being made again.
    Resetting,
    /// Its guest says that it cannot go on.
    Panicked,
    /// It is over.
    Ended,
}

impl VmState {
    /// All of them.
    pub const ALL: [VmState; 8] = [
        VmState::Creating,
        VmState::Running,
        VmState::Runnable,
        VmState::Blocked,
        VmState::Paused,
        VmState::Resetting,
        VmState::Panicked,
        VmState::Ended,
    ];

    /// Its name, in tables and in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            VmState::Creating => "creating",
            VmState::Running => "running",
            VmState::Runnable => "runnable",
            VmState::Blocked => "blocked",
            VmState::Paused => "paused",
            VmState::Resetting => "resetting",
            VmState::Panicked => "panicked",
            VmState::Ended => "ended",
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Where the ticks of a VM went, summed over its vCPUs: the five parts make up `total` exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticks {
    /// On a CPU.
    pub running: u64,
    /// Wanted a CPU and had none: stolen.
    pub runnable: u64,
    /// Held back so that its group keeps together.
    pub co_stopped: u64,
    /// Waited for an event.
    pub blocked: u64,
    /// Not started, paused or ended.
    pub idle: u64,
    /// Since the VM was made, times its vCPUs.
    pub total: u64,
}

/// How often a VM exited for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCount {
    /// The basic exit reason (SDM volume 3, appendix C).
    pub reason: u16,
    /// How often.
    pub count: u64,
}

impl ExitCount {
    /// The reason in words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        reason_of_number(self.reason).name
    }
}

/// A VM's doorbells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorbellCounts {
    /// Rings it tried.
    pub sent: u64,
    /// Of these, delivered.
    pub delivered: u64,
    /// Of these, refused because they came too fast.
    pub throttled: u64,
}

/// The group of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTag {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRow {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its group, if it is in one.
    pub group: Option<GroupTag>,
    /// What it is doing.
    pub state: VmState,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// The CPUs its vCPUs are on, or were on last.
    pub cpus: CpuSet,
    /// The CPUs its vCPUs may run on.
    pub affinity: CpuSet,
    /// The CPUs it prefers.
    pub soft_affinity: CpuSet,
    /// Where its ticks went.
    pub ticks: Ticks,
    /// Its exits, each reason once, without those that are 0; at most 128.
    pub exits: Vec<ExitCount>,
    /// Its doorbells.
    pub doorbells: DoorbellCounts,
    /// Times a vCPU of it was put on a CPU after another.
    pub switches: u64,
    /// Times a vCPU of it went to another CPU.
    pub migrations: u64,
    /// Its weight, 1 to 65535.
    pub weight: u32,
    /// The most it gets, in percent of one CPU; 0: no bound.
    pub cap_percent: u32,
    /// How often it has been reset, by its guest or by an operator.
    pub resets: u32,
    /// Why it ended, in words, if it has.
    pub cause: Option<String>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// How its members are scheduled.
    pub mode: GroupMode,
    /// Whether a member's spinning is turned into a yield to the member that should run.
    pub directed_yield: bool,
    /// Its weight, 1 to 65535.
    pub weight: u32,
    /// The most it gets, in percent of one CPU; 0: no bound.
    pub cap_percent: u32,
    /// The numbers of its members.
    pub members: Vec<u32>,
    /// Grows with each join, leave and death.
    pub generation: u64,
    /// Guest-virtual address of the region; 0 until a member has mapped it.
    pub address: u64,
    /// Pages of the region.
    pub region_pages: u64,
    /// Ticks in which a member ran.
    pub run_ticks: u64,
    /// Concurrency hazard: ticks in which a member ran while another that wanted to run waited.
    pub hazard_ticks: u64,
}

/// A file of the boot archive that a VM can be made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// Frames of 4 KiB, by owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameCounts {
    /// All frames there are.
    pub total: u64,
    /// Nobody's.
    pub free: u64,
    /// Firmware, devices, holes, the loader.
    pub reserved: u64,
    /// The hypervisor's.
    pub hypervisor: u64,
    /// VMs'.
    pub vm: u64,
    /// Groups'.
    pub group: u64,
}

/// A segment register of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base.
    pub base: u64,
    /// Limit.
    pub limit: u32,
    /// Access rights, as the VMCS has them.
    pub access: u32,
}

/// GDTR or IDTR of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Base.
    pub base: u64,
    /// Limit.
    pub limit: u32,
}

/// The registers of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: in the order of their encoding.
    pub general: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// ES, CS, SS, DS, FS, GS: in the order of their encoding.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
}

/// An exit that a vCPU made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// TSC of the host at the exit.
    pub ticks: u64,
    /// The basic exit reason.
    pub reason: u16,
    /// The exit qualification.
    pub qualification: u64,
    /// RIP of the guest.
    pub rip: u64,
    /// The guest-physical address, where the reason has one; else 0.
    pub gpa: u64,
}

impl LastExit {
    /// The reason in words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        reason_of_number(self.reason).name
    }
}

/// Most exits that a dump tells.
pub const MAX_LAST_EXITS: usize = 32;

/// A vCPU as it was when it last left the CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuDump {
    /// Number of the VM.
    pub vm: u32,
    /// Number of the vCPU in it.
    pub vcpu: u32,
    /// How many vCPUs the VM has.
    pub vcpus: u32,
    /// The CPU it is on, if it is on one.
    pub cpu: Option<u32>,
    /// Its registers.
    pub registers: Registers,
    /// Its last exits, the oldest first; at most [`MAX_LAST_EXITS`].
    pub last_exits: Vec<LastExit>,
}
