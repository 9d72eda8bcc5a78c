//! `docs/SCENARIO.md`: the reference of all keys, made from [`keys`] so that it cannot fall behind.

use std::fmt::Write;

use super::keys::{self, Form, Table};

/// Where it lies, from the root.
pub(crate) const FILE: &str = "docs/SCENARIO.md";

const HEAD: &str = "\
# Scenario files

<!-- Made from xtask/src/scenario/keys.rs by `cargo xtask tidy --write`. -->

A scenario is a TOML file that says which machine, groups and VMs a run consists of. `cargo xtask run NAME` takes
`tests/scenarios/NAME.toml`; `cargo xtask run PATH` takes any file whose path has a `/` in it or that ends in `.toml`. What is wrong with a file is
told before anything starts, with line and column: unknown keys, values out of range, VMs that do not fit, images that no VM could boot.
";

/// The whole document.
pub(crate) fn text() -> String {
    let mut text = HEAD.to_owned();
    for key in keys::TOP.keys {
        table(key.form, &mut text);
    }
    text
}

fn table(form: Form, text: &mut String) {
    let Form::Table(table) = form else {
        return;
    };
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n## `{}`\n\n{}\n\n| key | value | without it | what it does |\n|---|---|---|---|\n",
        table.head(),
        table.text
    );
    rows(table, text);
    for key in table.keys {
        self::table(key.form, text);
    }
}

fn rows(table: &Table, text: &mut String) {
    for key in table.keys {
        let form = match key.form {
            Form::Table(inner) => format!("`{}`, below", inner.head()),
            form => form.words().to_owned(),
        };
        let default = if key.default.is_empty() {
            "must be there"
        } else {
            key.default
        };
        let _ = writeln!(
            text,
            "| `{}` | {form} | {default} | {} |",
            key.name, key.text
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_and_key_is_told() {
        fn each(table: &Table, text: &str) {
            for key in table.keys {
                assert!(text.contains(&format!("| `{}` |", key.name)) || table.key.is_empty());
                if let Form::Table(inner) = key.form {
                    assert!(
                        text.contains(&format!("## `{}`", inner.head())),
                        "{inner:?}"
                    );
                    each(inner, text);
                }
            }
        }
        each(&keys::TOP, &text());
    }
}
