//! Which member may depend on which (docs/ARCHITECTURE.md). Dependencies for tests only are free, except on `machine`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Finding;
use crate::cmd::Cmd;
use crate::paths;

/// A member and the members it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("x86-defs", &[]),
    ("guest-abi", &[]),
    ("nagaya-clock", &[]),
    ("nagaya-napt", &[]),
    ("nagaya-sched", &[]),
    ("nagaya-mem", &["x86-defs"]),
    ("nagaya-devices", &["nagaya-mem"]),
    (
        "nagaya-vmm",
        &["nagaya-mem", "nagaya-devices", "x86-defs", "guest-abi"],
    ),
    (
        "nagaya-machine",
        &[
            "nagaya-clock",
            "nagaya-mem",
            "nagaya-devices",
            "nagaya-sched",
            "nagaya-vmm",
            "x86-defs",
            "guest-abi",
        ],
    ),
    ("nagaya-rt", &["guest-abi"]),
    ("nagaya-guests", &["nagaya-rt", "guest-abi"]),
    (
        "nagaya-linux-programs",
        &["nagaya-rt", "nagaya-guests", "guest-abi"],
    ),
    // A stranger: it knows nothing of ours.
    ("nagaya-multiboot", &[]),
    ("nagaya-harness", &[]),
    ("nagaya-system-tests", &["nagaya-harness", "guest-abi"]),
    (
        "xtask",
        &[
            "nagaya-harness",
            "nagaya-system-tests",
            "nagaya-vmm",
            "guest-abi",
        ],
    ),
];

/// What nothing depends on, not even for tests.
const TOP: &str = "nagaya-machine";

/// A dependency of a member on another.
#[derive(Debug)]
pub(super) struct Edge {
    to: String,
    for_tests_only: bool,
}

/// The members and their edges to other members, as cargo sees them.
pub(super) fn members() -> Result<BTreeMap<String, Vec<Edge>>> {
    let text = Cmd::new("cargo")
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .directory(paths::root())
        .read()?;
    from_metadata(&text).context("cargo metadata is not as expected")
}

fn from_metadata(text: &str) -> Option<BTreeMap<String, Vec<Edge>>> {
    let metadata: Value = serde_json::from_str(text).ok()?;
    let packages = metadata["packages"].as_array()?;
    let name = |value: &Value| value["name"].as_str().map(str::to_owned);
    let names: BTreeSet<String> = packages.iter().filter_map(name).collect();
    let mut members = BTreeMap::new();
    for package in packages {
        let edges = package["dependencies"]
            .as_array()?
            .iter()
            .filter_map(|dependency| {
                let to = name(dependency).filter(|to| names.contains(to))?;
                Some(Edge {
                    to,
                    for_tests_only: dependency["kind"] == "dev",
                })
            });
        members.insert(name(package)?, edges.collect());
    }
    Some(members)
}

pub(super) fn check(members: &BTreeMap<String, Vec<Edge>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (member, edges) in members {
        let mut tell = |message| findings.push(Finding::new("Cargo.toml", 0, message));
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == member) else {
            tell(format!(
                "member {member} has no layer: say in xtask/src/tidy/layers.rs what it may depend on"
            ));
            continue;
        };
        for Edge { to, for_tests_only } in edges {
            if to == TOP || !(*for_tests_only || allowed.contains(&to.as_str())) {
                tell(format!("{member} must not depend on {to}"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(packages: &str) -> Vec<String> {
        let members =
            from_metadata(&format!("{{\"packages\":[{packages}]}}")).expect("is metadata");
        check(&members)
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn an_edge_upwards_is_found_and_one_for_tests_is_not() {
        let packages = r#"
            {"name":"x86-defs","dependencies":[{"name":"bitflags","kind":null},{"name":"nagaya-mem","kind":"dev"}]},
            {"name":"nagaya-mem","dependencies":[{"name":"x86-defs","kind":null},{"name":"nagaya-vmm","kind":null}]},
            {"name":"nagaya-vmm","dependencies":[{"name":"nagaya-machine","kind":"dev"}]},
            {"name":"nagaya-machine","dependencies":[]}"#;
        assert_eq!(
            findings(packages),
            [
                "nagaya-mem must not depend on nagaya-vmm",
                "nagaya-vmm must not depend on nagaya-machine"
            ]
        );
    }

    #[test]
    fn a_member_without_a_layer_is_found() {
        let found = findings(r#"{"name":"nagaya-new","dependencies":[]}"#);
        assert!(
            found.len() == 1 && found[0].contains("nagaya-new"),
            "{found:?}"
        );
    }
}
