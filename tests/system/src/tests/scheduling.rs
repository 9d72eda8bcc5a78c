//! vCPUs that share CPUs: nobody keeps a CPU for himself, shares and caps are kept, groups make progress in every mode.

use std::fmt::Write;

use nagaya_harness::RunReport;

use crate::expect;
use crate::{SystemTest, Verdict};

/// A scenario of `worker`s, on as few lines as it can be said.
struct Workers {
    text: String,
}

impl Workers {
    fn on(cpus: u32) -> Workers {
        let text = format!("[machine]\ncpus = {cpus}\nmemory = \"512M\"\ntimeout = \"240s\"\n");
        Workers { text }
    }

    fn group(mut self, lines: &str) -> Workers {
        let _ = write!(
            self.text,
            "\n[[group]]\nname = \"g\"\npages = 16\n{lines}\n"
        );
        self
    }

    /// A VM with further lines of its own. The span of all begins at a boundary of the clock that is far from their boot, which
    /// takes 5 to 8 s of the emulator's 10 MHz: with one in between they would not begin together.
    fn vm(mut self, name: &str, cmdline: &str, lines: &str) -> Workers {
        let (align, phase) = (1 << 26, 1 << 25);
        let _ = write!(
            self.text,
            "\n[[vm]]\nname = \"{name}\"\nimage = \"worker\"\nmemory = \"8M\"\ncmdline = \"{cmdline} align={align} phase={phase}\"\n{lines}\n"
        );
        self
    }
}

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let mut test = |name: &str, workers: Workers, expect: fn(&[RunReport]) -> Verdict| {
        tests.push(SystemTest::new(
            &format!("scheduling/{name}"),
            workers.text,
            expect,
        ));
    };
    test(
        "endless-loop-is-preempted",
        Workers::on(1)
            .vm("looper", "load=hog ms=300", "cpu = 0")
            .vm("quick", "load=quick ms=1", "cpu = 0"),
        |reports| {
            let report = well(reports)?;
            match report.vm_ends().next() {
                Some(end) if end.vm == "quick" => Ok(()),
                other => Err(format!("the first to end was {other:?}, not quick")),
            }
        },
    );
    test(
        "three-share-a-cpu",
        Workers::on(1)
            .vm("a", "load=hog ms=900", "cpu = 0")
            .vm("b", "load=hog ms=900", "cpu = 0")
            .vm("c", "load=hog ms=900", "cpu = 0"),
        |reports| shares(well(reports)?, &[("a", 1), ("b", 1), ("c", 1)], 2),
    );
    let mut sixteen = Workers::on(2);
    for vm in 0..16 {
        sixteen = sixteen.vm(&format!("v{vm}"), "load=hog ms=400", "");
    }
    test("sixteen-on-two-cpus", sixteen, |reports| {
        let report = well(reports)?;
        for vm in 0..16 {
            let name = format!("v{vm}");
            if field(report, &name, "steps")? == 0 {
                return Err(format!("{name} never ran"));
            }
        }
        Ok(())
    });
    for mode in ["off", "balance", "prefer", "relaxed", "strict"] {
        let mut workers = Workers::on(2).group(&format!("mode = \"{mode}\""));
        for member in 0..3 {
            workers = workers.vm(
                &format!("m{member}"),
                "load=barrier members=3 ms=300",
                "group = \"g\"",
            );
        }
        test(&format!("barrier-{mode}"), workers, |reports| {
            let report = well(reports)?;
            let steps = ["m0", "m1", "m2"].map(|vm| field(report, vm, "steps"));
            let mut counts = Vec::new();
            for count in steps {
                counts.push(count?);
            }
            let (least, most) = (counts.iter().min(), counts.iter().max());
            match (least, most) {
                // Who sees the end first leaves the others at the barrier.
                (Some(least), Some(most)) if *least > 0 && most - least <= 1 => Ok(()),
                _ => Err(format!("the members met {counts:?} times")),
            }
        });
    }
    test(
        "affinity-is-kept",
        Workers::on(2)
            .vm("a", "load=hog ms=600", "affinity = \"0\"")
            .vm("b", "load=hog ms=600", "affinity = \"0\"")
            .vm("alone", "load=hog ms=600", "affinity = \"1\""),
        |reports| {
            let report = well(reports)?;
            // The one beside them runs out of work never, and nobody comes to its CPU.
            no_more_than("stolen", report, "alone", 0)?;
            shares(report, &[("a", 1), ("b", 1), ("alone", 2)], 2)
        },
    );
    test(
        "clock-and-stolen-time",
        Workers::on(2)
            .vm("a", "load=clock ms=300", "")
            .vm("b", "load=clock ms=300", "")
            .vm("c", "load=clock ms=300", ""),
        |reports| {
            let report = well(reports)?;
            let mut stolen = 0;
            for vm in ["a", "b", "c"] {
                expect::passed(
                    report,
                    vm,
                    &["clock-never-goes-back", "stolen-never-shrinks"],
                )?;
                stolen += field(report, vm, "stolen")?;
            }
            // Three want two CPUs: a CPU's worth of the time is stolen from them together.
            let span = field(report, "a", "ticks")?;
            if stolen.abs_diff(span) * 5 > span {
                return Err(format!("{stolen} ticks of {span} are stolen"));
            }
            Ok(())
        },
    );
    test(
        "nothing-is-stolen-from-one-alone",
        Workers::on(1).vm("a", "load=clock ms=100", ""),
        |reports| no_more_than("stolen", well(reports)?, "a", 0),
    );
    test(
        "yield-to-errors",
        Workers::on(1)
            .group("mode = \"off\"")
            .vm("alone", "load=yields ms=20", "")
            .vm("m0", "load=yields ms=20", "group = \"g\"")
            .vm("m1", "load=yields ms=20", "group = \"g\""),
        |reports| {
            let report = well(reports)?;
            expect::passed(report, "alone", &["yield-without-group"])?;
            for member in ["m0", "m1"] {
                expect::passed(
                    report,
                    member,
                    &["yield-to-nobody", "yield-beyond-all", "yield-to-peer"],
                )?;
            }
            Ok(())
        },
    );
    test(
        "weights-one-to-two",
        Workers::on(1)
            .vm("a", "load=hog ms=1000", "weight = 256")
            .vm("b", "load=hog ms=1000", "weight = 512"),
        |reports| shares(well(reports)?, &[("a", 1), ("b", 2)], 2),
    );
    test(
        "cap-is-kept",
        Workers::on(2)
            .vm("capped", "load=hog ms=600", "cpu = 0\ncap = 40")
            .vm("free", "load=hog ms=600", "cpu = 1"),
        |reports| {
            let report = well(reports)?;
            let (capped, free) = (
                field(report, "capped", "steps")?,
                field(report, "free", "steps")?,
            );
            let percent = capped * 100 / free.max(1);
            if (37..=43).contains(&percent) {
                Ok(())
            } else {
                Err(format!(
                    "a VM capped at 40 % did {percent} % of a CPU's work"
                ))
            }
        },
    );
    test(
        "thief-that-yields",
        thieves(1, "load=yielder burst_us=49500"),
        nothing_is_gained,
    );
    test(
        "thief-that-exits",
        Workers::on(1)
            .vm("thief", "load=exiter burst_us=2000 ms=1000 work=40", "")
            .vm("victim", "load=hog ms=1000 work=40", ""),
        |reports| {
            let report = well(reports)?;
            let (thief, victim) = (
                field(report, "thief", "steps")?,
                field(report, "victim", "steps")?,
            );
            // Its exits cost it some of its own; were each to begin its slice anew it would have 54 %.
            if thief * 100 > (thief + victim) * 51 {
                return Err(format!("the thief did {thief} steps, the victim {victim}"));
            }
            match field(report, "thief", "slices")? {
                40.. => Ok(()),
                slices => Err(format!("only {slices} of its slices were ended")),
            }
        },
    );
    test(
        "thieves-that-ring",
        thieves(2, "load=ringer burst_us=4500"),
        nothing_is_gained,
    );
    test(
        "spinning-gives-way",
        Workers::on(1)
            .group("mode = \"off\"\ndirected_yield = true")
            .vm("m0", "load=barrier members=2 ms=200", "group = \"g\"")
            .vm("m1", "load=barrier members=2 ms=200", "group = \"g\""),
        |reports| {
            let report = well(reports)?;
            let steps = field(report, "m0", "steps")?;
            let exits = field(report, "m0", "spins")?;
            // 20 slices: without the exits there would be a meeting or two in each, 40 at most.
            if steps > 60 && exits > 0 {
                Ok(())
            } else {
                Err(format!("{steps} meetings, {exits} exits of spinning"))
            }
        },
    );
}

