//! On a CPU without VT-x the hypervisor says so and ends, from both kinds of image.

use nagaya_harness::{Firmware, MachineKind, RunReport};

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let scenario = Scenario::new(1).vm("m", None, 0, "hello", "").text();
        let mut test = SystemTest::new(&format!("no-vt-x/{}", firmware.name()), scenario, check);
        test.kind = MachineKind::QemuTcg;
        test.firmware = firmware;
        tests.push(test);
    }
}

fn check(reports: &[RunReport]) -> Verdict {
    let report = expect::first(reports)?;
    expect::said(report, "this CPU has no VT-x")?;
    if report.ok {
        Err("the run is taken for good".to_owned())
    } else {
        Ok(())
    }
}
