//! Runs of pages in the order of their addresses, by pieces of bounded work.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use guest_abi::{Errno, PAGE_BYTES};
use nagaya_mem::Run;

/// Bits of an address that one pass sorts by: the page inside 2 MiB, then the 2 MiB piece inside 1 GiB, then the GiB.
const DIGIT_BITS: u32 = 9;
const DIGITS: usize = 3;
const BUCKETS: usize = 1 << DIGIT_BITS;

/// How many runs have each value of a digit; later, where the next of them goes.
type Counts = [u32; BUCKETS];

/// A radix sort, the lowest digit first. It costs a few instructions for each run and digit, whatever order they come in: a comparison sort
/// of a scattered region would cost more than all the rest of mapping it.
#[derive(Debug)]
pub(super) struct Sorter {
    runs: Vec<Run>,
    sorted: Vec<Run>,
    counts: Box<[Counts; DIGITS]>,
    /// Which digit is sorted by; none while they are counted.
    digit: Option<usize>,
    /// Runs that this pass has seen.
    seen: usize,
}

fn value(run: &Run, digit: usize) -> usize {
    let page = run.gpa.get() / PAGE_BYTES;
    (page >> (DIGIT_BITS * digit as u32)) as usize % BUCKETS
}

impl Sorter {
    /// Of runs below 2^39 bytes, which no layout exceeds.
    ///
    /// # Errors
    /// `ENOMEM`: there is no memory for a second list.
    pub(super) fn new(runs: Vec<Run>) -> Result<Sorter, Errno> {
        let mut sorted = Vec::new();
        sorted
            .try_reserve_exact(runs.len())
            .map_err(|_| Errno::NoMem)?;
        sorted.resize(runs.len(), Run::default());
        Ok(Sorter {
            runs,
            sorted,
            counts: Box::new([[0; BUCKETS]; DIGITS]),
            digit: None,
            seen: 0,
        })
    }

    /// Looks at no more than `most` runs, and says whether all are in order.
    pub(super) fn step(&mut self, most: u64) -> bool {
        let mut left = usize::try_from(most).unwrap_or(usize::MAX);
        loop {
            let end = self.seen.saturating_add(left).min(self.runs.len());
            let now = self.runs.get(self.seen..end).unwrap_or_default();
            match self.digit {
                None => count(&mut self.counts, now),
                Some(digit) => {
                    let Some(places) = self.counts.get_mut(digit) else {
                        return true;
                    };
                    place(places, &mut self.sorted, now, digit);
                }
            }
            left -= now.len();
            self.seen = end;
            if end < self.runs.len() {
                return false;
            }
            if self.digit.is_some() {
                mem::swap(&mut self.runs, &mut self.sorted);
            }
            if !self.begin_pass() {
                return true;
            }
        }
    }

    /// Goes on to the next digit in which runs differ; false if there is none.
    fn begin_pass(&mut self) -> bool {
        self.seen = 0;
        let count = self.runs.len() as u32;
        let first = self.digit.map_or(0, |digit| digit + 1);
        for digit in first..DIGITS {
            self.digit = Some(digit);
            let Some(counts) = self.counts.get_mut(digit) else {
                return false;
            };
            if counts.contains(&count) {
                continue;
            }
            let mut before = 0;
            for count in counts {
                before += mem::replace(count, before);
            }
            return true;
        }
        false
    }

    /// The runs, in order once [`Sorter::step`] has said so.
    pub(super) fn into_runs(self) -> Vec<Run> {
        self.runs
    }
}

fn count(counts: &mut [Counts; DIGITS], runs: &[Run]) {
    for run in runs {
        for (digit, counts) in counts.iter_mut().enumerate() {
            counts[value(run, digit)] += 1;
        }
    }
}

fn place(places: &mut Counts, sorted: &mut [Run], runs: &[Run], digit: usize) {
    for run in runs {
        let place = &mut places[value(run, digit)];
        if let Some(slot) = sorted.get_mut(*place as usize) {
            *slot = *run;
        }
        *place += 1;
    }
}
