//! Each verb, its text, its JSON and its refusals. The golden texts are compared as a whole: who changes a column changes
//! them, and docs/CONTROL.md.

use crate::machine::{self, Machine};
use nagaya_vmm::control::{CpuSet, CreateVm, Selector, VmState};
use serde_json::Value;

/// Two members of a group and one that has ended, each with something in every column.
fn busy() -> Machine {
    let machine = Machine::start();
    for (name, group) in [("pi-0", Some("pi")), ("pi-1", Some("pi")), ("done", None)] {
        let mut vm = CreateVm::new(name, "pi");
        vm.group = group.map(|group| Selector::Name(group.into()));
        machine.create(&vm);
    }
    machine.with(|backend| {
        if let Some(row) = backend.vms.get_mut(&0) {
            row.vcpus = 2;
        }
        backend.pass(12_345_000);
        let mut rows = backend.vms.values_mut();
        let (first, second, ended) = (rows.next(), rows.next(), rows.next());
        if let Some(row) = first {
            row.cpus = CpuSet(0b11);
            row.cap_percent = 150;
            row.doorbells.sent = 42;
            row.switches = 7;
        }
        if let Some(row) = second {
            row.state = VmState::Runnable;
            row.ticks.running -= 2_500_000;
            row.ticks.runnable = 2_500_000;
        }
        if let Some(row) = ended {
            row.state = VmState::Ended;
            row.cause = Some("exited with code 3".into());
        }
        if let Some(group) = backend.groups.get_mut(&0) {
            group.address = 0x40_0000_0000;
            (group.run_ticks, group.hazard_ticks) = (1000, 25);
        }
    });
    machine
}

#[test]
fn ps_is_a_table_of_those_that_live() {
    assert_eq!(
        busy().succeeds(&["ps"]),
        "\
ID  NAME  GROUP  STATE     VCPUS   MEM  CPUS  TIME(s)
 0  pi-0  pi     running       2  128M  0-1       2.4
 1  pi-1  pi     runnable      1  128M  1         0.9
"
    );
}

#[test]
fn ps_all_shows_why_one_ended() {
    assert_eq!(
        busy().succeeds(&["ps", "-a"]),
        "\
ID  NAME  GROUP  STATE     VCPUS   MEM  CPUS  TIME(s)  CAUSE
 0  pi-0  pi     running       2  128M  0-1       2.4  -
 1  pi-1  pi     runnable      1  128M  1         0.9  -
 2  done  -      ended         1  128M  2         1.2  exited with code 3
"
    );
}

#[test]
fn ps_long_has_what_the_scheduler_counts() {
    assert_eq!(
        busy().succeeds(&["ps", "--long"]),
        "\
ID  NAME  GROUP  STATE     VCPUS   MEM  CPUS  TIME(s)  STOLEN(s)  CO-STOP(s)  BLOCKED(s)  EXITS  BELLS  THROTTLED  SWITCHES  MIGRATIONS  WEIGHT   CAP  AFFINITY
 0  pi-0  pi     running       2  128M  0-1       2.4        0.0         0.0         0.0      8     42          0         7           0     256  150%  0-3
 1  pi-1  pi     runnable      1  128M  1         0.9        0.2         0.0         0.0      8      0          0         1           0     256     -  0-3
"
    );
}

#[test]
fn group_ls_is_a_table_of_groups() {
    assert_eq!(
        busy().succeeds(&["group", "ls"]),
        "\
ID  NAME  MODE     YIELD  WEIGHT  CAP  GENERATION  ADDRESS       PAGES  HAZARD  MEMBERS
 0  pi    relaxed  on        256    -           2  0x4000000000   1025    2.5%  0,1
"
    );
}

#[test]
fn frames_images_and_info_are_short() {
    let machine = Machine::start();
    assert_eq!(
        machine.succeeds(&["images"]),
        "IMAGE  SIZE\nhog     80K\npi     128K\n"
    );
    assert_eq!(
        machine.succeeds(&["frames"]),
        "\
OWNER       FRAMES     MEM
free        128000  500.0M
reserved      1024    4.0M
hypervisor    2048    8.0M
vms              0    0.0M
groups           0    0.0M
total       131072  512.0M
"
    );
    let info = machine.succeeds(&["info"]);
    assert!(info.starts_with("Nagaya 0.1.0\nCPUs: 4\n"), "{info}");
}

