//! Where things are. Nothing else in xtask builds a path from the root by hand.

use std::path::PathBuf;

/// The root of the repository.
pub fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map(PathBuf::from).unwrap_or(xtask)
}

/// Everything that is made: `target/`. Our own folders below it are at fixed places, whatever `CARGO_TARGET_DIR` says.
pub fn target() -> PathBuf {
    root().join("target")
}

/// This program's own file. Cargo may have put another build in its place since it was started; that one will do.
///
/// # Errors
/// As [`std::env::current_exe`].
pub fn this_program() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let text = program.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| program.clone(), PathBuf::from))
}

/// The cargo target folder of what runs on bare metal.
pub fn bare_target() -> PathBuf {
    target().join("bare")
}

/// The folder of the scenarios that a bare name stands for.
pub fn scenarios() -> PathBuf {
    root().join("tests/scenarios")
}
