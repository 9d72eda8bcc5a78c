//! What ACPI's tables say: of the processors, and of the power switch.
//!
//! Source: ACPI Specification 6.4, 5.2 "ACPI System Description Tables", 4.8.3.2 "PM1 Control Registers".

use crate::cpu::{in16, read};
use crate::power::{power_switch, switch_off};
use crate::report::Report;
use crate::tables::{length, rsdp, sum, table, tables};

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
