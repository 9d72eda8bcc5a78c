//! Gangs in an order, by the CPUs that are to see them.
//!
//! There is one ordered sequence for each set of CPUs: a CPU looks at the heads of those that it is in. Operators use few distinct
//! sets (one CPU each, all CPUs). A sequence is a ring: a gang leaves at its head, where the next to run is, and comes back at
//! its end, where those are that have consumed most, so that nearly nothing moves; a place is found by bisection.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::ids::{CpuId, CpuSet, GangId};
use crate::work::Work;

/// Empty sequences are kept for when their CPUs are named again, up to so many.
const MOST_SETS: usize = 64;

/// Gangs ordered by `K`.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    sets: Vec<(CpuSet, VecDeque<(K, GangId)>)>,
    /// The sets of those sequences together that are not empty.
    shown: CpuSet,
    pub(crate) work: Work,
}

impl<K> Default for Queue<K> {
    fn default() -> Queue<K> {
        Queue {
            sets: Vec::new(),
            shown: CpuSet::EMPTY,
            work: Work::default(),
        }
    }
}

impl<K: Copy + Ord> Queue<K> {
    /// Shows a gang to some CPUs; to none, if there are none.
    pub(crate) fn insert(&mut self, cpus: CpuSet, key: K, gang: GangId) {
        self.work.step();
        if cpus.is_empty() {
            return;
        }
        let place = match self.sets.iter().position(|(set, _)| *set == cpus) {
            Some(place) => place,
            None => {
                if self.sets.len() >= MOST_SETS {
                    self.sets.retain(|(_, gangs)| !gangs.is_empty());
                }
                self.sets.push((cpus, VecDeque::new()));
                self.sets.len() - 1
            }
        };
        if let Some((_, gangs)) = self.sets.get_mut(place) {
            put_in(gangs, (key, gang));
            self.shown = self.shown.union(cpus);
        }
    }

    pub(crate) fn remove(&mut self, cpus: CpuSet, key: K, gang: GangId) {
        self.work.step();
        if let Some((_, gangs)) = self.sets.iter_mut().find(|(set, _)| *set == cpus) {
            take_out(gangs, (key, gang));
            if gangs.is_empty() {
                let shown = self.sets.iter().filter(|(_, gangs)| !gangs.is_empty());
                self.shown = shown.fold(CpuSet::EMPTY, |all, (set, _)| all.union(*set));
            }
        }
    }

    /// The sequences that `cpu` sees.
    fn seen_by(&self, cpu: CpuId) -> impl Iterator<Item = &VecDeque<(K, GangId)>> {
        self.sets
            .iter()
            .inspect(|_| self.work.step())
            .filter(move |(cpus, gangs)| !gangs.is_empty() && cpus.contains(cpu))
            .map(|(_, gangs)| gangs)
    }

    /// The first gang that `cpu` is shown after `last` in the order.
    pub(crate) fn next(&self, cpu: CpuId, last: Option<(K, GangId)>) -> Option<(K, GangId)> {
        if !self.shown.contains(cpu) {
            return None;
        }
        self.seen_by(cpu)
            .filter_map(|gangs| match &last {
                None => gangs.front(),
                Some(last) => gangs.get(gangs.partition_point(|entry| entry <= last)),
            })
            .min()
            .copied()
    }

    /// Whether `cpu` is shown any.
    pub(crate) fn has_any(&self, cpu: CpuId) -> bool {
        self.shown.contains(cpu)
    }

    /// All CPUs that are shown some.
    pub(crate) fn shown(&self) -> CpuSet {
        self.shown
    }

    /// All that is in it, in an order that does not depend on what has been.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> Vec<(CpuSet, Vec<(K, GangId)>)> {
        let mut contents: Vec<_> = self
            .sets
            .iter()
            .filter(|(_, gangs)| !gangs.is_empty())
            .map(|(cpus, gangs)| (*cpus, gangs.iter().copied().collect()))
            .collect();
        contents.sort_unstable();
        contents
    }

    /// The least key of all.
    pub(crate) fn least(&self) -> Option<K> {
        if self.shown.is_empty() {
            return None;
        }
        self.sets
            .iter()
            .inspect(|_| self.work.step())
            .filter_map(|(_, gangs)| gangs.front())
            .map(|(key, _)| *key)
            .min()
    }
}

/// Puts an entry where it belongs, which nearly always is an end.
fn put_in<E: Copy + Ord>(entries: &mut VecDeque<E>, entry: E) {
    if entries.back().is_none_or(|last| *last < entry) {
        entries.push_back(entry);
    } else if entries.front().is_some_and(|first| entry < *first) {
        entries.push_front(entry);
    } else if let Err(at) = entries.binary_search(&entry) {
        entries.insert(at, entry);
    }
}

/// Takes an entry out, which nearly always is the first: the next to run.
fn take_out<E: Copy + Ord>(entries: &mut VecDeque<E>, entry: E) {
    if entries.front() == Some(&entry) {
        entries.pop_front();
    } else if let Ok(at) = entries.binary_search(&entry) {
        entries.remove(at);
    }
}
