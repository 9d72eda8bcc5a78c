//! What the scheduler answers about who spent which time how.

use crate::account::{Account, CpuAccount, GroupAccount};
use crate::ids::{CpuId, GangId, GroupId, Ticks, VcpuId, VmId};
use crate::scheduler::Scheduler;
use crate::state::Gang;

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

    /// The account of a VM's vCPUs together, of those that have left, too.
    #[must_use]
    pub fn vm_account(&self, id: VmId, now: Ticks) -> Option<Account> {
        let vm = self.vms.get(&id)?;
        let gang = self.gangs.get(&vm.gang)?;
        let mut sum = vm.gone;
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
            ran: gang.ran_by_gone + sum.running,
            starts: gang.starts,
        })
    }

    /// How many members of a group run, and how many could.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn members_of(&self, id: GroupId) -> Option<(u32, u32)> {
        let gang = self.gangs.get(&GangId::Group(id))?;
        Some(gang.members_there())
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
