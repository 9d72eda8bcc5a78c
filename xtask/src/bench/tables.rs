//! The tables of docs/BENCHMARKS.md, made from docs/bench/NAME.json: a line `<!-- bench NAME -->`, the table, a line `<!-- end -->`. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::result::{Results, Row};

const BEGIN: &str = "<!-- bench ";
const END: &str = "<!-- end -->";

/// The document with its tables as these results have them; `results` gives those of a benchmark by its name.
///
/// # Errors
/// A table without an end, or without results.
pub(crate) fn renew(document: &str, results: impl Fn(&str) -> Result<Results>) -> Result<String> {
    let mut text = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let _ = writeln!(text, "{line}");
        let Some(name) = line
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(" -->"))
        else {
            continue;
        };
        if !lines.any(|line| line == END) {
            bail!("the table of {name:?} has no {END}");
        }
        text.push('\n');
        text.push_str(&table(&results(name)?));
        let _ = writeln!(text, "\n{END}");
    }
    Ok(text)
}

/// A table with its caption.
fn table(results: &Results) -> String {
    let conditions = &results.conditions;
    let caption = format!(
        "`{}` on {}, {}, {}, commit {}.\n\n",
        conditions.command,
        conditions.machine,
        conditions.cpu_model,
        conditions.compiler,
        conditions.commit
    );
    let bytes: BTreeSet<u64> = results.rows.iter().filter_map(Row::bytes).collect();
    caption
        + &if bytes.len() > 1 {
            by_bytes(&results.rows)
        } else {
            by_name(&results.rows)
        }
}

/// A line for each row.
fn by_name(rows: &[Row]) -> String {
    if rows.iter().all(|row| row.ticks.min == row.ticks.max) {
        return of_one_sample(rows);
    }
    let mut text =
        "| | min | median | mean | p99 | max | exits |\n|---|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let ticks = &row.ticks;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.key(),
            thousands(ticks.min),
            thousands(ticks.p50),
            thousands(ticks.mean),
            thousands(ticks.p99),
            thousands(ticks.max),
            row.exits_in_words()
        );
    }
    text
}

fn of_one_sample(rows: &[Row]) -> String {
    let mut text = "| | ticks | exits |\n|---|---|---|\n".to_owned();
    for row in rows {
        let ticks = thousands(row.ticks.mean);
        let exits = row.exits_in_words();
        let _ = writeln!(text, "| {} | {ticks} | {exits} |", row.key());
    }
    text
}

/// A line for each size of message with the medians of all names, and the exits of each name at the least and at the largest size.
fn by_bytes(rows: &[Row]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    // Rows that are of no message come first.
    let sizes: BTreeSet<Option<u64>> = rows.iter().map(Row::bytes).collect();
    let line = |head: &str, bytes: Option<u64>, cell: fn(&Row) -> String| {
        let cells = names.iter().map(|name| {
            let row = rows
                .iter()
                .find(|row| row.name == *name && row.bytes() == bytes);
            row.map_or(String::new(), cell)
        });
        let size = bytes.map_or("none".to_owned(), thousands);
        let cells: Vec<String> = cells.collect();
        format!("| {head}{size} | {} |\n", cells.join(" | "))
    };
    let mut text = format!("| bytes, median | {} |\n|---|", names.join(" | "));
    text.push_str(&"---|".repeat(names.len()));
    text.push('\n');
    for &bytes in &sizes {
        text.push_str(&line("", bytes, |row| thousands(row.ticks.p50)));
    }
    for &bytes in sizes.first().into_iter().chain(sizes.last()) {
        text.push_str(&line("exits at ", bytes, Row::exits_in_words));
    }
    text
}

/// A number with commas.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::result::testing::row;
    use super::*;
    use serde_json::json;

    fn results(rows: Vec<Row>) -> Results {
        Results {
            rows,
            ..Results::default()
        }
    }

    #[test]
    fn a_table_is_renewed_where_it_stands_and_nothing_else_changes() {
        let document = "# A\n\ntext\n<!-- bench exits -->\nold\n<!-- end -->\nmore\n";
        let renew = |document: &str| {
            super::renew(document, |name| {
                assert_eq!(name, "exits");
                let mut spread = row("null-hypercall", 1234);
                spread.ticks.max = 2000;
                Ok(results(vec![spread]))
            })
        };
        let new = renew(document).expect("has an end");
        assert!(
            new.starts_with("# A\n\ntext\n<!-- bench exits -->\n\n`"),
            "{new}"
        );
        assert!(new.contains("| null-hypercall | 1,234 |"), "{new}");
        assert!(
            new.ends_with("\n<!-- end -->\nmore\n") && !new.contains("old"),
            "{new}"
        );
        assert_eq!(renew(&new).expect("has an end"), new);
        let error = renew("<!-- bench exits -->\n").expect_err("has none");
        assert!(error.to_string().contains("exits"), "{error}");
    }

    #[test]
    fn rows_of_several_sizes_stand_side_by_side() {
        let of = |name: &str, bytes: u64, ticks: u64| {
            let mut row = row(name, ticks);
            row.more.insert("bytes".to_owned(), json!(bytes));
            row
        };
        let rows = vec![of("a", 8, 1), of("a", 4096, 2), of("b", 8, 3)];
        let mut rows = rows;
        rows.push(row("c", 9));
        let text = table(&results(rows));
        assert!(
            text.contains("| bytes, median | a | b | c |\n|---|---|---|---|\n| none |  |  | 9 |\n"),
            "{text}"
        );
        assert!(
            text.contains("| 8 | 1 | 3 |  |\n| 4,096 | 2 |  |  |\n"),
            "{text}"
        );
        assert!(text.contains("| exits at none |  |  | none |"), "{text}");
        assert!(
            table(&results(vec![row("a", 1000)]))
                .contains("| | ticks | exits |\n|---|---|---|\n| a | 1,000 | none |")
        );
    }
}
