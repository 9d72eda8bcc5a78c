//! How Bochs 2.7 is configured and started. Pure text; see `bochsrc(5)` and Debian's `bochs` package.
//!
//! Debian's Bochs is the debugger build: it waits for a command before the first instruction, so it is handed a file with
//! the one command `c` (continue). It has no display without a window system but SDL with its dummy driver.

use crate::machine::MachineConfig;
use crate::run_directory::RunDirectory;
use std::fmt::Write as _;

/// Simulated instructions a second. It scales how long the BIOS waits, not how fast Bochs runs: small is quick to boot.
const IPS: u32 = 10_000_000;

/// The program.
pub const PROGRAM: &str = "bochs";

/// The configuration file for `config`, with every path relative to the run's directory. With a control port, the third serial
/// line is a connection to that TCP port of this host.
#[must_use]
pub fn configuration(config: &MachineConfig, control_port: Option<u16>) -> String {
    let mut text = String::new();
    let lines = [
        "display_library: sdl2".to_owned(),
        "romimage: file=/usr/share/bochs/BIOS-bochs-latest".to_owned(),
        "vgaromimage: file=/usr/share/vgabios/vgabios.bin".to_owned(),
        format!(
            "cpu: model={}, count={}, ips={IPS}, reset_on_triple_fault=0, ignore_bad_msrs=0",
            config.cpu_model_name(),
            config.cpus
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
        "sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy".to_owned(),
        "panic: action=fatal".to_owned(),
        "error: action=report".to_owned(),
        "info: action=report".to_owned(),
        "debug: action=ignore".to_owned(),
        format!("log: {}", RunDirectory::MACHINE_LOG),
    ];
    if let Some(port) = control_port {
        let _ = writeln!(
            text,
            "com3: enabled=1, mode=socket-client, dev=127.0.0.1:{port}"
        );
    }
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The arguments of [`PROGRAM`], to be run in the run's directory.
#[must_use]
pub fn arguments() -> Vec<String> {
    [
        "-q",
        "-f",
        RunDirectory::BOCHSRC,
        "-rc",
        RunDirectory::BOCHS_COMMANDS,
    ]
    .map(str::to_owned)
    .to_vec()
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
            timeout: Duration::from_secs(1),
            control: false,
        }
    }

    #[test]
    fn the_machine_asked_for_is_the_machine_configured() {
        let text = configuration(&config(2048), None);
        assert!(
            text.contains("model=corei7_haswell_4770, count=4,"),
            "{text}"
        );
        assert!(text.contains("memory: guest=2048, host=2048\n"), "{text}");
        let text = configuration(&config(512), None);
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
        assert!(!is_telling(
            "00000i[PCI   ] i440FX PMC write to PAM register"
        ));
    }
}
