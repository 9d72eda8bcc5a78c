//! What every benchmark comes to, in one JSON schema: `rows`, each with `name`, `ticks {min, mean, p50, p99, max}` and `exits` by
//! reason, under a head that says on what machine, by which compiler and at which commit they were measured.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// Ticks of the samples of a row. A row that is one sample has it five times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ticks {
    pub(crate) min: u64,
    pub(crate) mean: u64,
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Ticks {
    /// Of one sample.
    pub(crate) fn one(ticks: u64) -> Ticks {
        Ticks {
            min: ticks,
            mean: ticks,
            p50: ticks,
            p99: ticks,
            max: ticks,
        }
    }

    /// Of some samples; `None` if there are none.
    pub(crate) fn of(samples: &[u64]) -> Option<Ticks> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len() - 1));
        let (first, last) = (sorted.first()?, sorted.last()?);
        Some(Ticks {
            min: *first,
            mean: sorted.iter().sum::<u64>() / sorted.len() as u64,
            p50: *at(50)?,
            p99: *at(99)?,
            max: *last,
        })
    }

    fn read(value: &Value) -> Option<Ticks> {
        let number = |key: &str| value.get(key)?.as_u64();
        Some(Ticks {
            min: number("min")?,
            mean: number("mean")?,
            p50: number("p50")?,
            p99: number("p99")?,
            max: number("max")?,
        })
    }

    fn value(self) -> Value {
        json!({"min": self.min, "mean": self.mean, "p50": self.p50, "p99": self.p99, "max": self.max})
    }
}

/// One measured thing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) ticks: Ticks,
    /// VM exits of one sample, by reason.
    pub(crate) exits: BTreeMap<String, f64>,
    /// What only this benchmark tells: `bytes`, `rounds`, `throughput`..
    pub(crate) more: Map<String, Value>,
}

impl Row {
    /// What tells rows of one benchmark apart: the name, and the bytes of a message where there are any.
    pub(crate) fn key(&self) -> String {
        match self.bytes() {
            Some(bytes) => format!("{}, {bytes} bytes", self.name),
            None => self.name.clone(),
        }
    }

    /// Bytes of a message, if the row is of one.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let bytes = self.more.get("bytes")?.as_u64()?;
        (bytes > 0).then_some(bytes)
    }

    /// Exits as people read them.
    pub(crate) fn exits_in_words(&self) -> String {
        // A thousandth of an exit is shown; what rounds to less was one in a whole run.
        let counts = self.exits.iter().filter(|(_, count)| **count >= 0.001);
        let counts: Vec<String> = counts
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        if counts.is_empty() {
            return "none".to_owned();
        }
        counts.join(", ")
    }

    /// Reads a row.
    ///
    /// # Errors
    /// What is missing of the schema.
    pub(crate) fn read(value: &Value) -> Result<Row> {
        let mut more = value.as_object().context("a row is no object")?.clone();
        let name = more.remove("name");
        let name = name
            .as_ref()
            .and_then(Value::as_str)
            .context("a row has no name")?
            .to_owned();
        let ticks = more
            .remove("ticks")
            .and_then(|ticks| Ticks::read(&ticks))
            .with_context(|| format!("row {name} has no ticks {{min, mean, p50, p99, max}}"))?;
        let exits = match more.remove("exits") {
            Some(Value::Object(exits)) => exits
                .into_iter()
                .filter_map(|(reason, count)| Some((reason, count.as_f64()?)))
                .collect(),
            _ => BTreeMap::new(),
        };
        Ok(Row {
            name,
            ticks,
            exits,
            more,
        })
    }

    /// The row as the schema has it.
    pub(crate) fn value(&self) -> Value {
        let mut object = self.more.clone();
        object.insert("name".to_owned(), json!(self.name));
        object.insert("ticks".to_owned(), self.ticks.value());
        object.insert("exits".to_owned(), json!(self.exits));
        Value::Object(object)
    }
}

/// On what, by what and when rows were measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    /// The emulator with its version.
    pub(crate) machine: String,
    pub(crate) cpu_model: String,
    /// What compiled hypervisor and guests.
    pub(crate) compiler: String,
    pub(crate) commit: String,
    /// What was typed.
    pub(crate) command: String,
}

