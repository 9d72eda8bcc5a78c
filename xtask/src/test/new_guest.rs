//! A guest made by `cargo xtask new` outside the repository's crates is built, boots and prints.

use std::process::Command;

use crate::paths;

/// Makes one, runs it, and removes it.
///
/// # Errors
/// What the program said, if the guest did not greet.
pub(crate) fn check() -> Result<(), String> {
    let program = paths::this_program().map_err(|error| error.to_string())?;
    let folder = std::env::temp_dir().join(format!("nagaya-new-{}", std::process::id()));
    let output = Command::new(program)
        .arg("new")
        .arg(folder.join("greeter"))
        // From nowhere near the repository.
        .current_dir("/")
        .output();
    let _ = std::fs::remove_dir_all(&folder);
    let output = output.map_err(|error| format!("`new` does not start: {error}"))?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let [out, err] = said;
    if output.status.success() && out.contains("greeter| hello from greeter") {
        Ok(())
    } else {
        Err(format!("{}\n{out}\n{err}", output.status))
    }
}
