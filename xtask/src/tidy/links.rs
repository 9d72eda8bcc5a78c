//! Links from the documents to files and headings of the repository lead somewhere.

use std::collections::BTreeSet;

use super::{Finding, Tree};

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".md") {
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            if in_code {
                continue;
            }
            for target in targets(line) {
                if let Some(message) = problem(tree, path, target) {
                    findings.push(Finding::new(path, index + 1, message));
                }
            }
        }
    }
    findings
}

/// What the links of a line lead to: `target` of each `](target)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

fn problem(tree: &Tree, from: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target
        .split_once('#')
        .map_or((target, None), |(file, heading)| (file, Some(heading)));
    let resolved = if file.is_empty() {
        Some(from.to_owned())
    } else {
        resolve(from, file)
    };
    let found = resolved.as_ref().filter(|resolved| {
        let folder = format!("{resolved}/");
        tree.files
            .iter()
            .any(|(path, _)| path == *resolved || path.starts_with(&folder))
    });
    let Some(found) = found else {
        return Some(format!("{target} leads nowhere"));
    };
    let heading = heading?;
    let (_, text) = tree
        .files
        .iter()
        .find(|(path, _)| path == found && path.ends_with(".md"))?;
    (!anchors(text).contains(heading)).then(|| format!("{found} has no heading for #{heading}"))
}

/// The path from the root of `link` in the document `from`; `None` if it leads out of the repository.
fn resolve(from: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The names that forges give to headings: in lower case, blanks as `-`, without punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn links_to_files_folders_and_headings_are_followed() {
        let text = "# Top\n[a](../README.md) [b](adr) [c](#the-way-ahead) [d](https://x.example/y)\n## The way, ahead!\n";
        let files = [
            ("README.md", ""),
            ("docs/a.md", text),
            ("docs/adr/0001-x.md", ""),
        ];
        assert_eq!(check(&tree(&files)), []);
    }

    #[test]
    fn links_to_nowhere_are_found() {
        let text = "[a](none.md)\n```\n[b](in-code.md)\n```\n[c](#none)\n[d](../../out.md)\n";
        assert_eq!(
            places(&check(&tree(&[("docs/a.md", text)]))),
            ["docs/a.md:1", "docs/a.md:5", "docs/a.md:6"]
        );
    }
}
