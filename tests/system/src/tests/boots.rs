//! The hypervisor boots with 1, 2, 4 and 8 CPUs and on all CPU models we promise, and runs a guest on every CPU.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    for cpus in [1, 2, 4, 8] {
        let scenario = every_cpu(Scenario::new(cpus), cpus);
        tests.push(SystemTest::new(
            &format!("boots/{cpus}-cpus"),
            scenario,
            check,
        ));
    }
    for model in ["corei7_skylake_x", "corei7_haswell_4770"] {
        let scenario = Scenario::new(2).machine(&format!("bochs.cpu_model = \"{model}\""));
        tests.push(SystemTest::new(
            &format!("boots/{model}"),
            every_cpu(scenario, 2),
            check,
        ));
    }
}

fn every_cpu(mut scenario: Scenario, cpus: u32) -> String {
    for cpu in 0..cpus {
        scenario = scenario.vm(&format!("vm{cpu}"), None, cpu, "hello", "");
    }
    scenario.text()
}

fn check(reports: &[RunReport]) -> Verdict {
    expect::all_ended_well(reports)?;
    let report = expect::first(reports)?;
    expect::said(report, "0 writable and executable")?;
    for end in report.vm_ends() {
        if !report
            .guest_lines(&end.vm)
            .any(|line| line.contains("hello"))
        {
            return Err(format!("VM {} did not say hello", end.vm));
        }
    }
    if report.vm_ends().count() == 0 {
        Err("no VM ran".to_owned())
    } else {
        Ok(())
    }
}
