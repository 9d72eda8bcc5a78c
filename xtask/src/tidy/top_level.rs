//! The entries at the top of the repository are fixed (docs/ARCHITECTURE.md).

use std::collections::BTreeSet;

use super::{Finding, Tree};

const ENTRIES: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "docs",
    "guest-abi",
    "guest-kmod",
    "hypervisor",
    "rust-toolchain.toml",
    "tests",
    "xtask",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let entries: BTreeSet<&str> = tree
        .files
        .iter()
        .filter_map(|(path, _)| path.split('/').next())
        .collect();
    entries
        .into_iter()
        .filter(|entry| !ENTRIES.contains(entry))
        .map(|entry| {
            Finding::new(
                entry,
                0,
                format!(
                    "no entry of the top level; there are: {}",
                    ENTRIES.join(", ")
                ),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn a_new_entry_is_found_once() {
        let found = check(&tree(&[
            ("docs/a.md", ""),
            ("scripts/a.sh", ""),
            ("scripts/b.sh", ""),
        ]));
        assert_eq!(places(&found), ["scripts:0"]);
    }
}
