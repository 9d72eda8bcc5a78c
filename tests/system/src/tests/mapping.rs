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
    // A VM for each: ranges stay for ever.
    let again = [
        ("a", "malformed-while-mapped,other-pages"),
        ("b", "one-other-page,lives"),
        ("c", "bad-tables-while-mapped,forget,forget-doorbells"),
    ];
    let scenario = again
        .iter()
        .fold(Scenario::new(1), |scenario, (vm, cases)| {
            scenario
                .group(vm)
                .vm(vm, Some(vm), 0, "mapping", &format!("case={cases}"))
        });
    tests.push(SystemTest::new(
        "mapping/again-with-other-pages",
        scenario.text(),
        |reports| {
            let report = expect::first(reports)?;
            let moves = [
                "unaligned-while-mapped",
                "noncanonical-while-mapped",
                "other-pages-are-own",
                "region-is-where-it-was",
                "region-has-moved",
                "first-pages-are-back",
                "again-is-the-same",
                "other-pages-are-back",
                "first-pages-stay",
            ];
            expect::passed(report, "a", &moves)?;
            let one = [
                "one-page-is-own",
                "one-page-has-moved",
                "one-page-is-back",
                "one-page-own",
                "ring-another-life",
                "yield-to-another-life",
            ];
            expect::passed(report, "b", &one)?;
            let rest = [
                "bad-tables-again",
                "bad-tables-region-stays",
                "bad-tables-own",
                "forget-own",
                "forget-address",
                "forget-is-unmapped",
                "forget-open",
                "forget-keeps-events",
            ];
            expect::passed(report, "c", &rest)?;
            expect::all_ended_well(reports)
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
