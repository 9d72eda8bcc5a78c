//! Guests in other languages than Rust: in C with the C header, in assembler with the numbers of docs/ABI.md.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(2)
        .vm("c", None, 0, "built/foreign-c", "")
        .vm("asm", None, 1, "built/foreign-asm", "")
        .text();
    tests.push(SystemTest::new(
        "foreign/c-and-assembler",
        scenario,
        |reports| {
            expect::all_ended_well(reports)?;
            let report = expect::first(reports)?;
            let cases = [
                "boot-info",
                "boot-fields",
                "boot-image",
                "stack-alignment",
                "vector-registers",
                "control-registers",
                "event",
                "no-such-channel",
            ];
            expect::passed(report, "c", &cases)?;
            expect::passed(report, "asm", &["hello"])?;
            let mut events = report.events_named("guest");
            if events.any(|event| event.text("text") == Some(r#"{"foreign":"c"}"#)) {
                Ok(())
            } else {
                Err("the event that the guest in C sent did not come".to_owned())
            }
        },
    ));
}
