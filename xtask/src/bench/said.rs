//! Lines in which Linux guests report what they measured (`tests/linux`), read back. Plain text in, plain values out.

use std::collections::BTreeMap;

/// What `costs` says: TSC ticks, and VM exits by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Costs {
    /// `first-process` or `sleep`.
    pub(super) what: String,
    pub(super) ticks: u64,
    pub(super) exits: BTreeMap<String, u64>,
}

impl Costs {
    /// Reads a line `NAGAYA-COSTS WHAT ticks=N KIND=N ..`; `None` if it is another one.
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut words = line
            .trim_end()
            .strip_prefix("NAGAYA-COSTS ")?
            .split_whitespace();
        let what = words.next()?.to_owned();
        let counts: Option<BTreeMap<String, u64>> = words
            .map(|word| {
                let (name, count) = word.split_once('=')?;
                Some((name.to_owned(), count.parse().ok()?))
            })
            .collect();
        let mut exits = counts?;
        let ticks = exits.remove("ticks")?;
        Some(Self { what, ticks, exits })
    }

    /// Exits of all kinds.
    pub(super) fn all_exits(&self) -> u64 {
        self.exits.values().sum()
    }
}

/// One way of paper 000's measurement, as one VM saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roundtrip {
    /// Ticks of each run, in order; only the first VM has them.
    pub(super) runs: Vec<u64>,
    /// VM exits of that VM in all runs, the start of the program included.
    pub(super) exits: u64,
}

/// What the script `paper000` says, by way: lines `NAGAYA-PAPER000 WAY run N TICKS ticks` and `NAGAYA-PAPER000 WAY exits N`.
pub(super) fn roundtrips<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<String, Roundtrip> {
    let mut ways: BTreeMap<String, Roundtrip> = BTreeMap::new();
    for line in lines {
        let Some(rest) = line.strip_prefix("NAGAYA-PAPER000 ") else {
            continue;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        match words[..] {
            [way, "run", _, ticks, "ticks"] => {
                if let Ok(ticks) = ticks.parse() {
                    ways.entry(way.to_owned()).or_default().runs.push(ticks);
                }
            }
            [way, "exits", count] => {
                if let Ok(count) = count.parse() {
                    ways.entry(way.to_owned()).or_default().exits = count;
                }
            }
            _ => {}
        }
    }
    ways
}

/// Megabits a second in a summary line of iperf3's (`--format m`), with who says it: `sender` or `receiver`.
pub(super) fn iperf3(line: &str) -> Option<(&str, f64)> {
    let words: Vec<&str> = line
        .strip_prefix("NAGAYA-IPERF3 ")?
        .split_whitespace()
        .collect();
    let who = words
        .last()
        .filter(|word| matches!(**word, "sender" | "receiver"))?;
    let unit = words.iter().position(|word| *word == "Mbits/sec")?;
    let rate = words.get(unit.checked_sub(1)?)?.parse().ok()?;
    Some((who, rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_and_other_lines_are_not() {
        let costs = Costs::read("NAGAYA-COSTS sleep ticks=100000370 halt=12 msr-write=30\r")
            .expect("a line of costs");
        assert_eq!((costs.what.as_str(), costs.ticks), ("sleep", 100_000_370));
        assert_eq!(costs.exits["halt"], 12);
        assert_eq!(costs.all_exits(), 42);
        for line in [
            "NAGAYA-COSTS sleep",
            "NAGAYA-COSTS sleep halt=1",
            "NAGAYA-COSTS sleep ticks=x",
            "NAGAYA-LINUX-READY",
        ] {
            assert_eq!(Costs::read(line), None, "{line}");
        }
    }

    #[test]
    fn runs_and_exits_are_kept_by_way() {
        let said = roundtrips([
            "NAGAYA-LINUX-READY",
            "NAGAYA-PAPER000 user run 1 100 ticks",
            "NAGAYA-PAPER000 user run 2 300 ticks",
            "NAGAYA-PAPER000 user exits 7",
            "NAGAYA-PAPER000 tcp run 1 9000 ticks",
            "NAGAYA-PAPER000 tcp run 2 ? ticks",
            "NAGAYA-PAPER000 done",
        ]);
        assert_eq!(said.len(), 2);
        assert_eq!(
            (&said["user"].runs[..], said["user"].exits),
            (&[100, 300][..], 7)
        );
        assert_eq!(said["tcp"].runs, [9000]);
    }

    #[test]
    fn of_iperf3_only_the_summary_counts() {
        let line = |text: &str| iperf3(text).map(|(who, rate)| (who.to_owned(), rate));
        assert_eq!(
            line(
                "NAGAYA-IPERF3 [  5]   0.00-5.00   sec  12.3 MBytes  20.6 Mbits/sec    0             sender"
            ),
            Some(("sender".to_owned(), 20.6))
        );
        assert_eq!(
            line(
                "NAGAYA-IPERF3 [  5]   0.00-5.04   sec  12.1 MBytes  20.2 Mbits/sec                  receiver"
            ),
            Some(("receiver".to_owned(), 20.2))
        );
        assert_eq!(
            line(
                "NAGAYA-IPERF3 [  5]   0.00-1.00   sec  2.4 MBytes  20.1 Mbits/sec    0   43.0 KBytes"
            ),
            None
        );
    }
}
