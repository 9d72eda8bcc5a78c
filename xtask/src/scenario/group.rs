//! `[[group]]`, and what groups and VMs have in common.

use nagaya_vmm::config::{AddressPolicy, GroupConfig};
use nagaya_vmm::control::GroupMode;

use super::reader::Section;
use super::report::{Report, did_you_mean};

/// A group as the file has it.
pub(super) fn read(section: &Section<'_>, report: &mut Report<'_>) -> GroupConfig {
    let mut group = GroupConfig::new(&section.required_text("name", report));
    if let Some(pages) = section.number("pages", 0..=u64::MAX, "pages", report) {
        group.pages = pages;
    }
    if let Some(limit) = section.number(
        "doorbells_per_second",
        0..=u64::from(u32::MAX),
        "doorbells a second",
        report,
    ) {
        group.doorbells_per_second = u32::try_from(limit).unwrap_or(u32::MAX);
    }
    if let Some((address, span)) = section.text("address", report) {
        match address.as_str() {
            "fixed" => group.address = AddressPolicy::Fixed,
            "any" => group.address = AddressPolicy::Any,
            _ => report.error(
                span,
                &format!(
                    "{address:?} is no address policy{}; it is \"fixed\" (the first member that maps the region chooses for all) \
                     or \"any\" (each member chooses)",
                    did_you_mean(&address, ["fixed", "any"])
                ),
            ),
        }
    }
    if let Some((mode, span)) = section.text("mode", report) {
        match GroupMode::from_word(&mode) {
            Some(found) => group.mode = found,
            None => {
                let known = GroupMode::ALL.map(GroupMode::word);
                report.error(
                    span,
                    &format!(
                        "{mode:?} is no mode of scheduling{}; there are {}",
                        did_you_mean(&mode, known),
                        known.join(", ")
                    ),
                );
            }
        }
    }
    group.directed_yield = section.boolean("directed_yield", report).unwrap_or(true);
    share(section, report, &mut group.weight, &mut group.cap_percent);
    group
}

/// Weight and cap, which VMs and groups have.
pub(super) fn share(
    section: &Section<'_>,
    report: &mut Report<'_>,
    weight: &mut u32,
    cap: &mut u32,
) {
    for (key, value) in [("weight", weight), ("cap", cap)] {
        if let Some(number) = section.number(key, 0..=u64::from(u32::MAX), "", report) {
            *value = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }
}
