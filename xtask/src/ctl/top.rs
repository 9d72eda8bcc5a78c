//! `top`: VMs and groups on one screen, live.
//!
//! Rates come from two looks, per second of the machine's own time: an emulated machine is slower than the clock on the wall.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::time::Instant;

use anyhow::Result;
use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use nagaya_harness::interrupt;
use nagaya_vmm::control::{Answer, FrameCounts, GroupRow, Hello, Request, VmRow, VmState};
use serde_json::{Value, json};

use super::args::Top;
use super::client::{Client, unexpected};
use super::output::{SIGNAL_POLL, print, write};
use super::table::Side::{Left, Right};
use super::table::Table;
use super::terminal::Screen;
use super::{json, show};

/// One look at the machine.
pub(super) struct Sample {
    pub(super) vms: Vec<VmRow>,
    pub(super) groups: Vec<GroupRow>,
    pub(super) frames: FrameCounts,
}

impl Sample {
    fn take(client: &mut Client) -> Result<Sample> {
        let frames = match client.ask(&Request::Frames)? {
            Answer::Frames(frames) => frames,
            other => return Err(unexpected(&other)),
        };
        Ok(Sample {
            vms: client.vms()?,
            groups: client.groups()?,
            frames,
        })
    }
}

/// Watches until q, Ctrl-C, a signal, or the last look.
pub(super) fn run(client: &mut Client, wish: &Top, as_json: bool) -> Result<()> {
    interrupt::install();
    let screen = if io::stdout().is_terminal() && io::stdin().is_terminal() && !as_json {
        Some(Screen::enter()?)
    } else {
        None
    };
    let mut before: Option<Sample> = None;
    let mut looks = 0;
    loop {
        let now = Sample::take(client)?;
        if as_json {
            print(&as_value(&now, client.hello()))?;
        } else {
            let lines = lines(before.as_ref(), &now, client.hello());
            match &screen {
                Some(screen) => screen.show(&lines)?,
                None => write(&(lines.join("\n") + "\n\n"))?,
            }
        }
        before = Some(now);
        looks += 1;
        if wish.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        let next = Instant::now() + wish.interval;
        while Instant::now() < next {
            let left = next
                .saturating_duration_since(Instant::now())
                .min(SIGNAL_POLL);
            if interrupt::requested() || (screen.is_some() && wants_to_quit(left)?) {
                return Ok(());
            }
            if screen.is_none() {
                std::thread::sleep(left);
            }
        }
    }
}

/// Waits for a key.
fn wants_to_quit(wait: std::time::Duration) -> io::Result<bool> {
    if !crossterm::event::poll(wait)? {
        return Ok(false);
    }
    let Event::Key(key) = crossterm::event::read()? else {
        return Ok(false);
    };
    let is_control_c =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let is_quit = matches!(key.code, KeyCode::Char('q' | 'Q'));
    Ok(key.kind == KeyEventKind::Press && (is_quit || is_control_c))
}

fn as_value(sample: &Sample, hello: &Hello) -> Value {
    json!({
        "vms": sample.vms.iter().map(|row| json::vm(row, hello)).collect::<Vec<_>>(),
        "groups": sample.groups.iter().map(json::group).collect::<Vec<_>>(),
        "frames": json::frames(&sample.frames),
    })
}

/// What a VM did between two looks. Counters that went back are those of a VM that was reset: it counts from 0.
struct Delta<'a> {
    row: &'a VmRow,
    running: u64,
    runnable: u64,
    co_stopped: u64,
    blocked: u64,
    exits: u64,
    bells: u64,
    switches: u64,
    migrations: u64,
    /// Ticks that passed.
    elapsed: u64,
}

impl Delta<'_> {
    fn new<'a>(before: Option<&VmRow>, row: &'a VmRow) -> Delta<'a> {
        let before = before.filter(|before| before.ticks.total <= row.ticks.total);
        let since = |count: fn(&VmRow) -> u64| count(row).saturating_sub(before.map_or(0, count));
        Delta {
            row,
            running: since(|row| row.ticks.running),
            runnable: since(|row| row.ticks.runnable),
            co_stopped: since(|row| row.ticks.co_stopped),
            blocked: since(|row| row.ticks.blocked),
            exits: since(show::exits),
            bells: since(|row| row.doorbells.sent),
            switches: since(|row| row.switches),
            migrations: since(|row| row.migrations),
            elapsed: since(|row| row.ticks.total) / u64::from(row.vcpus.max(1)),
        }
    }

    /// So many a second of the machine's time.
    fn rate(&self, count: u64, tsc_khz: u64) -> String {
        match self.elapsed {
            0 => "-".into(),
            ticks => {
                let rate = u128::from(count) * u128::from(tsc_khz) * 1000 / u128::from(ticks);
                rate.to_string()
            }
        }
    }
}

/// The screen. Without an earlier look the rates are those since each VM's start.
fn lines(before: Option<&Sample>, now: &Sample, hello: &Hello) -> Vec<String> {
    let old_vms: HashMap<u32, &VmRow> = before
        .iter()
        .flat_map(|sample| &sample.vms)
        .map(|row| (row.id, row))
        .collect();
    // What is over does not move any more.
    let living = || now.vms.iter().filter(|row| row.state != VmState::Ended);
    let mut deltas: Vec<Delta<'_>> = living()
        .map(|row| Delta::new(old_vms.get(&row.id).copied(), row))
        .collect();
    // By what they use now, the most first; what is equal stays in its place.
    deltas.sort_by_key(|delta| {
        std::cmp::Reverse(u128::from(delta.running) * 1_000_000 / u128::from(delta.elapsed.max(1)))
    });
    let in_state = |state| now.vms.iter().filter(|row| row.state == state).count();
    let mut lines = vec![
        format!(
            "Nagaya {}: {} CPUs; memory {}M, {}M free; {} VMs, {} running, {} runnable, {} blocked, {} paused; {} groups",
            show::clean(&hello.version),
            hello.cpus,
            now.frames.total >> 8,
            now.frames.free >> 8,
            living().count(),
            in_state(VmState::Running),
            in_state(VmState::Runnable),
            in_state(VmState::Blocked),
            in_state(VmState::Paused),
            now.groups.len()
        ),
        String::new(),
    ];
    lines.extend(vm_table(&deltas, hello).lines());
    if !now.groups.is_empty() {
        lines.push(String::new());
        lines.extend(group_table(before, now).lines());
    }
    lines
}

