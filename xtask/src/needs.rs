//! What verbs need of the machine they run on: the Debian packages, in one list.

use std::path::PathBuf;

use anyhow::Result;
use nagaya_harness::bochs;

use crate::debian;

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
    proof: Proof,
}

/// What is there when a package is, or whatever another distribution has in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A program on PATH, or where only root's PATH leads.
    Program(&'static str),
    /// One of these files.
    File(&'static [&'static str]),
}

impl Proof {
    /// Where it is, if it is there.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        match self {
            Proof::File(files) => files.iter().map(PathBuf::from).find(|file| file.exists()),
            Proof::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
                    .map(|folder| folder.join(name))
                    .find(|file| file.is_file())
            }
        }
    }
}

/// Every Debian package that any verb uses.
const PACKAGES: &[Package] = &[
    Package {
        name: "rustc-web",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/bin/rustc"]),
    },
    Package {
        name: "cargo-web",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/bin/cargo"]),
    },
    Package {
        name: "rust-web-src",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/lib/rustlib/src/rust/library/core/src/lib.rs"]),
    },
    Package {
        name: "lld",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/bin/lld"]),
    },
    Package {
        name: "llvm",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/bin/llvm-objcopy"]),
    },
    // The image tool and all build scripts are programs of the host.
    Package {
        name: "gcc",
        need: Need::Toolchain,
        proof: Proof::Program("cc"),
    },
    Package {
        name: "libc6-dev",
        need: Need::Toolchain,
        proof: Proof::File(&["/usr/lib/x86_64-linux-gnu/crt1.o"]),
    },
    Package {
        name: "gcc",
        need: Need::Module,
        proof: Proof::Program("gcc"),
    },
    Package {
        name: "libc6-dev",
        need: Need::Module,
        proof: Proof::File(&["/usr/lib/x86_64-linux-gnu/libc.a"]),
    },
    Package {
        name: "make",
        need: Need::Module,
        proof: Proof::Program("make"),
    },
    // The tool that looks into each object of a module is linked with it.
    Package {
        name: "libelf1",
        need: Need::Module,
        proof: Proof::File(&["/usr/lib/x86_64-linux-gnu/libelf.so.1"]),
    },
    // Makes file systems for disks.
    Package {
        name: "e2fsprogs",
        need: Need::Module,
        proof: Proof::Program("mke2fs"),
    },
    // The disassembler of ACPI tables.
    Package {
        name: "acpica-tools",
        need: Need::Tests,
        proof: Proof::Program("iasl"),
    },
    Package {
        name: "bochs",
        need: Need::Bochs,
        proof: Proof::Program("bochs"),
    },
    Package {
        name: "bochs-sdl",
        need: Need::Bochs,
        proof: Proof::File(&[
            "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_sdl2_gui.so",
            // Built from source it is part of the program, which then is elsewhere.
            "/usr/local/bin/bochs",
            "/usr/lib64/bochs/plugins/libbx_sdl2_gui.so",
        ]),
    },
    Package {
        name: "bochsbios",
        need: Need::Bochs,
        proof: Proof::File(bochs::BIOS),
    },
    Package {
        name: "vgabios",
        need: Need::Bochs,
        proof: Proof::File(bochs::VGA_BIOS),
    },
    Package {
        name: "gdb",
        need: Need::Tests,
        proof: Proof::Program("gdb"),
    },
    Package {
        name: "qemu-system-x86",
        need: Need::Qemu,
        proof: Proof::Program("qemu-system-x86_64"),
    },
    Package {
        name: "ovmf",
        need: Need::Qemu,
        proof: Proof::File(&[
            "/usr/share/OVMF/OVMF_CODE.fd",
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/qemu/OVMF.fd",
            "/usr/share/edk2/x64/OVMF.4m.fd",
        ]),
    },
];

/// Every package with what shows that it is there.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, Proof)> {
    PACKAGES.iter().map(|package| (package.name, package.proof))
}

/// Makes sure that the packages for `needs` are there: installs them when we are root, and says how to when we are not.
pub(crate) fn need(needs: &[Need]) -> Result<()> {
    let exists = |proof: Proof| proof.find().is_some();
    let (qemu, others): (Vec<Need>, Vec<Need>) =
        needs.iter().partition(|need| **need == Need::Qemu);
    debian::install(&missing(&others, exists))?;
    let (of_qemu, all) = (missing(&qemu, exists), missing(&qemu, |_| false));
    debian::install_qemu(&of_qemu, &all)
}

/// The packages for `needs` whose proof does not exist.
fn missing(needs: &[Need], exists: impl Fn(Proof) -> bool) -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|package| needs.contains(&package.need) && !exists(package.proof))
        .map(|package| package.name)
        .collect()
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
    fn whatever_is_on_the_path_counts_whoever_put_it_there() {
        let shell = Proof::Program("sh").find().expect("there is a shell");
        assert!(shell.is_absolute() && shell.is_file());
        assert_eq!(Proof::Program("no-such-program").find(), None);
        assert_eq!(Proof::File(&["/none", "/"]).find(), Some("/".into()));
    }

    #[test]
    fn what_is_there_is_not_installed_again() {
        let missing = missing(&[Need::Qemu], |proof| matches!(proof, Proof::File(_)));
        assert_eq!(missing, ["qemu-system-x86"]);
    }
}
