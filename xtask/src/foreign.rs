//! Guests that are not in Rust (tests/foreign), built by the host's C compiler as docs/ABI.md says.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cmd::Cmd;
use crate::needs::{self, Need};
use crate::paths;

/// Static, at the address where images begin, and without what a hosted program has.
const FLAGS: [&str; 14] = [
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-pie",
    "-mno-red-zone",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,-Ttext-segment=0x200000",
    "-Wl,--build-id=none",
];

/// Makes `built/foreign-c`.
pub(crate) fn c() -> Result<PathBuf> {
    build("hello.c", "foreign-c")
}

/// Makes `built/foreign-asm`.
pub(crate) fn assembler() -> Result<PathBuf> {
    build("hello.S", "foreign-asm")
}

fn build(source: &str, name: &str) -> Result<PathBuf> {
    needs::need(&[Need::Module])?;
    let folder = paths::target().join("linux/made");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let program = folder.join(name);
    Cmd::new("gcc")
        .args(FLAGS)
        .arg("-I")
        .arg(paths::root().join("guest-kmod/include/uapi"))
        .arg("-o")
        .arg(&program)
        .arg(paths::root().join("tests/foreign").join(source))
        .run()?;
    Ok(program)
}
