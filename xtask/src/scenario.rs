//! Scenarios: TOML files that say which groups and VMs run on which machine. Here they become
//! [`nagaya_vmm::config::Scenario`], and whatever is wrong with one is told with its line and column.

mod group;
mod guest;
mod host;
mod images;
mod keys;
mod machine;
mod reader;
pub(crate) mod reference;
mod report;
pub(crate) mod units;
mod vm;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nagaya_vmm::config::{KeyPath, Limits, Scenario, check_scenario};

pub(crate) use self::host::{HostMachine, Overrides};
use self::images::Images;
pub(crate) use self::images::Source;
use self::reader::Section;
use self::report::Report;
use crate::{guests, paths};

/// What the loader, the hypervisor and its tables take of the machine's RAM before there is any VM.
const HYPERVISOR_BYTES: u64 = 64 << 20;
/// A scenario that was read and found right.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The file's name without its extension.
    pub(crate) name: String,
    /// What is to be emulated.
    pub(crate) host: HostMachine,
    /// What the hypervisor is told; `debug_exit` is left for whoever makes the image.
    pub(crate) scenario: Scenario,
    /// The images used, by their names in the archive.
    pub(crate) images: BTreeMap<String, Source>,
}

/// Reads `tests/scenarios/NAME.toml`, or the file itself if `name` contains a `/` or ends in `.toml`.
pub(crate) fn load(name: &str, overrides: &Overrides) -> Result<Loaded> {
    let is_path = name.contains('/') || name.ends_with(".toml");
    let file = if is_path {
        PathBuf::from(name)
    } else {
        paths::scenarios().join(format!("{name}.toml"))
    };
    if !is_path && !file.exists() {
        let known = names()?;
        let hint = report::did_you_mean(name, known.iter().map(String::as_str));
        bail!(
            "there is no scenario {name:?}{hint}; there are: {}",
            known.join(", ")
        );
    }
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read the scenario {}", file.display()))?;
    let whole = std::path::absolute(&file)
        .with_context(|| format!("cannot tell where {} is", file.display()))?;
    let folder = whole.parent().unwrap_or(Path::new("/"));
    let shown = file.strip_prefix(paths::root()).unwrap_or(&file);
    parse(&text, shown, folder, overrides)
}

/// The scenarios in `tests/scenarios`, sorted.
pub(crate) fn names() -> Result<Vec<String>> {
    let folder = paths::scenarios();
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a scenario from text. `file` is what errors call it; relative paths in it go from `folder`.
pub(crate) fn parse(
    text: &str,
    file: &Path,
    folder: &Path,
    overrides: &Overrides,
) -> Result<Loaded> {
    parse_with(text, (file, folder), overrides, &guests::names()?)
}

/// As [`parse`], of a text that is no file: relative paths in it go from the root of the repository.
pub(crate) fn parse_text(text: &str, name: &str, overrides: &Overrides) -> Result<Loaded> {
    parse(text, Path::new(name), &paths::root(), overrides)
}

/// As [`parse`], with the guests there are.
fn parse_with(
    text: &str,
    (file, folder): (&Path, &Path),
    overrides: &Overrides,
    guests: &[String],
) -> Result<Loaded> {
    let mut report = Report::new(text, file);
    let document = match toml::de::DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            report.error(error.span().unwrap_or_default(), error.message());
            return Err(report.into_error());
        }
    };
    let top = Section::top(&keys::TOP, &document, &mut report);
    let machine = top.table(&keys::MACHINE, &mut report);
    let groups = top.tables(&keys::GROUP, &mut report);
    let vms = top.tables(&keys::VM, &mut report);

    let mut images = Images {
        folder,
        guests,
        found: BTreeMap::new(),
    };
    let mut scenario = Scenario {
        machine: machine::read(&machine, &mut report),
        groups: groups
            .iter()
            .map(|section| group::read(section, &mut report))
            .collect(),
        vms: Vec::new(),
    };
    for section in &vms {
        scenario
            .vms
            .push(vm::read(section, &mut images, &mut report));
    }
    let host = host::read(&machine, &scenario, overrides, &mut report);

    // What could not be read stands in the scenario as a default, and the checks could blame that.
    if report.is_empty() {
        let limits = Limits {
            cpus: host.cpus,
            memory_bytes: host.memory_bytes.saturating_sub(HYPERVISOR_BYTES),
        };
        for error in check_scenario(&scenario, &limits) {
            let span = match error.key_path() {
                KeyPath::Scenario => 0..0,
                KeyPath::Machine { key } => machine.span_of(key),
                KeyPath::Group { index, key } => groups
                    .get(index)
                    .map_or(0..0, |section| section.span_of(key)),
                KeyPath::Vm { index, key } => {
                    vms.get(index).map_or(0..0, |section| section.span_of(key))
                }
                KeyPath::Nic { vm, index, key } => span_in(&vms, (vm, "nic", index), key),
                KeyPath::Module { vm, index, key } => span_in(&vms, (vm, "module", index), key),
                KeyPath::Disk { vm, index, key } => span_in(&vms, (vm, "disk", index), key),
            };
            let hint = match error.problem() {
                nagaya_vmm::config::Problem::UnknownGroup { name, .. } => report::did_you_mean(
                    name,
                    scenario.groups.iter().map(|group| group.name.as_str()),
                ),
                _ => String::new(),
            };
            report.error(span, &format!("{error}{hint}"));
        }
    }
    if !report.is_empty() {
        return Err(report.into_error());
    }
    let name = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(Loaded {
        name,
        host,
        scenario,
        images: images.found,
    })
}

/// Where `key` stands in the table of that VM, list and index.
fn span_in(vms: &[Section<'_>], at: (usize, &'static str, usize), key: &str) -> Range<usize> {
    let (vm, list, index) = at;
    let span = vms.get(vm).and_then(|vm| vm.span_in(list, index, key));
    span.unwrap_or(0..0)
}
