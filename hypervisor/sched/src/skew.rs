//! Skew of relaxed gangs: members that get ahead of one that is kept waiting are stopped.
//!
//! A member is *ahead* if it has run more than the one that waits and has got least far by the skew, and more than its VM's weight
//! explains by the skew as well: of two VMs of unequal weight the heavier one is to run more. What counts is what a member has run
//! since the rules were changed last, and nobody is behind by more than the skew ([`Scheduler::forgive_lag`]): what was kept from a
//! member by its own rule, a cap, the operator, or before the mode was set, no other stands still for.

use alloc::vec::Vec;

use crate::config::Mode;
use crate::ids::{CpuSet, GangId, Kicks, Ticks, VcpuId};
use crate::scheduler::Scheduler;
use crate::state::{Gang, Progress, State, Vcpu};

impl Scheduler {
    /// How far a vCPU has got, with what it has not been charged for yet.
    pub(crate) fn progress(&self, vcpu: &Vcpu, now: Ticks) -> Progress {
        let State::Running(cpu_id) = vcpu.state else {
            return vcpu.progress;
        };
        let mut progress = vcpu.progress;
        if let Some(cpu) = self.cpus.get(cpu_id.0 as usize) {
            progress.add(now.saturating_sub(cpu.charged), self.weight_in_gang(vcpu));
        }
        progress
    }

    /// The weight by which a vCPU's VM counts among those of its gang.
    pub(crate) fn weight_in_gang(&self, vcpu: &Vcpu) -> u16 {
        self.vms.get(&vcpu.vm).map_or(1, |vm| vm.share.weight)
    }

    /// So many ticks at the weight of a vCPU's VM.
    fn span(&self, vcpu: &Vcpu, ticks: Ticks) -> Progress {
        let mut span = Progress::NONE;
        span.add(ticks, self.weight_in_gang(vcpu));
        span
    }

    /// How far those members of a gang have got that wait for a CPU and have got least far, by ticks and by weight.
    fn least_waiting(&self, gang: &Gang) -> Option<Progress> {
        gang.members
            .iter()
            .inspect(|_| self.work.step())
            .filter_map(|id| self.vcpus.get(id))
            .filter(|vcpu| self.is_startable(vcpu))
            .map(|vcpu| vcpu.progress)
            .reduce(Progress::least)
    }

    /// Whether a member of a relaxed gang is too far ahead of one that waits for a CPU.
    pub(crate) fn is_ahead(&self, vcpu: &Vcpu) -> bool {
        let Some(gang) = self
            .gangs
            .get(&vcpu.gang)
            .filter(|gang| gang.mode == Mode::Relaxed && gang.waiting != 0)
        else {
            return false;
        };
        let mine = self.progress(vcpu, self.now);
        let skew = self.span(vcpu, self.config.skew);
        self.least_waiting(gang)
            .is_some_and(|least| mine.has_reached(least.plus(skew)))
    }

