//! What an operator can do through the control port, and what nobody can do to it.

use nagaya_harness::RunReport;

use crate::expect;
use crate::scenario::Scenario;
use crate::{Operator, SystemTest, Verdict};

/// Rounds of the soak: make a VM in a group of its own, let it run, destroy it. All of them, and those of a short test.
const SOAK_ROUNDS: (usize, usize) = (1000, 12);

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = |control: &str| {
        Scenario::new(2)
            .machine("control = true")
            .machine(control)
            .group("g")
            .vm("clock", Some("g"), 0, "clock", "")
            .text()
    };
    let mut add = |name: &str, script: fn(&Operator) -> Verdict| {
        let mut test = SystemTest::new(
            &format!("control/{name}"),
            scenario("linger = true"),
            ended_well,
        );
        test.script = Some(script);
        tests.push(test);
    };
    add("life-cycle", life_cycle);
    add("pause", pause);
    add("settings", settings);
    add("garbage", garbage);
    add("soak", soak);
    let asleep = Scenario::new(2)
        .machine("control = true")
        .machine("linger = true")
        // It waits for a moment that does not come.
        .vm("sleeper", None, 0, "worker", "load=hog align=68719476736")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]");
    let mut test = SystemTest::new("control/asleep", asleep, ended_well);
    test.script = Some(asleep_is_blocked);
    tests.push(test);
    let kinds = Scenario::new(2)
        .machine("control = true")
        .machine("linger = true")
        .vm("first", None, 0, "multiboot-elf32", CASE)
        .with("kind = \"multiboot\"\ndebug_exit = true\ndebug_console = true")
        .with(
            "[[vm.module]]\nimage = \"tests/multiboot/modules/first.txt\"\ncmdline = \"first a=1\"",
        )
        .with("[[vm.module]]\nimage = \"tests/multiboot/modules/second.txt\"")
        .text();
    let mut test = SystemTest::new("control/kinds", kinds, |reports| {
        let report = expect::first(reports)?;
        for vm in ["first", "second"] {
            let cases = ["command-line", "module-one", "module-two"];
            expect::passed(report, vm, &cases)?;
            expect::ended(report, vm, "exit", Some(0))?;
        }
        expect::passed(report, "second", &["virtio-devices"])?;
        expect::all_ended_well(reports)
    });
    test.script = Some(other_kinds);
    tests.push(test);
    let devices = scenario("linger = true")
        + "rng = true\nvirtio_console = true\n[[vm.nic]]\n[[vm.nic]]\nsegment = \"other\"\n";
    let mut test = SystemTest::new("control/devices", devices, ended_well);
    test.script = Some(devices_come_and_go);
    tests.push(test);
}

/// Resets of a VM with devices.
const RESETS: usize = 12;

/// A VM with devices is made anew as often as one likes: each time its ports and its memory are free again.
fn devices_come_and_go(operator: &Operator) -> Verdict {
    operator.await_state("clock", "running")?;
    for _ in 0..RESETS {
        operator.must(&["reset", "clock"])?;
        operator.await_state("clock", "running")?;
    }
    operator.must(&["destroy", "clock"])?;
    operator.must(&["shutdown"])
}

/// What the kernel of `tests/multiboot` checks of what it was handed.
const CASE: &str = "case=information quoted=a,b mib=32 modules=2";

/// A VM of another kind than native, with modules and devices, is made at run time as a scenario file makes one; what does not
/// go together is refused as there.
fn other_kinds(operator: &Operator) -> Verdict {
    operator.await_state("first", "ended")?;
    let image = "multiboot-elf32";
    operator.refused(&["create", image, "--initramfs", image], "initramfs")?;
    operator.refused(
        &["create", image, "--kind", "linux", "-m", "8M"],
        "16M to 256G",
    )?;
    operator.refused(&["create", image, "--nic"], "segment")?;
    operator.refused(&["create", image, "--disk", "ram:1G"], "are free")?;
    let module = [
        "create",
        image,
        "--kind",
        "multiboot",
        "--module",
        "nothing",
    ];
    operator.refused(&module, "\"nothing\"")?;
    operator.must(&[
        "create",
        image,
        "--name",
        "second",
        "-m",
        "32M",
        "--kind",
        "multiboot",
        "--debug-exit",
        "--debug-console",
        "--module",
        "first.txt=first a=1",
        "--module",
        "second.txt",
        "--nic=lan",
        "--disk",
        "ram:1M,ro",
        "--",
        "case=information,virtio devices=2 quoted=a,b mib=32 modules=2",
    ])?;
    operator.await_state("second", "ended")?;
    operator.must(&["shutdown"])
}

/// A VM that waits is blocked, although it has never started its second vCPU.
fn asleep_is_blocked(operator: &Operator) -> Verdict {
    operator.await_state("sleeper", "blocked")?;
    operator.must(&["shutdown"])
}

/// The run ended because the operator said so, with all frames back.
fn ended_well(reports: &[RunReport]) -> Verdict {
    expect::all_ended_well(reports)
}

