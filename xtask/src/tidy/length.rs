//! No source file is too long to be read in one go.

use super::{Finding, Tree};

const MOST_LINES: usize = 800;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.ending(".rs")
        .filter_map(|(path, text)| {
            let lines = text.lines().count();
            let message = format!(
                "{lines} lines; {MOST_LINES} is the most: split it by what its parts are for"
            );
            (lines > MOST_LINES).then(|| Finding::new(path, lines, message))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{places, tree};
    use super::*;

    #[test]
    fn the_first_line_too_many_is_found() {
        let (longest, too_long) = ("x\n".repeat(MOST_LINES), "x\n".repeat(MOST_LINES + 1));
        let found = check(&tree(&[
            ("a.rs", &longest),
            ("b.rs", &too_long),
            ("c.md", &too_long),
        ]));
        assert_eq!(places(&found), ["b.rs:801"]);
    }
}
