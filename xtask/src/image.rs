//! `cargo xtask image`: a bootable disk image of a scenario.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nagaya_harness::Firmware;
use nagaya_vmm::archive::{self as vmm_archive, PACK_ABOVE_BYTES, PACKED_SUFFIX};
use nagaya_vmm::config::DebugExit;

use crate::build::{self, Built};
use crate::cmd::Cmd;
use crate::scenario::{self, Loaded, Source};
use crate::toolchain::{self, Toolchain};
use crate::{artefact, paths, progress, trial};

/// What `image` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenario: a name in tests/scenarios or a path to a TOML file
    #[arg(default_value = "pingpong")]
    scenario: String,
    /// Boots from a PC BIOS (the default)
    #[arg(long, conflicts_with = "uefi")]
    bios: bool,
    /// Boots from UEFI
    #[arg(long)]
    uefi: bool,
    /// Where the image goes
    #[arg(short, long)]
    output: PathBuf,
}

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let scenario = scenario::load(&args.scenario, &scenario::Overrides::default())?;
    let firmware = if args.uefi {
        Firmware::Uefi
    } else {
        Firmware::Bios
    };
    let imager = Imager::prepare()?;
    imager.try_images(&scenario)?;
    imager.write(&scenario, firmware, None, &args.output)?;
    say!("{}", args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes images; all it needs is built.
#[derive(Clone, Debug)]
pub(crate) struct Imager {
    built: Built,
    tool: PathBuf,
    toolchain: Toolchain,
    /// What is done to the archive before it goes into an image, by tests of what the hypervisor does with a damaged one.
    damage: Option<fn(&mut Vec<u8>)>,
}

impl Imager {
    /// Builds what is out of date of the hypervisor, the guests and the image tool.
    pub(crate) fn prepare() -> Result<Self> {
        let toolchain = toolchain::find()?;
        Ok(Self {
            built: build::all(&toolchain)?,
            tool: tool(&toolchain)?,
            toolchain,
            damage: None,
        })
    }

    /// What compiled the hypervisor and the guests.
    pub(crate) fn compiler(&self) -> String {
        self.toolchain.compiler()
    }

    /// The same, but for images whose archive is damaged in that way.
    pub(crate) fn damaging(&self, damage: Option<fn(&mut Vec<u8>)>) -> Self {
        Self {
            damage,
            ..self.clone()
        }
    }

    /// Writes the disk image of a scenario to `output`. `debug_exit` is how the emulator is told to end; `None` for hardware.
    pub(crate) fn write(
        &self,
        scenario: &Loaded,
        firmware: Firmware,
        debug_exit: Option<DebugExit>,
        output: &Path,
    ) -> Result<()> {
        if let Some(folder) = output.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let archive = output.with_extension("archive.tar");
        self.write_archive(scenario, debug_exit, &archive)?;
        let made = Cmd::new(&self.tool)
            .arg("--kernel")
            .arg(&self.built.hypervisor)
            .arg("--ramdisk")
            .arg(&archive)
            .args(["--firmware", firmware.name(), "--output"])
            .arg(output)
            .read();
        // The archive is inside the image now; whether or not that worked, it is of no more use.
        let _ = fs::remove_file(&archive);
        made.map(|_| ())
            .with_context(|| format!("cannot make the image of scenario {}", scenario.name))
    }

    /// Tries on the host whether each VM can boot what it names.
    pub(crate) fn try_images(&self, scenario: &Loaded) -> Result<()> {
        trial::every(&scenario.scenario.vms, |name| self.image(scenario, name))
    }

    /// The bytes of an image by its name in the archive.
    fn image(&self, scenario: &Loaded, name: &str) -> Result<Vec<u8>> {
        let path = match scenario.images.get(name) {
            None | Some(Source::Guest) => self.built.guests.join(name),
            Some(Source::File(path)) => path.clone(),
            Some(Source::Package(folder)) => build::package(&self.toolchain, folder, name)?,
            Some(Source::Artefact(artefact)) => artefact::path(artefact)?,
        };
        fs::read(&path).with_context(|| format!("cannot read the guest image {}", path.display()))
    }

    /// The boot archive: the scenario first, so that the hypervisor finds it at once, then each guest image once.
    fn write_archive(
        &self,
        scenario: &Loaded,
        debug_exit: Option<DebugExit>,
        archive: &Path,
    ) -> Result<()> {
        let failed = || format!("cannot write {}", archive.display());
        let mut tar = tar::Builder::new(Vec::new());
        let mut config = scenario.scenario.clone();
        config.machine.debug_exit = debug_exit;
        let bytes = config
            .to_bytes()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        append(&mut tar, "scenario.postcard", &bytes).with_context(failed)?;
        for name in scenario.images.keys() {
            let image = self.image(scenario, name)?;
            append_image(&mut tar, name, &image).with_context(failed)?;
        }
        let mut bytes = tar.into_inner().with_context(failed)?;
        if let Some(damage) = self.damage {
            damage(&mut bytes);
        }
        fs::write(archive, bytes).with_context(failed)
    }
}

/// Adds an image, compressed if it is large and smaller then. What was compressed before (a bzImage) goes as it is.
fn append_image(tar: &mut tar::Builder<impl Write>, name: &str, image: &[u8]) -> Result<()> {
    if image.len() > PACK_ABOVE_BYTES {
        let packed = vmm_archive::pack(image);
        if packed.len() < image.len() {
            return append(tar, &format!("images/{name}{PACKED_SUFFIX}"), &packed);
        }
    }
    append(tar, &format!("images/{name}"), image)
}

/// Adds a file whose header says nothing of today and of this machine: the same scenario gives the same archive.
fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    Ok(tar.append_data(&mut header, name, bytes)?)
}

