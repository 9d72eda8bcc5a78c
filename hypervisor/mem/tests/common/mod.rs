//! What the EPT tests share: a model of mappings, and an EPT with its history beside it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use nagaya_mem::test_support::{HistoryStore, View};
use nagaya_mem::{Ept, EptError, EptFeatures, Flush, Gpa, Hpa, MemoryType, Permissions};

pub(crate) const PAGE: u64 = 0x1000;
pub(crate) const MIB2: u64 = 0x20_0000;
pub(crate) const GIB: u64 = 0x4000_0000;
pub(crate) const RWX: Permissions = Permissions::all();
pub(crate) const WB: MemoryType = MemoryType::WriteBack;
pub(crate) const ALL_FEATURES: EptFeatures = EptFeatures {
    large_2m: true,
    large_1g: true,
    accessed_dirty: true,
};
pub(crate) const NO_FEATURES: EptFeatures = EptFeatures {
    large_2m: false,
    large_1g: false,
    accessed_dirty: false,
};

/// A change, as a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map {
        gpa: u64,
        hpa: u64,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    },
    Replace {
        gpa: u64,
        hpa: u64,
        bytes: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    },
    Unmap {
        gpa: u64,
        bytes: u64,
    },
    Split {
        gpa: u64,
    },
    Merge {
        gpa: u64,
    },
}

impl Op {
    /// Read, write, execute and write-back.
    pub(crate) fn map(gpa: u64, hpa: u64, bytes: u64) -> Op {
        Op::Map {
            gpa,
            hpa,
            bytes,
            permissions: RWX,
            memory_type: WB,
        }
    }

    pub(crate) fn replace(gpa: u64, hpa: u64, bytes: u64) -> Op {
        Op::Replace {
            gpa,
            hpa,
            bytes,
            permissions: RWX,
            memory_type: WB,
        }
    }

    pub(crate) fn unmap(gpa: u64, bytes: u64) -> Op {
        Op::Unmap { gpa, bytes }
    }

    pub(crate) fn range(&self) -> (u64, u64) {
        match *self {
            Op::Map { gpa, bytes, .. }
            | Op::Replace { gpa, bytes, .. }
            | Op::Unmap { gpa, bytes } => (gpa, gpa + bytes),
            Op::Split { gpa } | Op::Merge { gpa } => (gpa / MIB2 * MIB2, gpa / MIB2 * MIB2 + MIB2),
        }
    }

