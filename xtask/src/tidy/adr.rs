//! The decisions in `docs/adr` are numbered without gaps: `NNNN-some-words.md`, whose first line is `# N. Title`.

use super::{Finding, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut next = 1;
    for (path, text) in &tree.files {
        let Some(name) = path
            .strip_prefix("docs/adr/")
            .filter(|name| *name != "README.md")
        else {
            continue;
        };
        let wanted = format!("{next:04}");
        if name.get(..4) != Some(&wanted) || !name.ends_with(".md") || name.get(4..5) != Some("-") {
            findings.push(Finding::new(
                path,
                0,
                format!("the next decision is {wanted}-some-words.md"),
            ));
        }
        next += 1;
        let number: u32 = name
            .get(..4)
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(next);
        if !text.starts_with(&format!("# {number}. ")) {
            let message = format!("the first line must be `# {number}. Title`");
            findings.push(Finding::new(path, 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn gaps_and_doubles_are_found() {
        let files = [
            ("docs/adr/0001-a.md", "# 1. A\n"),
            ("docs/adr/0001-b.md", "# 1. B\n"),
            ("docs/adr/0003-c.md", "# 4. C\n"),
        ];
        assert_eq!(
            places(&check(&tree(&files))),
            ["docs/adr/0001-b.md:0", "docs/adr/0003-c.md:1"]
        );
    }
}
