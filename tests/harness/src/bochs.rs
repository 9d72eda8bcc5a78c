//! How Bochs 2.7, 2.8 and 3.0 are configured and started. Text, but for [`Abilities::probe`]; see `bochsrc(5)` and Debian's
//! package `bochs`.
//!
//! Debian's Bochs is the debugger build: it waits for a command before the first instruction, so it is handed a file with
//! the one command `c` (continue). It has no display without a window system but SDL with its dummy driver. What differs
//! between versions and builds is asked of the program itself, not concluded from its name.

use crate::machine::{DEFAULT_IPS, Firmware, MachineConfig};
use crate::run_directory::RunDirectory;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The program.
pub const PROGRAM: &str = "bochs";

/// Where its BIOS is, by Debian and by its own build.
pub const BIOS: &[&str] = &[
    "/usr/share/bochs/BIOS-bochs-latest",
    "/usr/local/share/bochs/BIOS-bochs-latest",
];
/// Where the VGA BIOS is, likewise.
pub const VGA_BIOS: &[&str] = &[
    "/usr/share/vgabios/vgabios.bin",
    "/usr/share/bochs/VGABIOS-lgpl-latest.bin",
    "/usr/share/bochs/VGABIOS-lgpl-latest",
    "/usr/local/share/bochs/VGABIOS-lgpl-latest.bin",
    "/usr/local/share/bochs/VGABIOS-lgpl-latest",
];

/// The first of these that is there, or the first of all, which the error then names.
fn present<'a>(files: &[&'a str]) -> &'a str {
    let found = files.iter().find(|file| Path::new(file).exists());
    found.or(files.first()).copied().unwrap_or_default()
}

/// The BIOS of that machine.
fn bios(config: &MachineConfig) -> &'static str {
    match config.firmware {
        Firmware::BiosWithoutAcpi => RunDirectory::BIOS,
        Firmware::Bios | Firmware::Uefi => present(BIOS),
    }
}

/// The BIOS with another signature where it puts its root of ACPI's tables, so that whoever looks for that finds none. The sum of its
/// bytes stays.
///
/// # Errors
/// That there is no BIOS, or not one that is known.
pub fn bios_without_acpi() -> std::io::Result<Vec<u8>> {
    let mut bytes = std::fs::read(present(BIOS))?;
    let at = bytes.windows(4).position(|four| four == b"RSD ");
    let known = at.and_then(|at| bytes.get_mut(at..at + 2));
    let Some(letters) = known else {
        return Err(std::io::Error::other("it does not make an \"RSD PTR\""));
    };
    letters.swap(0, 1);
    Ok(bytes)
}

/// What the program at hand can do, by its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// As in its banner: `2.7`.
    pub version: Option<String>,
    /// Its debugger is there only if it is asked for. Without it such a build neither reads commands nor emulates several CPUs
    /// rightly; one that does not know the option is always in its debugger.
    pub debugger_by_option: bool,
    /// It has sound cards, and then wants to be told which drivers to use; one without does not know the directive.
    pub sound: bool,
}

impl Abilities {
    /// Asks the program, once for this process. Nothing is known of one that is not there.
    pub fn probe() -> &'static Abilities {
        static ABILITIES: OnceLock<Abilities> = OnceLock::new();
        ABILITIES.get_or_init(|| {
            let ask = |arguments: &[&str]| {
                let output = Command::new(PROGRAM)
                    .args(arguments)
                    .envs(ENVIRONMENT)
                    .output();
                output.map_or_else(
                    |_| String::new(),
                    |output| {
                        [output.stdout, output.stderr]
                            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                            .concat()
                    },
                )
            };
            Abilities::read(&ask(&["--help"]), &ask(&["--help", "features"]))
        })
    }

    /// From what `bochs --help` and `bochs --help features` say.
    fn read(help: &str, features: &str) -> Abilities {
        let version = [help, features]
            .iter()
            .find_map(|text| text.split_once("Bochs x86 Emulator "))
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .map(str::to_owned);
        Abilities {
            version,
            debugger_by_option: help.split_whitespace().any(|word| word == "-debugger"),
            sound: features
                .lines()
                .any(|line| matches!(line.trim(), "sb16" | "es1370")),
        }
    }
}

