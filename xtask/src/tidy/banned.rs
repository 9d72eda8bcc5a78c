//! Words that mean "not done yet".

use super::rust_text::code_only;
use super::{Finding, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs") {
        for (index, (line, code)) in text.lines().zip(code_only(text).lines()).enumerate() {
            let mut tell = |message: &str| findings.push(Finding::new(path, index + 1, message));
            for name in ["todo!", "unimplemented!", "dbg!"] {
                if code.contains(name) {
                    tell(&format!("{name} is for work that is not done"));
                }
            }
            // Spelled apart, or this file would find itself.
            for mark in [
                concat!("FIX", "ME"),
                concat!("XX", "X"),
                concat!("TO", "DO"),
            ] {
                if line.contains(mark) {
                    tell(&format!("{mark}: do it, or write an issue"));
                }
            }
            // cargo compiles a module shared by integration tests into each of them, and each uses a part of it.
            let is_shared_by_tests = path.contains("/tests/common/");
            let hides = code.trim_start().starts_with("#![allow(")
                && (code.contains("dead_code") || code.contains("unused"));
            if hides && !is_shared_by_tests {
                tell(
                    "a whole module may not hide what is unused: remove it, or say it of the one item",
                );
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn work_that_is_not_done_is_found() {
        let text = concat!(
            "#![allow(dead_code)]\ntodo!();\n// \"todo!\" is a word\ndbg!(x);\n// FIX",
            "ME later\n"
        );
        assert_eq!(
            places(&check(&tree(&[("a.rs", text)]))),
            ["a.rs:1", "a.rs:2", "a.rs:4", "a.rs:5"]
        );
    }

    #[test]
    fn one_unused_item_may_be_kept() {
        assert_eq!(
            check(&tree(&[("a.rs", "#[allow(dead_code)]\nfn f() {}\n")])),
            []
        );
    }
}
