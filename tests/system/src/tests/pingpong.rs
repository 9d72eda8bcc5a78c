//! The main job: polling costs no exit, and waiting by doorbell works.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = |options: &str| {
        Scenario::new(2)
            .group("pair")
            .vm(
                "ping",
                Some("pair"),
                0,
                "pingpong",
                &format!("role=ping {options}"),
            )
            .vm(
                "pong",
                Some("pair"),
                1,
                "pingpong",
                &format!("role=pong {options}"),
            )
            .text()
    };
    tests.push(SystemTest::new(
        "pingpong/polled-without-exits",
        scenario("rounds=100 modes=polled"),
        |reports| rows(reports, "shared-polled", |exits| exits.is_empty()),
    ));
    tests.push(SystemTest::new(
        "pingpong/doorbell",
        scenario("rounds=100 modes=doorbell"),
        |reports| rows(reports, "shared-doorbell", |exits| !exits.is_empty()),
    ));
}

fn rows(
    reports: &[RunReport],
    name: &str,
    exits_are_right: fn(&serde_json::Map<String, serde_json::Value>) -> bool,
) -> Verdict {
    expect::all_ended_well(reports)?;
    let report = expect::first(reports)?;
    let row = report
        .rows()
        .map(|(_, row)| row)
        .find(|row| row.get("name").and_then(|value| value.as_str()) == Some(name))
        .ok_or_else(|| format!("there is no row {name}"))?;
    match row.get("exits").and_then(|value| value.as_object()) {
        Some(exits) if exits_are_right(exits) => Ok(()),
        other => Err(format!("exits per round of {name}: {other:?}")),
    }
}