/// The configuration file for `config`, with every path relative to the run's directory. With a control port, the third serial
/// line is a connection to that TCP port of this host.
#[must_use]
pub fn configuration(
    config: &MachineConfig,
    abilities: &Abilities,
    control_port: Option<u16>,
) -> String {
    let mut text = String::new();
    let mut lines = vec![
        "display_library: sdl2".to_owned(),
        format!("romimage: file={}", bios(config)),
        format!("vgaromimage: file={}", present(VGA_BIOS)),
        format!(
            "cpu: model={}, count={}, ips={}, reset_on_triple_fault=0, ignore_bad_msrs=0",
            config.cpu_model_name(),
            config.cpus,
            config.ips.unwrap_or(DEFAULT_IPS)
        ),
        // No host clock anywhere: two runs of one scenario take the same ticks.
        "clock: sync=none, time0=1".to_owned(),
        format!("memory: guest={0}, host={0}", config.memory_mib),
        format!(
            "ata0-master: type=disk, mode=flat, path={}",
            RunDirectory::IMAGE
        ),
        "boot: disk".to_owned(),
        format!("com1: enabled=1, mode=file, dev={}", RunDirectory::CONSOLE),
        format!("com2: enabled=1, mode=file, dev={}", RunDirectory::EVENTS),
        "plugin_ctrl: unmapped=1, serial=1, biosdev=1, speaker=0".to_owned(),
        "port_e9_hack: enabled=1".to_owned(),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        "debug: action=ignore".to_owned(),
        format!("log: {}", RunDirectory::MACHINE_LOG),
    ];
    if abilities.sound {
        lines.push("sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy".to_owned());
    }
    if let Some(port) = control_port {
        lines.push(format!(
            "com3: enabled=1, mode=socket-client, dev=127.0.0.1:{port}"
        ));
    }
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The arguments of [`PROGRAM`], to be run in the run's directory.
#[must_use]
pub fn arguments(abilities: &Abilities) -> Vec<String> {
    let mut arguments = vec![
        "-q",
        "-f",
        RunDirectory::BOCHSRC,
        "-rc",
        RunDirectory::BOCHS_COMMANDS,
    ];
    if abilities.debugger_by_option {
        arguments.push("-debugger");
    }
    arguments.into_iter().map(str::to_owned).collect()
}

/// The same for a machine without our hypervisor: MSRs that the CPU model lacks read 0, as Linux expects of IA32_MISC_ENABLE. Ours
/// is to notice when it takes one for granted.
#[must_use]
pub fn lenient(configuration: &str) -> String {
    configuration.replace("ignore_bad_msrs=0", "ignore_bad_msrs=1")
}

/// What Bochs's debugger is told. With an address, which is linear, it says at which tick the machine first came there.
#[must_use]
pub fn commands(tell_tick_at: Option<u64>) -> String {
    match tell_tick_at {
        // The breakpoint goes, or code that runs there later would stop with nobody to go on.
        Some(address) => format!("lb {address:#x}\nc\nptime\ndel 1\nc\n"),
        None => "c\n".to_owned(),
    }
}

/// The tick that [`commands`] asked for, in what Bochs wrote to its standard output.
#[must_use]
pub fn told_tick(output: &str) -> Option<u64> {
    let said = output.split("ptime: ").nth(1)?;
    let digits = said.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Environment of [`PROGRAM`].
pub const ENVIRONMENT: [(&str, &str); 2] =
    [("SDL_VIDEODRIVER", "dummy"), ("SDL_AUDIODRIVER", "dummy")];

/// Whether a line of Bochs's log says why a run may have gone wrong: failed VM entries and panics.
#[must_use]
pub fn is_telling(line: &str) -> bool {
    const MARKS: [&str; 5] = ["VMENTER", "VMFAIL", "PANIC", "with no resolution", "EPT: "];
    MARKS.iter().any(|mark| line.contains(mark))
}

/// Whether a line of Bochs's log is of its levels `info` or `debug`: the course of things, of which there is much.
#[must_use]
pub fn is_chatter(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < line.len() && (rest.starts_with("i[") || rest.starts_with("d["))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Firmware, MachineKind};
    use std::time::Duration;

    fn config(memory_mib: u32) -> MachineConfig {
        MachineConfig {
            kind: MachineKind::Bochs,
            firmware: Firmware::Bios,
            cpus: 4,
            memory_mib,
            cpu_model: Some("corei7_haswell_4770".to_owned()),
            ips: None,
            timeout: Duration::from_secs(1),
            control: false,
        }
    }

    /// As Debian 12's version 2.7.
    fn abilities() -> Abilities {
        Abilities {
            version: Some("2.7".to_owned()),
            debugger_by_option: false,
            sound: true,
        }
    }

    fn configuration(config: &MachineConfig, control_port: Option<u16>) -> String {
        super::configuration(config, &abilities(), control_port)
    }

    #[test]
    fn what_a_version_can_do_is_read_from_its_own_words() {
        let old = "\n  Bochs x86 Emulator 2.7\n  -rc filename     execute debugger commands stored in file\n";
        let features = "Supported features:\n\npci\ne1000\nsb16\nes1370\n";
        assert_eq!(Abilities::read(old, features), abilities());
        let new = "\n  Bochs x86 Emulator 3.0\n  -debugger        start with the debugger\n";
        let read = Abilities::read(new, "Supported features:\n\npci\n");
        assert!(read.debugger_by_option && !read.sound);
        assert_eq!(read.version.as_deref(), Some("3.0"));
        assert_eq!(Abilities::read("", ""), Abilities::default());
    }

    #[test]
    fn each_version_is_told_only_what_it_knows() {
        let sound = |abilities: &Abilities| {
            super::configuration(&config(512), abilities, None).contains("sound:")
        };
        let debugger = |abilities: &Abilities| {
            arguments(abilities)
                .iter()
                .any(|argument| argument == "-debugger")
        };
        assert!(sound(&abilities()) && !debugger(&abilities()));
        let newer = Abilities {
            version: Some("3.0".to_owned()),
            debugger_by_option: true,
            sound: false,
        };
        assert!(!sound(&newer) && debugger(&newer));
    }

    #[test]
    fn the_machine_asked_for_is_the_machine_configured() {
        let text = configuration(&config(2048), None);
        assert!(
            text.contains("model=corei7_haswell_4770, count=4,"),
            "{text}"
        );
        assert!(text.contains("memory: guest=2048, host=2048\n"), "{text}");
        assert!(text.contains(" ips=10000000,"), "{text}");
        let faster = MachineConfig {
            ips: Some(50_000_000),
            ..config(512)
        };
        let text = configuration(&faster, None);
        assert!(text.contains(" ips=50000000,"), "{text}");
        assert!(text.contains("memory: guest=512, host=512\n"), "{text}");
    }

    #[test]
    fn nothing_in_the_configuration_depends_on_the_hosts_clock() {
        let text = configuration(&config(512), None);
        assert!(text.contains("clock: sync=none, time0=1\n"), "{text}");
        assert_eq!(text, configuration(&config(512), None));
        assert!(!text.contains("com3"), "{text}");
        assert!(
            configuration(&config(512), Some(4711))
                .contains("com3: enabled=1, mode=socket-client, dev=127.0.0.1:4711\n")
        );
    }

    #[test]
    fn only_without_our_hypervisor_are_absent_msrs_let_pass() {
        let text = configuration(&config(512), None);
        assert!(text.contains("ignore_bad_msrs=0"), "{text}");
        assert!(lenient(&text).contains("ignore_bad_msrs=1"), "{text}");
    }

    #[test]
    fn the_tick_at_an_address_is_found_in_what_the_debugger_says() {
        assert_eq!(commands(None), "c\n");
        assert!(commands(Some(0x10_0000)).starts_with("lb 0x100000\nc\nptime\n"));
        let said = "(0) Breakpoint 1, 0x1000000 in ?? ()\nptime: 123456789\n";
        assert_eq!(told_tick(said), Some(123_456_789));
        assert_eq!(told_tick("Next at t=0\n"), None);
    }

    #[test]
    fn failed_entries_and_panics_are_told_from_chatter() {
        for line in [
            "00012e[VMX   ] VMFAIL: VMCS host state invalid",
            "00012e[CPU0  ] VMENTER FAIL: VMCS guest TR invalid",
            "00012p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution",
        ] {
            assert!(is_telling(line), "{line}");
        }
        let chatter = "00000i[PCI   ] i440FX PMC write to PAM register";
        assert!(!is_telling(chatter) && is_chatter(chatter));
        for line in ["00012e[CPU0  ] odd", "i[x] a line of QEMU", "cannot open"] {
            assert!(!is_chatter(line), "{line}");
        }
    }
}
