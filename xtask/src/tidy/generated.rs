//! Files that are made from code say what the code says.

use std::fs;

use anyhow::{Context, Result};

use super::{Finding, Tree};
use crate::scenario::reference;
use crate::{abi_header, abi_reference, bench, paths};

/// A file, from the root, and what is to be in it.
type Generated = (&'static str, fn() -> String);

/// All of them.
const GENERATED: [Generated; 2] = [
    (abi_header::FILE, abi_header::text),
    (reference::FILE, reference::text),
];

/// A document of which a part is made from code: from the root, and what is to be in it, by what is; `None` if it has no place for the part.
type Part = (&'static str, fn(&str) -> Option<String>);

/// All of them.
const PARTS: [Part; 1] = [(abi_reference::FILE, abi_reference::renewed)];

/// Writes all of them.
pub(super) fn write() -> Result<()> {
    for (file, text) in GENERATED {
        let path = paths::root().join(file);
        fs::write(&path, text()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (file, renewed) in PARTS {
        let path = paths::root().join(file);
        let read = fs::read_to_string(&path);
        let document = read.with_context(|| format!("cannot read {}", path.display()))?;
        if let Some(text) = renewed(&document) {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    bench::renew_tables()
}

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let whole = GENERATED
        .into_iter()
        .flat_map(|(file, text)| compare(tree, file, &text()));
    let parts = PARTS.into_iter().flat_map(|(file, renewed)| {
        let document = tree.ending(file).map(|(_, text)| text).next();
        match document.and_then(renewed) {
            Some(wanted) => compare(tree, file, &wanted),
            None => Some(Finding::new(
                file,
                0,
                "has no place for what is made from code",
            )),
        }
    });
    whole.chain(parts).chain(tables(tree)).collect()
}

/// The tables of the benchmarks' document are those of the results.
fn tables(tree: &Tree) -> Option<Finding> {
    let (_, text) = tree.ending(bench::DOCUMENT).next()?;
    match bench::document(text) {
        Ok(wanted) => compare(tree, bench::DOCUMENT, &wanted),
        Err(error) => Some(Finding::new(bench::DOCUMENT, 0, format!("{error:#}"))),
    }
}

fn compare(tree: &Tree, file: &str, wanted: &str) -> Option<Finding> {
    let found = tree.ending(file).map(|(_, text)| text).next();
    let line = match found {
        Some(found) if found == wanted => return None,
        Some(found) => first_difference(found, wanted),
        None => 0,
    };
    let message = "is not what the code says; `cargo xtask tidy --write` renews it";
    Some(Finding::new(file, line, message))
}

fn first_difference(found: &str, wanted: &str) -> usize {
    let alike = found
        .lines()
        .zip(wanted.lines())
        .take_while(|(a, b)| a == b)
        .count();
    alike + 1
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn a_stale_file_is_found_at_its_first_wrong_line_and_a_missing_one_too() {
        let stale = tree(&[("docs/A.md", "a\nb\nc\n")]);
        let found: Vec<Finding> = compare(&stale, "docs/A.md", "a\nx\nc\n")
            .into_iter()
            .collect();
        assert_eq!(places(&found), ["docs/A.md:2"]);
        assert_eq!(compare(&stale, "docs/A.md", "a\nb\nc\n"), None);
        assert!(compare(&tree(&[]), "docs/A.md", "a\n").is_some());
    }
}
