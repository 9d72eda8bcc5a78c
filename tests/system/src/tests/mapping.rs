//! `map_shared` and `unmap_shared` keep the contract, case by case.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let member = |cases: &str| {
        let scenario = Scenario::new(1).group("g");
        scenario
            .vm("m", Some("g"), 0, "mapping", &format!("case={cases}"))
            .text()
    };
    tests.push(SystemTest::new(
        "mapping/happy",
        member("happy,twice,unmap-wrong"),
        |reports| {
            passed(
                reports,
                &[
                    "happy",
                    "region-is-zeroed",
                    "last-word",
                    "group-knows",
                    "unmap",
                    "twice",
                    "unmap-wrong",
                ],
            )
        },
    ));
    tests.push(SystemTest::new(
        "mapping/refusals",
        member("unaligned,noncanonical,unmapped,readonly"),
        |reports| {
            passed(
                reports,
                &[
                    "unaligned",
                    "noncanonical",
                    "unmapped",
                    "readonly",
                    "readonly-nothing-changed",
                ],
            )
        },
    ));
    tests.push(SystemTest::new(
        "mapping/all-or-nothing",
        member("partly"),
        |reports| {
            passed(
                reports,
                &[
                    "partly",
                    "partly-first-unchanged",
                    "partly-last-unchanged",
                    "partly-not-mapped",
                ],
            )
        },
    ));
    tests.push(SystemTest::new(
        "mapping/alias-and-device",
        member("alias,device"),
        |reports| passed(reports, &["alias", "device"]),
    ));
    tests.push(SystemTest::new(
        "mapping/other-address",
        member("other-address,upper-half"),
        |reports| passed(reports, &["other-address", "upper-half"]),
    ));
    tests.push(SystemTest::new(
        "mapping/own-data-back",
        member("own-data-back,remap"),
        |reports| {
            passed(
                reports,
                &[
                    "own-data-hidden",
                    "own-data-back",
                    "own-data-back-last",
                    "remap",
                ],
            )
        },
    ));
    tests.push(SystemTest::new(
        "mapping/small-pages",
        member("small-pages"),
        |reports| {
            passed(
                reports,
                &[
                    "small-pages",
                    "small-pages-between-untouched",
                    "small-pages-back",
                    "small-pages-kept",
                ],
            )
        },
    ));
    let outside = Scenario::new(1)
        .vm("m", None, 0, "mapping", "case=nonmember")
        .text();
    tests.push(SystemTest::new("mapping/nonmember", outside, |reports| {
        passed(
            reports,
            &[
                "nonmember",
                "nonmember-info",
                "nonmember-doorbell",
                "nonmember-unchanged",
            ],
        )
    }));
}

fn passed(reports: &[RunReport], cases: &[&str]) -> Verdict {
    expect::passed(expect::first(reports)?, "m", cases)?;
    expect::all_ended_well(reports)
}
