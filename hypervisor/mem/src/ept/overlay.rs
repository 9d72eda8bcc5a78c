//! A second root over a VM's tables: all is as there, but some pages that are absent there are shown.
//!
//! For one CPU that is to see something where the VM has nothing, while the VM's other CPUs go on seeing nothing. Tables on the
//! way to a page that is shown are private copies; all others are the VM's own.
//!
//! Concurrency: copies are made while nobody edits the VM's tables (their lock is held). Afterwards an overlay is like something
//! that a CPU has cached of them: whoever has one drops it before it answers a flush, and does not walk it after that.

use alloc::vec::Vec;

use x86_defs::ept as layout;

use super::{
    ENTRIES, Ept, EptError, EptFeatures, FrameStore, GPA_BITS, MemoryType, Permissions, ROOT_LEVEL,
    address, index, is_leaf, is_present, leaf, link,
};
use crate::{Gpa, Hpa, PageSize};

/// Of a page that is shown.
const PAGE_BYTES: u64 = PageSize::Size4K.bytes();

/// A private root. To be given back by [`Overlay::destroy`].
#[must_use]
#[derive(Debug)]
pub struct Overlay {
    /// Private tables, the root first.
    tables: Vec<Hpa>,
    /// Pages that are shown.
    shown: Vec<Gpa>,
    root: Hpa,
    features: EptFeatures,
}

impl Overlay {
    /// One that shows nothing yet.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`].
    pub fn new<S: FrameStore>(store: &S, base: &Ept) -> Result<Overlay, EptError> {
        let root = store.allocate_table().ok_or(EptError::OutOfTables)?;
        copy(store, base.root, root, Permissions::all());
        Ok(Overlay {
            tables: Vec::from([root]),
            shown: Vec::new(),
            root,
            features: base.features,
        })
    }

    /// What the VMCS field EPT_POINTER takes.
    #[must_use]
    pub fn eptp(&self) -> u64 {
        layout::eptp(self.root.get(), self.features.accessed_dirty)
    }

    /// Whether a page is shown.
    #[must_use]
    pub fn shows(&self, page: Gpa) -> bool {
        self.shown.contains(&page)
    }

    /// Shows the frame `hpa` at `page`, or shows it with other permissions, or another frame.
    ///
    /// # Errors
    /// [`EptError::AlreadyMapped`] if the VM has something there, [`EptError::OutOfTables`] and others of a bad address or bad
    /// permissions. What was shown before still is.
    pub fn show<S: FrameStore>(
        &mut self,
        store: &S,
        page: Gpa,
        hpa: Hpa,
        permissions: Permissions,
    ) -> Result<(), EptError> {
        if page.get() >> GPA_BITS != 0 {
            return Err(EptError::OutOfRange);
        }
        if !page.is_aligned(PAGE_BYTES) || !hpa.is_aligned(PAGE_BYTES) {
            return Err(EptError::Misaligned);
        }
        if !permissions.contains(Permissions::READ) {
            return Err(EptError::BadPermissions);
        }
        let mut table = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            table = self.private_child(store, table, level, page)?;
        }
        let slot = index(page.get(), 1);
        let is_shown = self.shows(page);
        if is_present(store.load(table, slot)) && !is_shown {
            return Err(EptError::AlreadyMapped { gpa: page });
        }
        let entry = leaf(hpa.get(), 1, permissions, MemoryType::WriteBack);
        set(store, table, slot, entry);
        if !is_shown {
            self.shown.push(page);
        }
        Ok(())
    }

    /// The table that an entry of a private one leads to, private as well from now on.
    fn private_child<S: FrameStore>(
        &mut self,
        store: &S,
        table: Hpa,
        level: u8,
        page: Gpa,
    ) -> Result<Hpa, EptError> {
        let slot = index(page.get(), level);
        let entry = store.load(table, slot);
        if is_present(entry) {
            if is_leaf(entry, level) {
                return Err(EptError::AlreadyMapped { gpa: page });
            }
            let child = Hpa::new(address(entry));
            if self.tables.contains(&child) {
                return Ok(child);
            }
        }
        let child = store.allocate_table().ok_or(EptError::OutOfTables)?;
        self.tables.push(child);
        if is_present(entry) {
            let rights = Permissions::from_bits_truncate(entry);
            copy(store, Hpa::new(address(entry)), child, rights);
        }
        set(store, table, slot, link(child));
        Ok(child)
    }

    /// Gives the private tables back. No CPU may use them any more, and before a frame of theirs is a root again what was cached
    /// under it has to be invalidated.
    pub fn destroy<S: FrameStore>(self, store: &S) {
        for table in self.tables {
            store.free_table(table);
        }
    }
}

/// Copies what is present into a table of zeros. What the link to it did not allow its entries do not, since the copy's link
/// allows everything.
fn copy<S: FrameStore>(store: &S, from: Hpa, to: Hpa, rights: Permissions) {
    let withheld = Permissions::all() - rights;
    for slot in 0..ENTRIES {
        let entry = store.load(from, slot) & !withheld.bits();
        if is_present(entry) {
            set(store, to, slot, entry);
        }
    }
}

/// Sets an entry of a private table: only hardware changes it meanwhile, and only its accessed and dirty bits.
fn set<S: FrameStore>(store: &S, table: Hpa, slot: usize, new: u64) {
    let mut current = store.load(table, slot);
    while let Err(found) = store.compare_exchange(table, slot, current, new) {
        current = found;
    }
}
