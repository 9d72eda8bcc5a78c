//! A VM that cannot be created is refused with a reason; the others run.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    // A program for Linux: the host sees an ELF file, the hypervisor looks inside.
    let no_image = "/bin/true";
    let scenario = Scenario::new(2)
        .vm("good", None, 0, "hello", "")
        .vm("bad", None, 1, no_image, "")
        .text();
    tests.push(SystemTest::new("refused/no-image", scenario, |reports| {
        let report = expect::first(reports)?;
        expect::ended(report, "good", "exit", Some(0))?;
        expect::ended(report, "bad", "refused", None)?;
        expect::said(
            report,
            "VM bad is refused: the image wants a dynamic linker",
        )?;
        expect::frames_came_back(report)?;
        if report.ok {
            Err("the run is taken for good".to_owned())
        } else {
            Ok(())
        }
    }));
}
