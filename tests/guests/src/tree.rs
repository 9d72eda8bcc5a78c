//! The search tree of the C sample `guest-kmod/samples/tree.c`, whose pointers mean the same in every member: searched, added up
//! and changed from Rust, on bare metal and on Linux.
//!
//! Whatever stands in the region may have been written by a broken peer: an address outside, or a tree that is deeper than any
//! that the sample makes, is [`Broken`]. All is to be done under [`Tree::lock`].

use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_rt::region::View;
use nagaya_rt::sync::SpinLock;

/// What a tree's head begins with.
pub const MAGIC: u64 = u64::from_le_bytes(*b"AGATREET");

const LOCK: u64 = 8;
const ROOT: u64 = 16;
const NODE_BYTES: u64 = 32;
const KEY: u64 = 16;
const VALUE: u64 = 24;
const MOST_DEPTH: u32 = 64;

/// No tree of this layout: a pointer leads out of the region, or in circles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The address of the node that cannot be one.
    pub address: u64,
}

/// The tree at the beginning of the region.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    region: &'a View,
}

impl<'a> Tree<'a> {
    /// The tree of a region; `None` for a region that is too small for its head.
    #[must_use]
    pub fn new(region: &'a View) -> Option<Tree<'a>> {
        region.u64s(0, 4).map(|_| Tree { region })
    }

    /// Whether one was built.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.region
            .u64(0)
            .is_some_and(|magic| magic.load(Ordering::Acquire) == MAGIC)
    }

    /// The lock of the tree.
    #[must_use]
    pub fn lock(&self) -> Option<&'a SpinLock> {
        self.region.cell(LOCK)
    }

    fn root(&self) -> u64 {
        self.region
            .u64(ROOT)
            .map_or(0, |root| root.load(Ordering::Relaxed))
    }

    /// The four words of a node: left, right, key, value.
    fn node(&self, address: u64) -> Result<&'a [AtomicU64], Broken> {
        address
            .checked_sub(self.region.address())
            .and_then(|offset| self.region.u64s(offset, (NODE_BYTES / 8) as usize))
            .ok_or(Broken { address })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn find(&self, key: u64) -> Result<Option<u64>, Broken> {
        let mut address = self.root();
        for _ in 0..MOST_DEPTH {
            if address == 0 {
                return Ok(None);
            }
            let node = self.node(address)?;
            let found = word(node, KEY);
            if found == key {
                return Ok(Some(word(node, VALUE)));
            }
            address = word(node, if key < found { 0 } else { 8 });
        }
        Err(Broken { address })
    }

    /// Multiplies all values and gives their sum.
    ///
    /// # Errors
    /// [`Broken`]; some values are then multiplied already.
    pub fn multiply(&self, by: u64) -> Result<u64, Broken> {
        self.walk(self.root(), 0, by)
    }

    fn walk(&self, address: u64, depth: u32, by: u64) -> Result<u64, Broken> {
        if address == 0 {
            return Ok(0);
        }
        if depth > MOST_DEPTH {
            return Err(Broken { address });
        }
        let node = self.node(address)?;
        let value = word(node, VALUE).wrapping_mul(by);
        if let Some(slot) = node.get((VALUE / 8) as usize) {
            slot.store(value, Ordering::Relaxed);
        }
        let left = self.walk(word(node, 0), depth + 1, by)?;
        let right = self.walk(word(node, 8), depth + 1, by)?;
        Ok(value.wrapping_add(left).wrapping_add(right))
    }
}

fn word(node: &[AtomicU64], offset: u64) -> u64 {
    node.get((offset / 8) as usize)
        .map_or(0, |word| word.load(Ordering::Relaxed))
}
