//! The obligation that a change of the EPT leaves behind.

use alloc::vec::Vec;

use super::FrameStore;
use crate::Hpa;

/// What is owed after a change: CPUs that may have cached old translations must invalidate (INVEPT), and then the frames of
/// unlinked tables can go. Discharged by [`Flush::complete`].
#[must_use = "CPUs may still use old translations, and frames of tables wait to be freed"]
#[derive(Debug, Default)]
pub struct Flush {
    pub(super) invalidate: bool,
    pub(super) retired: Vec<Hpa>,
}

impl Flush {
    /// Nothing owed.
    pub(super) fn none() -> Flush {
        Flush::default()
    }

    /// Whether CPUs must invalidate what they cached. Where nothing was mapped before, they need not.
    #[must_use]
    pub fn needs_invalidation(&self) -> bool {
        self.invalidate
    }

    /// Both obligations in one.
    pub fn combine(mut self, other: Flush) -> Flush {
        self.absorb(other);
        self
    }

    /// Takes another's obligations over.
    pub(super) fn absorb(&mut self, mut other: Flush) {
        self.invalidate |= other.invalidate;
        self.retired.append(&mut other.retired);
    }

    /// Declares that every CPU that may have cached old translations has invalidated them since, and frees retired tables.
    pub fn complete<S: FrameStore>(mut self, store: &S) {
        for table in self.retired.drain(..) {
            store.free_table(table);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // A test that fails already should say why, not abort in a second panic.
        #[cfg(any(test, feature = "test-support"))]
        if std::thread::panicking() {
            return;
        }
        debug_assert!(
            self.retired.is_empty(),
            "a flush with retired tables was dropped instead of completed"
        );
    }
}