/// Thieves on CPU 0 beside an honest VM, and two honest ones on CPU 1, with slices of 50 ms for 100 slices.
fn thieves(thieves: usize, cmdline: &str) -> Workers {
    let mut workers = Workers::on(2);
    workers.text += "slice = \"50ms\"\nrate_limit = \"5ms\"\n";
    workers = workers.group("mode = \"off\"");
    for thief in 0..thieves {
        workers = workers.vm(
            &format!("thief{thief}"),
            &format!("{cmdline} ms=5000"),
            "cpu = 0\ngroup = \"g\"",
        );
    }
    workers
        .vm("victim", "load=hog ms=5000", "cpu = 0")
        .vm("a", "load=hog ms=5000", "cpu = 1")
        .vm("b", "load=hog ms=5000", "cpu = 1")
}

/// The thieves have no more than half of their CPU and a point, and the victim lost no more than a point of the CPU that an honest
/// VM on the other one has.
fn nothing_is_gained(reports: &[RunReport]) -> Verdict {
    let report = well(reports)?;
    let stolen: u64 = report
        .rows()
        .filter(|(vm, _)| vm.starts_with("thief"))
        .filter_map(|(_, row)| row.get("steps")?.as_u64())
        .sum();
    let victim = field(report, "victim", "steps")?;
    let fair = (field(report, "a", "steps")? + field(report, "b", "steps")?) / 2;
    if stolen * 100 > (stolen + victim) * 51 {
        return Err(format!("thieves did {stolen} steps, the victim {victim}"));
    }
    if victim * 50 < fair * 49 {
        return Err(format!("the victim did {victim} steps; {fair} are fair"));
    }
    if stolen * 4 < fair {
        return Err(format!("the thieves did {stolen} steps: they hardly ran"));
    }
    Ok(())
}

