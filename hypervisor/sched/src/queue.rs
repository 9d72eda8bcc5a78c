//! Gangs in an order, by the CPUs that are to see them.
//!
//! There is one ordered set for each set of CPUs: a CPU looks at the heads of those that it is in. Operators use few distinct
//! sets (one CPU each, all CPUs), so that this costs a few logarithms.

use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Bound;

use crate::ids::{CpuId, CpuSet};
use crate::state::GangId;
use crate::work::Work;

/// Gangs ordered by `K`.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    sets: BTreeMap<CpuSet, BTreeSet<(K, GangId)>>,
    pub(crate) work: Work,
}

impl<K> Default for Queue<K> {
    fn default() -> Queue<K> {
        Queue {
            sets: BTreeMap::new(),
            work: Work::default(),
        }
    }
}

impl<K: Copy + Ord> Queue<K> {
    /// Shows a gang to some CPUs; to none, if there are none.
    pub(crate) fn insert(&mut self, cpus: CpuSet, key: K, gang: GangId) {
        self.work.step();
        if !cpus.is_empty() {
            self.sets.entry(cpus).or_default().insert((key, gang));
        }
    }

    pub(crate) fn remove(&mut self, cpus: CpuSet, key: K, gang: GangId) {
        self.work.step();
        if let Some(set) = self.sets.get_mut(&cpus) {
            set.remove(&(key, gang));
            if set.is_empty() {
                self.sets.remove(&cpus);
            }
        }
    }

    /// The first gang that `cpu` is shown after `last` in the order.
    pub(crate) fn next(&self, cpu: CpuId, last: Option<(K, GangId)>) -> Option<(K, GangId)> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.sets
            .iter()
            .inspect(|_| self.work.step())
            .filter(|(cpus, _)| cpus.contains(cpu))
            .filter_map(|(_, set)| set.range((after, Bound::Unbounded)).next())
            .min()
            .copied()
    }

    /// Whether `cpu` is shown any.
    pub(crate) fn has_any(&self, cpu: CpuId) -> bool {
        self.sets
            .keys()
            .inspect(|_| self.work.step())
            .any(|cpus| cpus.contains(cpu))
    }

    /// The least key of all.
    pub(crate) fn least(&self) -> Option<K> {
        self.sets
            .values()
            .inspect(|_| self.work.step())
            .filter_map(|set| set.first())
            .map(|(key, _)| *key)
            .min()
    }
}