/// Builds the image tool if it is out of date, with the bare-metal toolchain, because it builds the loader's stages.
pub(crate) fn tool(toolchain: &Toolchain) -> Result<PathBuf> {
    let source = tool_source(toolchain)?;
    let program = tool_target().join("release/nagaya-image");
    if !program.exists() {
        note!("building the loader and the image tool (once; 2 to 7 minutes)");
    }
    let cargo = tool_cargo(toolchain, "build", &source);
    progress::run(
        "building the loader and the image tool",
        cargo,
        build::is_noise,
    )?;
    Ok(program)
}

/// The image tool's own tests, which `cargo test` of the workspace does not see.
pub(crate) fn tool_tests(toolchain: &Toolchain) -> Result<Cmd> {
    Ok(tool_cargo(toolchain, "test", &tool_source(toolchain)?).arg("--quiet"))
}

/// `cargo build` or `cargo test` of the image tool. Stable compilers refuse the features that the loader's stages use unless
/// they are told that they bootstrap.
fn tool_cargo(toolchain: &Toolchain, verb: &str, source: &Path) -> Cmd {
    toolchain
        .cargo()
        .env("RUSTC_BOOTSTRAP", "1")
        .args([verb, "--release", "--manifest-path"])
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(tool_target())
}

/// The cargo target folder of the image tool.
fn tool_target() -> PathBuf {
    paths::target().join("image-tool")
}

/// The folder of the image tool's source: `xtask/image`, or a copy with the version of `bootloader` that the compiler needs.
fn tool_source(toolchain: &Toolchain) -> Result<PathBuf> {
    let source = paths::root().join("xtask/image");
    let manifest = fs::read_to_string(source.join("Cargo.toml"))
        .context("cannot read xtask/image/Cargo.toml")?;
    let wanted = with_bootloader(&manifest, toolchain.bootloader_version())?;
    if wanted == manifest {
        return Ok(source);
    }
    let copy = paths::target().join("image-tool-source");
    fs::create_dir_all(copy.join("src"))?;
    write_if_changed(&copy.join("Cargo.toml"), &wanted)?;
    for entry in fs::read_dir(source.join("src"))? {
        let entry = entry?;
        write_if_changed(
            &copy.join("src").join(entry.file_name()),
            &fs::read_to_string(entry.path())?,
        )?;
    }
    Ok(copy)
}

/// The manifest with this version of `bootloader`.
fn with_bootloader(manifest: &str, version: &str) -> Result<String> {
    const KEY: &str = "bootloader = { version = \"=";
    let (before, rest) = manifest
        .split_once(KEY)
        .context("xtask/image/Cargo.toml does not pin bootloader")?;
    let (_, after) = rest
        .split_once('"')
        .context("xtask/image/Cargo.toml does not pin bootloader")?;
    Ok(format!("{before}{KEY}{version}\"{after}"))
}

/// Leaves a file with the right content, and so its age, alone.
fn write_if_changed(path: &Path, content: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_in_the_tree_can_be_given_another_loader() {
        let manifest = include_str!("../image/Cargo.toml");
        let other = with_bootloader(manifest, "0.11.17").expect("is pinned");
        assert!(
            other.contains("bootloader = { version = \"=0.11.17\", "),
            "{other}"
        );
        assert_eq!(
            with_bootloader(&other, "0.11.15").expect("is pinned"),
            manifest
        );
    }

    #[test]
    fn an_archive_says_nothing_of_when_and_where_it_was_made() {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "images/a", b"hello").expect("fits");
        let bytes = tar.into_inner().expect("ends");
        let header = tar::Header::from_byte_slice(&bytes[..512]);
        assert_eq!(header.mtime().expect("is a number"), 0);
        assert_eq!(&bytes[512..517], b"hello");
    }

    #[test]
    fn large_images_are_compressed_in_the_archive_if_that_helps() {
        let large = vec![7; PACK_ABOVE_BYTES + 1];
        let mut random = 1_u32;
        let incompressible: Vec<u8> = (0..large.len())
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        let mut tar = tar::Builder::new(Vec::new());
        append_image(&mut tar, "small", &large[1..]).expect("fits");
        append_image(&mut tar, "large", &large).expect("fits");
        append_image(&mut tar, "random", &incompressible).expect("fits");
        let bytes = tar.into_inner().expect("ends");
        let mut found = Vec::new();
        let mut archive = tar::Archive::new(&bytes[..]);
        for entry in archive.entries().expect("is one") {
            let mut entry = entry.expect("is right");
            let name = entry.path().expect("has one").display().to_string();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).expect("is whole");
            found.push((name, content));
        }
        assert_eq!(found[0].0, "images/small");
        assert_eq!(found[1].0, "images/large.lz4");
        assert_eq!(found[2], ("images/random".into(), incompressible));
        let mut unpacked = vec![0; vmm_archive::unpacked_len(&found[1].1).expect("is right")];
        vmm_archive::unpack(&found[1].1, &mut unpacked).expect("is right");
        assert_eq!(unpacked, large);
    }
}
