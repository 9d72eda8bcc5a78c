//! Groups that change while their members run: modes switched under load, members killed and made anew.

use nagaya_harness::RunReport;

use crate::expect;
use crate::{Operator, SystemTest, Verdict};

/// A machine that stays until it is told to end, with these groups and VMs.
fn scenario(rest: &str) -> String {
    format!(
        "[machine]\ncpus = 2\nmemory = \"512M\"\ntimeout = \"240s\"\ncontrol = true\nlinger = true\n{rest}"
    )
}

fn group(name: &str) -> String {
    format!("\n[[group]]\nname = \"{name}\"\n")
}

fn vm(name: &str, group: &str, image: &str, cmdline: &str) -> String {
    format!(
        "\n[[vm]]\nname = \"{name}\"\ngroup = \"{group}\"\nimage = \"{image}\"\nmemory = \"16M\"\ncmdline = \"{cmdline}\"\n"
    )
}

/// Two groups of two meet at barriers on two CPUs, for longer than any script takes.
fn barriers() -> String {
    let mut text = group("g") + &group("h");
    for name in ["g0", "g1", "h0", "h1"] {
        text += &vm(
            name,
            &name[..1],
            "worker",
            "load=barrier ms=600000 work=400 members=2",
        );
    }
    scenario(&text)
}

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let mut add = |name: &str,
                   scenario: String,
                   script: fn(&Operator) -> Verdict,
                   expect: fn(&[RunReport]) -> Verdict| {
        let mut test = SystemTest::new(&format!("regroup/{name}"), scenario, expect);
        test.script = Some(script);
        tests.push(test);
    };
    add(
        "modes-under-load",
        barriers(),
        modes_under_load,
        expect::all_ended_well,
    );
    add(
        "member-killed",
        barriers(),
        member_killed,
        expect::all_ended_well,
    );
    let isolation = |mark: u32| format!("case=isolation members=1 ms=20 mark={mark}");
    add(
        "region-is-fresh",
        scenario(&(group("first") + &vm("m0", "first", "members", &isolation(17)))),
        region_is_fresh,
        expect::all_ended_well,
    );
    add(
        "new-member",
        scenario(&(group("g") + &vm("keeper", "g", "members", "case=keeper members=1"))),
        new_member,
        expect::all_ended_well,
    );
}

/// Ticks that a VM's vCPUs ran.
fn running(operator: &Operator, vm: &str) -> Result<u64, String> {
    operator.vm(vm)?["ticks"]["running"]
        .as_u64()
        .ok_or_else(|| "ps has no ticks".to_owned())
}

/// Both groups go on in every pair of modes, and what the states of each VM took makes up its time.
fn modes_under_load(operator: &Operator) -> Verdict {
    operator
        .await_state("h1", "running")
        .or_else(|_| operator.await_state("h1", "runnable"))?;
    for mode in [
        "strict", "off", "relaxed", "balance", "prefer", "strict", "relaxed",
    ] {
        operator.must(&["group", "set", "g", "--mode", mode])?;
        let before = ["g0", "g1", "h0", "h1"].map(|vm| running(operator, vm));
        // The machine's time goes on while it answers; a few slices go by.
        for _ in 0..5 {
            operator.must(&["ps"])?;
        }
        for (vm, before) in ["g0", "g1", "h0", "h1"].into_iter().zip(before) {
            let (before, row) = (before?, operator.vm(vm)?);
            let ticks = &row["ticks"];
            if ticks["running"]
                .as_u64()
                .is_none_or(|after| after <= before)
            {
                return Err(format!("{vm} stands still in mode {mode}: {row}"));
            }
            let sum: u64 = ["running", "runnable", "co_stopped", "blocked", "idle"]
                .iter()
                .filter_map(|state| ticks[state].as_u64())
                .sum();
            if Some(sum) != ticks["total"].as_u64() {
                return Err(format!("the states of {vm} do not make up its time: {row}"));
            }
        }
    }
    operator.must(&["shutdown"])
}

/// A member that is killed while its gang runs takes nobody with it but those that wait for it, who are told.
fn member_killed(operator: &Operator) -> Verdict {
    operator
        .await_state("g1", "running")
        .or_else(|_| operator.await_state("g1", "runnable"))?;
    operator.must(&["group", "set", "g", "--mode", "strict"])?;
    operator.must(&["destroy", "g1"])?;
    // It meets nobody any more: its barrier says so, and it ends.
    let row = operator.await_state("g0", "ended")?;
    if row["cause"] != "exited with code 0" {
        return Err(format!("g0 ended otherwise than by its own will: {row}"));
    }
    let before = running(operator, "h0")?;
    operator.must(&["ps"])?;
    if running(operator, "h0")? <= before {
        return Err("the other group stands still".to_owned());
    }
    operator.must(&["shutdown"])
}

/// Whoever gets a region's frames next finds zeros in them.
fn region_is_fresh(operator: &Operator) -> Verdict {
    operator.await_state("m0", "ended")?;
    for round in 0..3 {
        let name = format!("next-{round}");
        let mark = format!("mark={}", 100 + round);
        operator.must(&[
            "create",
            "members",
            "--name",
            &name,
            "-m",
            "16M",
            "-g",
            &name,
            "--",
            "case=isolation",
            "members=1",
            "ms=5",
            &mark,
        ])?;
        let row = operator.await_state(&name, "ended")?;
        if row["cause"] != "exited with code 0" {
            return Err(format!("{name} found a region that is not fresh: {row}"));
        }
    }
    operator.must(&["shutdown"])
}

/// A VM that joins a group in which another has died maps the region at the group's address and finds what is in it.
fn new_member(operator: &Operator) -> Verdict {
    operator.await_state("keeper", "running")?;
    for (name, last) in [("first", "0"), ("second", "1")] {
        let last = format!("last={last}");
        operator.must(&[
            "create",
            "members",
            "--name",
            name,
            "-m",
            "16M",
            "-g",
            "g",
            "--",
            "case=newcomer",
            &last,
        ])?;
        let row = operator.await_state(name, "ended")?;
        if row["cause"] != "exited with code 0" {
            return Err(format!("{name} did not find the region: {row}"));
        }
    }
    let row = operator.await_state("keeper", "ended")?;
    if row["cause"] != "exited with code 0" {
        return Err(format!("keeper was not told by the newcomers: {row}"));
    }
    operator.must(&["shutdown"])
}
