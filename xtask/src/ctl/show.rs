//! Answers as text for people. Pure functions.
//!
//! `ps` looks like what operators know: the columns of `xl list` (name, number, memory, vCPUs, state, seconds) in the manner
//! of `docker ps` (number first, ended ones only when asked for).

use std::fmt::Write as _;

use nagaya_vmm::control::{
    Event, FrameCounts, GroupRow, Hello, ImageRow, Registers, Segment, VcpuDump, VmRow, VmState,
};

use super::table::Side::{Left, Right};
use super::table::Table;

/// Text from the machine, fit for a terminal: what could move the cursor or change colours becomes a dot.
pub(super) fn clean(text: &str) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' { '.' } else { c };
    text.chars().map(keep).collect()
}

/// Bytes as a scenario file spells them.
pub(super) fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Ticks as seconds of the machine's time.
pub(super) fn seconds(ticks: u64, tsc_khz: u64) -> String {
    let tenths = u128::from(ticks) / (u128::from(tsc_khz.max(1)) * 100);
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn cap(percent: u32) -> String {
    match percent {
        0 => "-".into(),
        percent => format!("{percent}%"),
    }
}

fn or_dash(text: Option<&str>) -> String {
    text.map_or("-".into(), clean)
}

/// `ps`.
pub(super) fn vms(rows: &[VmRow], hello: &Hello, is_long: bool) -> String {
    let mut columns = vec![
        ("ID", Right),
        ("NAME", Left),
        ("GROUP", Left),
        ("STATE", Left),
        ("VCPUS", Right),
        ("MEM", Right),
        ("CPUS", Left),
        ("TIME(s)", Right),
    ];
    if is_long {
        columns.extend([
            ("STOLEN(s)", Right),
            ("CO-STOP(s)", Right),
            ("BLOCKED(s)", Right),
            ("EXITS", Right),
            ("BELLS", Right),
            ("THROTTLED", Right),
            ("SWITCHES", Right),
            ("MIGRATIONS", Right),
            ("WEIGHT", Right),
            ("CAP", Right),
            ("AFFINITY", Left),
        ]);
    }
    let any_ended = rows.iter().any(|row| row.state == VmState::Ended);
    if any_ended {
        columns.push(("CAUSE", Left));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let time = |ticks| seconds(ticks, hello.tsc_khz);
        let mut cells = vec![
            row.id.to_string(),
            row.name.clone(),
            or_dash(row.group.as_ref().map(|tag| tag.name.as_str())),
            row.state.to_string(),
            row.vcpus.to_string(),
            size(row.memory_bytes),
            row.cpus.to_string(),
            time(row.ticks.running),
        ];
        if is_long {
            cells.extend([
                time(row.ticks.runnable),
                time(row.ticks.co_stopped),
                time(row.ticks.blocked),
                exits(row).to_string(),
                row.doorbells.sent.to_string(),
                row.doorbells.throttled.to_string(),
                row.switches.to_string(),
                row.migrations.to_string(),
                row.weight.to_string(),
                cap(row.cap_percent),
                row.affinity.to_string(),
            ]);
        }
        if any_ended {
            cells.push(or_dash(row.cause.as_deref()));
        }
        table.row(cells);
    }
    table.text()
}

/// All exits of a VM.
pub(super) fn exits(row: &VmRow) -> u64 {
    row.exits
        .iter()
        .fold(0, |sum, exit| sum.saturating_add(exit.count))
}

/// `group ls`.
pub(super) fn groups(rows: &[GroupRow]) -> String {
    let mut table = Table::new(&[
        ("ID", Right),
        ("NAME", Left),
        ("MODE", Left),
        ("YIELD", Left),
        ("WEIGHT", Right),
        ("CAP", Right),
        ("GENERATION", Right),
        ("ADDRESS", Left),
        ("PAGES", Right),
        ("HAZARD", Right),
        ("MEMBERS", Left),
    ]);
    for row in rows {
        let members: Vec<String> = row.members.iter().map(u32::to_string).collect();
        table.row(vec![
            row.id.to_string(),
            row.name.clone(),
            row.mode.to_string(),
            if row.directed_yield { "on" } else { "off" }.into(),
            row.weight.to_string(),
            cap(row.cap_percent),
            row.generation.to_string(),
            match row.address {
                0 => "-".into(),
                address => format!("{address:#x}"),
            },
            row.region_pages.to_string(),
            percent(row.hazard_ticks, row.run_ticks),
            members.join(","),
        ]);
    }
    table.text()
}

/// A part of a whole, `12.3%`; `-` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// `images`.
pub(super) fn images(rows: &[ImageRow]) -> String {
    let mut table = Table::new(&[("IMAGE", Left), ("SIZE", Right)]);
    for row in rows {
        table.row(vec![clean(&row.name), size(row.bytes)]);
    }
    table.text()
}

/// `frames`.
pub(super) fn frames(frames: &FrameCounts) -> String {
    let mut table = Table::new(&[("OWNER", Left), ("FRAMES", Right), ("MEM", Right)]);
    for (owner, count) in [
        ("free", frames.free),
        ("reserved", frames.reserved),
        ("hypervisor", frames.hypervisor),
        ("vms", frames.vm),
        ("groups", frames.group),
        ("total", frames.total),
    ] {
        let kib = count.saturating_mul(4);
        table.row(vec![
            owner.into(),
            count.to_string(),
            format!("{}.{}M", kib >> 10, ((kib & 1023) * 10) >> 10),
        ]);
    }
    table.text()
}

/// `info`.
pub(super) fn info(hello: &Hello) -> String {
    let mib = |frames: u64| frames >> 8;
    format!(
        "Nagaya {}\nCPUs: {}\nTSC: {} kHz\nup: {} s\nmemory: {}M, {}M free\nrejected input: {}\n",
        clean(&hello.version),
        hello.cpus,
        hello.tsc_khz,
        seconds(hello.ticks, hello.tsc_khz),
        mib(hello.frames.total),
        mib(hello.frames.free),
        hello.rejected
    )
}

/// One line of `events`.
pub(super) fn event(event: &Event, tsc_khz: u64) -> String {
    let mut line = format!(
        "[{:>8}] {}",
        seconds(event.ticks, tsc_khz),
        clean(&event.name)
    );
    // Writing to a String cannot fail.
    if let Some(vm) = event.vm {
        let _ = write!(line, " VM {vm}");
    }
    if !event.text.is_empty() {
        let _ = write!(line, ": {}", clean(&event.text).replace('\n', " "));
    }
    if event.lost > 0 {
        let _ = write!(line, " ({} events before it were lost)", event.lost);
    }
    line
}

/// The general registers, in the order of their encoding.
pub(super) const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// The segment registers, in the order of their encoding.
pub(super) const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// The control registers and those like them.
pub(super) fn controls(registers: &Registers) -> [(&'static str, u64); 7] {
    [
        ("rip", registers.rip),
        ("rflags", registers.rflags),
        ("cr0", registers.cr0),
        ("cr2", registers.cr2),
        ("cr3", registers.cr3),
        ("cr4", registers.cr4),
        ("efer", registers.efer),
    ]
}

/// All segments by name.
pub(super) fn segments(registers: &Registers) -> impl Iterator<Item = (&'static str, Segment)> {
    let others = [("ldtr", registers.ldtr), ("tr", registers.tr)];
    SEGMENTS.into_iter().zip(registers.segments).chain(others)
}

/// One vCPU of `dump`.
pub(super) fn dump(dump: &VcpuDump) -> String {
    let place = match dump.cpu {
        Some(cpu) => format!("on CPU {cpu}"),
        None => "on no CPU".into(),
    };
    let mut text = format!(
        "vCPU {} of {} of VM {}, {place}\n",
        dump.vcpu, dump.vcpus, dump.vm
    );
    let general = GENERAL.into_iter().zip(dump.registers.general);
    let named: Vec<_> = controls(&dump.registers)
        .into_iter()
        .chain(general)
        .collect();
    for line in named.chunks(4) {
        let cells = line
            .iter()
            .map(|(name, value)| format!("{name:>6} {value:016x}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join(" "));
    }
    for (name, segment) in segments(&dump.registers) {
        let Segment {
            selector,
            base,
            limit,
            access,
        } = segment;
        let _ = writeln!(
            text,
            "{name:>6} {selector:04x} base {base:016x} limit {limit:08x} access {access:05x}"
        );
    }
    for (name, table) in [("gdtr", dump.registers.gdtr), ("idtr", dump.registers.idtr)] {
        let _ = writeln!(
            text,
            "{name:>6}      base {:016x} limit {:08x}",
            table.base, table.limit
        );
    }
    if dump.last_exits.is_empty() {
        text.push_str("no exits yet\n");
        return text;
    }
    text.push_str("last exits, the oldest first:\n");
    let mut table = Table::new(&[
        ("TICKS", Right),
        ("RIP", Right),
        ("QUALIFICATION", Right),
        ("GPA", Right),
        ("REASON", Left),
    ]);
    for exit in &dump.last_exits {
        table.row(vec![
            exit.ticks.to_string(),
            format!("{:x}", exit.rip),
            format!("{:x}", exit.qualification),
            format!("{:x}", exit.gpa),
            format!("{} ({})", exit.name(), exit.reason),
        ]);
    }
    text + &table.text()
}
