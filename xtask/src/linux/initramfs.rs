//! The initramfs: busybox, the modules of the devices a guest has, and the scripts of `tests/linux`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::debian_kernel::Kernel;
use crate::cmd::Cmd;
use crate::debian::packages;
use crate::paths;

/// Modules that are loaded at the start, those they need before them.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
];

/// Modules that a script loads if it wants them. They need no others.
const SPARE_MODULES: &[&str] = &["nvram"];

/// The archive `built/initramfs-busybox`.
pub(crate) fn busybox(kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["dev", "etc", "newroot", "proc", "root", "run", "sys", "tmp"] {
        archive.folder(folder);
    }
    // What the kernel opens for the first process, before that can mount anything.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    programs(&mut archive)?;
    modules(&mut archive, kernel)?;
    scripts(&mut archive)?;
    Ok(archive)
}

/// busybox under all its names.
fn programs(archive: &mut Archive) -> Result<()> {
    // Since Debian's merge of /usr it is in usr/bin.
    let root = packages::unpacked("busybox-static")?.root;
    let busybox =
        find(&root, "busybox")?.context("the package busybox-static has no file busybox")?;
    add_program(archive, "busybox", &busybox)?;
    // It is static and for this architecture: it can be asked here.
    let names = Cmd::new(&busybox).arg("--list").read()?;
    for name in names.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    Ok(())
}

/// The modules, and `lib/nagaya/modules`: the paths of those to load, in the order in which they can be.
fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let folder = kernel.modules()?;
    let files = module_files(&folder)?;
    let mut order = Vec::new();
    for name in MODULES {
        load_order(name, &files, &mut order)?;
    }
    let mut list = String::new();
    for (name, path) in &order {
        let inside = format!("lib/modules/{}/{name}.ko", kernel.release);
        archive.file(&inside, 0o644, module_bytes(path)?);
        list.push_str(&format!("/{inside}\n"));
    }
    archive.file("lib/nagaya/modules", 0o644, list);
    for name in SPARE_MODULES {
        let path = files
            .get(*name)
            .with_context(|| format!("the kernel's package has no module {name}"))?;
        archive.file(&format!("lib/nagaya/{name}.ko"), 0o644, module_bytes(path)?);
    }
    Ok(())
}

/// Adds a module under a name that the scripts load it by: Nagaya's own, of which some want to see how, and spare ones.
pub(crate) fn add_module(archive: &mut Archive, name: &str, module: &Path) -> Result<()> {
    add_file(archive, &format!("lib/nagaya/{name}.ko"), 0o644, module)
}

/// Adds a program.
pub(crate) fn add_program(archive: &mut Archive, name: &str, program: &Path) -> Result<()> {
    add_file(archive, &format!("bin/{name}"), 0o755, program)
}

/// Adds iperf3 and the libraries it is linked with.
pub(crate) fn add_iperf3(archive: &mut Archive) -> Result<()> {
    /// Package, file in it, and the folder where it is looked for.
    const FILES: &[(&str, &str, &str)] = &[
        ("iperf3", "iperf3", "bin"),
        ("libiperf0", "libiperf.so.0", "lib/x86_64-linux-gnu"),
        ("libsctp1", "libsctp.so.1", "lib/x86_64-linux-gnu"),
        ("libssl3", "libcrypto.so.3", "lib/x86_64-linux-gnu"),
        ("libc6", "libc.so.6", "lib/x86_64-linux-gnu"),
        ("libc6", "libm.so.6", "lib/x86_64-linux-gnu"),
        ("libc6", "ld-linux-x86-64.so.2", "lib64"),
    ];
    for (package, name, folder) in FILES {
        let root = packages::unpacked(package)?.root;
        let file = find(&root, name)?
            .with_context(|| format!("the package {package} has no file {name}"))?;
        add_file(archive, &format!("{folder}/{name}"), 0o755, &file)?;
    }
    Ok(())
}

/// The file with that name, or what the link with that name leads to, in a folder or below it.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            // A link would lead to a folder that is looked at anyway, or out of the package.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == name && entry.path().is_file() {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}