    pub(crate) fn apply(&self, ept: &Ept, store: &HistoryStore) -> Result<Flush, EptError> {
        match *self {
            Op::Map {
                gpa,
                hpa,
                bytes,
                permissions,
                memory_type,
            } => ept.map(
                store,
                Gpa::new(gpa),
                Hpa::new(hpa),
                bytes,
                permissions,
                memory_type,
            ),
            Op::Replace {
                gpa,
                hpa,
                bytes,
                permissions,
                memory_type,
            } => ept.replace(
                store,
                Gpa::new(gpa),
                Hpa::new(hpa),
                bytes,
                permissions,
                memory_type,
            ),
            Op::Unmap { gpa, bytes } => ept.unmap(store, Gpa::new(gpa), bytes),
            Op::Split { gpa } => ept.split(store, Gpa::new(gpa)),
            Op::Merge { gpa } => ept.merge(store, Gpa::new(gpa)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    end: u64,
    hpa: u64,
    permissions: u64,
    memory_type: u64,
}

/// Which address is mapped to what: segments by their start, none overlapping.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    segments: BTreeMap<u64, Segment>,
}

impl Model {
    pub(crate) fn view(&self, gpa: u64) -> View {
        match self.segments.range(..=gpa).next_back() {
            Some((start, segment)) if gpa < segment.end => View::Page {
                hpa: segment.hpa + (gpa - start),
                permissions: segment.permissions,
                memory_type: segment.memory_type,
            },
            _ => View::Absent,
        }
    }

    fn cut(&mut self, at: u64) {
        if let Some((&start, &segment)) = self.segments.range(..at).next_back()
            && at < segment.end
        {
            self.segments.insert(start, Segment { end: at, ..segment });
            self.segments.insert(
                at,
                Segment {
                    hpa: segment.hpa + (at - start),
                    ..segment
                },
            );
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        self.segments
            .retain(|from, _| *from < start || *from >= end);
    }

    /// The first address of a range that is mapped, or is not.
    fn first(&self, start: u64, end: u64, mapped: bool) -> Option<u64> {
        let mut at = start;
        while at < end {
            if (self.view(at) != View::Absent) == mapped {
                return Some(at);
            }
            // On to the next place where a segment starts or ends.
            at = self
                .segments
                .iter()
                .flat_map(|(from, segment)| [*from, segment.end])
                .filter(|edge| *edge > at)
                .min()
                .unwrap_or(end);
        }
        None
    }

    /// What the operation must answer, and the change it makes. Merges are judged by [`Model::is_uniform`].
    pub(crate) fn apply(&mut self, op: &Op) -> Result<(), EptError> {
        let (start, end) = op.range();
        match *op {
            Op::Map {
                hpa,
                permissions,
                memory_type,
                ..
            }
            | Op::Replace {
                hpa,
                permissions,
                memory_type,
                ..
            } => {
                let is_map = matches!(op, Op::Map { .. });
                if let Some(at) = self.first(start, end, is_map) {
                    let gpa = Gpa::new(at);
                    return Err(if is_map {
                        EptError::AlreadyMapped { gpa }
                    } else {
                        EptError::NotMapped { gpa }
                    });
                }
                self.remove(start, end);
                let memory_type = if memory_type == MemoryType::WriteBack {
                    6
                } else {
                    0
                };
                self.segments.insert(
                    start,
                    Segment {
                        end,
                        hpa,
                        permissions: permissions.bits(),
                        memory_type,
                    },
                );
            }
            Op::Unmap { .. } => self.remove(start, end),
            Op::Split { gpa } if self.view(gpa) == View::Absent => {
                return Err(EptError::NotMapped { gpa: Gpa::new(gpa) });
            }
            Op::Split { .. } | Op::Merge { .. } => {}
        }
        Ok(())
    }

    /// Whether the 2 MiB at `start` are one mapping that one entry could hold.
    pub(crate) fn is_uniform(&self, start: u64) -> bool {
        let View::Page {
            hpa,
            permissions,
            memory_type,
        } = self.view(start)
        else {
            return false;
        };
        hpa % MIB2 == 0
            && (0..MIB2).step_by(PAGE as usize).all(|offset| {
                self.view(start + offset)
                    == View::Page {
                        hpa: hpa + offset,
                        permissions,
                        memory_type,
                    }
            })
    }

    /// Addresses worth looking at: around every edge of a segment.
    pub(crate) fn probes(&self) -> BTreeSet<u64> {
        self.segments
            .iter()
            .flat_map(|(start, segment)| around(*start, segment.end))
            .collect()
    }
}

/// Addresses inside and just outside a range: its ends, the edges of large pages near them, and the middle.
pub(crate) fn around(start: u64, end: u64) -> BTreeSet<u64> {
    let mut probes = BTreeSet::new();
    for edge in [start, end] {
        for size in [PAGE, MIB2, GIB] {
            for at in [edge / size * size, edge.next_multiple_of(size)] {
                probes.extend([
                    at.saturating_sub(PAGE),
                    at.saturating_sub(1),
                    at,
                    at + PAGE,
                    at + size / 2,
                ]);
            }
        }
    }
    probes.insert(u64::midpoint(start, end) / PAGE * PAGE + 0x123);
    probes.retain(|gpa| *gpa < 1 << 48);
    probes
}

/// Every page of a range, and one on each side.
pub(crate) fn every_page(start: u64, end: u64) -> BTreeSet<u64> {
    (start.saturating_sub(PAGE)..end + PAGE)
        .step_by(PAGE as usize)
        .filter(|gpa| *gpa < 1 << 48)
        .collect()
}

/// An EPT whose every step is compared with the model.
pub(crate) struct Checked {
    pub(crate) store: HistoryStore,
    pub(crate) ept: Ept,
    pub(crate) model: Model,
    pub(crate) features: EptFeatures,
    /// Flushes not yet completed.
    pub(crate) owed: Vec<Flush>,
}

impl Checked {
    pub(crate) fn new(store: HistoryStore, features: EptFeatures) -> Checked {
        let ept = Ept::new(&store, features).expect("the store has frames");
        Checked {
            store,
            ept,
            model: Model::default(),
            features,
            owed: Vec::new(),
        }
    }

    /// Does an operation and checks: the answer; that hardware can have seen, at each probe, the old or the new translation and
    /// nothing else while it ran; that it sees the new one now; that an invalidation is asked for wherever a translation that
    /// was there has changed.
    pub(crate) fn step(&mut self, op: &Op, probes: &BTreeSet<u64>) -> Result<(), EptError> {
        let old = self.model.clone();
        let expected = self.model.apply(op);
        let (from, tables) = (self.store.now(), self.store.live_tables());
        let answer = op.apply(&self.ept, &self.store);
        let to = self.store.now();
        if !matches!(
            (op, &answer),
            (Op::Merge { .. }, Err(EptError::NotMergeable))
        ) {
            assert_eq!(answer.as_ref().err(), expected.as_ref().err(), "{op:?}");
        }
        let mut changed = false;
        for gpa in probes {
            let (before, after) = (old.view(*gpa), self.model.view(*gpa));
            for view in self.store.possible_views(self.ept.eptp(), *gpa, from, to) {
                assert!(
                    view == before || view == after,
                    "{op:?} shows {view:x?} at {gpa:#x}, not {before:x?} or {after:x?}"
                );
            }
            assert_eq!(
                self.store.view(self.ept.eptp(), *gpa),
                after,
                "{op:?} at {gpa:#x}"
            );
            self.check_translate(*gpa, after);
            changed |= before != View::Absent && before != after;
        }
        match answer {
            Ok(flush) => {
                assert!(
                    flush.needs_invalidation() || !changed,
                    "{op:?} changed what CPUs may have cached, and is silent"
                );
                if let Op::Map { .. } = op {
                    assert!(!flush.needs_invalidation(), "{op:?} mapped what was absent");
                }
                self.owed.push(flush);
                Ok(())
            }
            Err(error) => {
                assert_eq!(
                    self.store.live_tables(),
                    tables,
                    "{op:?} was refused and left tables behind"
                );
                assert_eq!(to, from, "{op:?} was refused and stored something");
                Err(error)
            }
        }
    }

    fn check_translate(&self, gpa: u64, view: View) {
        let found = self
            .ept
            .translate(&self.store, Gpa::new(gpa))
            .map_or(View::Absent, |found| View::Page {
                hpa: found.hpa.get(),
                permissions: found.permissions.bits(),
                memory_type: if found.memory_type == MemoryType::WriteBack {
                    6
                } else {
                    0
                },
            });
        assert_eq!(found, view, "translate at {gpa:#x}");
    }

    /// Completes all flushes; then every table that is allocated can be reached, and none is empty.
    pub(crate) fn settle(&mut self) {
        if let Some(flush) = self.owed.drain(..).reduce(Flush::combine) {
            flush.complete(&self.store);
        }
        assert_eq!(
            self.store.reachable_tables(self.ept.eptp()),
            self.store.live_tables(),
            "a table leaked"
        );
    }

    /// Destroys the EPT; no table may be left.
    pub(crate) fn finish(mut self) {
        self.settle();
        self.ept.destroy(&self.store);
        assert_eq!(self.store.live_tables(), 0, "tables are left after destroy");
    }
}
