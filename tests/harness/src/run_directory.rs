//! The directory of one run: everything an emulator reads and writes lies here, so that runs do not meet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How many finished runs are kept below `target/runs`.
const KEPT_RUNS: usize = 60;

/// A directory `<scenario>-<pid>-<n>` that belongs to one run.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// The boot image (a hard link where the file system allows it).
    pub const IMAGE: &str = "boot.img";
    /// What came out of COM1.
    pub const CONSOLE: &str = "console.log";
    /// What came out of COM2: JSON lines.
    pub const EVENTS: &str = "events.jsonl";
    /// The emulator's own log.
    pub const MACHINE_LOG: &str = "machine.log";
    /// What the emulator wrote to its standard output and error.
    pub const OUTPUT: &str = "emulator.txt";
    /// Bochs's configuration.
    pub const BIOS: &str = "bios.bin";
    /// The configuration of Bochs.
    pub const BOCHSRC: &str = "bochsrc";
    /// What Bochs's debugger is told.
    pub const BOCHS_COMMANDS: &str = "commands.rc";

    /// Makes a new directory below `runs` and links `image` into it; removes the oldest finished runs beyond a limit.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(runs: &Path, scenario: &str, image: &Path) -> io::Result<RunDirectory> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(runs)?;
        prune(runs, KEPT_RUNS);
        let plain: String = scenario
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = runs.join(format!("{plain}-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                // Left by an older process that had the same id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            let own_image = path.join(Self::IMAGE);
            if fs::hard_link(image, &own_image).is_err() {
                fs::copy(image, &own_image)?;
            }
            return Ok(RunDirectory { path });
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of one of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes what only a running machine needs: the image and its lock.
    pub fn remove_image(&self) {
        for name in [Self::IMAGE.to_owned(), format!("{}.lock", Self::IMAGE)] {
            // It is no error if it was never there.
            let _ = fs::remove_file(self.path.join(name));
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        self.remove_image();
    }
}

/// Removes the oldest runs beyond `kept`. A run that still has its image may be going on, and stays.
fn prune(runs: &Path, kept: usize) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    let mut finished: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let path = entry.path();
            path.is_dir() && !path.join(RunDirectory::IMAGE).exists()
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    finished.sort();
    let surplus = finished.len().saturating_sub(kept);
    for (_, path) in finished.into_iter().take(surplus) {
        // Another process may prune at the same time.
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_scenario_have_directories_of_their_own_and_leave_no_image_or_lock() {
        let root = tempfile::tempdir().expect("a directory");
        let image = root.path().join("image");
        fs::write(&image, b"boot").expect("write");
        let runs = root.path().join("runs");
        let first = RunDirectory::create(&runs, "a/b c", &image).expect("create");
        let second = RunDirectory::create(&runs, "a/b c", &image).expect("create");
        assert_ne!(first.path(), second.path());
        let lock = first.file("boot.img.lock");
        fs::write(&lock, b"").expect("write");
        let own_image = first.file(RunDirectory::IMAGE);
        assert_eq!(fs::read(&own_image).expect("linked"), b"boot");
        drop(first);
        assert!(!own_image.exists() && !lock.exists());
        assert!(image.exists());
    }

    #[test]
    fn old_runs_go_and_those_that_still_have_their_image_stay() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["a", "b", "c"] {
            fs::create_dir(root.path().join(name)).expect("create");
        }
        let busy = root.path().join("busy");
        fs::create_dir(&busy).expect("create");
        fs::write(busy.join(RunDirectory::IMAGE), b"").expect("write");
        prune(root.path(), 1);
        let left = fs::read_dir(root.path()).expect("read").count();
        assert_eq!(left, 2);
        assert!(busy.exists());
    }
}
