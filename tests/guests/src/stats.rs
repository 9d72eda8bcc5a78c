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

/// A count per round with three decimals.
#[must_use]
pub fn per_round(count: u64, rounds: u64) -> String {
    let thousandths = (count * 1000 + rounds / 2).checked_div(rounds).unwrap_or(0);
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// The row of a benchmark as the JSON object that `cargo xtask bench` collects. `exits` are those of `rounds` rounds.
#[must_use]
pub fn row(
    name: &str,
    bytes: u64,
    rounds: u64,
    summary: &Summary,
    exits: &[u64; ExitKind::COUNT],
) -> String {
    let mut counts = String::new();
    for (kind, count) in ExitKind::ALL
        .iter()
        .zip(exits)
        .filter(|(_, count)| **count != 0)
    {
        let comma = if counts.is_empty() { "" } else { "," };
        counts.push_str(&format!(
            "{comma}\"{}\":{}",
            kind.name(),
            per_round(*count, rounds)
        ));
    }
    format!(
        "{{\"row\":{{\"name\":\"{name}\",\"bytes\":{bytes},\"rounds\":{rounds},\"ticks\":{{\"mean\":{},\"min\":{},\"p50\":{},\"p99\":{},\
         \"max\":{}}},\"exits_per_round\":{{{counts}}}}}}}",
        summary.mean, summary.min, summary.p50, summary.p99, summary.max
    )
}

/// Prints the heading of the table that [`report`] fills.
pub fn print_heading() {
    println!(
        "{:<18}{:>9}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>12}  exits per round",
        "ticks of", "bytes", "rounds", "min", "mean", "p50", "p99", "max", "mean us"
    );
}

/// Prints one line of the table and sends the row for programs.
pub fn report(
    name: &str,
    bytes: u64,
    rounds: u64,
    summary: &Summary,
    exits: &[u64; ExitKind::COUNT],
) {
    let ns = ticks_to_ns(summary.mean);
    let mut told = String::new();
    for (kind, count) in ExitKind::ALL
        .iter()
        .zip(exits)
        .filter(|(_, count)| **count != 0)
    {
        told.push_str(&format!(" {} {}", kind.name(), per_round(*count, rounds)));
    }
    println!(
        "{name:<18}{bytes:>9}{rounds:>8}{:>11}{:>11}{:>11}{:>11}{:>11}{:>8}.{:03} {}",
        summary.min,
        summary.mean,
        summary.p50,
        summary.p99,
        summary.max,
        ns / 1000,
        ns % 1000,
        if told.is_empty() { " none" } else { &told }
    );
    let sent = nagaya_rt::console::event(&row(name, bytes, rounds, summary, exits));
    assert!(sent.is_ok(), "the console refuses the row {name}: {sent:?}");
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
        let row = row("x", 8, 2, &summary, &exits);
        assert!(
            row.ends_with("\"exits_per_round\":{\"halt\":1.500}}}"),
            "{row}"
        );
    }
}
