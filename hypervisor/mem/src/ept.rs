//! Extended page tables over an abstract store of frames.
//!
//! Every change is one compare-exchange of one entry, made in an order such that hardware that walks at any moment sees for
//! each page the old or the new translation and never a third thing: tables are filled before they are linked, and frames of
//! tables that were unlinked are kept until the caller has flushed ([`Flush::complete`]). Operations that need new tables make
//! all of them before they change a translation; without frames for them every translation stays what it was.
//!
//! Concurrency: one editor at a time (the caller's lock). Software that reads ([`Ept::translate`], and all of
//! [`crate::GuestMemory`]) holds that lock too, or else makes sure that no flush completes meanwhile: a retired table must not
//! be freed under its feet. Hardware walks at any time, on any number of CPUs, and may set accessed and dirty bits.
//! Source: Intel SDM Vol. 3, "The Extended Page Table Mechanism (EPT)".

mod batch;
mod edit;
mod flush;
mod overlay;
mod pool;
mod range;
pub mod share;

use bitflags::bitflags;
use x86_defs::ept::{self as layout, EptEntry, MEMORY_TYPE_UNCACHEABLE, MEMORY_TYPE_WRITE_BACK};

use crate::{Gpa, Hpa, PageSize};

pub use batch::Run;
pub use flush::Flush;
pub use overlay::Overlay;

/// Where tables live. Frames hold 512 entries of 64 bits.
pub trait FrameStore {
    /// Loads an entry (acquire).
    fn load(&self, table: Hpa, index: usize) -> u64;

    /// Stores `new` if the entry is `current` (acquire and release).
    ///
    /// # Errors
    /// The entry as it is, if it is not `current`.
    fn compare_exchange(
        &self,
        table: Hpa,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64>;

    /// Stores an entry of a table that no entry leads to yet.
    #[inline]
    fn store_unlinked(&self, table: Hpa, index: usize, new: u64) {
        let stored = self.compare_exchange(table, index, self.load(table, index), new);
        debug_assert!(
            stored.is_ok(),
            "a table that is not linked changes by itself"
        );
    }

    /// Fills a table that no entry leads to yet: `first`, and in each further entry `step` more.
    fn fill_unlinked(&self, table: Hpa, first: u64, step: u64) {
        for index in 0..ENTRIES {
            self.store_unlinked(table, index, first + index as u64 * step);
        }
    }

    /// Takes a frame of zeros for a table.
    fn allocate_table(&self) -> Option<Hpa>;

    /// Gives a table's frame back.
    fn free_table(&self, table: Hpa);
}

bitflags! {
    /// What a guest may do with a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Permissions: u64 {
        /// Load.
        const READ = 1;
        /// Store.
        const WRITE = 2;
        /// Fetch instructions.
        const EXECUTE = 4;
    }
}

/// How a page is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// RAM.
    WriteBack,
    /// Device registers.
    Uncacheable,
}

/// What the CPU's EPT can do (IA32_VMX_EPT_VPID_CAP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptFeatures {
    /// Pages of 2 MiB.
    pub large_2m: bool,
    /// Pages of 1 GiB.
    pub large_1g: bool,
    /// Accessed and dirty bits.
    pub accessed_dirty: bool,
}

/// Why an operation was refused. Translations are then what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptError {
    /// The store has no frame for a table.
    OutOfTables,
    /// The page is mapped already.
    AlreadyMapped {
        /// The first such page.
        gpa: Gpa,
    },
    /// The page is not mapped.
    NotMapped {
        /// The first such page.
        gpa: Gpa,
    },
    /// Of several runs one begins before the end of the one before it, or leaves its 2 MiB piece.
    Disordered {
        /// Its first page.
        gpa: Gpa,
    },
    /// An address or a length is not a multiple of 4 KiB.
    Misaligned,
    /// The range has no pages.
    Empty,
    /// The range reaches beyond 48 bits of guest-physical or 52 bits of host-physical addresses.
    OutOfRange,
    /// The page asks for write without read, which the CPU calls a misconfiguration, or for nothing at all.
    BadPermissions,
    /// The entries are not 512 neighbours with equal attributes.
    NotMergeable,
    /// A table or page cannot be shared with another VM: it has as many holders as can be counted.
    TooManyHolders {
        /// The table or page.
        frame: Hpa,
    },
    /// There is no frame for the copy of a page.
    OutOfPages,
}

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Host-physical address of the very byte that was asked for.
    pub hpa: Hpa,
    /// Size of the page that maps it.
    pub size: PageSize,
    /// What the guest may do.
    pub permissions: Permissions,
    /// How it is cached.
    pub memory_type: MemoryType,
}

