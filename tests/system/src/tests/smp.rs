//! A VM of two vCPUs: a change of the EPT by one is seen at once by the other.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(2)
        .group("g")
        .vm("m", Some("g"), 0, "smp", "")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
    tests.push(SystemTest::new("smp/ept-shootdown", scenario, |reports| {
        let cases = [
            "start",
            "second-vcpu-runs",
            "second-vcpu-sees-the-region",
            "second-vcpu-sees-own-data",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
}
