//! Tests on the host, by cargo: only of those packages in which a filter can fit something.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::tally::Tally;
use crate::cmd::Cmd;
use crate::needs::{self, Need};
use crate::paths;

/// The model checks by loom, which need a build of their own: package, and what of it.
const LOOM: [(&str, &[&str]); 2] = [
    ("nagaya-rt", &["--test", "loom"]),
    ("nagaya-vmm", &["--lib", "doorbell"]),
];

/// What is to be run on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing fits.
    Nothing,
    /// All tests of all packages.
    All,
    /// Of these packages the tests with that in their names.
    Some {
        part: String,
        packages: BTreeSet<String>,
    },
}

impl Plan {
    /// For a filter, from the sources that git knows.
    pub(super) fn of(filter: Option<&str>) -> Result<Plan> {
        match part_for_libtest(filter) {
            None => Ok(Plan::Nothing),
            Some("") => Ok(Plan::All),
            Some(part) => Ok(Plan::some(part, &sources()?, package_of)),
        }
    }

    fn some(
        part: &str,
        sources: &[(String, String)],
        package_of: impl Fn(&str) -> Option<String>,
    ) -> Plan {
        // A test is called by its modules, which are files or written out, and its function.
        let fits = |word: &str| {
            let word = word.to_owned();
            move |(path, text): &&(String, String)| path.contains(&word) || text.contains(&word)
        };
        let last = part.rsplit("::").find(|word| !word.is_empty());
        let packages: BTreeSet<String> = sources
            .iter()
            .filter(fits(last.unwrap_or(part)))
            .filter_map(|(path, _)| package_of(path))
            .collect();
        if packages.is_empty() {
            return Plan::Nothing;
        }
        Plan::Some {
            part: part.to_owned(),
            packages,
        }
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        match self {
            Plan::Nothing => "none on the host".to_owned(),
            Plan::All => "all on the host".to_owned(),
            Plan::Some { part, packages } => {
                let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
                format!(
                    "those on the host with {part:?} in their names, of {}",
                    packages.join(", ")
                )
            }
        }
    }
}

/// What libtest is to look for, `""` for all; `None` if no test on the host can fit, since their names are `host/a::b`.
fn part_for_libtest(filter: Option<&str>) -> Option<&str> {
    let Some(filter) = filter else {
        return Some("");
    };
    if let Some(rest) = filter.strip_prefix("host/") {
        return Some(rest);
    }
    if "host/".contains(filter) {
        return Some("");
    }
    (!filter.contains('/')).then_some(filter)
}

/// The Rust files of the workspace, by their paths from the root.
fn sources() -> Result<Vec<(String, String)>> {
    let listed = Cmd::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "*.rs",
        ])
        .directory(paths::root())
        .read()
        .context("the tests are looked for in the files git knows")?;
    Ok(listed
        .lines()
        .filter(|path| !path.starts_with("xtask/image/"))
        .filter_map(|path| {
            let text = std::fs::read_to_string(paths::root().join(path)).ok()?;
            Some((path.to_owned(), text))
        })
        .collect())
}

/// The package that a file belongs to.
fn package_of(path: &str) -> Option<String> {
    Path::new(path).ancestors().skip(1).find_map(|folder| {
        let manifest = paths::root().join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(manifest).ok()?;
        let name = text.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(name.trim_matches('"').to_owned())
    })
}

/// Runs what was planned, and the model checks that the filter fits.
pub(super) fn run(tally: &mut Tally, plan: &Plan, wanted: &dyn Fn(&str) -> bool) {
    let cargo = || Cmd::new("cargo").directory(paths::root());
    let tests = match plan {
        Plan::Nothing => None,
        Plan::All => Some(cargo().args(["test", "--workspace", "--no-fail-fast"])),
        Plan::Some { part, packages } => {
            let chosen = packages.iter().flat_map(|package| ["-p", package]);
            let tests = cargo().args(["test", "--no-fail-fast"]).args(chosen);
            Some(tests.arg("--").arg(part))
        }
    };
    if let Some(tests) = tests {
        // Without it some tests say that they were skipped.
        if let Err(error) = needs::need(&[Need::Tests]) {
            note!("{error:#}");
        }
        count_libtest(tally, "host", tests);
    }
    for (package, part) in LOOM {
        let name = format!("loom/{package}");
        if wanted(&name) {
            let command = cargo()
                .args(["test", "--release", "-p", package])
                .args(part)
                .env("RUSTFLAGS", "--cfg loom")
                .env("CARGO_TARGET_DIR", paths::target().join("loom"));
            count_libtest(tally, &name, command);
        }
    }
}

/// Runs a `cargo test` and counts what libtest reports.
fn count_libtest(tally: &mut Tally, level: &str, command: Cmd) {
    let started = Instant::now();
    let output = command
        .into_std()
        .stderr(std::process::Stdio::piped())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return tally.one(level, &Err(format!("cargo test: {error}")), started),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut failed = 0;
    for (name, good) in text.lines().filter_map(libtest_line) {
        if good {
            tally.passed += 1;
            say!("ok      {level}/{name}");
        } else {
            failed += 1;
            tally.failed += 1;
            say!("FAILED  {level}/{name}");
        }
    }
    if !output.status.success() {
        say!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        if failed == 0 {
            let why = "cargo test failed before or after its tests".to_owned();
            tally.one(level, &Err(why), started);
        }
    }
}

/// The name and outcome in a line `test NAME ... ok`, if it is one.
fn libtest_line(line: &str) -> Option<(&str, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    match outcome {
        "ok" => Some((name, true)),
        "FAILED" => Some((name, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_lines_are_told_from_others() {
        assert_eq!(libtest_line("test a::b ... ok"), Some(("a::b", true)));
        assert_eq!(libtest_line("test a ... FAILED"), Some(("a", false)));
        assert_eq!(libtest_line("test a ... ignored"), None);
        assert_eq!(libtest_line("test result: ok. 3 passed"), None);
    }

    #[test]
    fn a_filter_is_a_part_of_a_name_with_its_level() {
        for (filter, part) in [
            (None, Some("")),
            (Some("host/"), Some("")),
            (Some("host"), Some("")),
            (Some("host/ept::map"), Some("ept::map")),
            (Some("ept"), Some("ept")),
            (Some("machine/mapping"), None),
            (Some("check/format"), None),
            (Some("mapping/twice"), None),
        ] {
            assert_eq!(part_for_libtest(filter), part, "{filter:?}");
        }
    }

    #[test]
    fn only_packages_in_which_something_can_fit_are_built() {
        let sources = [
            ("a/src/ept.rs".to_owned(), "fn maps() {}".to_owned()),
            (
                "b/src/lib.rs".to_owned(),
                "mod tests { fn rings() {} }".to_owned(),
            ),
        ];
        let plan = |part| {
            Plan::some(part, &sources, |path| {
                path.split('/').next().map(str::to_owned)
            })
        };
        let of = |part: &str, package: &str| Plan::Some {
            part: part.to_owned(),
            packages: BTreeSet::from([package.to_owned()]),
        };
        assert_eq!(plan("ept"), of("ept", "a"));
        assert_eq!(plan("ept::maps"), of("ept::maps", "a"));
        assert_eq!(plan("tests::"), of("tests::", "b"));
        assert_eq!(plan("nobody"), Plan::Nothing);
    }
}
