//! Who spent which time how.

use crate::ids::{CpuId, GroupId, Ticks, VcpuId, VmId};
use crate::scheduler::Scheduler;
use crate::state::{Gang, GangId};

/// What a vCPU, or all vCPUs of a VM or group together, did since they were added. The five times sum to the time since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Ticks on a CPU.
    pub running: Ticks,
    /// Ticks in which it could have run and had no CPU: stolen.
    pub runnable: Ticks,
    /// Ticks in which it was kept from running because it was ahead of its gang.
    pub co_stopped: Ticks,
    /// Ticks in which it waited for an event.
    pub blocked: Ticks,
    /// Ticks in which the operator had it stopped.
    pub paused: Ticks,
    /// Times it was put on a CPU.
    pub switches: u64,
    /// Times that was another CPU than before.
    pub migrations: u64,
}

impl Account {
    fn add(&mut self, other: Account) {
        self.running += other.running;
        self.runnable += other.runnable;
        self.co_stopped += other.co_stopped;
        self.blocked += other.blocked;
        self.paused += other.paused;
        self.switches += other.switches;
        self.migrations += other.migrations;
    }

    /// All five times together.
    #[must_use]
    pub fn total(&self) -> Ticks {
        self.running + self.runnable + self.co_stopped + self.blocked + self.paused
    }
}

/// A group's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupAccount {
    /// Its vCPUs together.
    pub sum: Account,
    /// Concurrency hazard: ticks in which a part of the group ran while a member that wanted to run waited.
    pub hazard: Ticks,
}

/// A CPU's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuAccount {
    /// Ticks with a vCPU.
    pub busy: Ticks,
    /// Ticks without.
    pub idle: Ticks,
    /// Times the vCPU changed.
    pub switches: u64,
}

impl Scheduler {
    /// Whether a vCPU runs or wants to.
    #[must_use]
    pub fn is_ready(&self, id: VcpuId) -> bool {
        self.vcpus
            .get(&id)
            .is_some_and(|vcpu| vcpu.state.is_ready())
    }

    /// A vCPU's account up to `now`.
    #[must_use]
    pub fn account(&self, id: VcpuId, now: Ticks) -> Option<Account> {
        let vcpu = self.vcpus.get(&id)?;
        let mut times = vcpu.times;
        if let Some(time) = times.get_mut(vcpu.state.index()) {
            *time += now.max(self.now).saturating_sub(vcpu.since);
        }
        let [running, runnable, co_stopped, blocked, paused] = times;
        Some(Account {
            running,
            runnable,
            co_stopped,
            blocked,
            paused,
            switches: vcpu.switches,
            migrations: vcpu.migrations,
        })
    }

    /// The account of a VM's vCPUs together.
    #[must_use]
    pub fn vm_account(&self, id: VmId, now: Ticks) -> Option<Account> {
        let gang = self.gangs.get(&self.vms.get(&id)?.gang)?;
        let mut sum = Account::default();
        for member in &gang.members {
            if self.vcpus.get(member).is_some_and(|vcpu| vcpu.vm == id) {
                sum.add(self.account(*member, now)?);
            }
        }
        Some(sum)
    }

    /// A group's account.
    #[must_use]
    pub fn group_account(&self, id: GroupId, now: Ticks) -> Option<GroupAccount> {
        let gang = self.gangs.get(&GangId::Group(id))?;
        let mut sum = Account::default();
        for member in &gang.members {
            sum.add(self.account(*member, now)?);
        }
        Some(GroupAccount {
            sum,
            hazard: hazard(gang, now.max(self.now)),
        })
    }

    /// How many members of a group run, and how many could.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn members_of(&self, id: GroupId) -> Option<(u32, u32)> {
        let gang = self.gangs.get(&GangId::Group(id))?;
        Some((gang.running, gang.waiting))
    }

    /// A CPU's account.
    #[must_use]
    pub fn cpu_account(&self, id: CpuId, now: Ticks) -> CpuAccount {
        let Some(cpu) = self.cpus.get(id.0 as usize) else {
            return CpuAccount::default();
        };
        let rest = now.max(self.now).saturating_sub(cpu.since);
        let (busy, idle) = if cpu.current.is_some() {
            (rest, 0)
        } else {
            (0, rest)
        };
        CpuAccount {
            busy: cpu.busy + busy,
            idle: cpu.idle + idle,
            switches: cpu.switches,
        }
    }
}

fn hazard(gang: &Gang, now: Ticks) -> Ticks {
    let rest = if gang.is_in_hazard() {
        now.saturating_sub(gang.hazard_since)
    } else {
        0
    };
    gang.hazard + rest
}
