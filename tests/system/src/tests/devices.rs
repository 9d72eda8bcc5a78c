//! The PCI bus, device memory, and the devices that are no cards.

use crate::SystemTest;
use crate::expect;
use crate::scenario::Scenario;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let bus = Scenario::new(1)
        .vm("m", None, 0, "devices", "case=bus")
        .text()
        + "rng = true\nvirtio_console = true\n[[vm.nic]]\nsegment = \"a\"\n[[vm.nic]]\nsegment = \"b\"\nmtu = 9000\n";
    tests.push(SystemTest::new("devices/bus", bus, |reports| {
        let cases = [
            "host-bridge",
            "slots",
            "bar-in-window",
            "bar-size",
            "select-by-or",
            "movsxd",
            "moved",
            "left",
            "not-decoded",
            "floats",
            "apic-page",
        ];
        expect::passed(expect::first(reports)?, "m", &cases)?;
        expect::all_ended_well(reports)
    }));
    let unknown = Scenario::new(1)
        .vm("m", None, 0, "devices", "case=unknown-access")
        .text();
    tests.push(SystemTest::new(
        "devices/unknown-access",
        unknown,
        |reports| {
            let report = expect::first(reports)?;
            expect::ended(report, "m", "unknown-access", None)?;
            expect::said(report, "by an instruction that is not emulated: 48 87")?;
            expect::frames_came_back(report)
        },
    ));
}
