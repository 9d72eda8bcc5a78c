//! Families: VMs that share memory, since each but the first is a fork of another.
//!
//! A VM that may fork begins one, alone. Its RAM is the family's from then on: frames of [`Owner::Family`], each held by the tables
//! that lead to it (`nagaya_mem::share`). A VM lets go of what it holds when its tables end ([`super::space`]); what nobody holds is free.
//!
//! Concurrency: one lock edits the tables of all VMs of a family. It is a leaf but for those of the tables of frames and of holders.

use alloc::string::String;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_abi::PAGE_BYTES;
use nagaya_mem::share::ShareStore;
use nagaya_mem::{EptError, FrameStore, Hpa, Owner, PageSize, TooManyHolders};
use spin::{Mutex, MutexGuard};

use crate::host::memory::{self, OwnedFrames, Tables, Whose};
use crate::objects::numbers::GroupNumber;
use crate::objects::scheduling;

/// A family.
#[derive(Debug)]
pub struct Family {
    /// Its number: the owner of its frames, and if its VMs are in no group, that of their account in the scheduler.
    number: GroupNumber,
    /// Its VMs are one account in the scheduler.
    is_account: bool,
    /// The first VM's name: the others' begin with it.
    name: String,
    /// Pages that it may have.
    limit: u64,
    /// Pages that it has.
    pages: AtomicU64,
    /// VMs beside the first, and how many may be there.
    children: AtomicU32,
    most_children: u32,
    edit: Mutex<()>,
}

/// A place for a VM in a family, given back when dropped.
#[derive(Debug)]
pub struct Place<'a>(Option<&'a Family>);

impl Place<'_> {
    /// The VM is there: [`Family::leave`] gives the place back.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(family) = self.0 {
            family.leave();
        }
    }
}

impl Family {
    /// A family of one VM, which is in no group if `enter` is given: that tells the scheduler of the family's number.
    ///
    /// # Errors
    /// That there is no number left, or what `enter` answers.
    pub fn new(
        name: &str,
        most_children: u32,
        limit_bytes: u64,
        enter: Option<impl FnOnce(u16) -> Result<(), String>>,
    ) -> Result<Family, String> {
        let number = GroupNumber::take().ok_or("there is no free number for a family")?;
        let is_account = enter.is_some();
        if let Some(enter) = enter {
            enter(number.get())?;
        }
        Ok(Family {
            number,
            is_account,
            name: String::from(name),
            limit: limit_bytes / PAGE_BYTES,
            pages: AtomicU64::new(0),
            children: AtomicU32::new(0),
            most_children,
            edit: Mutex::new(()),
        })
    }

    /// The number of its account in the scheduler, if it has one.
    #[must_use]
    pub fn account(&self) -> Option<u16> {
        self.is_account.then(|| self.number.get())
    }

    /// The first VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn owner(&self) -> Owner {
        Owner::Family(self.number.get())
    }

    /// Nobody edits tables of the family's, or frees what they lead to, while this is held.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.edit.lock()
    }

    /// Takes a place for one VM more; `None` if it has as many as it may have.
    #[must_use]
    pub fn place(&self) -> Option<Place<'_>> {
        let more = |now: u32| (now < self.most_children).then_some(now + 1);
        self.children
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .ok()
            .map(|_| Place(Some(self)))
    }

    /// A VM beside the first has ended.
    pub fn leave(&self) {
        self.children.fetch_sub(1, Ordering::SeqCst);
    }

    /// Bytes that it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * PAGE_BYTES
    }

    /// Whether it may have so much more.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.pages.load(Ordering::Relaxed) + bytes / PAGE_BYTES <= self.limit
    }

    /// Frames for RAM that tables are going to hold.
    #[must_use]
    pub fn frames(&self) -> OwnedFrames {
        OwnedFrames::new(self.owner())
    }

    /// Tables hold these frames from now on.
    pub fn adopt(&self, frames: OwnedFrames) {
        self.pages.fetch_add(frames.pages(), Ordering::Relaxed);
        frames.hand_over();
    }

    fn free(&self, start: Hpa, pages: u64) {
        self.pages.fetch_sub(pages, Ordering::Relaxed);
        memory::free(start, pages, self.owner());
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if self.is_account {
            // How it was scheduled is told of groups only.
            let _ = scheduling::group_ended(self.number.get());
        }
        // Only now its number may be given to another.
    }
}

fn full(error: TooManyHolders) -> EptError {
    EptError::TooManyHolders { frame: error.0 }
}

impl FrameStore for Family {
    fn load(&self, table: Hpa, index: usize) -> u64 {
        Tables.load(table, index)
    }

    fn compare_exchange(
        &self,
        table: Hpa,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        Tables.compare_exchange(table, index, current, new)
    }

    fn store_unlinked(&self, table: Hpa, index: usize, new: u64) {
        Tables.store_unlinked(table, index, new);
    }

    fn fill_unlinked(&self, table: Hpa, first: u64, step: u64) {
        Tables.fill_unlinked(table, first, step);
    }

    fn allocate_table(&self) -> Option<Hpa> {
        Tables.allocate_table()
    }

    fn free_table(&self, table: Hpa) {
        Tables.free_table(table);
    }
}

impl ShareStore for Family {
    fn holders(&self, frame: Hpa) -> u32 {
        memory::holders().count(frame)
    }

    fn hold(&self, frame: Hpa) -> Result<(), EptError> {
        memory::holders().add(frame).map_err(full)
    }

    fn let_go(&self, frame: Hpa) -> bool {
        memory::holders().remove(frame)
    }

    fn shared_pages(&self, block: Hpa) -> u64 {
        memory::holders().shared_pages(block)
    }

    fn hold_block(&self, block: Hpa) -> Result<(), EptError> {
        memory::holders().add_block(block).map_err(full)
    }

    fn divide_block(&self, block: Hpa) {
        memory::holders().divide(block);
    }

    fn let_go_block(&self, block: Hpa) {
        let mut holders = memory::holders();
        holders.remove_block(block, |start, pages| self.free(start, pages));
    }

    fn allocate_page(&self) -> Option<Hpa> {
        let more = |now: u64| (now < self.limit).then_some(now + 1);
        self.pages
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        let page = memory::allocate_page(self.owner());
        if page.is_none() {
            self.pages.fetch_sub(1, Ordering::Relaxed);
        }
        page
    }

    fn copy_page(&self, from: Hpa, to: Hpa) {
        // SAFETY: `to` is a page of the family's that was just allocated for this copy.
        let writer = unsafe { memory::writer(Whose::Family) };
        writer.copy(from, to, PageSize::Size4K.bytes() as usize);
    }

    fn free_page(&self, page: Hpa) {
        self.free(page, 1);
    }
}
