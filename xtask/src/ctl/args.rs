//! What can be asked on the command line. The comments are the help.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use nagaya_vmm::config::{DiskConfig, DiskSource, GuestKind, ModuleConfig, NicConfig};
use nagaya_vmm::control::{CpuSet, GroupMode, MAX_CAP_PERCENT, MAX_WEIGHT, PlatformPlan, Selector};

/// What `nagayactl` and `cargo xtask ctl` take.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where the control port is: a socket's path, tcp:HOST:PORT, or a serial line such as /dev/ttyS0; without this the
    /// newest running `cargo xtask run`
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) connect: Option<String>,
    /// Write JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// How many seconds an answer may take
    #[arg(long, global = true, default_value = "10", value_parser = seconds)]
    pub(super) timeout: Duration,
    /// Speed of a serial line
    #[arg(long, global = true, default_value_t = 115_200)]
    pub(super) baud: u32,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the VMs
    #[command(visible_alias = "ls")]
    Ps(Ps),
    /// Watch VMs and groups, live; ends by q or Ctrl-C
    Top(Top),
    /// Make a VM of an image and start it
    Create(Box<Create>),
    /// End VMs and take back all they have
    #[command(visible_alias = "rm")]
    Destroy(Vms),
    /// Stop VMs; they keep their memory
    Pause(Vms),
    /// Let paused VMs go on
    #[command(visible_alias = "unpause")]
    Resume(Vms),
    /// Start VMs again from their images
    Reset(Vms),
    /// List and change groups
    Group {
        #[command(subcommand)]
        verb: GroupVerb,
    },
    /// Set a VM's share of CPU time against others
    Weight {
        /// The VM, by name or number
        vm: VmSelector,
        /// 1 to 65535; the default is 256
        #[arg(value_parser = weight())]
        weight: u32,
    },
    /// Set the most CPU time a VM gets
    Cap {
        /// The VM, by name or number
        vm: VmSelector,
        /// Percent of one CPU; 0 for no bound
        #[arg(value_parser = cap())]
        percent: u32,
    },
    /// Set the CPUs a VM may run on
    Pin {
        /// The VM, by name or number
        vm: VmSelector,
        /// CPUs, such as 0-3,5, or all
        cpus: CpuSet,
        /// Only this vCPU
        #[arg(long)]
        vcpu: Option<u32>,
        /// Only prefer these CPUs
        #[arg(long)]
        soft: bool,
    },
    /// Follow a VM's console and type into it; Ctrl-] detaches
    Console {
        /// The VM, by name or number
        vm: VmSelector,
    },
    /// Show a VM's registers and last exits
    Dump {
        /// The VM, by name or number
        vm: VmSelector,
        /// Only this vCPU
        #[arg(long)]
        vcpu: Option<u32>,
    },
    /// Look at snapshots of VMs
    Snapshot {
        #[command(subcommand)]
        verb: SnapshotVerb,
    },
    /// Serve a VM to gdb on loopback; the VM stops, and goes on when gdb detaches
    Gdb {
        /// The VM, by name or number
        vm: VmSelector,
        /// The vCPU that gdb looks at first, and by whose page tables breakpoints are set
        #[arg(long, default_value_t = 0)]
        vcpu: u32,
        /// The TCP port of 127.0.0.1; 0 for any that is free
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Show whose the machine's memory is
    Frames,
    /// List the images of the boot archive
    Images,
    /// Show what the machine is
    Info,
    /// Follow what happens; ends by Ctrl-C
    Events,
    /// End every VM and the machine
    Shutdown,
    /// Write a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum SnapshotVerb {
    /// Check a file as a machine would that restores it, and show what is in it; no machine is needed
    Verify {
        /// The file
        file: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct Ps {
    /// VMs that have ended, too
    #[arg(short, long)]
    pub(super) all: bool,
    /// More columns
    #[arg(short, long)]
    pub(super) long: bool,
    /// Only the numbers
    #[arg(short, long, conflicts_with = "long")]
    pub(super) quiet: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(short, long, default_value = "2", value_parser = seconds)]
    pub(super) interval: Duration,
    /// End after so many looks
    #[arg(short = 'n', long)]
    pub(super) count: Option<u32>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Vms {
    /// The VMs, by name or number
    #[arg(required = true, value_name = "VM")]
    pub(super) vms: Vec<VmSelector>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Create {
    /// An image of the boot archive; `nagayactl images` lists them
    pub(super) image: String,
    /// The guest's command line
    pub(super) cmdline: Vec<String>,
    /// Its name; without this the image's, with a number if that is taken
    #[arg(long)]
    pub(super) name: Option<String>,
    /// RAM, such as 128M or 1G
    #[arg(short, long, default_value = "128M", value_parser = bytes)]
    pub(super) memory: u64,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1)]
    pub(super) vcpus: u32,
    /// Its group, by name or number; made if it is not there
    #[arg(short, long)]
    pub(super) group: Option<GroupSelector>,
    /// How the group is scheduled, if it is made
    #[arg(long, requires = "group")]
    pub(super) mode: Option<Mode>,
    /// Pages of the group's region, if it is made
    #[arg(long, requires = "group")]
    pub(super) pages: Option<u64>,
    /// Let each member of the group choose its own address of the region, if the group is made
    #[arg(long, requires = "group")]
    pub(super) any_address: bool,
    /// Its share of CPU time against others
    #[arg(long, default_value_t = 256, value_parser = weight())]
    pub(super) weight: u32,
    /// The most CPU time it gets, in percent of one CPU; 0 for no bound
    #[arg(long, default_value_t = 0, value_parser = cap())]
    pub(super) cap: u32,
    /// CPUs it may run on, such as 0-3,5
    #[arg(long, default_value = "all")]
    pub(super) cpus: CpuSet,
    /// CPUs it prefers
    #[arg(long, default_value = "all")]
    pub(super) soft_cpus: CpuSet,
    /// Do not start it before `resume`
    #[arg(long)]
    pub(super) paused: bool,
    /// What the image is
    #[arg(long, value_enum, default_value_t = Kind::Native)]
    pub(super) kind: Kind,
    /// The first file system of a Linux kernel, an image of the boot archive
    #[arg(long, value_name = "IMAGE")]
    pub(super) initramfs: Option<String>,
    /// A module for a multiboot kernel, with its command line; may be given several times
    #[arg(long = "module", value_name = "IMAGE[=CMDLINE]", value_parser = module)]
    pub(super) modules: Vec<ModuleConfig>,
    /// A network card on that segment, without one on that of the group; may be given several times
    #[arg(long = "nic", value_name = "SEGMENT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub(super) nics: Vec<String>,
    /// A disk: an image of the boot archive, or ram:SIZE; with `,ro` it cannot be written; may be given several times
    #[arg(long = "disk", value_name = "IMAGE|ram:SIZE[,ro]", value_parser = disk)]
    pub(super) disks: Vec<DiskConfig>,
    /// Give it a source of entropy (virtio-rng)
    #[arg(long)]
    pub(super) rng: bool,
    /// Give it a virtio console
    #[arg(long)]
    pub(super) virtio_console: bool,
    /// A write to port 0xF4 ends it with that exit code
    #[arg(long)]
    pub(super) debug_exit: bool,
    /// Port 0xE9 writes to its console
    #[arg(long)]
    pub(super) debug_console: bool,
}

impl Create {
    /// The part that is about its kind and its devices.
    pub(super) fn platform(&self) -> PlatformPlan {
        let nic = |segment: &String| NicConfig {
            segment: Some(segment.clone()).filter(|segment| !segment.is_empty()),
            ..NicConfig::default()
        };
        PlatformPlan {
            kind: self.kind.into(),
            initramfs: self.initramfs.clone(),
            modules: self.modules.clone(),
            nics: self.nics.iter().map(nic).collect(),
            disks: self.disks.clone(),
            rng: self.rng,
            virtio_console: self.virtio_console,
            debug_exit: self.debug_exit,
            debug_console: self.debug_console,
        }
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// A program for Nagaya's own platform
    Native,
    /// A Linux kernel: a bzImage, or a vmlinux with a PVH entry
    Linux,
    /// A multiboot 1 kernel
    Multiboot,
}

impl From<Kind> for GuestKind {
    fn from(kind: Kind) -> GuestKind {
        match kind {
            Kind::Native => GuestKind::Native,
            Kind::Linux => GuestKind::Linux,
            Kind::Multiboot => GuestKind::Multiboot,
        }
    }
}

#[derive(Subcommand, Debug)]
pub(super) enum GroupVerb {
    /// List the groups
    #[command(visible_alias = "ps")]
    Ls,
    /// Change a group
    Set(GroupSet),
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = true)]
pub(super) struct GroupSetChange {
    /// How its members are scheduled
    #[arg(long)]
    pub(super) mode: Option<Mode>,
    /// The group's share of CPU time against others
    #[arg(long, value_parser = weight())]
    pub(super) weight: Option<u32>,
    /// The most CPU time the group gets, in percent of one CPU; 0 for no bound
    #[arg(long, value_parser = cap())]
    pub(super) cap: Option<u32>,
    /// Whether a spinning member yields to the member that should run
    #[arg(long, value_name = "on|off")]
    pub(super) directed_yield: Option<Switch>,
}

#[derive(clap::Args, Debug)]
pub(super) struct GroupSet {
    /// The group, by name or number
    pub(super) group: GroupSelector,
    #[command(flatten)]
    pub(super) change: GroupSetChange,
}

/// How the members of a group are scheduled.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Mode {
    /// As if they were in no group
    Off,
    /// After a member ran, another member goes first
    Prefer,
    /// Members on different CPUs
    Balance,
    /// Members that are runnable start together, and keep within a bounded skew
    Relaxed,
    /// All or none
    Strict,
}

