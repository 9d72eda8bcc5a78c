//! The part of `[machine]` that the hypervisor is told.

use nagaya_vmm::config::{MachineConfig, SelfTest};

use super::reader::Section;
use super::report::{Report, did_you_mean};
use super::units;

/// Reads it; `debug_exit` is left for whoever makes the image.
pub(super) fn read(machine: &Section<'_>, report: &mut Report<'_>) -> MachineConfig {
    let mut config = MachineConfig {
        deterministic: machine.boolean("deterministic", report).unwrap_or(false),
        apic_virtualization: machine
            .boolean("apic_virtualization", report)
            .unwrap_or(true),
        selftest: selftest(machine, report),
        linger: machine.boolean("linger", report).unwrap_or(false),
        allow_bare: machine.boolean("allow_bare", report).unwrap_or(false),
        ..MachineConfig::default()
    };
    // Without the port nothing could end a machine that lingers; who says in so many words that it is closed is told so.
    config.control = machine.boolean("control", report).unwrap_or(config.linger);
    times(machine, &mut config, report);
    config
}

/// Slice and rate limit.
fn times(machine: &Section<'_>, config: &mut MachineConfig, report: &mut Report<'_>) {
    for (key, value) in [
        ("slice", &mut config.slice_us),
        ("rate_limit", &mut config.rate_limit_us),
    ] {
        let Some((text, span)) = machine.text(key, report) else {
            continue;
        };
        match units::parse_micros(&text) {
            Ok(micros) => *value = micros,
            Err(message) => report.error(span, &message),
        }
    }
    // A slice that is shorter than the usual rate limit makes that shorter, too.
    if machine.text("rate_limit", report).is_none() {
        config.rate_limit_us = config.rate_limit_us.min(config.slice_us);
    }
}

/// The self-test that the machine is to run, if any.
fn selftest(machine: &Section<'_>, report: &mut Report<'_>) -> Option<SelfTest> {
    let (name, span) = machine.text("selftest", report)?;
    let found = SelfTest::from_name(&name);
    if found.is_none() {
        let known = SelfTest::ALL.map(SelfTest::name);
        report.error(
            span,
            &format!(
                "{name:?} is no self-test{}; there are {}",
                did_you_mean(&name, known),
                known.join(", ")
            ),
        );
    }
    found
}