fn vm_table(deltas: &[Delta<'_>], hello: &Hello) -> Table {
    let mut table = Table::new(&[
        ("ID", Right),
        ("NAME", Left),
        ("GROUP", Left),
        ("STATE", Left),
        ("CPU", Right),
        ("STOLEN", Right),
        ("CO-STOP", Right),
        ("BLOCKED", Right),
        ("EXITS/s", Right),
        ("BELLS/s", Right),
        ("SW/s", Right),
        ("MIG/s", Right),
        ("CPUS", Left),
    ]);
    for delta in deltas {
        let row = delta.row;
        let share = |ticks| show::percent(ticks, delta.elapsed);
        let rate = |count| delta.rate(count, hello.tsc_khz);
        table.row(vec![
            row.id.to_string(),
            row.name.clone(),
            row.group
                .as_ref()
                .map_or("-".into(), |tag| tag.name.clone()),
            row.state.to_string(),
            share(delta.running),
            share(delta.runnable),
            share(delta.co_stopped),
            share(delta.blocked),
            rate(delta.exits),
            rate(delta.bells),
            rate(delta.switches),
            rate(delta.migrations),
            row.cpus.to_string(),
        ]);
    }
    table
}

fn group_table(before: Option<&Sample>, now: &Sample) -> Table {
    let mut table = Table::new(&[
        ("ID", Right),
        ("GROUP", Left),
        ("MODE", Left),
        ("MEMBERS", Right),
        ("WEIGHT", Right),
        ("HAZARD", Right),
    ]);
    for row in &now.groups {
        let old = before
            .and_then(|sample| sample.groups.iter().find(|old| old.id == row.id))
            .filter(|old| old.run_ticks <= row.run_ticks && old.hazard_ticks <= row.hazard_ticks);
        let run = row.run_ticks - old.map_or(0, |old| old.run_ticks);
        let hazard = row.hazard_ticks - old.map_or(0, |old| old.hazard_ticks);
        table.row(vec![
            row.id.to_string(),
            row.name.clone(),
            row.mode.to_string(),
            row.members.len().to_string(),
            row.weight.to_string(),
            show::percent(hazard, run),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagaya_vmm::control::{Backend, CreateVm, MockBackend, Selector};

    fn look(machine: &mut MockBackend) -> Sample {
        Sample {
            vms: machine.vms.values().cloned().collect(),
            groups: machine.groups.values().cloned().collect(),
            frames: machine.frames(),
        }
    }

    #[test]
    fn rates_are_those_since_the_last_look_and_the_busiest_stands_first() {
        let mut machine = MockBackend::new();
        for name in ["idle", "busy", "gone"] {
            let group = Some(Selector::Name("pair".into()));
            machine.add(&CreateVm {
                memory_bytes: 16 << 20,
                group,
                ..CreateVm::new(name, "hog")
            });
        }
        machine.pass(50_000_000);
        let before = look(&mut machine);
        machine.vms.remove(&2);
        if let Some(row) = machine.vms.get_mut(&0) {
            row.state = VmState::Blocked;
        }
        // Half a second of a TSC of 10 MHz.
        machine.pass(5_000_000);
        if let Some(row) = machine.vms.get_mut(&1) {
            row.exits[0].count += 100;
            row.switches += 3;
        }
        if let Some(group) = machine.groups.get_mut(&0) {
            (group.run_ticks, group.hazard_ticks) = (1000, 125);
        }
        let now = look(&mut machine);
        let hello = machine.hello();
        let screen = lines(Some(&before), &now, &hello);
        assert_eq!(
            screen.join("\n"),
            "\
Nagaya 0.1.0: 4 CPUs; memory 512M, 463M free; 2 VMs, 1 running, 0 runnable, 1 blocked, 0 paused; 1 groups

ID  NAME  GROUP  STATE       CPU  STOLEN  CO-STOP  BLOCKED  EXITS/s  BELLS/s  SW/s  MIG/s  CPUS
 1  busy  pair   running  100.0%    0.0%     0.0%     0.0%      200        0     6      0  1
 0  idle  pair   blocked    0.0%    0.0%     0.0%   100.0%        0        0     0      0  0

ID  GROUP  MODE     MEMBERS  WEIGHT  HAZARD
 0  pair   relaxed        3     256   12.5%"
        );
    }

    #[test]
    fn a_vm_that_was_reset_counts_from_nothing() {
        let mut machine = MockBackend::new();
        let vm = machine.add(&CreateVm::new("again", "hog"));
        machine.pass(1_000_000);
        let before = look(&mut machine);
        if let Some(row) = machine.vms.get_mut(&vm) {
            row.ticks = Default::default();
        }
        machine.pass(1000);
        let now = look(&mut machine);
        let delta = Delta::new(before.vms.first(), &now.vms[0]);
        assert_eq!((delta.running, delta.elapsed), (1000, 1000));
    }
}