impl Conditions {
    /// Why figures of these and of `others` cannot be compared, if they cannot: only on one emulator with code of one compiler do ticks
    /// repeat.
    pub(crate) fn differ_from(&self, others: &Conditions) -> Option<String> {
        let pairs = [
            ("on", &self.machine, &others.machine),
            ("on", &self.cpu_model, &others.cpu_model),
            ("by", &self.compiler, &others.compiler),
        ];
        pairs
            .into_iter()
            .find(|(_, a, b)| a != b)
            .map(|(how, a, b)| format!("the table was measured {how} {b}, this run {how} {a}"))
    }
}

/// A benchmark's results.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Results {
    pub(crate) bench: String,
    pub(crate) conditions: Conditions,
    pub(crate) rows: Vec<Row>,
    /// What only this benchmark tells.
    pub(crate) more: Map<String, Value>,
}

impl Results {
    /// Reads results.
    ///
    /// # Errors
    /// What is missing of the schema.
    pub(crate) fn read(value: &Value) -> Result<Results> {
        let mut more = value.as_object().context("no object")?.clone();
        let mut text = |key: &str| match more.remove(key) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(anyhow::anyhow!("no string {key:?}")),
        };
        let bench = text("bench")?;
        let conditions = Conditions {
            machine: text("machine")?,
            cpu_model: text("cpu_model")?,
            compiler: text("compiler")?,
            commit: text("commit")?,
            command: text("command")?,
        };
        let rows = more.remove("rows").context("no rows")?;
        let rows = rows.as_array().context("rows are no list")?;
        Ok(Results {
            bench,
            conditions,
            rows: rows.iter().map(Row::read).collect::<Result<_>>()?,
            more,
        })
    }

    /// The results as the schema has them.
    pub(crate) fn value(&self) -> Value {
        let mut object = self.more.clone();
        let conditions = &self.conditions;
        for (key, text) in [
            ("bench", &self.bench),
            ("machine", &conditions.machine),
            ("cpu_model", &conditions.cpu_model),
            ("compiler", &conditions.compiler),
            ("commit", &conditions.commit),
            ("command", &conditions.command),
        ] {
            object.insert(key.to_owned(), json!(text));
        }
        let rows: Vec<Value> = self.rows.iter().map(Row::value).collect();
        object.insert("rows".to_owned(), json!(rows));
        Value::Object(object)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A row of one sample.
    pub(crate) fn row(name: &str, ticks: u64) -> Row {
        Row {
            name: name.to_owned(),
            ticks: Ticks::one(ticks),
            ..Row::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_as_they_were_written() {
        let row = Row {
            exits: BTreeMap::from([("halt".to_owned(), 1.5)]),
            more: Map::from_iter([("bytes".to_owned(), json!(64))]),
            ..testing::row("a", 7)
        };
        assert_eq!(row.key(), "a, 64 bytes");
        let results = Results {
            bench: "exits".to_owned(),
            rows: vec![row],
            ..Results::default()
        };
        assert_eq!(Results::read(&results.value()).expect("is whole"), results);
    }

    #[test]
    fn what_is_missing_of_the_schema_is_told() {
        for (value, word) in [
            (json!({}), "bench"),
            (json!({"bench": "a"}), "machine"),
            (json!([]), "no object"),
        ] {
            let error = Results::read(&value).expect_err("is not whole").to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = Row::read(&json!({"name": "a", "ticks": {"min": 1}})).expect_err("ticks");
        assert!(error.to_string().contains("row a"), "{error}");
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<u64> = (1..=100).rev().collect();
        let ticks = Ticks::of(&samples).expect("there are some");
        assert_eq!(
            (ticks.min, ticks.p50, ticks.p99, ticks.max),
            (1, 51, 100, 100)
        );
        assert_eq!(Ticks::of(&[7]), Some(Ticks::one(7)));
        assert_eq!(Ticks::of(&[]), None);
    }

    #[test]
    fn only_what_is_measured_alike_is_compared() {
        let here = Conditions {
            compiler: "rustc 1.95".to_owned(),
            ..Conditions::default()
        };
        let there = Conditions {
            commit: "abc".to_owned(),
            ..here.clone()
        };
        assert_eq!(here.differ_from(&there), None);
        let why = Conditions::default().differ_from(&there);
        assert!(why.is_some_and(|why| why.contains("rustc 1.95")));
    }
}