fn life_cycle(operator: &Operator) -> Verdict {
    operator.await_state("clock", "running")?;
    operator.refused(&["create", "clock", "--name", "clock"], "\"clock\"")?;
    operator.refused(&["create", "nothing", "--name", "x"], "\"nothing\"")?;
    operator.refused(&["destroy", "nobody"], "nobody")?;
    operator.must(&[
        "create", "clock", "--name", "second", "-m", "16M", "-g", "g",
    ])?;
    operator.must(&[
        "create", "clock", "--name", "third", "-m", "16M", "-g", "fresh",
    ])?;
    operator.await_state("second", "running")?;
    operator.await_state("third", "running")?;
    let groups = operator.json(&["group", "ls"])?;
    let members = |name: &str| {
        let group = groups
            .as_array()?
            .iter()
            .find(|group| group["name"] == name)?;
        Some(group["members"].as_array()?.len())
    };
    if members("g") != Some(2) || members("fresh") != Some(1) {
        return Err(format!("the groups are not 2 and 1: {groups}"));
    }
    operator.must(&["dump", "second"])?;
    let counts = |operator: &Operator| {
        operator
            .vm("second")
            .map(|row| (row["resets"].as_u64(), row["ticks"]["total"].as_u64()))
    };
    let before = counts(operator)?;
    operator.must(&["reset", "second"])?;
    operator.await_state("second", "running")?;
    // It is counted, and the account goes on.
    let after = counts(operator)?;
    if before.0 != Some(0) || after.0 != Some(1) || after.1 < before.1 {
        return Err(format!(
            "resets and ticks went from {before:?} to {after:?}"
        ));
    }
    operator.must(&["destroy", "third"])?;
    operator.await_state("third", "ended")?;
    let groups = operator.json(&["group", "ls"])?;
    if groups.as_array().is_none_or(|groups| groups.len() != 1) {
        return Err(format!(
            "the group did not go with its last member: {groups}"
        ));
    }
    operator.must(&["destroy", "clock", "second"])?;
    operator.must(&["shutdown"])
}

/// A paused VM uses no time, and its clock and memory go on where they were: the guest itself checks that its clock never goes
/// back.
fn pause(operator: &Operator) -> Verdict {
    operator.await_state("clock", "running")?;
    operator.must(&["pause", "clock"])?;
    operator.refused(&["pause", "clock"], "paused")?;
    let running = |operator: &Operator| -> Result<u64, String> {
        operator.vm("clock")?["ticks"]["running"]
            .as_u64()
            .ok_or_else(|| "ps has no ticks".to_owned())
    };
    let before = running(operator)?;
    let after = running(operator)?;
    if before != after {
        return Err(format!("it ran while it was paused: {before} to {after}"));
    }
    // Its registers and its last exit stay what they are, too, whatever the scheduler believes.
    let still = operator.json(&["dump", "clock"])?;
    let later = operator.json(&["dump", "clock"])?;
    if still != later || still[0]["registers"]["rip"] == 0 {
        return Err(format!("it moved while it was paused: {still} to {later}"));
    }
    operator.must(&["resume", "clock"])?;
    operator.refused(&["resume", "clock"], "not paused")?;
    operator.await_state("clock", "running")?;
    if running(operator)? <= after {
        return Err("it does not run after it was resumed".to_owned());
    }
    operator.must(&["shutdown"])
}

fn settings(operator: &Operator) -> Verdict {
    operator.await_state("clock", "running")?;
    for mode in ["off", "prefer", "balance", "strict", "relaxed"] {
        operator.must(&["group", "set", "g", "--mode", mode])?;
        let groups = operator.json(&["group", "ls"])?;
        if groups[0]["mode"] != mode {
            return Err(format!("the mode is not {mode}: {groups}"));
        }
    }
    operator.must(&["weight", "clock", "1000"])?;
    operator.must(&["cap", "clock", "50"])?;
    operator.must(&["pin", "clock", "1"])?;
    let row = operator.await_state("clock", "running")?;
    if row["cpus"] != serde_json::json!([1]) {
        return Err(format!("it is pinned to CPU 1 and not there: {row}"));
    }
    if row["weight"] != 1000 || row["cap_percent"] != 50 || row["affinity"][0] != 1 {
        return Err(format!("the settings were not taken: {row}"));
    }
    operator.refused(&["weight", "clock", "0"], "0")?;
    operator.refused(&["pin", "clock", "7"], "7")?;
    operator.must(&["images"])?;
    operator.must(&["frames"])?;
    operator.must(&["shutdown"])
}

/// Garbage, truncated frames and a flood change nothing, and the port answers afterwards.
fn garbage(operator: &Operator) -> Verdict {
    let row = operator.await_state("clock", "running")?;
    // No pattern, and the same in each run.
    let mut state = 12_345_u32;
    let mut noise = Vec::new();
    for _ in 0..6_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((state >> 24) as u8);
    }
    operator.raw(&noise)?;
    operator.raw(&[0; 300])?;
    operator.raw(&[1; 5000])?;
    let after = operator.vm("clock")?;
    for key in [
        "id",
        "name",
        "weight",
        "cap_percent",
        "memory_bytes",
        "vcpus",
    ] {
        if row[key] != after[key] {
            return Err(format!(
                "garbage changed {key}: {} to {}",
                row[key], after[key]
            ));
        }
    }
    let info = operator.json(&["info"])?;
    if info["rejected"]
        .as_u64()
        .is_none_or(|rejected| rejected == 0)
    {
        return Err(format!("no garbage was noticed: {info}"));
    }
    operator.must(&["shutdown"])
}

fn soak(operator: &Operator) -> Verdict {
    operator.await_state("clock", "running")?;
    let free = |operator: &Operator| -> Result<u64, String> {
        operator.json(&["frames"])?["free"]
            .as_u64()
            .ok_or_else(|| "frames has no free".to_owned())
    };
    let before = free(operator)?;
    let rounds = if operator.full {
        SOAK_ROUNDS.0
    } else {
        SOAK_ROUNDS.1
    };
    for round in 0..rounds {
        operator.must(&[
            "create", "clock", "--name", "soak", "-m", "8M", "-g", "soaked",
        ])?;
        operator.await_state("soak", "running")?;
        operator.must(&["destroy", "soak"])?;
        let after = free(operator)?;
        if after != before {
            return Err(format!(
                "round {round}: {before} frames were free, now {after}"
            ));
        }
    }
    operator.must(&["shutdown"])
}
