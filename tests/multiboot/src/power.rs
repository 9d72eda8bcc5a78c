//! The ends of the VM: the debug exit, and ACPI's power switch.
//!
//! Source: ACPI Specification 6.4, 4.8.3.2 "PM1 Control Registers".

use crate::cpu::{out16, out32, read, stop};
use crate::tables::{length, table};

/// Takes the VM's code.
pub(crate) const DEBUG_EXIT: u16 = 0xF4;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;

/// Port of PM1a control, and the sleep type in the package that `\_S5` names in the DSDT.
pub(crate) fn power_switch() -> Option<(u16, u16)> {
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

/// Ends the VM with that code: by the debug exit, or, where there is none, by switching the power off.
pub(crate) fn end(code: u32) -> ! {
    out32(DEBUG_EXIT, code);
    switch_off();
    stop()
}