#[test]
fn dump_shows_registers_and_last_exits_of_every_vcpu() {
    let machine = Machine::start();
    machine.succeeds(&["create", "--vcpus", "2", "hog"]);
    let text = machine.succeeds(&["dump", "hog"]);
    assert!(text.contains("vCPU 0 of 2 of VM 0, on CPU 0\n"), "{text}");
    assert!(text.contains("vCPU 1 of 2 of VM 0, on CPU 1\n"), "{text}");
    assert!(
        text.contains("   rip 0000000000201234 rflags 0000000000000202"),
        "{text}"
    );
    assert!(
        text.contains("950000  201200            181  fee00000  EPT violation (48)\n"),
        "{text}"
    );
    let one = machine.succeeds(&["dump", "0", "--vcpu", "1"]);
    assert!(!one.contains("vCPU 0"), "{one}");
}

#[test]
fn a_vm_is_steered_from_its_creation_to_its_end() {
    let machine = Machine::start();
    let made = machine.succeeds(&[
        "create", "pi", "--group", "pi", "--mode", "strict", "--memory", "16M", "--weight", "512",
        "--cpus", "1-2", "--paused", "--", "--maps", "10",
    ]);
    assert_eq!(made, "0 pi\n");
    assert_eq!(machine.succeeds(&["create", "pi"]), "1 pi-2\n");
    let row = machine.vm(0);
    assert_eq!(
        (row.state, row.weight, row.affinity),
        (VmState::Paused, 512, CpuSet(0b110))
    );
    machine.succeeds(&["resume", "pi"]);
    machine.succeeds(&["weight", "pi", "100"]);
    machine.succeeds(&["cap", "pi", "50"]);
    machine.succeeds(&["pin", "pi", "0,3"]);
    machine.succeeds(&["pin", "0", "3", "--soft"]);
    machine.succeeds(&[
        "group",
        "set",
        "pi",
        "--mode",
        "balance",
        "--weight",
        "1000",
        "--directed-yield",
        "off",
    ]);
    let row = machine.vm(0);
    assert_eq!(
        (row.state, row.weight, row.cap_percent),
        (VmState::Running, 100, 50)
    );
    assert_eq!(
        (row.affinity, row.soft_affinity),
        (CpuSet(0b1001), CpuSet(0b1000))
    );
    let groups: Value = machine.json(&["group", "ls"]);
    assert_eq!(groups[0]["mode"], "balance");
    assert_eq!(groups[0]["directed_yield"], false);
    machine.succeeds(&["pause", "pi", "pi-2"]);
    machine.succeeds(&["reset", "pi"]);
    assert_eq!(machine.succeeds(&["destroy", "pi", "1"]), "pi\n1\n");
    assert_eq!(machine.succeeds(&["ps", "-q"]), "");
    assert_eq!(machine.json(&["group", "ls"]), Value::Array(vec![]));
}

#[test]
fn what_takes_the_machine_long_is_waited_for() {
    let machine = Machine::start();
    machine.with(|backend| backend.slowness_polls = 50);
    assert_eq!(machine.succeeds(&["create", "hog"]), "0 hog\n");
}

#[test]
fn a_refusal_names_the_value_and_one_does_not_keep_the_others() {
    let machine = Machine::start();
    machine.succeeds(&["create", "hog"]);
    let refused = machine.fails(&["pause", "nobody", "hog"]);
    assert_eq!(refused.stdout, "hog\n");
    assert_eq!(
        refused.stderr,
        "error: there is no VM \"nobody\": `nagayactl ps` lists them\n"
    );
    assert_eq!(machine.vm(0).state, VmState::Paused);
    let refused = machine.fails(&["create", "none"]);
    assert!(
        refused.stderr.contains("there is no image \"none\""),
        "{}",
        refused.stderr
    );
    let refused = machine.fails(&["create", "hog", "--memory", "5M"]);
    assert!(
        refused
            .stderr
            .contains("5M of memory: it must be a multiple of 2M"),
        "{}",
        refused.stderr
    );
    let refused = machine.fails(&["--json", "pin", "hog", "8"]);
    let error: Value = serde_json::from_str(&refused.stdout).expect("JSON");
    assert_eq!(error["error"]["code"], "invalid");
    let refused = machine.fails(&["--json", "destroy", "nobody"]);
    let told: Value = serde_json::from_str(&refused.stdout).expect("JSON");
    assert_eq!(told[0]["error"]["code"], "no-such-vm");
}

#[test]
fn json_has_every_figure_of_a_vm() {
    let rows = busy().json(&["ps", "-a"]);
    let row = &rows[0];
    assert_eq!(row["name"], "pi-0");
    assert_eq!(row["group"]["name"], "pi");
    assert_eq!(row["cpus"], serde_json::json!([0, 1]));
    assert_eq!(row["affinity"], serde_json::json!([0, 1, 2, 3]));
    assert_eq!(row["ticks"]["running"], 24_690_000);
    assert_eq!(
        row["exits"][1],
        serde_json::json!({ "reason": 18, "name": "VMCALL", "count": 5 })
    );
    assert_eq!(rows[2]["cause"], "exited with code 3");
}

