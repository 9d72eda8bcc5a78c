//! Runs of a stand-in for an emulator: a shell script that writes to the same files.

use super::*;
use crate::machine::Firmware;

struct Scene {
    root: tempfile::TempDir,
    lines: Vec<ConsoleLine>,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            root: tempfile::tempdir().expect("a directory"),
            lines: Vec::new(),
        }
    }

    fn run(&mut self, script: &str, timeout: Duration) -> RunReport {
        let image = self.root.path().join("image");
        fs::write(&image, b"boot").expect("write");
        let directory =
            RunDirectory::create(&self.root.path().join("runs"), "fake", &image).expect("create");
        let config = MachineConfig {
            kind: MachineKind::Bochs,
            firmware: Firmware::Bios,
            cpus: 1,
            memory_mib: 256,
            cpu_model: None,
            ips: None,
            timeout,
            control: false,
        };
        let launch = Launch {
            _bridge: None,
            program: "sh",
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: &[],
        };
        let lines = &mut self.lines;
        follow(&launch, &directory, &config, &mut |line| {
            lines.push(line.clone())
        })
        .expect("it runs")
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_good_run_is_reported_with_every_line_and_event() {
    let mut scene = Scene::new();
    let report = scene.run(
        r#"
        printf '[   0.000001] INFO  up\npi' > console.log
        sleep 0.1
        printf 'ng| hello\nlast words' >> console.log
        printf '{"event":"vm-end","vm":"ping","cause":"exit","code":0,"detail":"","exits":{}}\n' > events.jsonl
        printf '{"event":"end","ok":true,"reason":"all guests ended well"}\n' >> events.jsonl
        exit 1
        "#,
        LONG,
    );
    assert!(report.ok, "{}", report.reason);
    assert_eq!(report.ending, Ending::Exited(Some(1)));
    assert_eq!(report.console, scene.lines);
    assert_eq!(report.guest_lines("ping").collect::<Vec<_>>(), ["hello"]);
    assert_eq!(
        report.console.last(),
        Some(&ConsoleLine::Raw("last words".to_owned()))
    );
    assert!(report.vm_end("ping").is_some_and(|end| end.is_success()));
    assert!(report.directory.join(RunDirectory::CONSOLE).exists());
    assert!(!report.directory.join(RunDirectory::IMAGE).exists());
}

#[test]
fn a_crash_shows_what_the_emulator_said_of_failed_entries() {
    let report = Scene::new().run(
        r"
        printf '1i[CPU0] chatter\n2e[CPU0] VMENTER FAIL: VMCS guest TR invalid\n3i[CPU0] more\n' > machine.log
        exit 1
        ",
        LONG,
    );
    assert!(!report.ok && report.reason.starts_with("crash"));
    assert_eq!(
        report.machine_log,
        ["2e[CPU0] VMENTER FAIL: VMCS guest TR invalid"]
    );
}

#[test]
fn a_machine_that_hangs_is_ended_when_its_time_is_over() {
    let report = Scene::new().run("sleep 600", Duration::from_millis(200));
    assert_eq!(report.ending, Ending::TimedOut);
    assert!(!report.ok && report.wall < Duration::from_secs(30));
}

#[test]
fn an_emulator_that_never_started_is_explained_by_its_own_words() {
    let report = Scene::new().run("echo 'cannot open display' >&2; exit 3", LONG);
    assert!(!report.ok);
    assert_eq!(report.machine_log, ["cannot open display"]);
}

#[test]
fn firmware_that_writes_to_the_port_of_events_does_not_make_a_good_run_a_bad_one() {
    let report = Scene::new().run(
        r#"
        printf '\033[2J\033[01;01HBdsDxe: loading {Boot0001}\r\nBdsDxe: starting ' > events.jsonl
        printf '{"ticks":1,"event":"boot-phase","name":"console"}\n' >> events.jsonl
        printf '{"ticks":2,"event":"end","ok":true,"reason":"all guests ended well"}\n' >> events.jsonl
        "#,
        LONG,
    );
    assert!(report.ok, "{}", report.reason);
    assert_eq!(report.events_named("boot-phase").count(), 1);
}

#[test]
fn a_line_that_is_no_event_among_events_still_fails_the_run() {
    let report = Scene::new().run(
        r#"
        printf '{"ticks":1,"event":"boot-phase","name":"console"}\n{"ticks\n' > events.jsonl
        printf '{"ticks":2,"event":"end","ok":true,"reason":"all guests ended well"}\n' >> events.jsonl
        "#,
        LONG,
    );
    assert!(
        !report.ok && report.reason.contains("no event"),
        "{}",
        report.reason
    );
}
