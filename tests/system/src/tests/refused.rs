//! A VM that cannot be created is refused with a reason; the others run. A boot archive that cannot be read ends the run with
//! a reason.

use nagaya_harness::{Firmware, RunReport};

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

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
    let scenario = Scenario::new(2).vm("good", None, 0, "hello", "").text();
    let mut test = SystemTest::new("refused/no-acpi", scenario.clone(), |reports| {
        fails(reports, "the loader found no ACPI tables")
    });
    test.firmware = Firmware::BiosWithoutAcpi;
    tests.push(test);
    let mut test = SystemTest::new("refused/32-mib", scenario, |reports| {
        fails(reports, "no 32 MiB of contiguous memory for the heap")
    });
    test.memory_mib = Some(32);
    tests.push(test);
    for (name, damage, expect) in DAMAGES {
        let scenario = Scenario::new(2).vm("good", None, 0, "hello", "").text();
        let mut test = SystemTest::new(&format!("refused/{name}"), scenario, expect);
        test.damage = Some(damage);
        tests.push(test);
    }
}

/// Name, what is done to the archive, what is seen.
type Damage = (&'static str, fn(&mut Vec<u8>), fn(&[RunReport]) -> Verdict);

const DAMAGES: [Damage; 4] = [
    (
        "no-archive",
        |archive| archive.fill(0xA5),
        |reports| fails(reports, "the boot archive is corrupt"),
    ),
    (
        "truncated-archive",
        // In the middle of the last image, as a loader leaves it that ran out of memory.
        |archive| archive.truncate((archive.len() / 2) & !511),
        |reports| fails(reports, "the boot archive is corrupt"),
    ),
    (
        "no-scenario",
        // Zeros are where an archive ends.
        |archive| archive.fill(0),
        |reports| fails(reports, "the boot archive has no scenario.postcard"),
    ),
    (
        "damaged-scenario",
        // The first header has 512 bytes; the scenario follows.
        |archive| archive[512..540].fill(0xFF),
        |reports| fails(reports, "the scenario in the boot archive is damaged"),
    ),
];

fn fails(reports: &[RunReport], reason: &str) -> Verdict {
    let report = expect::first(reports)?;
    expect::said(report, reason)?;
    if report.ok {
        return Err("the run is taken for good".to_owned());
    }
    if report.reason.contains(reason) {
        Ok(())
    } else {
        Err(format!("the run failed for {:?}", report.reason))
    }
}
