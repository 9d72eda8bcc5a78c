//! Two groups use the same address and never see each other's memory.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let mut scenario = Scenario::new(4).group("a").group("b");
    for (cpu, group) in ["a", "a", "b", "b"].into_iter().enumerate() {
        let role = if cpu % 2 == 0 { "ping" } else { "pong" };
        let cmdline = format!("role={role} rounds=20 bytes=4096 modes=polled");
        scenario = scenario.vm(
            &format!("{group}-{role}"),
            Some(group),
            cpu as u32,
            "pingpong",
            &cmdline,
        );
    }
    // Every int of every round is checked by its reader: one that came from the other group would be found.
    tests.push(SystemTest::new(
        "isolation/two-groups-at-one-address",
        scenario.text(),
        |reports| {
            expect::all_ended_well(reports)?;
            let report = expect::first(reports)?;
            let rows = report
                .rows()
                .filter(|(vm, _)| vm == "a-ping" || vm == "b-ping")
                .count();
            if rows == 2 {
                Ok(())
            } else {
                Err(format!("{rows} of 2 groups finished their rounds"))
            }
        },
    ));
}