/// Level of the root.
const ROOT_LEVEL: u8 = 4;
/// Guest-physical addresses have fewer bits than this.
const GPA_BITS: u32 = 48;
/// Host-physical addresses have at most this many bits.
const HPA_BITS: u32 = 52;
/// Entries in a table.
const ENTRIES: usize = 512;

/// Bytes that one entry of a table at `level` covers.
const fn span(level: u8) -> u64 {
    1 << (12 + 9 * (level as u32 - 1))
}

const fn index(gpa: u64, level: u8) -> usize {
    (gpa / span(level)) as usize % ENTRIES
}

const fn is_leaf(entry: u64, level: u8) -> bool {
    level == 1 || EptEntry::from_raw(entry).contains(EptEntry::LARGE)
}

const fn is_present(entry: u64) -> bool {
    EptEntry::from_raw(entry).is_present()
}

const fn address(entry: u64) -> u64 {
    EptEntry::from_raw(entry).address()
}

/// The bits the CPU sets by itself.
const HARDWARE_BITS: u64 = EptEntry::ACCESSED.bits() | EptEntry::DIRTY.bits();

fn leaf(hpa: u64, level: u8, permissions: Permissions, memory_type: MemoryType) -> u64 {
    let memory_type = match memory_type {
        MemoryType::WriteBack => MEMORY_TYPE_WRITE_BACK,
        MemoryType::Uncacheable => MEMORY_TYPE_UNCACHEABLE,
    };
    // Of RAM the guest's PAT is ignored: two VMs that share a frame must never cache it in two ways.
    let ignore_pat = if memory_type == MEMORY_TYPE_WRITE_BACK {
        EptEntry::IGNORE_PAT.bits()
    } else {
        0
    };
    let large = if level > 1 { EptEntry::LARGE.bits() } else { 0 };
    hpa | permissions.bits() | u64::from(memory_type) << 3 | ignore_pat | large
}

fn link(table: Hpa) -> u64 {
    table.get() | EptEntry::READ_WRITE_EXECUTE.bits()
}

/// One VM's extended page tables. The value is a handle: the tables live in the store.
#[derive(Debug)]
pub struct Ept {
    root: Hpa,
    features: EptFeatures,
}

impl Ept {
    /// Empty tables.
    ///
    /// # Errors
    /// [`EptError::OutOfTables`].
    pub fn new<S: FrameStore>(store: &S, features: EptFeatures) -> Result<Ept, EptError> {
        let root = store.allocate_table().ok_or(EptError::OutOfTables)?;
        Ok(Ept { root, features })
    }

    /// The root table.
    #[must_use]
    pub fn root(&self) -> Hpa {
        self.root
    }

    /// What the VMCS field EPT_POINTER takes.
    #[must_use]
    pub fn eptp(&self) -> u64 {
        layout::eptp(self.root.get(), self.features.accessed_dirty)
    }

    /// The entry that ends the walk for `gpa`, with its level; present or not. Its permissions are those of the whole walk.
    fn find<S: FrameStore>(&self, store: &S, gpa: u64) -> (u64, u8) {
        let mut table = self.root;
        let mut level = ROOT_LEVEL;
        let mut permissions = Permissions::all().bits();
        loop {
            let entry = store.load(table, index(gpa, level));
            if !is_present(entry) {
                return (entry, level);
            }
            permissions &= entry;
            if is_leaf(entry, level) {
                return (entry & !Permissions::all().bits() | permissions, level);
            }
            table = Hpa::new(address(entry));
            level -= 1;
        }
    }

    /// Where `gpa` leads, as the CPU would find it.
    #[must_use]
    pub fn translate<S: FrameStore>(&self, store: &S, gpa: Gpa) -> Option<Translation> {
        if gpa.get() >> GPA_BITS != 0 {
            return None;
        }
        let (entry, level) = self.find(store, gpa.get());
        if !is_present(entry) {
            return None;
        }
        let size = match level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        Some(Translation {
            hpa: Hpa::new((address(entry) & !(span(level) - 1)) | (gpa.get() & (span(level) - 1))),
            size,
            permissions: Permissions::from_bits_truncate(entry),
            memory_type: if EptEntry::from_raw(entry).memory_type() == MEMORY_TYPE_WRITE_BACK {
                MemoryType::WriteBack
            } else {
                MemoryType::Uncacheable
            },
        })
    }

    /// Frees all tables. The handle must not be used afterwards (it is borrowed, not taken, for the sake of owners that do this
    /// in their `Drop`). No CPU may use the tables any more, and none may have anything cached of them when the frames are
    /// reused: the caller invalidates before it next loads a VMCS with a root in one of these frames.
    pub fn destroy<S: FrameStore>(&mut self, store: &S) {
        edit::free_tables(store, self.root, ROOT_LEVEL);
    }
}
