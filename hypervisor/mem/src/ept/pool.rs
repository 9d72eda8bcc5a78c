//! Table frames that an operation sets aside before it changes anything.

use super::{EptError, FrameStore};
use crate::Hpa;

/// Frames for tables to come. They are chained through their first words, so that setting them aside needs no other memory; no
/// hardware reaches them before they are linked. What is left over goes back to the store when the pool is dropped.
pub(super) struct Pool<'a, S: FrameStore> {
    store: &'a S,
    head: Option<Hpa>,
}

impl<'a, S: FrameStore> Pool<'a, S> {
    /// Sets `tables` frames aside.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`]; those taken so far are back in the store then.
    pub(super) fn reserve(store: &'a S, tables: usize) -> Result<Pool<'a, S>, EptError> {
        let mut pool = Pool { store, head: None };
        for _ in 0..tables {
            let frame = store.allocate_table().ok_or(EptError::OutOfTables)?;
            if let Some(next) = pool.head {
                let chained = store.compare_exchange(frame, 0, 0, next.get());
                debug_assert!(chained.is_ok(), "the store gave a table that is not zeroed");
            }
            pool.head = Some(frame);
        }
        Ok(pool)
    }

    /// Takes one frame out, all zeros.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`] if too few were set aside, which would be a bug of the operation's count.
    pub(super) fn take(&mut self) -> Result<Hpa, EptError> {
        let frame = self.head.ok_or(EptError::OutOfTables)?;
        let next = self.store.load(frame, 0);
        if next == 0 {
            self.head = None;
        } else {
            self.head = Some(Hpa::new(next));
            let cleared = self.store.compare_exchange(frame, 0, next, 0);
            debug_assert!(
                cleared.is_ok(),
                "a table that is not linked changes by itself"
            );
        }
        Ok(frame)
    }

    /// Whether every frame was used: operations set aside exactly what they need.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_none()
    }
}

impl<S: FrameStore> Drop for Pool<'_, S> {
    fn drop(&mut self) {
        while let Ok(frame) = self.take() {
            self.store.free_table(frame);
        }
    }
}
