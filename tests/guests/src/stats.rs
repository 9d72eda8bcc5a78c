//! Samples of a benchmark and the row they make.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use nagaya_rt::time::ticks_to_ns;
use nagaya_rt::{ExitKind, println};

/// Durations in ticks.
#[derive(Debug)]
pub struct Samples {
    ticks: Vec<u64>,
}

/// What is told of them, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the statistics they hold")]
pub struct Summary {
    pub mean: u64,
    pub min: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Samples {
    /// Room for that many, so that measuring allocates nothing.
    #[must_use]
    pub fn with_capacity(count: usize) -> Samples {
        Samples {
            ticks: Vec::with_capacity(count),
        }
    }

    /// Adds one.
    pub fn push(&mut self, ticks: u64) {
        self.ticks.push(ticks);
    }

    /// Mean (rounded), minimum, nearest-rank percentiles and maximum; zeros if there are no samples.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut sorted = self.ticks.clone();
        sorted.sort_unstable();
        let count = sorted.len() as u64;
        let rank = |percent: u64| {
            let rank = (count * percent).div_ceil(100).max(1) - 1;
            sorted.get(rank as usize).copied().unwrap_or(0)
        };
        Summary {
            mean: (sorted.iter().sum::<u64>() + count / 2)
                .checked_div(count)
                .unwrap_or(0),
            min: sorted.first().copied().unwrap_or(0),
            p50: rank(50),
            p99: rank(99),
            max: sorted.last().copied().unwrap_or(0),
        }
    }
}

/// What one row tells.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes of a message.
    pub bytes: u64,
    /// Rounds, in all runs.
    pub rounds: u64,
    /// Ticks of a round.
    pub summary: Summary,
    /// Exits of all rounds, of both sides.
    pub exits: &'a [u64; ExitKind::COUNT],
    /// Copies that the hypervisor made in all rounds, and their bytes.
    pub copied: [u64; 2],
    /// Mean ticks of each run.
    pub run_means: &'a [u64],
}

/// A count per round with three decimals.
#[must_use]
pub fn per_round(count: u64, rounds: u64) -> String {
    let thousandths = (count * 1000 + rounds / 2).checked_div(rounds).unwrap_or(0);
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

impl Row<'_> {
    /// As the JSON object that `cargo xtask bench` collects.
    #[must_use]
    pub fn json(&self) -> String {
        let mut counts = String::new();
        for (kind, count) in self.exits_that_happened() {
            let comma = if counts.is_empty() { "" } else { "," };
            let count = per_round(count, self.rounds);
            counts.push_str(&format!("{comma}\"{}\":{count}", kind.name()));
        }
        let mut runs = String::new();
        for mean in self.run_means {
            let comma = if runs.is_empty() { "" } else { "," };
            runs.push_str(&format!("{comma}{mean}"));
        }
        let summary = &self.summary;
        format!(
            "{{\"row\":{{\"name\":\"{}\",\"bytes\":{},\"rounds\":{},\"ticks\":{{\"mean\":{},\"min\":{},\"p50\":{},\"p99\":{},\
             \"max\":{}}},\"run_means\":[{runs}],\"copies_per_round\":{},\"copied_bytes_per_round\":{},\
             \"exits\":{{{counts}}}}}}}",
            self.name,
            self.bytes,
            self.rounds,
            summary.mean,
            summary.min,
            summary.p50,
            summary.p99,
            summary.max,
            per_round(self.copied[0], self.rounds),
            per_round(self.copied[1], self.rounds),
        )
    }

    fn exits_that_happened(&self) -> impl Iterator<Item = (&'static ExitKind, u64)> {
        let all = ExitKind::ALL.iter().zip(self.exits.iter().copied());
        all.filter(|(_, count)| *count != 0)
    }

    /// Prints one line of the table and sends the row for programs.
    pub fn report(&self) {
        let ns = ticks_to_ns(self.summary.mean);
        let mut told = String::new();
        for (kind, count) in self.exits_that_happened() {
            told.push_str(&format!(
                " {} {}",
                kind.name(),
                per_round(count, self.rounds)
            ));
        }
        let summary = &self.summary;
        println!(
            "{:<18}{:>9}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>8}.{:03} {}",
            self.name,
            self.bytes,
            self.rounds,
            summary.min,
            summary.mean,
            summary.p50,
            summary.p99,
            summary.max,
            ns / 1000,
            ns % 1000,
            if told.is_empty() { " none" } else { &told }
        );
        let sent = nagaya_rt::console::event(&self.json());
        assert!(
            sent.is_ok(),
            "the console refuses the row {}: {sent:?}",
            self.name
        );
    }
}

/// Prints the heading of the table that [`report`] fills.
pub fn print_heading() {
    println!(
        "{:<18}{:>9}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>12}  exits per round",
        "ticks of", "bytes", "rounds", "min", "mean", "p50", "p99", "max", "mean us"
    );
}

/// As [`Row::report`], for a row without copies and runs.
pub fn report(
    name: &str,
    bytes: u64,
    rounds: u64,
    summary: &Summary,
    exits: &[u64; ExitKind::COUNT],
) {
    let row = Row {
        name,
        bytes,
        rounds,
        summary: *summary,
        exits,
        copied: [0; 2],
        run_means: &[],
    };
    row.report();
}

/// What the exits grew by since `before`.
#[must_use]
pub fn exits_since(before: &[u64; ExitKind::COUNT]) -> [u64; ExitKind::COUNT] {
    let mut exits = nagaya_rt::group::exits();
    for (now, before) in exits.iter_mut().zip(before) {
        *now -= before;
    }
    exits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut samples = Samples::with_capacity(100);
        for value in (1..=100).rev() {
            samples.push(value);
        }
        assert_eq!(
            samples.summary(),
            Summary {
                mean: 51,
                min: 1,
                p50: 50,
                p99: 99,
                max: 100
            }
        );
        assert_eq!(
            Samples::with_capacity(0).summary(),
            Summary {
                mean: 0,
                min: 0,
                p50: 0,
                p99: 0,
                max: 0
            }
        );
    }

    #[test]
    fn a_row_names_only_exits_that_happened() {
        let mut exits = [0; ExitKind::COUNT];
        exits[ExitKind::Halt as usize] = 3;
        let summary = Summary {
            mean: 1,
            min: 1,
            p50: 1,
            p99: 1,
            max: 1,
        };
        let row = Row {
            name: "x",
            bytes: 8,
            rounds: 2,
            summary,
            exits: &exits,
            copied: [2, 30],
            run_means: &[5, 6],
        }
        .json();
        let copies =
            "\"run_means\":[5,6],\"copies_per_round\":1.000,\"copied_bytes_per_round\":15.000,";
        assert!(row.contains(copies), "{row}");
        assert!(row.ends_with("\"exits\":{\"halt\":1.500}}}"), "{row}");
    }
}
