//! VMs as processes: forks, their memory, their ends, their bounds (docs/PROCESSES.md).

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(3)
        .group("g")
        .vm("plain", None, 0, "processes", "")
        .vm("family", None, 1, "processes", "case=family rounds=60")
        .with("may = [\"fork\", \"kill\"]")
        .vm("member", Some("g"), 2, "processes", "case=group")
        .with("may = [\"fork\"]\nmax_children = 3")
        .text()
        // Children run beside their parents.
        .replace("cpu = 2", "affinity = \"0-2\"");
    tests.push(SystemTest::new("processes/fork", scenario, |reports| {
        let report = expect::first(reports)?;
        let refused = ["fork-without-right", "kill-without-right"];
        expect::passed(report, "plain", &refused)?;
        let family = [
            "child-knows-its-parent",
            "told-once",
            "the-same-registers",
            "siblings-see-no-writes",
            "parent-sees-no-writes",
            "generations",
            "killed",
            "fault",
            "rounds",
        ];
        expect::passed(report, "family", &family)?;
        let member = [
            "child-has-an-index-of-its-own",
            "child-has-the-region",
            "child-in-the-group",
            "doorbell-of-a-child",
            "own-memory-comes-back",
            "parent-ends-first",
            "orphan-goes-on",
        ];
        expect::passed(report, "member", &member)?;
        expect::all_ended_well(reports)
    }));
    let scenario = Scenario::new(3)
        .vm("bounds", None, 0, "processes", "case=bounds")
        .with("may = [\"fork\", \"kill\"]\nmax_children = 2\nmax_memory = \"33M\"")
        .vm("vcpus", None, 1, "processes", "case=vcpus")
        .with("may = [\"fork\"]\nvcpus = 2\naffinity = \"1-2\"")
        .text()
        .replace("cpu = 0", "affinity = \"0\"")
        .replace("cpu = 1", "");
    tests.push(SystemTest::new("processes/bounds", scenario, |reports| {
        let report = expect::first(reports)?;
        let bounds = [
            "as-many-as-may",
            "paused-without-memory",
            "paused-and-killed",
            "second-has-it-then",
        ];
        expect::passed(report, "bounds", &bounds)?;
        let paused = report
            .events_named("vm-paused")
            .filter(|event| event.text("cause") == Some("out-of-memory"));
        if paused.count() != 2 {
            return Err("two VMs were to be paused for want of memory".to_owned());
        }
        let vcpus = [
            "both-vcpus-go-on-in-the-child",
            "second-vcpu-goes-on-in-the-parent",
        ];
        expect::passed(report, "vcpus", &vcpus)?;
        expect::all_ended_well(reports)
    }));
}