/// The one run, which must have ended well, with all frames back.
fn well(reports: &[RunReport]) -> Result<&RunReport, String> {
    expect::all_ended_well(reports)?;
    expect::first(reports)
}

/// A number of a VM's row.
fn field(report: &RunReport, vm: &str, key: &str) -> Result<u64, String> {
    report
        .rows()
        .find(|(name, _)| name == vm)
        .and_then(|(_, row)| row.get(key)?.as_u64())
        .ok_or_else(|| format!("VM {vm} sent no {key}"))
}

fn no_more_than(key: &str, report: &RunReport, vm: &str, most: u64) -> Verdict {
    match field(report, vm, key)? {
        found if found <= most => Ok(()),
        found => Err(format!("{vm}: {key} is {found}, more than {most}")),
    }
}

/// The VMs' steps are to each other as these numbers, within so many percent of all.
fn shares(report: &RunReport, wanted: &[(&str, u64)], percent: u64) -> Verdict {
    let mut steps = Vec::new();
    for (vm, _) in wanted {
        steps.push(field(report, vm, "steps")?);
    }
    let (all, parts) = (
        steps.iter().sum::<u64>(),
        wanted.iter().map(|(_, part)| part).sum::<u64>(),
    );
    for ((vm, part), steps) in wanted.iter().zip(&steps) {
        let due = all * part / parts;
        if steps.abs_diff(due) * 100 > all * percent {
            return Err(format!(
                "{vm} did {steps} steps of {all}; {due} are its share"
            ));
        }
    }
    Ok(())
}
