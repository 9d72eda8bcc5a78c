//! The boot archive that the loader put into memory: the scenario and the guest images. See `xtask` for the writing side.

use alloc::format;
use alloc::string::String;

use nagaya_vmm::config::Scenario;
use tar_no_std::TarArchiveRef;

/// Name of the scenario in the archive.
const SCENARIO: &str = "scenario.postcard";

/// The archive.
#[derive(Clone)]
pub struct Archive<'a> {
    tar: TarArchiveRef<'a>,
}

impl<'a> Archive<'a> {
    /// Opens it.
    ///
    /// # Errors
    /// That it is missing or no tar archive.
    pub fn open(bytes: &'a [u8]) -> Result<Archive<'a>, String> {
        if bytes.is_empty() {
            return Err(
                "there is no boot archive: build the image with `cargo xtask image`".into(),
            );
        }
        let tar = TarArchiveRef::new(bytes)
            .map_err(|error| format!("the boot archive is corrupt: {error:?}"))?;
        Ok(Archive { tar })
    }

    /// The bytes of a file.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        self.tar
            .entries()
            .find(|entry| entry.filename().as_str().is_ok_and(|found| found == name))
            .map(|entry| entry.data())
    }

    /// The scenario.
    ///
    /// # Errors
    /// That it is missing or does not decode.
    pub fn scenario(&self) -> Result<Scenario, String> {
        let bytes = self
            .file(SCENARIO)
            .ok_or_else(|| format!("the boot archive has no {SCENARIO}"))?;
        Scenario::from_bytes(bytes).map_err(|error| format!("{error}"))
    }

    /// The names and lengths of all images.
    pub fn images(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.tar.entries().filter_map(|entry| {
            let filename = entry.filename();
            let name = filename.as_str().ok()?.strip_prefix("images/")?;
            Some((String::from(name), entry.data().len() as u64))
        })
    }

    /// The image of that name.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&'a [u8]> {
        self.file(&format!("images/{name}"))
    }
}
