//! The C header that is made from `guest-abi` is what the crate says.

use super::{Finding, Tree};
use crate::abi_header;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    compare(tree, &abi_header::text())
}

fn compare(tree: &Tree, wanted: &str) -> Vec<Finding> {
    let found = tree.ending(abi_header::FILE).map(|(_, text)| text).next();
    let line = match found {
        Some(found) if found == wanted => return Vec::new(),
        Some(found) => first_difference(found, wanted),
        None => 0,
    };
    vec![Finding::new(
        abi_header::FILE,
        line,
        "is not what guest-abi says; `cargo xtask tidy --write` renews it",
    )]
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
    fn a_stale_header_is_found_at_its_first_wrong_line_and_a_missing_one_too() {
        let stale = tree(&[(abi_header::FILE, "a\nb\nc\n")]);
        assert_eq!(
            places(&compare(&stale, "a\nx\nc\n")),
            [format!("{}:2", abi_header::FILE)]
        );
        assert_eq!(compare(&stale, "a\nb\nc\n"), []);
        assert_eq!(compare(&tree(&[]), "a\n").len(), 1);
    }
}