#[test]
fn json_is_there_for_every_verb() {
    let machine = busy();
    for verb in [
        &["ps"][..],
        &["ps", "-q"],
        &["top", "-n", "1"],
        &["create", "hog", "-m", "16M"],
        &["pause", "hog"],
        &["resume", "hog"],
        &["reset", "hog"],
        &["group", "ls"],
        &["group", "set", "pi", "--cap", "10"],
        &["weight", "hog", "1"],
        &["cap", "hog", "1"],
        &["pin", "hog", "1"],
        &["dump", "hog"],
        &["destroy", "hog"],
        &["frames"],
        &["images"],
        &["info"],
        &["shutdown"],
    ] {
        machine.json(verb);
    }
    machine.until("it is shut down", |backend| backend.is_shut_down);
}

#[test]
fn top_without_a_terminal_prints_its_looks_with_rates_of_the_machines_own_time() {
    let machine = busy();
    let text = machine.succeeds(&["top", "-n", "2", "-i", "0.1"]);
    let looks: Vec<&str> = text
        .split("\n\n")
        .filter(|part| part.starts_with("Nagaya 0.1.0: 4 CPUs"))
        .collect();
    assert_eq!(looks.len(), 2, "{text}");
    assert!(
        text.contains(" 0  pi-0  pi     running   200.0%    0.0%"),
        "{text}"
    );
    assert!(
        text.contains(" 0  pi     relaxed        2     256    2.5%"),
        "{text}"
    );
}

#[test]
fn a_console_is_typed_into_and_heard_until_its_vm_is_gone() {
    let machine = Machine::start();
    machine.succeeds(&["create", "hog"]);
    let console = machine.spawn(
        &["console", "hog"],
        b"a line that the mock takes in halves\n",
    );
    machine.until("the line is typed", |backend| {
        backend.typed_so_far(0).ends_with(b"halves\n")
    });
    machine.with(|backend| backend.say(0, b"an answer\n"));
    // The same line carries the request of nobody else; so the VM goes without one.
    machine.until("the answer is fetched", |backend| backend.has_said_all(0));
    machine.with(|backend| backend.vms.clear());
    let output = console.finish();
    assert_eq!(output.stdout, "an answer\n");
    assert!(output.stderr.contains("has ended"), "{}", output.stderr);
}

#[test]
fn ctrl_right_bracket_detaches() {
    let machine = Machine::start();
    machine.succeeds(&["create", "hog"]);
    let output = machine
        .spawn(&["console", "hog"], b"typed\x1dnot typed")
        .finish();
    assert!(output.is_success, "{}", output.stderr);
    assert_eq!(machine.with(|backend| backend.typed(0)), b"typed");
    assert_eq!(machine.succeeds(&["ps", "-q"]), "0\n");
}

#[test]
fn a_line_full_of_noise_is_still_served() {
    let machine = Machine::start_with_noise();
    assert_eq!(machine.succeeds(&["create", "hog"]), "0 hog\n");
    assert_eq!(machine.succeeds(&["ps", "-q"]), "0\n");
}

#[test]
fn a_lost_request_and_a_lost_answer_are_made_good_and_nothing_is_done_twice() {
    let machine = Machine::start_with_losses();
    assert_eq!(
        machine.succeeds(&["--timeout", "1", "create", "hog", "--name", "once"]),
        "0 once\n"
    );
    assert_eq!(machine.with(|backend| backend.vms.len()), 1);
}

#[test]
fn a_port_that_never_answers_is_given_up_in_time_and_the_error_says_what_may_be() {
    let silent = Machine::silent();
    let started = std::time::Instant::now();
    let refused = silent.fails(&["--timeout", "0.3", "ps"]);
    assert!(started.elapsed().as_secs() < 5);
    assert!(
        refused.stderr.contains("is another nagayactl connected"),
        "{}",
        refused.stderr
    );
}

#[test]
fn without_a_machine_the_error_says_how_to_get_one() {
    let refused = machine::nagayactl(&["--connect", "/nowhere.sock", "ps"], b"");
    assert!(!refused.is_success);
    assert!(
        refused.stderr.contains("tcp:HOST:PORT"),
        "{}",
        refused.stderr
    );
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = machine::nagayactl(&["completions", shell], b"");
        assert!(output.is_success);
        assert!(output.stdout.contains("destroy"), "{shell}");
    }
}
