//! The table of hypercalls in `docs/ABI.md`, made from `guest-abi`.

use std::fmt::Write as _;

use guest_abi::Number;

/// The document.
pub(crate) const FILE: &str = "docs/ABI.md";
const BEGIN: &str = "<!-- made from guest-abi by `cargo xtask tidy --write` -->\n";
const END: &str = "<!-- end -->\n";

/// The table.
fn table() -> String {
    let mut out = String::from("| number | call | since | answers |\n|---|---|---|---|\n");
    for number in Number::ALL {
        let call = number.description();
        let value = number as u64;
        let value = if value < 0x100 {
            value.to_string()
        } else {
            format!("{value:#X}").replace("0X", "0x")
        };
        let mut answers = call.answers.to_owned();
        for (errno, when) in call.errors {
            let space = if when.is_empty() { "" } else { " " };
            let _ = write!(answers, "; `{errno}`{space}{when}");
        }
        let (major, minor) = call.since;
        let _ = writeln!(
            out,
            "| {value} | `{}({})` | {major}.{minor} | {answers} |",
            call.name,
            call.arguments.join(", ")
        );
    }
    out
}

/// The document with the table as it is to be; `None` if it has no place for it.
pub(crate) fn renewed(document: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", table()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_the_table_is_kept() {
        let renewed = renewed(&format!("a\n{BEGIN}old\n{END}b\n")).expect("has a place");
        assert!(
            renewed.starts_with(&format!("a\n{BEGIN}| number |")),
            "{renewed}"
        );
        assert!(renewed.ends_with(&format!("{END}b\n")), "{renewed}");
        assert!(renewed.contains("| 39 | `map_shared(va)` |"), "{renewed}");
        assert_eq!(super::renewed("no place"), None);
    }
}
