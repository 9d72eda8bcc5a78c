//! Pages that a family of VMs shares, with what is in them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use core::cell::RefCell;

use crate::share::ShareStore;
use crate::{EptError, FrameStore, Holders, Hpa, TooManyHolders};

const PAGE: u64 = 0x1000;

#[derive(Debug)]
struct Pages {
    holders: Holders<'static>,
    /// Holders of tables beyond the first.
    tables: BTreeMap<u64, u32>,
    /// What is in each page that is somebody's: one word stands for all 4 KiB.
    content: BTreeMap<u64, u64>,
    next: u64,
    left: Option<usize>,
}

/// A [`ShareStore`] over a store of tables: pages are never given out twice, and whoever touches one that was freed panics.
#[derive(Debug)]
pub struct FamilyStore<S> {
    /// Where the tables are.
    pub tables: S,
    pages: RefCell<Pages>,
}

impl<S: FrameStore> FamilyStore<S> {
    /// A store for pages at addresses below `top`; copies are made from `copies_from` on.
    #[must_use]
    pub fn new(tables: S, copies_from: u64, top: u64) -> FamilyStore<S> {
        // A test's doubles live as long as its process.
        let words = Box::leak(vec![0; Holders::words_needed(Hpa::new(top))].into_boxed_slice());
        FamilyStore {
            tables,
            pages: RefCell::new(Pages {
                holders: Holders::new(words),
                tables: BTreeMap::new(),
                content: BTreeMap::new(),
                next: copies_from,
                left: None,
            }),
        }
    }

    /// From now on `count` pages can be had for copies; `None`: all that are asked for.
    pub fn allow_pages(&self, count: Option<usize>) {
        self.pages.borrow_mut().left = count;
    }

    /// These pages are the first VM's now; each holds its own number.
    pub fn take(&self, start: u64, bytes: u64) {
        let mut pages = self.pages.borrow_mut();
        for page in (start..start + bytes).step_by(PAGE as usize) {
            pages.content.insert(page, page / PAGE);
        }
        pages.holders.taken(Hpa::new(start), bytes / PAGE);
    }

    /// Pages that are somebody's.
    #[must_use]
    pub fn live_pages(&self) -> usize {
        self.pages.borrow().content.len()
    }

    /// What is in a page; `None` if it is nobody's.
    #[must_use]
    pub fn content(&self, page: u64) -> Option<u64> {
        let pages = self.pages.borrow();
        pages.content.get(&(page / PAGE * PAGE)).copied()
    }

    /// Writes to a page.
    ///
    /// # Panics
    /// If it is nobody's.
    pub fn write(&self, page: u64, value: u64) {
        let mut pages = self.pages.borrow_mut();
        match pages.content.get_mut(&(page / PAGE * PAGE)) {
            Some(content) => *content = value,
            None => panic!("the page {page:#x} is nobody's"),
        }
    }
}

impl Pages {
    fn free(&mut self, start: Hpa, count: u64) {
        for page in 0..count {
            let page = start.get() + page * PAGE;
            let was = self.content.remove(&page);
            assert!(was.is_some(), "the page {page:#x} is freed twice");
        }
    }

    fn is_table(&self, frame: Hpa) -> bool {
        // Tables lie where no page does.
        frame.get() >= 0x7000_0000_0000
    }
}

fn full(error: TooManyHolders) -> EptError {
    EptError::TooManyHolders { frame: error.0 }
}

impl<S: FrameStore> FrameStore for FamilyStore<S> {
    fn load(&self, table: Hpa, index: usize) -> u64 {
        self.tables.load(table, index)
    }

    fn compare_exchange(
        &self,
        table: Hpa,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        self.tables.compare_exchange(table, index, current, new)
    }

    fn allocate_table(&self) -> Option<Hpa> {
        self.tables.allocate_table()
    }

    fn free_table(&self, table: Hpa) {
        let pages = self.pages.borrow();
        assert!(
            !pages.tables.contains_key(&table.get()),
            "the table {table} is freed while it has holders"
        );
        self.tables.free_table(table);
    }
}

impl<S: FrameStore> ShareStore for FamilyStore<S> {
    fn holders(&self, frame: Hpa) -> u32 {
        let pages = self.pages.borrow();
        if pages.is_table(frame) {
            1 + pages.tables.get(&frame.get()).copied().unwrap_or(0)
        } else {
            pages.holders.count(frame)
        }
    }

    fn hold(&self, frame: Hpa) -> Result<(), EptError> {
        let mut pages = self.pages.borrow_mut();
        if pages.is_table(frame) {
            *pages.tables.entry(frame.get()).or_default() += 1;
            return Ok(());
        }
        pages.holders.add(frame).map_err(full)
    }

    fn let_go(&self, frame: Hpa) -> bool {
        let mut pages = self.pages.borrow_mut();
        if !pages.is_table(frame) {
            return pages.holders.remove(frame);
        }
        let Some(further) = pages.tables.get_mut(&frame.get()) else {
            return true;
        };
        *further -= 1;
        if *further == 0 {
            pages.tables.remove(&frame.get());
        }
        false
    }

    fn shared_pages(&self, block: Hpa) -> u64 {
        self.pages.borrow().holders.shared_pages(block)
    }

    fn hold_block(&self, block: Hpa) -> Result<(), EptError> {
        self.pages
            .borrow_mut()
            .holders
            .add_block(block)
            .map_err(full)
    }

    fn divide_block(&self, block: Hpa) {
        self.pages.borrow_mut().holders.divide(block);
    }

    fn let_go_block(&self, block: Hpa) {
        let mut gone = alloc::vec::Vec::new();
        let mut pages = self.pages.borrow_mut();
        pages
            .holders
            .remove_block(block, |start, count| gone.push((start, count)));
        for (start, count) in gone {
            pages.free(start, count);
        }
    }

    fn allocate_page(&self) -> Option<Hpa> {
        let mut pages = self.pages.borrow_mut();
        if let Some(left) = &mut pages.left {
            *left = left.checked_sub(1)?;
        }
        let page = pages.next;
        pages.next += PAGE;
        // What a former holder left.
        pages.content.insert(page, u64::MAX);
        Some(Hpa::new(page))
    }

    fn copy_page(&self, from: Hpa, to: Hpa) {
        let content = self.content(from.get());
        assert!(content.is_some(), "a copy of {from}, which is nobody's");
        self.write(to.get(), content.unwrap_or(0));
    }

    fn free_page(&self, page: Hpa) {
        self.pages.borrow_mut().free(page, 1);
    }
}
