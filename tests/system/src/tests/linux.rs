//! Debian's stock kernel as a guest: it boots, finds its platform, keeps time, is quiet when idle, ends and starts anew.

use std::time::Duration;

use nagaya_harness::RunReport;

use crate::expect;
use crate::{SystemTest, Verdict};

/// Two emulators on two busy cores, each with a kernel that takes two thousand million instructions to its first process.
const TIMEOUT: Duration = Duration::from_secs(900);

/// The model of CPU: the oldest that the hypervisor is meant for (the machine tests have the newest). `linux/many-programs` has one
/// with AVX-512, on whose XSAVEC programs would die (docs/LINUX.md, "Known faults").
const CPU_MODEL: &str = "corei7_haswell_4770";

/// The kernel neither tests its ciphers at boot nor reads its certificates: that is more than half of a boot in the emulator.
/// `linux/one-vcpu` does without these words.
const FAST: &str = "cryptomgr.notests initcall_blacklist=load_system_certificate_list";

/// Within how many ticks a Linux program knows of the death of a peer that an operator destroys: 25 ms. The kernel's own ticks are
/// 4 ms apart, and the hypervisor writes of the death on its serial lines for more than 30 ms: nobody is to wait for that.
const DEATH_TICKS: u64 = 250_000;

/// Lines with level warning or worse that are let pass, by what they contain. Each has its reason in docs/LINUX.md.
const TOLERATED: [&str; 2] = [
    "fail to add MMCONFIG information",
    "PS/2 appears to have AUX port disabled",
];

/// A machine with one Linux VM.
fn scenario(cpus: u32, image: &str, cmdline: &str) -> String {
    format!(
        "[machine]\nbochs.cpu_model = \"{CPU_MODEL}\"\ncpus = {cpus}\nmemory = \"512M\"\n\n[[vm]]\n\
         name = \"linux\"\nkind = \"linux\"\nimage = \"{image}\"\ninitramfs = \"built/initramfs-busybox\"\n\
         memory = \"192M\"\nvcpus = {cpus}\ncmdline = \"console=ttyS0 {cmdline}\"\n"
    )
}