    /// Lets every member of a gang begin anew: what they ran under another rule is no lead and no lag.
    pub(crate) fn forget_progress(&mut self, gang_id: GangId) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        for member in &gang.members {
            if let Some(vcpu) = self.vcpus.get_mut(member) {
                vcpu.progress = Progress::NONE;
            }
        }
    }

    /// Brings members of a relaxed gang that are behind the foremost by more than the skew up to that.
    fn forgive_lag(&mut self, gang_id: GangId, now: Ticks) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let mut foremost: Option<Progress> = None;
        for vcpu in gang.members.iter().filter_map(|id| self.vcpus.get(id)) {
            self.work.step();
            if vcpu.state.is_ready() {
                let progress = self.progress(vcpu, now);
                // The skew of the foremost, in its own ticks: with the least weight that is the widest.
                let edge = progress.less(self.span(vcpu, self.config.skew));
                foremost = Some(foremost.map_or(edge, |old| old.most(edge)));
            }
        }
        let Some(edge) = foremost else {
            return;
        };
        for member in &gang.members {
            let Some(vcpu) = self.vcpus.get(member) else {
                continue;
            };
            let progress = self.progress(vcpu, now);
            let lag = progress.most(edge).less(progress);
            if let Some(vcpu) = self.vcpus.get_mut(member) {
                vcpu.progress = vcpu.progress.plus(lag);
            }
        }
    }

    /// Stops members of a relaxed gang that are ahead, and lets those go that have been caught up with.
    pub(crate) fn co_stop(&mut self, gang_id: GangId, now: Ticks, kicks: &mut Kicks) {
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let is_relaxed = gang.mode == Mode::Relaxed;
        if gang.waiting == 0 || !is_relaxed && gang.co_stopped == 0 {
            return;
        }
        if is_relaxed {
            self.forgive_lag(gang_id, now);
        }
        let Some(gang) = self.gangs.get(&gang_id) else {
            return;
        };
        let (mut least, mut least_waiting) = (None, None);
        let lesser = |old: Option<Progress>, new: Progress| {
            Some(old.map_or(new, |old: Progress| old.least(new)))
        };
        for vcpu in gang.members.iter().filter_map(|id| self.vcpus.get(id)) {
            self.work.step();
            let is_waiting = self.is_startable(vcpu);
            let progress = self.progress(vcpu, now);
            if is_waiting || matches!(vcpu.state, State::Running(_)) {
                least = lesser(least, progress);
            }
            if is_waiting {
                least_waiting = lesser(least_waiting, progress);
            }
        }
        let mut changes = Vec::new();
        let mut kicked = CpuSet::EMPTY;
        for id in &gang.members {
            self.work.step();
            let Some(vcpu) = self.vcpus.get(id) else {
                continue;
            };
            match vcpu.state {
                State::Running(cpu_id) => {
                    let cpu = self.cpus.get(cpu_id.0 as usize);
                    let limit = self.ticks_to_skew(*id, vcpu, gang);
                    if let (Some(cpu), Some(ticks)) = (cpu, limit)
                        && cpu.until > cpu.charged.saturating_add(ticks.max(1)).max(now)
                    {
                        kicks.add(cpu_id);
                        kicked.insert(cpu_id);
                    }
                }
                State::Waiting => {
                    let is_ahead = least_waiting.is_some_and(|least: Progress| {
                        let edge = least.plus(self.span(vcpu, self.config.skew));
                        vcpu.progress.has_reached(edge)
                    });
                    if is_relaxed && is_ahead {
                        changes.push((*id, State::CoStopped));
                    }
                }
                State::CoStopped => {
                    let is_caught_up = least.is_none_or(|least: Progress| {
                        let edge = least.plus(self.span(vcpu, self.config.skew / 2));
                        !vcpu.progress.is_beyond(edge)
                    });
                    if !is_relaxed || is_caught_up {
                        changes.push((*id, State::Waiting));
                    }
                }
                _ => {}
            }
        }
        for (id, state) in changes {
            self.set_state(id, state, now);
        }
        for cpu in kicked.iter() {
            // Kicked once: what it is told next ends in time.
            if let Some(cpu) = self.cpus.get_mut(cpu.0 as usize) {
                cpu.until = now;
            }
        }
    }

    /// How long a running member may go on before a member gets too far ahead of another, or has been caught up with.
    pub(crate) fn ticks_to_skew(&self, id: VcpuId, vcpu: &Vcpu, gang: &Gang) -> Option<Ticks> {
        if gang.mode != Mode::Relaxed || gang.waiting == 0 {
            return None;
        }
        let weight = self.weight_in_gang(vcpu);
        gang.members
            .iter()
            .inspect(|_| self.work.step())
            .filter(|other| **other != id)
            .filter_map(|other| self.vcpus.get(other))
            .filter_map(|other| match other.state {
                // One that may not run now, because of a cap, is waited for by nobody.
                State::Waiting if self.is_startable(other) => {
                    let edge = other.progress.plus(self.span(vcpu, self.config.skew));
                    // It is ahead when it has reached both.
                    let [ticks, by_weight] = vcpu.progress.ticks_to(edge, weight);
                    Some(ticks.max(by_weight))
                }
                State::CoStopped => {
                    let start = other.progress.less(self.span(other, self.config.skew / 2));
                    if !start.is_beyond(vcpu.progress) {
                        return None;
                    }
                    // It has been caught up with when this one has reached either.
                    let [ticks, by_weight] = vcpu.progress.ticks_to(start, weight);
                    Some(ticks.min(by_weight))
                }
                _ => None,
            })
            .min()
    }
}
