//! What only one vendor's CPUs have is named by its back end alone (docs/PORTING.md).

use super::rust_text::code_only;
use super::{Finding, Tree};

/// Modules of `x86-defs` that are VMX and nothing else.
const OF_VMX: [&str; 3] = ["controls", "exit", "vmcs"];

/// Who may name them: the definitions, the back end, its decoder, and the table of its exits.
const BACK_END: [&str; 5] = [
    "hypervisor/x86-defs/",
    "hypervisor/machine/src/vmx/",
    "hypervisor/machine/src/vmx.rs",
    "hypervisor/vmm/src/exit/table.rs",
    "hypervisor/vmm/src/exit/vmx.rs",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let others = tree
        .ending(".rs")
        .filter(|(path, _)| path.starts_with("hypervisor/"))
        .filter(|(path, _)| !BACK_END.iter().any(|end| path.starts_with(end)));
    for (path, text) in others {
        for (index, line) in code_only(text).lines().enumerate() {
            let Some((_, named)) = line.split_once("x86_defs::") else {
                continue;
            };
            let mut words = named.split(|c: char| !c.is_alphanumeric() && c != '_');
            // One module, or several in braces.
            let found = if named.starts_with('{') {
                words.find(|word| OF_VMX.contains(word))
            } else {
                words.next().filter(|word| OF_VMX.contains(word))
            };
            if let Some(module) = found {
                let message = format!(
                    "x86_defs::{module} is VMX: let `machine::vmx` answer it by a trait of `arch`, or as a plain fact"
                );
                findings.push(Finding::new(path, index + 1, message));
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
    fn vmx_is_named_by_its_back_end_alone() {
        let all = "use x86_defs::{msr, vmcs as field};\nuse x86_defs::exit::ExitReason;\n";
        let plain =
            "use x86_defs::{cr, msr};\nuse x86_defs::interrupt::vector;\n// x86_defs::vmcs\n";
        let found = check(&tree(&[
            ("hypervisor/machine/src/run.rs", all),
            ("hypervisor/machine/src/run/exits.rs", plain),
            ("hypervisor/machine/src/vmx/loaded.rs", all),
            ("hypervisor/vmm/src/exit/vmx.rs", all),
            ("tests/other.rs", all),
        ]));
        assert_eq!(
            places(&found),
            [
                "hypervisor/machine/src/run.rs:1",
                "hypervisor/machine/src/run.rs:2"
            ]
        );
    }
}