fn test(
    tests: &mut Vec<SystemTest>,
    name: &str,
    scenario: String,
    expect: fn(&[RunReport]) -> Verdict,
) {
    tests.push(SystemTest {
        timeout: TIMEOUT,
        ..SystemTest::new(&format!("linux/{name}"), scenario, expect)
    });
}

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let one = scenario(1, "debian/vmlinux", "nagaya.run=tour");
    test(tests, "one-vcpu", one, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-CPUS 1")?;
        has(&lines, "NAGAYA-CLOCK tsc")?;
        has(&lines, "NAGAYA-ACPI NGYA0001:00")?;
        keeps_time(&lines)?;
        wakes(&lines)?;
        is_quiet(&lines)?;
        has(&lines, "NAGAYA-LINUX-DONE tour 0")?;
        expect::ended(report, "linux", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    let two = scenario(2, "debian/vmlinux", &format!("{FAST} nagaya.run=tour"))
        + "rng = true\nvirtio_console = true\n[[vm.nic]]\nsegment = \"lan\"\n";
    test(tests, "two-vcpus", two, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-CPUS 2")?;
        for driver in ["virtio_net", "virtio_rng", "virtio_console"] {
            if !lines
                .iter()
                .any(|line| line.starts_with("NAGAYA-VIRTIO") && line.ends_with(driver))
            {
                return Err(format!("no device is driven by {driver}"));
            }
        }
        keeps_time(&lines)?;
        wakes(&lines)?;
        is_quiet(&lines)?;
        let rounds = lines.iter().filter(|line| **line == "NAGAYA-CPUS-LEFT 1");
        if rounds.count() != 3 {
            return Err("the second CPU did not go three times".to_owned());
        }
        has(&lines, "NAGAYA-CPUS-AGAIN 2")?;
        has(&lines, "NAGAYA-ON-CPU 1")?;
        has(&lines, "NAGAYA-NMI 1")?;
        expect::ended(report, "linux", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    // Here the APIC is software, on a CPU whose own could do it.
    let disks = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=disk"))
        .replace("[machine]", "[machine]\napic_virtualization = false")
        + "[[vm.disk]]\nram = \"4M\"\n"
        + "[[vm.disk]]\nimage = \"built/initramfs-busybox\"\nread_only = true\n";
    test(tests, "disks", disks, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-DISK-SECTORS 8192")?;
        has(&lines, "NAGAYA-DISK-GOOD")?;
        has(&lines, "NAGAYA-DISK-READ-ONLY")?;
        has(&lines, "NAGAYA-LINUX-DONE disk 0")?;
        // A timer's interrupt takes a write for the next one, and none for its end.
        let end = report.vm_ends().next().ok_or("the VM did not end")?;
        let of = |kind: &str| end.exits.get(kind).copied().unwrap_or(0);
        let (writes, timers) = (of("msr-write"), of("preemption-timer"));
        if writes > timers + timers / 4 {
            return Err(format!(
                "{timers} interrupts of the timer took {writes} writes of MSRs"
            ));
        }
        expect::all_ended_well(reports)
    });
    // Most of it above the devices: Linux takes memory from there first, so that the disk's buffers are there.
    let large = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=disk"))
        + "memory_below_4g = \"64M\"\n[[vm.disk]]\nram = \"4M\"\n";
    test(tests, "memory-above-4g", large, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        // 192 MiB less 64.
        has(&lines, "NAGAYA-ABOVE-4G 100000000-107ffffff")?;
        let total = lines
            .iter()
            .find_map(|line| line.strip_prefix("NAGAYA-MEMORY "));
        let kib = total.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if kib < 128 << 10 {
            return Err(format!("Linux found {kib} KiB of 192 MiB"));
        }
        has(&lines, "NAGAYA-DISK-GOOD")?;
        has(&lines, "NAGAYA-LINUX-DONE disk 0")?;
        expect::all_ended_well(reports)
    });
    // The serial port only until the driver of the other console is there: `earlycon` is a console of the boot's.
    let console = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=devices")).replace(
        "console=ttyS0",
        "quiet earlycon=uart8250,io,0x3f8 console=hvc0",
    ) + "virtio_console = true\n";
    test(tests, "virtio-console", console, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-CPUS 1")?;
        has(&lines, "NAGAYA-LINUX-DONE devices 0")?;
        expect::ended(report, "linux", "power-off", None)?;
        // By the serial port the same takes ten times as many.
        let ports = report
            .vm_ends()
            .next()
            .and_then(|end| end.exits.get("port").copied());
        match ports {
            Some(exits) if exits < 5_000 => expect::all_ended_well(reports),
            exits => Err(format!("it took {exits:?} exits by ports")),
        }
    });
    let root = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.root=/dev/vda"))
        + "[[vm.disk]]\nimage = \"built/rootfs\"\n";
    test(tests, "root-on-disk", root, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-ROOT /dev/vda ext4 rw")?;
        has(&lines, "NAGAYA-ROOT-SHELL /bin/sh")?;
        // Of the numbers 1 to 20000, a line each.
        has(&lines, "NAGAYA-ROOT-SUM e071f707df7bbeee2a6a1eb48011ddd0")?;
        has(&lines, "NAGAYA-ROOT-CLEAN")?;
        expect::ended(report, "linux", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    let again = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=reboot"))
        + "[[vm.disk]]\nram = \"1M\"\n";
    test(tests, "reboot", again, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        let boots = lines.iter().filter(|line| **line == "NAGAYA-LINUX-READY");
        if boots.count() != 2 {
            return Err("it was not ready twice".to_owned());
        }
        // It wrote that to the clock's RAM before: a reset keeps it.
        has(&lines, "NAGAYA-REBOOTED")?;
        has(&lines, "NAGAYA-DISK-KEPT")?;
        let causes: Vec<_> = report.vm_ends().map(|end| end.cause).collect();
        if causes != ["reset", "power-off"] {
            return Err(format!("it ended by {causes:?}"));
        }
        expect::all_ended_well(reports)
    });
    let module = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=kmod"))
        .replace("initramfs-busybox", "initramfs-nagaya")
        + "group = \"g\"\n\n[[group]]\nname = \"g\"\n";
    test(tests, "module", module, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        if let Some(failed) = lines
            .iter()
            .find(|line| line.starts_with("NAGAYA-KMOD FAILED"))
        {
            return Err((*failed).to_owned());
        }
        has(&lines, "NAGAYA-KMOD all passed")?;
        expect::ended(report, "linux", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    test(tests, "three-members", three_members(), |reports| {
        let report = expect::first(reports)?;
        let all = |vm| report.guest_lines(vm).collect::<Vec<_>>();
        has(&all("unikernel"), "tree: multiplied by 2, sum 665667000")?;
        has(&all("builder"), "NAGAYA-SHARE tree: sum 665667000")?;
        has(&all("searcher"), "NAGAYA-SHARE rust-tree: 500 -> 500000")?;
        expect::ended(report, "unikernel", "exit", Some(0))?;
        expect::ended(report, "builder", "power-off", None)?;
        expect::ended(report, "searcher", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    test(tests, "robust-lock", robust_lock(), |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("heir").collect();
        is_inherited(&lines)?;
        has(&lines, "NAGAYA-ROBUST sysfs holder died")?;
        let rust = [
            "the-holder-is-named",
            "half-done-as-it-was-left",
            "a-lock-again",
        ];
        expect::passed(report, "rust-heir", &rust)?;
        expect::ended(report, "holder", "destroyed", None)?;
        expect::ended(report, "heir", "power-off", None)?;
        expect::all_ended_well(reports)
    });
    if let Some(test) = tests.last_mut() {
        test.script = Some(|operator| {
            operator.await_machine()?;
            operator.await_state("heir", "running")?;
            operator.converse("heir", &[("NAGAYA-ROBUST waits for 0", "")])?;
            operator.must(&["destroy", "holder"])
        });
    }
    // On the model whose XSAVEC loses vector registers.
    let many = scenario(1, "debian/vmlinux", &format!("{FAST} nagaya.run=stress"))
        .replace(CPU_MODEL, "tigerlake");
    test(tests, "many-programs", many, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-STRESS 0 bad")?;
        expect::all_ended_well(reports)
    });
    if let Some(test) = tests.last_mut() {
        test.only_full = true;
    }
    let packed = scenario(1, "debian/bzImage", "nagaya.run=tour");
    test(tests, "bzimage", packed, |reports| {
        let report = expect::first(reports)?;
        let lines: Vec<_> = report.guest_lines("linux").collect();
        has(&lines, "NAGAYA-LINUX-DONE tour 0")?;
        keeps_time(&lines)?;
        wakes(&lines)?;
        is_quiet(&lines)?;
        expect::all_ended_well(reports)
    });
    if let Some(test) = tests.last_mut() {
        test.only_full = true;
    }
}

/// A machine with a group, which its VMs join.
fn with_group(cpus: u32, more: &str) -> String {
    format!(
        "[machine]\nbochs.cpu_model = \"{CPU_MODEL}\"\ncpus = {cpus}\nmemory = \"640M\"\n{more}\n[[group]]\nname = \"job\"\n"
    )
}

/// A Linux VM in that group, with a CPU of its own.
fn member(name: &str, cpu: u32, script: &str) -> String {
    format!(
        "\n[[vm]]\nname = \"{name}\"\nkind = \"linux\"\nimage = \"debian/vmlinux\"\n\
         initramfs = \"built/initramfs-nagaya\"\nmemory = \"160M\"\ncpu = {cpu}\ngroup = \"job\"\n\
         cmdline = \"console=ttyS0 {FAST} nagaya.run={script}\"\n"
    )
}

/// Two Linux VMs and a unikernel in one group.
fn three_members() -> String {
    let unikernel = "\n[[vm]]\nname = \"unikernel\"\nimage = \"tree\"\nmemory = \"32M\"\ncpu = 2\ngroup = \"job\"\n\
                     cmdline = \"seconds=2000\"\n";
    [
        &with_group(3, ""),
        &member("builder", 0, "share-build"),
        // Whose pages for the region lie above 4 GiB.
        &member("searcher", 1, "share-search").replace(
            "memory = \"160M\"",
            "memory = \"160M\"\nmemory_below_4g = \"64M\"",
        ),
        unikernel,
    ]
    .concat()
}

/// Two Linux VMs and a unikernel in Rust in one group, and an operator who kills the Linux that holds two locks.
fn robust_lock() -> String {
    let rust = "\n[[vm]]\nname = \"rust-heir\"\nimage = \"heir\"\nmemory = \"16M\"\ncpu = 2\ngroup = \"job\"\n";
    [
        with_group(3, "control = true\n"),
        member("holder", 0, "robust-hold"),
        member("heir", 1, "robust-inherit"),
        rust.to_owned(),
    ]
    .concat()
}

/// The heir got the lock because its holder had died, and was told so by epoll, each soon after the holder was last alive.
fn is_inherited(lines: &[&str]) -> Verdict {
    let said = |what: &str| {
        lines
            .iter()
            .filter_map(|line| line.strip_prefix("NAGAYA-ROBUST ")?.strip_prefix(what))
            .find_map(|tick| tick.trim().parse::<u64>().ok())
            .ok_or_else(|| format!("it did not say {what:?}"))
    };
    said("well")?;
    let alive = said("alive")?;
    for what in ["inherits", "epoll"] {
        let ticks = said(what)?.checked_sub(alive);
        if ticks.is_none_or(|ticks| ticks > DEATH_TICKS) {
            return Err(format!(
                "{what} came {ticks:?} ticks after the holder was last alive, not within {DEATH_TICKS}"
            ));
        }
    }
    Ok(())
}

fn has(lines: &[&str], wanted: &str) -> Verdict {
    if lines.contains(&wanted) {
        Ok(())
    } else {
        Err(format!("it did not print {wanted:?}"))
    }
}

/// The wall clock and the monotonic one go at one pace, and neither stands still.
fn keeps_time(lines: &[&str]) -> Verdict {
    let moments: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("NAGAYA-CLOCK-AT "))
        .filter_map(|line| {
            let (wall, uptime) = line.split_once(' ')?;
            Some((wall.parse().ok()?, uptime.parse().ok()?))
        })
        .collect();
    let [first, .., last] = moments.as_slice() else {
        return Err("it did not tell the time".to_owned());
    };
    let (wall, uptime) = (last.0 - first.0, last.1 - first.1);
    // Two sleeps of two seconds; `date` shows whole ones.
    if !(4.0..8.0).contains(&uptime) || (wall - uptime).abs() > 1.5 {
        return Err(format!(
            "between two looks {wall} s passed on the wall and {uptime} s of uptime"
        ));
    }
    Ok(())
}

/// It slept until the alarm, two seconds, and not for long after that.
fn wakes(lines: &[&str]) -> Verdict {
    let slept = lines
        .iter()
        .find_map(|line| line.strip_prefix("NAGAYA-SLEPT "));
    match slept.and_then(|text| text.parse::<u64>().ok()) {
        Some(1..=4) => Ok(()),
        _ => Err(format!("it slept {slept:?} seconds and not 2")),
    }
}

/// The kernel warned of nothing but what is known.
fn is_quiet(lines: &[&str]) -> Verdict {
    let counted = lines
        .iter()
        .filter_map(|line| line.strip_prefix("NAGAYA-WARNINGS "))
        .any(|count| count.parse::<u32>().is_ok());
    if !counted {
        return Err("it did not show its warnings".to_owned());
    }
    let warnings = lines
        .iter()
        .filter_map(|line| line.strip_prefix("NAGAYA-WARNING "));
    let new: Vec<_> = warnings
        .filter(|line| !TOLERATED.iter().any(|known| line.contains(known)))
        .collect();
    if new.is_empty() {
        Ok(())
    } else {
        Err(format!("the kernel warned:\n{}", new.join("\n")))
    }
}
