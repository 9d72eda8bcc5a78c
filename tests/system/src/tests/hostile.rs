//! Attackers beside an honest pair: whatever they do, each member of the pair keeps its share of its CPU (docs/SECURITY.md).

use std::collections::BTreeMap;

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{SystemTest, Verdict};

/// Attacks there are at least.
const LEAST: usize = 60;
/// Of what the pair has beside a VM that attacks nobody it keeps that much, in percent (docs/SECURITY.md).
const KEPT_PERCENT: u64 = 90;

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(2)
        .group("pair")
        .group("gang")
        .vm("left", Some("pair"), 0, "attack", "attack=beside-all")
        .vm("right", Some("pair"), 1, "attack", "attack=beside-all")
        .vm("first", Some("gang"), 0, "attack", "attack=all")
        .vm("second", Some("gang"), 1, "attack", "attack=all")
        .text();
    tests.push(SystemTest::new("hostile/attacks", scenario, |reports| {
        let report = expect::first(reports)?;
        for vm in ["first", "second"] {
            // Its last words are lost in what it has said.
            expect::ended(report, vm, "exit", Some(0))?;
        }
        let (left, right) = (shares(report, "left")?, shares(report, "right")?);
        let pair: BTreeMap<&str, u64> = left
            .iter()
            .filter_map(|(name, share)| Some((*name, share + right.get(name)?)))
            .collect();
        keeps_its_share(&pair)?;
        expect::all_ended_well(reports)?;
        expect::root_mode_is_bounded(report)
    }));
}

/// What a member had under each attack, in thousandths of its CPU.
fn shares<'a>(report: &'a RunReport, vm: &'a str) -> Result<BTreeMap<&'a str, u64>, String> {
    expect::passed(report, vm, &["honest"])?;
    let shares = report.guest_lines(vm).filter_map(|line| {
        let (name, share) = line.strip_prefix("had ")?.split_once(' ')?;
        Some((name, share.parse().ok()?))
    });
    Ok(shares.collect())
}

/// What both members had together under each attack.
fn keeps_its_share(pair: &BTreeMap<&str, u64>) -> Verdict {
    if pair.len() <= LEAST {
        return Err(format!("the pair tells of {} attacks only", pair.len()));
    }
    let fair = *pair
        .get("nothing")
        .ok_or("the pair was not measured alone")?;
    if fair < 700 {
        return Err(format!(
            "beside VMs that attack nobody the pair had {fair} of 2000"
        ));
    }
    let robbed: Vec<_> = pair
        .iter()
        .filter(|(_, share)| **share * 100 < fair * KEPT_PERCENT)
        .collect();
    if robbed.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "of {fair} the pair kept less than {KEPT_PERCENT} %: {robbed:?}"
        ))
    }
}
