//! Counting what decisions cost: vCPUs and gangs looked at, and places in ordered sets looked up or changed. Only tests and the
//! simulator count; in the hypervisor this is nothing.

#[cfg(any(test, feature = "sim"))]
use core::cell::Cell;

/// A count of steps, each of which takes at most the logarithm of the number of gangs.
#[derive(Debug, Default)]
pub(crate) struct Work {
    #[cfg(any(test, feature = "sim"))]
    steps: Cell<u64>,
}

impl Work {
    /// One step more.
    #[inline]
    pub(crate) fn step(&self) {
        #[cfg(any(test, feature = "sim"))]
        self.steps.set(self.steps.get() + 1);
    }

    /// Steps so far.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn steps(&self) -> u64 {
        self.steps.get()
    }
}
