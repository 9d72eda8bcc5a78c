//! The guests in the tree, by the names that scenarios have for them.

use std::fs;

use anyhow::{Context, Result};

use crate::paths;

/// A form of an image: name, program, and what `llvm-objcopy` is told to make that form of it.
pub(crate) type Form = (&'static str, &'static str, &'static [&'static str]);

/// Without debug information, which the loader would read in vain and slowly; the full file stays for those who look up an
/// address.
pub(crate) const STRIP: &[&str] = &["--strip-debug"];

/// The Multiboot kernel (tests/multiboot) in each form that a loader takes.
pub(crate) const MULTIBOOT: &[Form] = &[
    (
        "multiboot-elf32",
        "multiboot-elf",
        &["--strip-debug", "-O", "elf32-i386"],
    ),
    ("multiboot-elf64", "multiboot-elf", STRIP),
    ("multiboot-flat", "multiboot-addresses", &["-O", "binary"]),
    ("multiboot-addresses", "multiboot-addresses", STRIP),
];

/// All of them, sorted: the files and folders in `tests/guests/src/bin`, which is where cargo looks for them, and the forms of the
/// Multiboot kernel.
pub(crate) fn names() -> Result<Vec<String>> {
    let folder = paths::root().join("tests/guests/src/bin");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        let is_binary = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").exists();
        if let Some(stem) = path.file_stem().filter(|_| is_binary) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.extend(MULTIBOOT.iter().map(|(name, ..)| (*name).to_owned()));
    names.sort();
    Ok(names)
}
