//! A VM's memory with something where it has nothing, for one vCPU for a moment.
//!
//! Concurrency: made and extended under the VM's memory lock. It is to the VM's EPT as what a CPU has cached of it: its owner drops
//! it before it looks at a kick, and enters with it only after it has seen that none has come ([`flush`](crate::objects::space::Space::flush)).

use alloc::sync::Arc;

use nagaya_mem::{EptError, Gpa, Hpa, Overlay, Permissions};

use crate::host::memory::Tables;
use crate::objects::vm::Vm;
use crate::vmx::invalidate;

/// An EPT root over a VM's. What was cached under it is forgotten when it is dropped.
#[derive(Debug)]
pub struct EptOverlay {
    vm: Arc<Vm>,
    overlay: Option<Overlay>,
    eptp: u64,
    /// The VM's EPT as it was when this was made.
    generation: u64,
}

/// Why a page is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The VM's EPT has changed meanwhile, or has something there: make another overlay.
    Stale,
    /// There is no memory for it, or no such address.
    Impossible,
}

impl EptOverlay {
    /// One that shows nothing yet. `None` if memory runs out.
    #[must_use]
    pub fn new(vm: &Arc<Vm>) -> Option<EptOverlay> {
        let lock = (vm.memory.lock(), vm.space.hold());
        let overlay = Overlay::new(&Tables, &vm.space.ept).ok()?;
        let generation = vm.space.generation();
        drop(lock);
        let eptp = overlay.eptp();
        Some(EptOverlay {
            vm: Arc::clone(vm),
            overlay: Some(overlay),
            eptp,
            generation,
        })
    }

    /// What the VMCS field EPT_POINTER takes.
    #[must_use]
    pub fn eptp(&self) -> u64 {
        self.eptp
    }

    /// Shows a frame at a page where the VM has nothing. The frame outlives this value.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn show(&mut self, page: Gpa, frame: Hpa, permissions: Permissions) -> Result<(), Refusal> {
        let overlay = self.overlay.as_mut().ok_or(Refusal::Stale)?;
        // Whoever retires tables holds the lock until they are freed: under it and at the same generation all are there.
        let lock = (self.vm.memory.lock(), self.vm.space.hold());
        if self.vm.space.generation() != self.generation {
            return Err(Refusal::Stale);
        }
        let shown = overlay.show(&Tables, page, frame, permissions);
        drop(lock);
        // A page that was shown with fewer rights, or another frame, may be cached.
        invalidate::ept(self.eptp);
        shown.map_err(|error| match error {
            EptError::AlreadyMapped { .. } => Refusal::Stale,
            _ => Refusal::Impossible,
        })
    }
}

impl Drop for EptOverlay {
    fn drop(&mut self) {
        if let Some(overlay) = self.overlay.take() {
            // Before its frames become something else's.
            invalidate::ept(self.eptp);
            overlay.destroy(&Tables);
        }
    }
}
