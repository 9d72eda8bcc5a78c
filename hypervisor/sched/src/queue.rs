//! The gangs that have a member to start, by consumed time.
//!
//! There is one ordered set for each set of CPUs that could start a member: a CPU looks at the heads of those that it is in.
//! Operators use few distinct sets (one CPU each, all CPUs), so that this costs a few logarithms.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Bound;

use crate::ids::{CpuId, CpuSet};
use crate::state::{Credit, GangId};

#[derive(Debug, Default)]
pub(crate) struct Queue {
    sets: BTreeMap<CpuSet, BTreeSet<(Credit, GangId)>>,
}

impl Queue {
    pub(crate) fn insert(&mut self, cpus: CpuSet, credit: Credit, gang: GangId) {
        self.sets.entry(cpus).or_default().insert((credit, gang));
    }

    pub(crate) fn remove(&mut self, cpus: CpuSet, credit: Credit, gang: GangId) {
        if let Some(set) = self.sets.get_mut(&cpus) {
            set.remove(&(credit, gang));
            if set.is_empty() {
                self.sets.remove(&cpus);
            }
        }
    }

    /// The gang with the least consumed time that `cpu` could start a member of, after `last` in that order.
    pub(crate) fn next(
        &self,
        cpu: CpuId,
        last: Option<(Credit, GangId)>,
    ) -> Option<(Credit, GangId)> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.sets
            .iter()
            .filter(|(cpus, _)| cpus.contains(cpu))
            .filter_map(|(_, set)| set.range((after, Bound::Unbounded)).next())
            .min()
            .copied()
    }

    /// Whether anybody waits that `cpu` could start.
    pub(crate) fn has_any(&self, cpu: CpuId) -> bool {
        self.sets.keys().any(|cpus| cpus.contains(cpu))
    }

    /// The least consumed time of all.
    pub(crate) fn least(&self) -> Option<Credit> {
        self.sets
            .values()
            .filter_map(|set| set.first())
            .map(|(credit, _)| *credit)
            .min()
    }
}
