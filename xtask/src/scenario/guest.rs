//! What goes with the kind of a guest: initial file system, modules, disks, debug ports.

use nagaya_vmm::config::{DiskConfig, DiskSource, GuestKind, ModuleConfig, VmConfig};

use super::images::{Images, Role};
use super::keys;
use super::reader::Section;
use super::report::{Report, did_you_mean};
use super::units::parse_bytes;

/// Reads these keys of a VM.
pub(super) fn read(
    section: &Section<'_>,
    vm: &mut VmConfig,
    images: &mut Images<'_>,
    report: &mut Report<'_>,
) {
    if let Some((text, span)) = section.text("kind", report) {
        match GuestKind::from_word(&text) {
            Some(kind) => vm.kind = kind,
            None => {
                let known = GuestKind::ALL.map(GuestKind::word);
                let hint = did_you_mean(&text, known);
                report.error(
                    span,
                    &format!(
                        "{text:?} is no kind of guest{hint}; there are {}",
                        known.join(", ")
                    ),
                );
            }
        }
    }
    vm.initramfs = data(section, "initramfs", images, report);
    vm.modules = section
        .tables(&keys::MODULE, report)
        .iter()
        .map(|section| ModuleConfig {
            image: required_data(section, images, report),
            cmdline: section
                .text("cmdline", report)
                .map(|(text, _)| text)
                .unwrap_or_default(),
        })
        .collect();
    vm.disks = section
        .tables(&keys::DISK, report)
        .iter()
        .filter_map(|section| disk(section, images, report))
        .collect();
    vm.debug_exit = section.boolean("debug_exit", report).unwrap_or(false);
    vm.debug_console = section.boolean("debug_console", report).unwrap_or(false);
}

/// The name in the archive of a file that a guest is handed, or the empty one, which the checks refuse.
fn data(
    section: &Section<'_>,
    key: &str,
    images: &mut Images<'_>,
    report: &mut Report<'_>,
) -> Option<String> {
    section.text(key, report)?;
    let found = images.find(section, key, Role::Data, report);
    Some(found.unwrap_or_default())
}

/// The same of a key `image` that must be there.
fn required_data(
    section: &Section<'_>,
    images: &mut Images<'_>,
    report: &mut Report<'_>,
) -> String {
    section.required_text("image", report);
    let found = images.find(section, "image", Role::Data, report);
    found.unwrap_or_default()
}

/// A disk; `None` if it was reported that it has no source, or two.
fn disk(
    section: &Section<'_>,
    images: &mut Images<'_>,
    report: &mut Report<'_>,
) -> Option<DiskConfig> {
    let image = data(section, "image", images, report);
    let ram = section.text("ram", report);
    let read_only = section.boolean("read_only", report).unwrap_or(false);
    let source = match (image, ram) {
        (Some(name), None) => DiskSource::Image(name),
        (None, Some((text, span))) => match parse_bytes(&text) {
            Ok(bytes) => DiskSource::Ram { bytes },
            Err(message) => {
                report.error(span, &message);
                return None;
            }
        },
        (image, _) => {
            let found = if image.is_some() {
                "both an image and a size in RAM"
            } else {
                "no source"
            };
            let message = format!(
                "this [[vm.disk]] has {found}; give it either image = \"./file\" or ram = \"64M\""
            );
            report.error(section.span(), &message);
            return None;
        }
    };
    Some(DiskConfig { source, read_only })
}
