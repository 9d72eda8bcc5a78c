//! The network between VMs: frames, UDP, TCP, resets, deaths, segments, broken rings, masks; and the smaller devices.

use nagaya_harness::RunReport;

use crate::scenario::Scenario;
use crate::{SystemTest, Verdict, expect};

/// Two VMs of a group with a card each on its segment.
fn pair(first: &str, second: &str) -> Scenario {
    Scenario::new(2)
        .group("lan")
        .vm("a", Some("lan"), 0, "net", first)
        .nic("")
        .vm("b", Some("lan"), 1, "net", second)
        .nic("")
}

/// Both VMs passed, with these cases among theirs.
fn both(reports: &[RunReport], first: &[&str], second: &[&str]) -> Verdict {
    let report = expect::first(reports)?;
    expect::passed(report, "a", first)?;
    expect::passed(report, "b", second)?;
    expect::all_ended_well(reports)
}

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    frames(tests);
    streams(tests);
    trouble(tests);
    alone(tests);
}

fn frames(tests: &mut Vec<SystemTest>) {
    // 10,000 frames, one way and the other.
    let scenario = pair("role=ask count=5000", "role=answer").text();
    tests.push(SystemTest::new(
        "net/frames-interrupt",
        scenario,
        |reports| {
            let cases = [
                "answers",
                "all-right",
                "woken-by-interrupts",
                "buffers-come-back",
            ];
            both(reports, &cases, &["all-right"])
        },
    ));
    let polled = |count: u32| {
        let ask = format!("role=ask count={count} polled");
        // One kicks by memory, the other by ports.
        pair(&ask, "role=answer polled notify=memory").text()
    };
    let test = SystemTest::new("net/frames-polled", polled(1000), |reports| {
        let cases = [
            "answers",
            "all-right",
            "no-interrupt-while-polling",
            "buffers-come-back",
        ];
        both(reports, &cases, &["all-right"])?;
        let report = expect::first(reports)?;
        for (vm, by) in [("a", "port"), ("b", "memory-violation")] {
            let end = report.vm_ends().find(|end| end.vm == vm);
            let kicks = end.and_then(|end| end.exits.get(by).copied()).unwrap_or(0);
            if kicks < 900 {
                return Err(format!("VM {vm} has only {kicks} exits of the kind {by}"));
            }
        }
        Ok(())
    });
    tests.push(SystemTest {
        full: Some(polled(5000)),
        ..test
    });
    let scenario = pair("role=masks", "role=answer").text();
    tests.push(SystemTest::new("net/msix-masks", scenario, |reports| {
        let cases = ["masked", "pending", "unmasked", "not-pending", "answer"];
        both(reports, &cases, &["all-right"])
    }));
}

fn streams(tests: &mut Vec<SystemTest>) {
    let addresses = [
        "ip=10.0.0.1/24 peer=10.0.0.2",
        "ip=10.0.0.2/24 peer=10.0.0.1",
    ];
    let [first, second] = addresses;
    let transfer = |mib: u64| {
        let source = format!("role=source bytes={} {first}", mib << 20);
        pair(&source, &format!("role=sink {second}")).text()
    };
    let test = SystemTest::new("net/tcp", transfer(4), |reports| {
        both(reports, &["hash", "transfer"], &["length", "transfer"])
    });
    tests.push(SystemTest {
        full: Some(transfer(16)),
        ..test
    });
    // The smallest cards: no offloads, so that checksums are computed and segments are packets.
    let scenario = pair(
        &format!("role=source bytes=1048576 {first}"),
        &format!("role=sink {second}"),
    );
    let scenario = scenario
        .text()
        .replace("[[vm.nic]]", "[[vm.nic]]\noffloads = false");
    tests.push(SystemTest::new(
        "net/tcp-without-offloads",
        scenario,
        |reports| both(reports, &["hash", "transfer"], &["length", "transfer"]),
    ));
    // One that leaves checksums open and one that cannot take that: the hypervisor computes them.
    let scenario = Scenario::new(2)
        .group("lan")
        .vm("a", Some("lan"), 0, "net", &format!("role=udp {first}"))
        .nic("")
        .vm("b", Some("lan"), 1, "net", &format!("role=udp {second}"))
        .nic("offloads = false")
        .text();
    tests.push(SystemTest::new(
        "net/udp-mixed-offloads",
        scenario,
        |reports| {
            let cases = ["greeting", "datagrams", "all-right", "too-long-is-refused"];
            both(reports, &cases, &cases)
        },
    ));
    for (name, how) in [("interrupt", ""), ("polled", " polled")] {
        let scenario = Scenario::new(2)
            .group("lan")
            .vm(
                "a",
                Some("lan"),
                0,
                "net",
                &format!("role=client {first}{how}"),
            )
            .nic("")
            .vm("b", Some("lan"), 1, "echo", &format!("{second}{how}"))
            .nic("")
            .text();
        let name = format!("net/echo-{name}");
        tests.push(SystemTest::new(&name, scenario, |reports| {
            let report = expect::first(reports)?;
            expect::passed(report, "a", &["echo", "all-right"])?;
            expect::ended(report, "b", "exit", Some(0))?;
            expect::all_ended_well(reports)
        }));
    }
}