fn add_file(archive: &mut Archive, inside: &str, mode: u32, file: &Path) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    archive.file(inside, mode, bytes);
    Ok(())
}

/// Adds a module to `order`, behind those it needs. What has no file is built into the kernel or an error of the list, which
/// are told apart by whether it was asked for by name.
fn load_order(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, PathBuf)>,
) -> Result<()> {
    if order.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel's package has no module {name}"))?;
    for need in needs(&module_bytes(path)?) {
        load_order(&need, files, order)?;
    }
    order.push((name.to_owned(), path.clone()));
    Ok(())
}

/// How modules' names end: Debian 13 packs them.
const MODULE_ENDS: [&str; 2] = [".ko", ".ko.xz"];

/// The bytes of a module, unpacked: the initramfs is not large, and `insmod` of busybox need not know the compression.
fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    let failed = || format!("cannot read {}", path.display());
    let bytes = fs::read(path).with_context(failed)?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(bytes);
    }
    let mut module = Vec::new();
    lzma_rust2::XzReader::new(&bytes[..], true)
        .read_to_end(&mut module)
        .with_context(failed)?;
    Ok(module)
}

/// All modules of a kernel by name: the file's name, with the only spelling that modules know.
fn module_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && let Some(stem) = MODULE_ENDS.iter().find_map(|end| name.strip_suffix(end))
            {
                files.insert(stem.replace('-', "_"), path);
            }
        }
    }
    Ok(files)
}

/// The modules that a module says it needs: `depends=a,b` among the strings, each with a zero at its end, that describe it.
fn needs(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="))
        .map(String::from_utf8_lossy)
        .iter()
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// `/init`, and the scripts that the command line can name.
fn scripts(archive: &mut Archive) -> Result<()> {
    let folder = paths::root().join("tests/linux");
    add_file(archive, "init", 0o755, &folder.join("init"))?;
    for (name, path) in script_files()? {
        add_file(archive, &format!("tests/{name}"), 0o755, &path)?;
    }
    Ok(())
}

fn script_files() -> Result<BTreeMap<String, PathBuf>> {
    let folder = paths::root().join("tests/linux/scripts");
    let mut files = BTreeMap::new();
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        files.insert(
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::read;
    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).expect("can be made");
        writer.write_all(bytes).expect("is taken");
        writer.finish().expect("ends")
    }

    #[test]
    fn modules_are_loaded_after_those_they_need_and_each_once() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, needs) in [
            ("net", "fail-over,ring"),
            ("fail-over", "ring"),
            ("ring", ""),
        ] {
            let text = format!("\x7FELF\0license=GPL\0depends={needs}\0name={name}\0");
            // Debian 12 and 13 side by side.
            let (end, bytes) = if name == "ring" {
                ("ko.xz", packed(text.as_bytes()))
            } else {
                ("ko", text.into_bytes())
            };
            fs::write(folder.path().join(format!("{name}.{end}")), bytes).expect("is written");
        }
        let files = module_files(folder.path()).expect("can be read");
        let mut order = Vec::new();
        for name in ["net", "ring"] {
            load_order(name, &files, &mut order).expect("all are there");
        }
        let order: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(order, ["ring", "fail_over", "net"]);
        assert!(load_order("disk", &files, &mut Vec::new()).is_err());
    }

    #[test]
    fn the_scripts_are_what_a_shell_can_read() {
        let mut archive = Archive::default();
        scripts(&mut archive).expect("can be read");
        let found = read(&archive.finish());
        assert!(
            found
                .iter()
                .any(|(name, mode, _)| name == "init" && mode & 0o777 == 0o755)
        );
        assert!(found.iter().any(|(name, ..)| name == "tests/poweroff"));
        let init = paths::root().join("tests/linux/init");
        for script in script_files()
            .expect("can be read")
            .into_values()
            .chain([init])
        {
            Cmd::new("sh")
                .arg("-n")
                .arg(script)
                .read()
                .expect("is a script");
        }
    }
}
