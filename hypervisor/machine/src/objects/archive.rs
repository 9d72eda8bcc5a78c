//! The boot archive that the loader put into memory: the scenario and the guest images. See `xtask` for the writing side.

use alloc::format;
use alloc::string::String;

use core::ops::Deref;

use guest_abi::PAGE_BYTES;
use nagaya_mem::Owner;
use nagaya_vmm::archive::{self as packed, PACKED_SUFFIX};
use nagaya_vmm::config::Scenario;
use spin::Once;
use tar_no_std::TarArchiveRef;

use crate::host::memory::{self, OwnedFrames};

/// Name of the scenario in the archive.
const SCENARIO: &str = "scenario.postcard";

/// The archive.
#[derive(Clone, Debug)]
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
            let bytes = entry.data();
            Some(match name.strip_suffix(PACKED_SUFFIX) {
                Some(name) => {
                    let unpacked = packed::unpacked_len(bytes).unwrap_or(0);
                    (String::from(name), unpacked as u64)
                }
                None => (String::from(name), bytes.len() as u64),
            })
        })
    }

    /// Whether there is an image of that name.
    #[must_use]
    pub fn has_image(&self, name: &str) -> bool {
        self.images().any(|(found, _)| found == name)
    }

    /// The image of that name, unpacked if it is stored compressed.
    ///
    /// # Errors
    /// That it is not there, is damaged, or does not fit into memory.
    pub fn image(&self, name: &str) -> Result<Image<'a>, String> {
        if let Some(bytes) = self.file(&format!("images/{name}")) {
            return Ok(Image::Stored(bytes));
        }
        let packed = self
            .file(&format!("images/{name}{PACKED_SUFFIX}"))
            .ok_or_else(|| format!("the boot archive has no image {name:?}"))?;
        let failed = |error: packed::UnpackError| format!("image {name:?}: {error}");
        let bytes = packed::unpacked_len(packed).map_err(failed)?;
        let mut frames = OwnedFrames::new(Owner::Hypervisor);
        let pages = (bytes as u64).div_ceil(PAGE_BYTES).max(1);
        let start = frames.take(pages, PAGE_BYTES).ok_or_else(|| {
            format!("there is not enough memory to unpack the {bytes} bytes of image {name:?}")
        })?;
        // SAFETY: the frames were just taken for this image and zeroed, they are contiguous, and all physical memory is mapped
        // for good; nobody else knows of them until they are given back with `frames`.
        let unpacked =
            unsafe { core::slice::from_raw_parts_mut(memory::host_pointer::<u8>(start), bytes) };
        packed::unpack(packed, unpacked).map_err(failed)?;
        Ok(Image::Unpacked(Unpacked {
            bytes: unpacked,
            frames,
        }))
    }
}

/// An image's bytes.
#[derive(Debug)]
pub enum Image<'a> {
    /// In the archive itself.
    Stored(&'a [u8]),
    /// Unpacked, until this is dropped.
    Unpacked(Unpacked),
}

/// An image that was stored compressed.
#[derive(Debug)]
pub struct Unpacked {
    /// The bytes, in `frames`: never handed out for longer than those are held.
    bytes: &'static [u8],
    #[expect(dead_code, reason = "held for its Drop")]
    frames: OwnedFrames,
}

impl Deref for Image<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Image::Stored(bytes) => bytes,
            Image::Unpacked(unpacked) => unpacked.bytes,
        }
    }
}

static ARCHIVE: Once<Archive<'static>> = Once::new();

/// Keeps the archive that the machine was booted with.
pub fn publish(archive: Archive<'static>) {
    ARCHIVE.call_once(|| archive);
}

/// The archive that the machine was booted with.
///
/// # Errors
/// Before [`publish`].
pub fn get() -> Result<&'static Archive<'static>, String> {
    ARCHIVE
        .get()
        .ok_or_else(|| String::from("there is no boot archive yet"))
}
