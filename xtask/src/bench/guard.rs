//! Figures against those that the documents show: docs/bench/NAME.json. Pure.

use super::result::{Results, Row};

/// By how much a figure may differ from the one that is written, in percent.
const TOLERANCE_PERCENT: f64 = 3.0;
/// Ticks that are nothing: with several CPUs the TSC steps by more.
const TICKS_OF_NOISE: f64 = 2.0;
/// Exits, for each that is measured, that are nothing: those of the hypervisor's own timers, which come in one round of some hundreds.
const EXITS_OF_NOISE: f64 = 0.01;

/// Everything that is not as it is written: rows that got slower or faster, exit more or less, are new or gone.
pub(super) fn compare(written: &Results, found: &Results) -> Vec<String> {
    let mut complaints = Vec::new();
    for row in &found.rows {
        match written.rows.iter().find(|other| other.key() == row.key()) {
            Some(other) => complaints.extend(differences(other, row)),
            None => complaints.push(format!("{} is not in the table", row.key())),
        }
    }
    for row in &written.rows {
        if !found.rows.iter().any(|other| other.key() == row.key()) {
            complaints.push(format!(
                "{} is in the table and was not measured",
                row.key()
            ));
        }
    }
    complaints
}

fn differences(written: &Row, found: &Row) -> Vec<String> {
    let mut complaints = Vec::new();
    let (before, now) = (written.ticks.mean as f64, found.ticks.mean as f64);
    if is_another(before, now) && (now - before).abs() > TICKS_OF_NOISE {
        complaints.push(tell(found, "ticks", before, now));
    }
    let reasons = written.exits.keys().chain(
        found
            .exits
            .keys()
            .filter(|reason| !written.exits.contains_key(*reason)),
    );
    for reason in reasons {
        let count = |row: &Row| row.exits.get(reason).copied().unwrap_or(0.0);
        let (before, now) = (count(written), count(found));
        if is_another(before, now) && (now - before).abs() > EXITS_OF_NOISE {
            complaints.push(tell(found, &format!("exits by {reason}"), before, now));
        }
    }
    complaints
}

fn is_another(before: f64, now: f64) -> bool {
    (now - before).abs() * 100.0 > before.abs() * TOLERANCE_PERCENT
}

fn tell(row: &Row, what: &str, before: f64, now: f64) -> String {
    let change = if before == 0.0 {
        String::new()
    } else {
        format!(" ({:+.1} %)", (now - before) / before * 100.0)
    };
    format!(
        "{}: {now} {what}, the table has {before}{change}",
        row.key()
    )
}

#[cfg(test)]
mod tests {
    use super::super::result::Results;
    use super::super::result::testing::row;
    use super::*;

    fn results(rows: Vec<Row>) -> Results {
        Results {
            rows,
            ..Results::default()
        }
    }

    fn one(before: u64, now: u64) -> Vec<String> {
        compare(
            &results(vec![row("a", before)]),
            &results(vec![row("a", now)]),
        )
    }

    #[test]
    fn three_percent_more_or_less_pass_and_four_do_not() {
        assert_eq!(one(1000, 1030), [""; 0]);
        assert_eq!(one(1000, 970), [""; 0]);
        let slower = one(1000, 1040);
        assert_eq!(slower, ["a: 1040 ticks, the table has 1000 (+4.0 %)"]);
        assert_eq!(one(1000, 960).len(), 1, "faster is to be written, too");
        assert_eq!(one(10, 12), [""; 0], "two ticks are nothing");
    }

    #[test]
    fn another_exit_is_told_by_its_reason_however_few_ticks_it_takes() {
        let mut now = row("a", 100);
        now.exits.insert("hypercall".to_owned(), 1.0);
        let told = compare(&results(vec![row("a", 100)]), &results(vec![now]));
        assert_eq!(told, ["a: 1 exits by hypercall, the table has 0"]);
        let mut timers = row("a", 100);
        timers.exits.insert("preemption-timer".to_owned(), 0.003);
        let told = compare(&results(vec![row("a", 100)]), &results(vec![timers]));
        assert_eq!(told, [""; 0], "a timer of the hypervisor's own");
    }

    #[test]
    fn rows_that_are_new_or_gone_are_told() {
        let told = compare(
            &results(vec![row("gone", 1)]),
            &results(vec![row("new", 1)]),
        );
        assert_eq!(told.len(), 2, "{told:?}");
    }
}