fn trouble(tests: &mut Vec<SystemTest>) {
    let scenario = pair("role=reset", "role=load").text();
    tests.push(SystemTest::new(
        "net/reset-under-load",
        scenario,
        |reports| {
            both(
                reports,
                &["frames-come", "works-still"],
                &["is-told-to-stop", "works-still"],
            )
        },
    ));
    let scenario = pair("role=survivor other=1", "role=victim").text();
    tests.push(SystemTest::new(
        "net/peer-dies-under-load",
        scenario,
        |reports| {
            let report = expect::first(reports)?;
            let cases = ["the-peer-dies", "buffers-come-back", "works-still"];
            expect::passed(report, "a", &cases)?;
            expect::ended(report, "b", "exit", Some(7))?;
            expect::frames_came_back(report)
        },
    ));
    // A third on the same segment breaks its own card meanwhile.
    let scenario = pair("role=ask count=2000", "role=answer")
        .vm("c", None, 0, "net", "role=hostile polled")
        .nic("segment = \"lan\"")
        .text()
        .replace("cpus = 2", "cpus = 3")
        .replace(
            "name = \"c\"\nimage = \"net\"\nmemory = \"32M\"\ncpu = 0",
            "name = \"c\"\nimage = \"net\"\nmemory = \"32M\"\ncpu = 2",
        );
    tests.push(SystemTest::new("net/hostile-queue", scenario, |reports| {
        let report = expect::first(reports)?;
        expect::passed(report, "c", &["works-before", "stops", "sends-again"])?;
        both(reports, &["answers", "all-right"], &["all-right"])
    }));
}

fn alone(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(3)
        .group("all")
        .vm("talker", Some("all"), 0, "net", "role=talker polled")
        .nic("segment = \"left\"")
        .vm("listener", Some("all"), 1, "net", "role=listener polled")
        .nic("segment = \"left\"")
        .vm("stranger", Some("all"), 2, "net", "role=stranger polled")
        .nic("segment = \"right\"\nmac = \"02:00:00:00:00:33\"")
        .text();
    tests.push(SystemTest::new(
        "net/segments-are-apart",
        scenario,
        |reports| {
            let report = expect::first(reports)?;
            expect::passed(report, "talker", &["all-are-here"])?;
            expect::passed(report, "listener", &["hears-all"])?;
            expect::passed(report, "stranger", &["address", "hears-nothing"])?;
            expect::all_ended_well(reports)
        },
    ));
    let scenario = Scenario::new(1)
        .vm("m", None, 0, "net", "role=gadgets")
        .with("rng = true\nvirtio_console = true")
        .text();
    tests.push(SystemTest::new(
        "net/rng-and-console",
        scenario,
        |reports| {
            let report = expect::first(reports)?;
            expect::passed(report, "m", &["entropy", "not-the-same-twice", "console"])?;
            let said = "said through virtio-console";
            if !report.guest_lines("m").any(|line| line == said) {
                return Err(format!("m's console did not say {said:?}"));
            }
            expect::all_ended_well(reports)
        },
    ));
}
