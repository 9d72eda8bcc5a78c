//! The images that a scenario names: guests of ours, files, and what xtask makes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nagaya_vmm::config::GuestKind;

use super::reader::Section;
use super::report::{Report, did_you_mean};
use crate::artefact_name;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// One of tests/guests, by its name in the archive.
    Guest,
    /// A file.
    File(PathBuf),
    /// The folder of a Cargo package, by its name in the archive.
    Package(PathBuf),
    /// Something that xtask makes, by its name: `cargo xtask artefact`.
    Artefact(String),
}

/// What an image is for, which decides what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// What a VM of that kind runs.
    Kernel(GuestKind),
    /// Bytes that a guest is handed: an initial file system, a module, a disk.
    Data,
}

/// Finds images, and gathers them by their names in the archive.
pub(super) struct Images<'a> {
    /// The folder of the scenario's file, from which relative paths of images go.
    pub(super) folder: &'a Path,
    /// The guests there are.
    pub(super) guests: &'a [String],
    /// What was found, by the name in the archive.
    pub(super) found: BTreeMap<String, Source>,
}

/// The name of the Cargo package in a folder, if there is one.
fn package_name(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join("Cargo.toml")).ok()?;
    let manifest: toml::Table = text.parse().ok()?;
    Some(manifest.get("package")?.get("name")?.as_str()?.to_owned())
}

/// Bytes from the start of a file in which all kinds of kernels show what they are.
const HEAD_BYTES: u64 = 1024;

impl Images<'_> {
    /// Finds what `key` of a section names; its name in the archive, or `None` if that was reported, or there is no such key.
    pub(super) fn find(
        &mut self,
        section: &Section<'_>,
        key: &str,
        role: Role,
        report: &mut Report<'_>,
    ) -> Option<String> {
        // An empty name is refused by the checks.
        let (text, span) = section
            .text(key, report)
            .filter(|(text, _)| !text.is_empty())?;
        let (name, source) = match self.source(&text, role) {
            Ok(found) => found,
            Err(message) => {
                report.error(span, &message);
                return None;
            }
        };
        match self.found.entry(name.clone()) {
            Entry::Occupied(other) if *other.get() != source => {
                let message = format!(
                    "{name:?} is the name of two different images; rename one of the files"
                );
                report.error(span, &message);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(vacant) => {
                vacant.insert(source);
            }
        }
        Some(name)
    }

    /// The name in the archive and the source of what a scenario calls `text`.
    fn source(&self, text: &str, role: Role) -> Result<(String, Source), String> {
        let file = self.folder.join(text);
        let is_guest = self.guests.iter().any(|guest| guest == text);
        if !text.contains('/') && (is_guest || !file.is_file()) {
            return self.guest(text, role);
        }
        if file.is_dir() && role == Role::Kernel(GuestKind::Native) {
            let name = package_name(&file).ok_or_else(|| {
                format!(
                    "{text:?} is a folder without a Cargo package: there should be one at {}",
                    file.display()
                )
            })?;
            return Ok((name, Source::Package(file)));
        }
        let mut head = Vec::new();
        let read = File::open(&file).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
        if let Err(error) = read {
            if artefact_name::is_one(text) {
                return Ok((text.into(), Source::Artefact(text.into())));
            }
            let wanted = match role {
                Role::Kernel(GuestKind::Native) => "an ELF file",
                Role::Kernel(_) => "a kernel",
                Role::Data => "a file",
            };
            return Err(format!(
                "{text:?} cannot be read ({error}): there should be {wanted} at {}",
                file.display()
            ));
        }
        let is_elf = head.starts_with(b"\x7fELF");
        match role {
            Role::Kernel(GuestKind::Native) if !is_elf => Err(format!(
                "{text:?} is no ELF file; a guest is an ELF64 program for x86_64, unless it says kind = \"linux\" or \"multiboot\""
            )),
            Role::Kernel(GuestKind::Linux)
                if !is_elf && head.get(0x202..0x206) != Some(b"HdrS") =>
            {
                Err(format!(
                    "{text:?} is no Linux kernel: give a bzImage (Debian's vmlinuz) or an ELF vmlinux"
                ))
            }
            _ => {
                let name = file.file_name().unwrap_or(file.as_os_str());
                Ok((name.to_string_lossy().into_owned(), Source::File(file)))
            }
        }
    }

    /// A guest of ours.
    fn guest(&self, text: &str, role: Role) -> Result<(String, Source), String> {
        if role == Role::Data {
            return Err(format!(
                "{text:?} is no path: give that of a file, with a '/' in it, such as \"./{text}\""
            ));
        }
        if self.guests.iter().any(|guest| guest == text) {
            return Ok((text.into(), Source::Guest));
        }
        let hint = did_you_mean(text, self.guests.iter().map(String::as_str));
        let known = if self.guests.is_empty() {
            "none".into()
        } else {
            self.guests.join(", ")
        };
        let file = match role {
            Role::Kernel(GuestKind::Linux | GuestKind::Multiboot) => "a kernel",
            Role::Kernel(GuestKind::Native) | Role::Data => "an ELF file",
        };
        Err(format!(
            "{text:?} is no guest image{hint}; give the path of {file} (with a '/' in it), or one of tests/guests: {known}"
        ))
    }
}
