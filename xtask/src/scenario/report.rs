//! What is wrong with a scenario, all at once: `file:line:column: what; what would be right`, with the line itself.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

/// Gathers errors of one file.
pub(super) struct Report<'a> {
    text: &'a str,
    file: &'a Path,
    /// Where each begins, and what it says.
    errors: Vec<(usize, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str, file: &'a Path) -> Self {
        Self {
            text,
            file,
            errors: Vec::new(),
        }
    }

    /// Adds an error about the bytes of `span`.
    pub(super) fn error(&mut self, span: Range<usize>, message: &str) {
        let start = floor(self.text, span.start);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_number = before.matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count() + 1;
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let end = floor(self.text, span.end)
            .clamp(start, line_start + line.len().max(start - line_start));
        let width = self.text[start..end].chars().count().max(1);
        let margin = line_number.to_string().len();
        let mut text = format!("{}:{line_number}:{column}: {message}", self.file.display());
        if !line.is_empty() {
            // A tab is as wide in the line below as in the line itself.
            let indent: String = line
                .chars()
                .take(column - 1)
                .map(|c| if c == '\t' { c } else { ' ' })
                .collect();
            let _ = write!(
                text,
                "\n {line_number} | {line}\n {:margin$} | {indent}{}",
                "",
                "^".repeat(width)
            );
        }
        self.errors.push((start, text));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// All errors in the order of the file.
    pub(super) fn into_error(mut self) -> anyhow::Error {
        self.errors.sort_by_key(|(start, _)| *start);
        let texts: Vec<String> = self.errors.into_iter().map(|(_, text)| text).collect();
        anyhow::anyhow!("the scenario is wrong\n{}", texts.join("\n"))
    }
}

/// The last character boundary not behind `offset`.
fn floor(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

/// ` (did you mean "x"?)`, or nothing if no name is near.
pub(super) fn did_you_mean<'b>(given: &str, known: impl IntoIterator<Item = &'b str>) -> String {
    let near = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|&(distance, name)| distance <= 1 + given.len().min(name.len()) / 4)
        .min();
    near.map(|(_, name)| format!(" (did you mean {name:?}?)"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(
            did_you_mean("pingpnog", ["idle", "pingpong"]),
            " (did you mean \"pingpong\"?)"
        );
        assert_eq!(
            did_you_mean("memroy", ["name", "memory"]),
            " (did you mean \"memory\"?)"
        );
        assert_eq!(did_you_mean("linux", ["idle", "pingpong"]), "");
    }

    #[test]
    fn columns_count_characters_and_the_mark_stands_below_the_value() {
        let text = "[[vm]]\nname = \"あ\" # x\n";
        let start = text.find("\"あ").expect("is there");
        let mut report = Report::new(text, Path::new("a.toml"));
        report.error(start..start + 5, "wrong");
        let shown = report.into_error().to_string();
        assert!(
            shown.contains("a.toml:2:8: wrong\n 2 | name = \"あ\" # x\n   |        ^^^"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn any_place_in_any_text_can_be_told(text in "(.|\n){0,40}", start in 0..200_usize, length in 0..50_usize) {
            let mut report = Report::new(&text, Path::new("a.toml"));
            report.error(start..start + length, "wrong");
            prop_assert!(report.into_error().to_string().contains("wrong"));
        }
    }
}
