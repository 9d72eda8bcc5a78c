//! Two runs of one scenario in Bochs give the same ticks.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let options = "rounds=30 bytes=4096";
    let scenario = Scenario::new(2)
        .machine("deterministic = true")
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
        .text();
    let mut test = SystemTest::new("determinism/same-ticks-twice", scenario, |reports| {
        expect::all_ended_well(reports)?;
        let ticks: Vec<Vec<_>> = reports
            .iter()
            .map(|report| {
                report
                    .events
                    .iter()
                    .map(|event| event.fields.get("ticks").cloned())
                    .collect()
            })
            .collect();
        match ticks.as_slice() {
            [first, second] if first == second && !first.is_empty() => Ok(()),
            other => Err(format!("the events' ticks differ: {other:?}")),
        }
    });
    test.runs = 2;
    tests.push(test);
}
