//! Doorbells answer; waiting takes a timeout; they come as interrupts to those who want them.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let pair = |cmdline: &str| {
        Scenario::new(2)
            .group("g")
            .vm("first", Some("g"), 0, "doorbells", cmdline)
            .vm("second", Some("g"), 1, "doorbells", cmdline)
            .text()
    };
    tests.push(SystemTest::new(
        "doorbells/answers",
        pair("case=answers"),
        |reports| {
            let cases = [
                "delivered",
                "masked",
                "absent",
                "no-such-index",
                "self",
                "self-is-told",
                "many",
                "many-are-told",
                "many-beyond-members",
            ];
            expect::passed(expect::first(reports)?, "first", &cases)?;
            expect::all_ended_well(reports)
        },
    ));
    tests.push(SystemTest::new(
        "doorbells/interrupt",
        pair("case=interrupt"),
        |reports| {
            let cases = [
                "interrupt-while-running",
                "interrupt-kept-out",
                "interrupt-let-in",
                "interrupt-while-halted",
                "halt-tells-its-events",
                "halt-needs-no-call",
                "halt-took-them",
            ];
            expect::passed(expect::first(reports)?, "first", &cases)?;
            expect::all_ended_well(reports)
        },
    ));
    let slow = pair("case=answers throttled").replace(
        "name = \"g\"\n",
        "name = \"g\"\ndoorbells_per_second = 1000\n",
    );
    tests.push(SystemTest::new("doorbells/throttled", slow, |reports| {
        expect::passed(
            expect::first(reports)?,
            "first",
            &["throttled", "throttled-for-a-while-only"],
        )?;
        expect::all_ended_well(reports)
    }));
    let alone = Scenario::new(1)
        .group("g")
        .vm("m", Some("g"), 0, "doorbells", "case=timeouts")
        .text();
    tests.push(SystemTest::new("doorbells/timeouts", alone, |reports| {
        expect::passed(
            expect::first(reports)?,
            "m",
            &["poll", "one-millisecond", "not-early", "not-late"],
        )?;
        expect::all_ended_well(reports)
    }));
}