impl From<Mode> for GroupMode {
    fn from(mode: Mode) -> GroupMode {
        match mode {
            Mode::Off => GroupMode::Off,
            Mode::Prefer => GroupMode::Prefer,
            Mode::Balance => GroupMode::Balance,
            Mode::Relaxed => GroupMode::Relaxed,
            Mode::Strict => GroupMode::Strict,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

/// What is all digits is a number, everything else a name.
fn selector(text: &str) -> Result<Selector, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return text
            .parse()
            .map(Selector::Id)
            .map_err(|_| format!("{text:?} is no number there can be"));
    }
    if nagaya_vmm::config::is_valid_name(text) {
        return Ok(Selector::Name(text.into()));
    }
    Err(format!(
        "{text:?} is neither a number nor a name ({})",
        nagaya_vmm::config::NAME_RULE
    ))
}

#[derive(Clone, Debug)]
pub(super) struct VmSelector(pub(super) Selector);

impl FromStr for VmSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<VmSelector, String> {
        selector(text).map(VmSelector)
    }
}

#[derive(Clone, Debug)]
pub(super) struct GroupSelector(pub(super) Selector);

impl FromStr for GroupSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<GroupSelector, String> {
        selector(text).map(GroupSelector)
    }
}

fn weight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT))
}

fn cap() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(MAX_CAP_PERCENT))
}

