//! `cargo xtask tidy`: what the compiler does not check. Each lint is a small module: it looks at the tree as plain text, and
//! gives findings.

mod adr;
mod banned;
mod generated;
mod layers;
mod length;
mod links;
mod modules;
mod rust_text;
mod top_level;
mod unsafety;
mod vendor;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::paths;

/// What `tidy` takes.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Renews the files that are made from others
    #[arg(long)]
    write: bool,
}

/// Something that is not as agreed.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the root.
    path: String,
    /// From 1; 0 is the file as a whole.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            line,
            message: message.into(),
        }
    }
}

/// The files that are, or are about to be, in the repository.
struct Tree {
    /// Paths relative to the root, sorted, and contents. What is not UTF-8 has an empty text.
    files: Vec<(String, String)>,
}

impl Tree {
    fn read() -> Result<Self> {
        let listed = Cmd::new("git")
            .args([
                "ls-files",
                "--cached",
                "--others",
                "--exclude-standard",
                "-z",
            ])
            .directory(paths::root())
            .read()
            .context("tidy looks at the files git knows")?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            let full = paths::root().join(path);
            // Listed still, but deleted, or a link to a folder.
            if full.is_file() {
                let bytes = fs::read(&full).with_context(|| format!("cannot read {path}"))?;
                files.push((
                    path.to_owned(),
                    String::from_utf8(bytes).unwrap_or_default(),
                ));
            }
        }
        files.sort();
        Ok(Self { files })
    }

    /// The files whose name ends so.
    fn ending(&self, end: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(end))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

/// Runs the verb.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.write {
        generated::write()?;
    }
    let tree = Tree::read()?;
    let mut findings = layers::check(&layers::members()?);
    for lint in [
        top_level::check,
        length::check,
        unsafety::check,
        banned::check,
        links::check,
        modules::check,
        vendor::check,
        adr::check,
        generated::check,
    ] {
        findings.extend(lint(&tree));
    }
    findings.sort();
    for Finding {
        path,
        line,
        message,
    } in &findings
    {
        say!("{path}:{line}: {message}");
    }
    if findings.is_empty() {
        say!("tidy: {} files, nothing found", tree.files.len());
        return Ok(ExitCode::SUCCESS);
    }
    say!("tidy: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod testing {
    use super::{Finding, Tree};

    /// A tree of these files.
    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        Tree {
            files: files
                .iter()
                .map(|&(path, text)| (path.into(), text.into()))
                .collect(),
        }
    }

    /// The places of findings, as `path:line`.
    pub(super) fn places(findings: &[Finding]) -> Vec<String> {
        findings
            .iter()
            .map(|finding| format!("{}:{}", finding.path, finding.line))
            .collect()
    }
}
