//! `cargo xtask run`: boots a scenario and shows its console.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;
use nagaya_harness::choice::{self, Wish};
use nagaya_harness::{
    Choice, ConsoleLine, Firmware, HostFacts, MachineConfig, MachineKind, Painter, RunReport,
    RunRequest, interrupt, paint,
};
use nagaya_vmm::config::DebugExit;

use crate::image::Imager;
use crate::needs::{self, Need};
use crate::scenario::{self, Loaded, Overrides, units};
use crate::{out, paths};

/// Which machine to use, and what it looks like: what `run`, `test` and `bench` have in common
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct MachineArgs {
    /// The machine: without this the best one there is
    #[arg(long)]
    machine: Option<Emulator>,
    /// CPUs of the machine, 1 to 8
    #[arg(long)]
    cpus: Option<u32>,
    /// RAM of the machine, such as 512M or 1G
    #[arg(long, value_parser = units::parse_bytes)]
    memory: Option<u64>,
    /// CPU model, by the emulator's name for it
    #[arg(long)]
    cpu_model: Option<String>,
    /// Bochs: simulated instructions a second; a distribution's time limits fit 100000000
    #[arg(long)]
    ips: Option<u32>,
    /// Wall-clock limit of a run, such as 90s or 5m; without it the scenario's, else 60s, or 10m with a VM that is not native
    #[arg(long, value_parser = units::parse_duration)]
    timeout: Option<std::time::Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Emulator {
    /// QEMU on KVM, or, without VT-x there, QEMU's own emulation
    Qemu,
    /// Bochs, which emulates VT-x
    Bochs,
}

impl MachineArgs {
    /// What replaces the scenario's own `[machine]`.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            cpus: self.cpus,
            memory_bytes: self.memory,
            timeout: self.timeout,
            cpu_model: self.cpu_model.clone(),
            ips: self.ips,
        }
    }

    /// The back end and why.
    pub(crate) fn choose(&self) -> Choice {
        let wish = match self.machine {
            None => Wish::Any,
            Some(Emulator::Qemu) => Wish::Qemu,
            Some(Emulator::Bochs) => Wish::Bochs,
        };
        choice::choose(&HostFacts::probe(), wish)
    }
}

/// What `run` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenario: a name in tests/scenarios or a path to a TOML file
    #[arg(default_value = "pingpong")]
    scenario: String,
    /// Boots from UEFI (QEMU only) instead of a PC BIOS
    #[arg(long)]
    uefi: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Runs the verb.
pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let mut loaded = scenario::load(&args.scenario, &args.machine.overrides())?;
    // So that `nagayactl` finds something to talk to. It costs nothing while nobody does.
    loaded.scenario.machine.control |= !loaded.scenario.machine.deterministic;
    let choice = args.machine.choose();
    let firmware = if args.uefi {
        Firmware::Uefi
    } else {
        Firmware::Bios
    };
    need_emulator(choice.kind)?;
    let imager = Imager::prepare()?;
    imager.try_images(&loaded)?;
    interrupt::install();
    say!("machine: {choice}");
    let mut painter = Painter::for_stdout();
    let mut show = |line: &ConsoleLine| {
        if !paint::is_blank(line) {
            say!("{}", painter.paint(line));
        }
    };
    let report = boot(&imager, &loaded, choice.kind, firmware, &mut show)?;
    if out::reader_is_gone() {
        // Somebody who wanted the first lines has them.
        return Ok(ExitCode::SUCCESS);
    }
    say!("logs: {}", report.directory.display());
    if report.ok {
        say!("ok: {} ({:.1} s)", report.reason, report.wall.as_secs_f64());
        return Ok(ExitCode::SUCCESS);
    }
    for line in &report.machine_log {
        note!("{line}");
    }
    note!("failed: {}", report.reason);
    if interrupt::requested() {
        return Ok(ExitCode::from(interrupt::EXIT_STATUS));
    }
    Ok(ExitCode::FAILURE)
}

/// Runs a scenario as if it had been typed, on the best machine there is.
pub(crate) fn scenario(path: &str) -> Result<ExitCode> {
    main(Args {
        scenario: path.to_owned(),
        uefi: false,
        machine: MachineArgs::default(),
    })
}

/// Installs the emulator if it is missing.
pub(crate) fn need_emulator(kind: MachineKind) -> Result<()> {
    needs::need(&[match kind {
        MachineKind::Bochs => Need::Bochs,
        MachineKind::QemuKvm | MachineKind::QemuTcg => Need::Qemu,
    }])
}

/// Makes the image of a scenario and runs it on a machine of that kind.
pub(crate) fn boot(
    imager: &Imager,
    loaded: &Loaded,
    kind: MachineKind,
    firmware: Firmware,
    on_line: &mut dyn FnMut(&ConsoleLine),
) -> Result<RunReport> {
    let config = MachineConfig {
        kind,
        firmware,
        cpus: loaded.host.cpus,
        memory_mib: u32::try_from(loaded.host.memory_bytes >> 20)?,
        cpu_model: loaded.host.cpu_model(kind),
        ips: loaded.host.ips,
        timeout: loaded.host.timeout,
        control: loaded.scenario.machine.control,
    };
    let exit = match kind {
        MachineKind::Bochs => DebugExit::BochsShutdownPort,
        MachineKind::QemuKvm | MachineKind::QemuTcg => DebugExit::QemuIsaDebugExit,
    };
    let thread = std::thread::current().id();
    let image = paths::target().join(format!(
        "images/{}-{}-{thread:?}.img",
        loaded.name,
        std::process::id()
    ));
    imager.write(loaded, firmware, Some(exit), &image)?;
    let report = nagaya_harness::run(
        &config,
        &RunRequest {
            scenario: &loaded.name,
            image: &image,
            runs: &paths::target().join("runs"),
            bare_entry: None,
        },
        on_line,
    );
    let _ = std::fs::remove_file(&image);
    match report {
        Ok(report) => Ok(report),
        Err(error) => bail!("{error}"),
    }
}
