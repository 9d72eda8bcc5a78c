//! A VM that cannot be created is refused with a reason; the others run.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    // The host cannot know how much memory the hypervisor needs for itself: 460 of 512 MiB pass there and not here.
    let mut scenario = Scenario::new(2).vm("small", None, 0, "hello", "").text();
    scenario.push_str("\n[[vm]]\nname = \"big\"\nimage = \"hello\"\nmemory = \"460M\"\ncpu = 1\n");
    tests.push(SystemTest::new("refused/too-large", scenario, |reports| {
        let report = expect::first(reports)?;
        expect::ended(report, "small", "exit", Some(0))?;
        expect::ended(report, "big", "refused", None)?;
        expect::said(report, "VM big is refused")?;
        expect::frames_came_back(report)?;
        if report.ok {
            Err("the run is taken for good".to_owned())
        } else {
            Ok(())
        }
    }));
}
