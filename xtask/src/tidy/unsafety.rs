//! `unsafe` stands in few places only, and each says why it is sound (docs/SAFETY.md).

use super::rust_text::{code_only, has_word};
use super::{Finding, Tree};

/// Where `unsafe` may stand: the privileged shell, the runtime of guests, the test kernel that has no runtime, and the one module
/// of volatile access to memory.
const ALLOWED: &[&str] = &[
    "hypervisor/machine/src/",
    "guest-abi/rt/src/",
    "tests/multiboot/src/",
    "hypervisor/mem/src/phys.rs",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".rs") {
        let allowed = ALLOWED.iter().any(|place| path.starts_with(place));
        let lines: Vec<&str> = text.lines().collect();
        for (index, code) in code_only(text).lines().enumerate() {
            if !has_word(code, "unsafe") || code.contains("#[unsafe(") {
                continue;
            }
            if !allowed {
                let message = format!("unsafe stands in {} only", ALLOWED.join(", "));
                findings.push(Finding::new(path, index + 1, message));
            } else if opens_block(code) && !is_explained(&lines, index) {
                let message = "unsafe without a `// SAFETY:` above that names the obligation and what meets it";
                findings.push(Finding::new(path, index + 1, message));
            }
        }
    }
    findings
}

/// Whether the line begins an unsafe block or implementation, which promise something; an `unsafe fn` asks its caller to.
fn opens_block(code: &str) -> bool {
    let words: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    words.contains("unsafe {") || words.contains("unsafe impl")
}

/// Whether a comment with SAFETY stands on the line or right above the statement that it is part of.
fn is_explained(lines: &[&str], index: usize) -> bool {
    if lines[index].contains("SAFETY:") {
        return true;
    }
    let mut above = lines[..index].iter().rev().map(|line| line.trim());
    // A statement may begin some lines further up: it does where the line before it ends one, or is a comment.
    let ends_statement =
        |line: &str| line.is_empty() || line.ends_with([';', '{', '}']) || line.starts_with("//");
    let Some(first) = above.find(|line| ends_statement(line)) else {
        return false;
    };
    first.starts_with("//")
        && (first.contains("SAFETY:")
            || above
                .take_while(|line| line.starts_with("//"))
                .any(|line| line.contains("SAFETY:")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn unsafe_outside_its_places_is_found_even_with_a_reason() {
        let text = "// SAFETY: it is not.\nlet x = unsafe { f() };\n#![forbid(unsafe_code)]\n";
        assert_eq!(
            places(&check(&tree(&[("hypervisor/vmm/src/a.rs", text)]))),
            ["hypervisor/vmm/src/a.rs:2"]
        );
    }

    #[test]
    fn unsafe_without_a_reason_is_found() {
        let text = "fn f() {\n    unsafe { g() }\n}\n// SAFETY: one thread.\n// There is no other.\nlet x =\n    unsafe { g() };\nunsafe impl Send for X {}\n";
        let found = check(&tree(&[("hypervisor/machine/src/a.rs", text)]));
        assert_eq!(
            places(&found),
            [
                "hypervisor/machine/src/a.rs:2",
                "hypervisor/machine/src/a.rs:8"
            ]
        );
    }

    #[test]
    fn an_unsafe_function_and_an_unsafe_attribute_promise_nothing() {
        let text = "pub unsafe fn f() {}\n#[unsafe(naked)]\nextern \"C\" fn g() {}\n";
        assert_eq!(check(&tree(&[("guest-abi/rt/src/a.rs", text)])), []);
    }
}