/// Seconds, with a fraction if wanted: a tenth to an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("write seconds, 0.1 to 3600, such as 2 or 0.5".into()),
    }
}

/// A module from `IMAGE=CMDLINE`.
fn module(text: &str) -> Result<ModuleConfig, String> {
    let (image, cmdline) = text.split_once('=').unwrap_or((text, ""));
    Ok(ModuleConfig {
        image: image.into(),
        cmdline: cmdline.into(),
    })
}

/// A disk from `ram:64M` or an image's name, with `,ro` behind it if it cannot be written.
fn disk(text: &str) -> Result<DiskConfig, String> {
    let (what, read_only) = match text.strip_suffix(",ro") {
        Some(what) => (what, true),
        None => (text, false),
    };
    let source = match what.strip_prefix("ram:") {
        Some(size) => DiskSource::Ram {
            bytes: bytes(size)?,
        },
        None => DiskSource::Image(what.into()),
    };
    Ok(DiskConfig { source, read_only })
}

/// Bytes from `512M`: a whole number and K, M or G.
fn bytes(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last() {
        Some(b'K' | b'k') => 10,
        Some(b'M' | b'm') => 20,
        Some(b'G' | b'g') => 30,
        _ => 64,
    };
    text.get(..text.len().saturating_sub(1))
        .and_then(|digits| digits.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(1u64.checked_shl(shift)?))
        .ok_or_else(|| "write a whole number with K, M or G, such as 128M or 1G".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_number_and_the_rest_a_name() {
        assert_eq!(selector("17"), Ok(Selector::Id(17)));
        assert_eq!(selector("pi-0"), Ok(Selector::Name("pi-0".into())));
        for bad in ["", "99999999999", "a b", "\u{1b}[2J", "-1/"] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks_and_modules_are_written_in_one_word() {
        let of = |text| disk(text).map(|disk| (disk.source, disk.read_only));
        let ram = DiskSource::Ram { bytes: 1 << 20 };
        assert_eq!(of("ram:1M"), Ok((ram.clone(), false)));
        assert_eq!(of("ram:1M,ro"), Ok((ram, true)));
        let image = DiskSource::Image("root.ext4".into());
        assert_eq!(of("root.ext4,ro"), Ok((image, true)));
        assert!(of("ram:lots").is_err());
        let module = module("first.txt=a=1 b").expect("is one");
        assert_eq!((&*module.image, &*module.cmdline), ("first.txt", "a=1 b"));
    }

    #[test]
    fn sizes_and_times_say_what_would_be_right() {
        assert_eq!(bytes("128M"), Ok(128 << 20));
        for bad in ["", "M", "128", "1.5G", "é", "99999999999G"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("2s"), Ok(Duration::from_secs(2)));
        for bad in ["", "0", "-1", "NaN", "inf", "1m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
