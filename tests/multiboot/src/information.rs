//! What the boot loader says: registers, memory, modules, command line, its name.
//!
//! Source: Multiboot Specification 0.6.96, 3.2 "Machine state", 3.3 "Boot information format".

use crate::boot;
use crate::cpu::{bytes, read};
use crate::report::Report;

const MAGIC: u32 = 0x2BAD_B002;
const FIRST: &[u8] = include_bytes!("../modules/first.txt");
const SECOND: &[u8] = include_bytes!("../modules/second.txt");

const MEMORY: u32 = 1 << 0;
const CMDLINE: u32 = 1 << 2;
const MODULES: u32 = 1 << 3;
const MEMORY_MAP: u32 = 1 << 6;
const LOADER_NAME: u32 = 1 << 9;

/// A field of the information.
fn field(offset: u64) -> u32 {
    read(u64::from(boot::state().ebx) + offset)
}

fn has(flag: u32) -> bool {
    field(0) & flag != 0
}

/// A string as C has it, of at most 4096 bytes.
fn string(address: u32) -> &'static str {
    let length = (0..4096)
        .take_while(|offset| read::<u8>(u64::from(address) + offset) != 0)
        .count();
    core::str::from_utf8(bytes(address, length)).unwrap_or("")
}

/// The value of `name=value` on the command line.
pub(crate) fn argument(name: &str) -> Option<&'static str> {
    if boot::state().eax != MAGIC || !has(CMDLINE) {
        return None;
    }
    string(field(16)).split_whitespace().find_map(|word| {
        let (key, value) = word.split_once('=')?;
        (key == name).then_some(value)
    })
}

/// A number on the command line.
pub(crate) fn number(name: &str) -> u64 {
    argument(name)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

pub(crate) fn check(report: &mut Report) {
    let state = boot::state();
    report.equal("magic", state.eax, MAGIC);
    // Protection on, paging off; interrupts off, and nothing traps.
    report.equal("start-cr0", state.cr0 & 0x8000_0001, 1);
    report.equal("start-flags", state.eflags & 0x2_0300, 0);
    report.check(
        "start-segments",
        state.selectors.iter().all(|selector| *selector & 7 == 0),
        state.selectors,
    );
    let all = MEMORY | CMDLINE | MODULES | MEMORY_MAP | LOADER_NAME;
    report.equal("flags", field(0) & all, all);
    memory(report);
    modules(report);
    report.equal("loader-name", string(field(64)), "Nagaya");
    report.equal("command-line", argument("quoted"), Some("a,b"));
}

/// The map: entries in order and apart, RAM where the two numbers say, and as much as the scenario gave.
fn memory(report: &mut Report) {
    let given = number("mib") << 20;
    report.equal("lower-memory", field(4), 640);
    report.equal(
        "upper-memory",
        u64::from(field(8)) << 10,
        given.saturating_sub(1 << 20),
    );
    let (mut at, end) = (
        u64::from(field(48)),
        u64::from(field(48)) + u64::from(field(44)),
    );
    let (mut ram, mut last_end, mut ordered) = (0, 0, true);
    let (mut holds_kernel, mut says_of_display) = (false, false);
    while at < end {
        let entry_bytes: u32 = read(at);
        let (start, length): (u64, u64) = (read(at + 4), read(at + 12));
        let kind: u32 = read(at + 20);
        ordered &= start >= last_end && length != 0 && entry_bytes >= 20;
        last_end = start + length;
        says_of_display |= start < 0xE_0000 && last_end > 0xA_0000;
        if kind == 1 {
            ram += length;
            let kernel = boot::kernel_range();
            holds_kernel |= start <= kernel.start && kernel.end <= last_end;
        }
        at += u64::from(entry_bytes.max(16)) + 4;
    }
    report.check("map-in-order", ordered && at == end, (at, end, last_end));
    // All but the 384 KiB below 1 MiB.
    report.equal("map-ram", ram, given.saturating_sub(0x6_0000));
    report.check("map-holds-kernel", holds_kernel, ());
    report.check("map-leaves-display-out", !says_of_display, ());
    mp_tables(report);
}

/// The MultiProcessor tables, found as kernels find them that know no ACPI: by their pointer in the 64 KiB below 1 MiB.
fn mp_tables(report: &mut Report) {
    let sum = |at: u64, count: usize| {
        let bytes = bytes(at as u32, count).iter();
        bytes.fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
    };
    let pointer = (0xF_0000..0x10_0000)
        .step_by(16)
        .find(|at| read::<u32>(*at) == 0x5F50_4D5F && sum(*at, 16) == 0);
    let Some(pointer) = pointer else {
        return report.fail("mp-tables", "no pointer");
    };
    let table = u64::from(read::<u32>(pointer + 4));
    let length = read::<u16>(table + 4);
    let processors = (table + 44..table + u64::from(length))
        .step_by(4)
        .take_while(|at| (at - table - 44) % 20 != 0 || read::<u8>(*at) == 0)
        .count();
    report.check(
        "mp-tables",
        read::<u32>(table) == 0x504D_4350 && sum(table, length.into()) == 0 && processors >= 5,
        (table, length, processors),
    );
}

fn modules(report: &mut Report) {
    let found = |index: u64| {
        let at = u64::from(field(24)) + index * 16;
        let (start, end): (u32, u32) = (read(at), read(at + 4));
        let text = string(read(at + 8));
        (
            start,
            bytes(start, end.saturating_sub(start) as usize),
            text,
        )
    };
    let wanted = number("modules");
    report.equal("module-count", u64::from(field(20)), wanted);
    if wanted != 2 || field(20) != 2 {
        return;
    }
    let (first, second) = (found(0), found(1));
    report.equal("module-strings", (first.2, second.2), ("first a=1", ""));
    report.check(
        "module-pages",
        first.0 % 4096 == 0 && second.0 % 4096 == 0,
        (first.0, second.0),
    );
    let kernel = boot::kernel_range();
    report.check(
        "modules-behind-kernel",
        u64::from(first.0) >= kernel.end && second.0 as usize >= first.0 as usize + first.1.len(),
        (first.0, second.0),
    );
    report.check("module-one", first.1 == FIRST, first.1.len());
    report.check("module-two", second.1 == SECOND, second.1.len());
}
