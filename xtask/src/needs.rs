//! `cargo xtask setup`, and what every other verb does of it by itself: the Debian packages, in one list.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::{image, progress, qemu, toolchain};

/// What a verb needs of the machine it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Debian's compiler, where rustup's cannot build for bare metal.
    Toolchain,
    /// The emulator with VT-x.
    Bochs,
    /// The machine of hosts with nested VMX, and of the tests of machines without VT-x.
    Qemu,
    /// What the Linux module is built with.
    Module,
    /// What host tests ask for a second opinion.
    Tests,
}

struct Package {
    name: &'static str,
    need: Need,
    /// A file that is there when the package is.
    proof: &'static str,
}

/// Every Debian package that any verb uses.
const PACKAGES: &[Package] = &[
    Package {
        name: "rustc-web",
        need: Need::Toolchain,
        proof: "/usr/bin/rustc",
    },
    Package {
        name: "cargo-web",
        need: Need::Toolchain,
        proof: "/usr/bin/cargo",
    },
    Package {
        name: "rust-web-src",
        need: Need::Toolchain,
        proof: "/usr/lib/rustlib/src/rust/library/core/src/lib.rs",
    },
    Package {
        name: "lld",
        need: Need::Toolchain,
        proof: "/usr/bin/lld",
    },
    Package {
        name: "llvm",
        need: Need::Toolchain,
        proof: "/usr/bin/llvm-objcopy",
    },
    // The image tool and all build scripts are programs of the host.
    Package {
        name: "gcc",
        need: Need::Toolchain,
        proof: "/usr/bin/cc",
    },
    Package {
        name: "libc6-dev",
        need: Need::Toolchain,
        proof: "/usr/lib/x86_64-linux-gnu/crt1.o",
    },
    Package {
        name: "gcc",
        need: Need::Module,
        proof: "/usr/bin/gcc",
    },
    Package {
        name: "libc6-dev",
        need: Need::Module,
        proof: "/usr/lib/x86_64-linux-gnu/libc.a",
    },
    Package {
        name: "make",
        need: Need::Module,
        proof: "/usr/bin/make",
    },
    // The tool that looks into each object of a module is linked with it.
    Package {
        name: "libelf1",
        need: Need::Module,
        proof: "/usr/lib/x86_64-linux-gnu/libelf.so.1",
    },
    // Makes file systems for disks.
    Package {
        name: "e2fsprogs",
        need: Need::Module,
        proof: "/usr/sbin/mke2fs",
    },
    // The disassembler of ACPI tables.
    Package {
        name: "acpica-tools",
        need: Need::Tests,
        proof: "/usr/bin/iasl",
    },
    Package {
        name: "bochs",
        need: Need::Bochs,
        proof: "/usr/bin/bochs",
    },
    Package {
        name: "bochs-sdl",
        need: Need::Bochs,
        proof: "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_sdl2_gui.so",
    },
    Package {
        name: "bochsbios",
        need: Need::Bochs,
        proof: "/usr/share/bochs/BIOS-bochs-latest",
    },
    Package {
        name: "vgabios",
        need: Need::Bochs,
        proof: "/usr/share/vgabios/vgabios.bin",
    },
    Package {
        name: "qemu-system-x86",
        need: Need::Qemu,
        proof: "/usr/bin/qemu-system-x86_64",
    },
    Package {
        name: "ovmf",
        need: Need::Qemu,
        proof: "/usr/share/OVMF/OVMF_CODE.fd",
    },
];

/// Runs the verb.
pub(crate) fn main() -> Result<ExitCode> {
    need(&[Need::Bochs, Need::Qemu, Need::Module, Need::Tests])?;
    let toolchain = toolchain::find()?;
    say!("toolchain: {toolchain}");
    say!("image tool: {}", image::tool(&toolchain)?.display());
    say!("ready: `cargo xtask run` boots Nagaya");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that the packages for `needs` are there: installs them when we are root, and says how to when we are not.
pub(crate) fn need(needs: &[Need]) -> Result<()> {
    let exists = |proof: &str| Path::new(proof).exists();
    let (qemu, others): (Vec<Need>, Vec<Need>) =
        needs.iter().partition(|need| **need == Need::Qemu);
    install(&missing(&others, exists))?;
    let of_qemu = missing(&qemu, exists);
    if of_qemu.is_empty() || qemu::is_unpacked() {
        return Ok(());
    }
    install(&of_qemu).or_else(|why| {
        note!("{why:#}\nQEMU will do without being installed");
        // All of it: one that is installed does not find what is unpacked, nor the reverse.
        qemu::unpack(&missing(&qemu, |_| false)).context("cannot unpack QEMU")
    })
}

/// Installs packages if we are root, and says how to if we are not.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("programs are missing and this is no Debian: install what Debian calls {names}");
    }
    if !is_root()? {
        bail!(
            "Debian packages are missing; install them with:\n    sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {names}"
        );
    }
    note!("installing Debian packages (once): {names}");
    let failed = || format!("cannot install {names}");
    progress::run("apt-get update", apt(&["update"]), is_noise).with_context(failed)?;
    // `--no-remove`: should one of them exclude something that is installed, the user is to decide.
    let install = ["install", "-y", "--no-install-recommends", "--no-remove"];
    progress::run("apt-get install", apt(&install).args(missing), is_noise).with_context(failed)
}

/// Renews apt's lists of packages, which takes root; says whether it did.
pub(crate) fn refresh_lists() -> Result<bool> {
    if !is_root()? {
        return Ok(false);
    }
    progress::run("apt-get update", apt(&["update"]), is_noise)?;
    Ok(true)
}

/// The packages for `needs` whose proof does not exist.
fn missing(needs: &[Need], exists: impl Fn(&str) -> bool) -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|package| needs.contains(&package.need) && !exists(package.proof))
        .map(|package| package.name)
        .collect()
}

/// apt-get that asks nothing and waits its turn if another one is at work.
pub(crate) fn apt(arguments: &[&str]) -> Cmd {
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args([
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(arguments)
}

/// Packages have much to say while they are installed; only apt's errors and warnings matter here.
fn is_noise(line: &str) -> bool {
    !["E: ", "W: ", "dpkg: error"]
        .iter()
        .any(|start| line.starts_with(start))
}

fn is_root() -> Result<bool> {
    Ok(Cmd::new("id").arg("-u").read()?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_asks_only_for_what_it_needs() {
        let bochs = missing(&[Need::Bochs], |_| false);
        assert!(
            bochs.contains(&"bochs") && bochs.contains(&"vgabios"),
            "{bochs:?}"
        );
        assert!(
            !bochs.contains(&"rustc-web") && !bochs.contains(&"ovmf"),
            "{bochs:?}"
        );
        assert_eq!(missing(&[], |_| false), [""; 0]);
    }

    #[test]
    fn what_is_there_is_not_installed_again() {
        let missing = missing(&[Need::Qemu], |proof| proof.contains("OVMF"));
        assert_eq!(missing, ["qemu-system-x86"]);
    }
}
