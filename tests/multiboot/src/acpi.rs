//! ACPI's tables, as far as a small kernel follows them: to the processors, and to the power switch.
//!
//! Source: ACPI Specification 6.4, 5.2 "ACPI System Description Tables", 4.8.3.2 "PM1 Control Registers".

use crate::cpu::{in16, out16, read};
use crate::report::Report;

const SEARCHED: core::ops::Range<u64> = 0xE_0000..0x10_0000;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;

/// A table is its address; 0 is none.
type Table = u64;

fn sum(start: u64, length: u64) -> u8 {
    (start..start + length).fold(0, |sum, at| sum.wrapping_add(read::<u8>(at)))
}

fn signature(table: Table) -> [u8; 4] {
    read::<u32>(table).to_le_bytes()
}

fn length(table: Table) -> u64 {
    u64::from(read::<u32>(table + 4))
}

fn rsdp() -> Option<u64> {
    SEARCHED
        .step_by(16)
        .find(|at| read::<u64>(*at).to_le_bytes() == *b"RSD PTR " && sum(*at, 20) == 0)
}

/// The tables that the XSDT names.
fn tables() -> impl Iterator<Item = Table> {
    let xsdt = rsdp().map_or(0, |rsdp| read::<u64>(rsdp + 24));
    let count = if xsdt == 0 {
        0
    } else {
        (length(xsdt) - 36) / 8
    };
    (0..count).map(move |index| read::<u64>(xsdt + 36 + index * 8))
}

fn table(name: &[u8; 4]) -> Option<Table> {
    tables().find(|table| signature(*table) == *name)
}

/// Port of PM1a control, and the sleep type in the package that `\_S5` names in the DSDT.
fn power_switch() -> Option<(u16, u16)> {
    let fadt = table(b"FACP")?;
    let port = u16::try_from(read::<u32>(fadt + 64)).ok()?;
    let dsdt = u64::from(read::<u32>(fadt + 40));
    let name =
        (dsdt + 36..dsdt + length(dsdt)).find(|at| read::<u32>(*at).to_le_bytes() == *b"_S5_")?;
    // PackageOp, its length in one byte, number of elements, then BytePrefix and the value.
    let (package, prefix) = (read::<u8>(name + 4), read::<u8>(name + 7));
    (package == 0x12 && prefix == 0x0A).then(|| (port, read::<u8>(name + 8).into()))
}

/// Switches the power off.
pub(crate) fn switch_off() {
    if let Some((port, kind)) = power_switch() {
        out16(port, kind << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
    }
}

pub(crate) fn check(report: &mut Report) {
    report.check(
        "acpi-pointer",
        rsdp().is_some_and(|rsdp| sum(rsdp, 36) == 0),
        rsdp(),
    );
    let bad = tables().find(|table| sum(*table, length(*table)) != 0);
    report.check("acpi-sums", bad.is_none(), bad);
    let Some(madt) = table(b"APIC") else {
        return report.fail("acpi-processors", "there is no MADT");
    };
    let (mut at, mut processors, mut timer_pin) = (madt + 44, 0, 0);
    while at < madt + length(madt) {
        let (kind, bytes) = (read::<u8>(at), read::<u8>(at + 1));
        match kind {
            0 => processors += read::<u32>(at + 4) & 1,
            2 if read::<u8>(at + 3) == 0 => timer_pin = read::<u32>(at + 4),
            _ => {}
        }
        at += u64::from(bytes.max(2));
    }
    let wanted = crate::information::argument("vcpus").and_then(|text| text.parse().ok());
    report.equal("acpi-processors", Some(processors), wanted.or(Some(1)));
    report.equal("acpi-timer-pin", timer_pin, 2);
    let switch = power_switch();
    // ACPI is on: there is nothing to switch it on with.
    report.check(
        "acpi-power-switch",
        switch.is_some_and(|(port, _)| in16(port) & 1 == 1),
        switch,
    );
}

/// Ends the VM as a user's `poweroff` does.
pub(crate) fn power_off(report: &mut Report) {
    crate::serial::line(format_args!("switching off"));
    switch_off();
    report.fail("power-off", "the VM goes on");
}
