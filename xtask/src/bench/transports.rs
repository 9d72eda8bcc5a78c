//! `cargo xtask bench pingpong --transport T` and `--all`: the same ping-pong over shared memory and over virtio-net, on the same
//! hypervisor, guests and CPUs; one boot for each transport.

mod picture;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use nagaya_harness::Firmware;
use serde_json::{Value, json};

use super::result::{Results, Row};
use super::{Bench, Outcome};
use crate::{paths, run, scenario};

/// What `bench pingpong` takes besides.
#[derive(clap::Args)]
pub(crate) struct TransportArgs {
    /// pingpong: this transport only; may be given several times
    #[arg(long, value_name = "T")]
    transport: Vec<Transport>,
    /// pingpong: all transports
    #[arg(long)]
    all: bool,
    /// pingpong: a third VM keeps the network busy meanwhile; notification and transfer are told apart
    #[arg(long)]
    interfere: bool,
    /// pingpong: notification and transfer are told apart, without interference
    #[arg(long)]
    apart: bool,
    /// pingpong: without the CPU's APIC virtualisation, as on one that has none
    #[arg(long)]
    apic_in_software: bool,
    /// pingpong: sizes of messages in bytes
    #[arg(long, value_delimiter = ',', default_values_t = SIZES)]
    sizes: Vec<u64>,
    /// pingpong: runs of each size
    #[arg(long, default_value_t = 10)]
    runs: u64,
    /// pingpong: rounds of a run
    #[arg(long, default_value_t = 1000)]
    rounds: u64,
    /// pingpong: bytes of a run each way: long messages make fewer rounds
    #[arg(long, default_value_t = 2 << 20)]
    budget: u64,
    /// pingpong: MTU of the cards
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// pingpong: draws the rows of this file, measures nothing
    #[arg(long, value_name = "FILE")]
    redraw: Option<std::path::PathBuf>,
    /// pingpong: where the picture goes; docs/pictures/pingpong.svg is the one that the documents show
    #[arg(long, value_name = "FILE")]
    picture: Option<std::path::PathBuf>,
}

impl TransportArgs {
    /// Whether transports were asked for; else `bench pingpong` is what it was before there were cards.
    pub(crate) fn are_given(&self) -> bool {
        self.all || !self.transport.is_empty() || self.redraw.is_some()
    }
}

const SIZES: [u64; 8] = [8, 64, 512, 4096, 32_768, 262_144, 1_048_576, 4_194_304];

/// A way for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    SharedPolled,
    SharedDoorbell,
    VirtioNetRawPolled,
    VirtioNetRawInterrupt,
    VirtioNetUdp,
    VirtioNetTcp,
}

impl Transport {
    const ALL: [Transport; 6] = [
        Transport::SharedPolled,
        Transport::SharedDoorbell,
        Transport::VirtioNetRawPolled,
        Transport::VirtioNetRawInterrupt,
        Transport::VirtioNetUdp,
        Transport::VirtioNetTcp,
    ];

    /// As in rows.
    const fn name(self) -> &'static str {
        match self {
            Transport::SharedPolled => "shared-polled",
            Transport::SharedDoorbell => "shared-doorbell",
            Transport::VirtioNetRawPolled => "virtio-net-raw-polled",
            Transport::VirtioNetRawInterrupt => "virtio-net-raw-interrupt",
            Transport::VirtioNetUdp => "virtio-net-udp",
            Transport::VirtioNetTcp => "virtio-net-tcp",
        }
    }

    /// As the guest calls it.
    const fn mode(self) -> &'static str {
        match self {
            Transport::SharedPolled => "polled",
            Transport::SharedDoorbell => "doorbell",
            Transport::VirtioNetRawPolled => "raw-polled",
            Transport::VirtioNetRawInterrupt => "raw-interrupt",
            Transport::VirtioNetUdp => "udp",
            Transport::VirtioNetTcp => "tcp",
        }
    }
}

/// Draws the picture of a file's rows, if that was asked for.
pub(super) fn redraw(args: &TransportArgs) -> Result<Option<ExitCode>> {
    let Some(from) = &args.redraw else {
        return Ok(None);
    };
    let text =
        std::fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    let value = serde_json::from_str(&text)?;
    let results =
        Results::read(&value).with_context(|| format!("{} has another schema", from.display()))?;
    draw(args, &results.rows)?;
    Ok(Some(ExitCode::SUCCESS))
}

fn draw(args: &TransportArgs, rows: &[Row]) -> Result<()> {
    let file = args
        .picture
        .clone()
        .unwrap_or_else(|| paths::target().join("pingpong.svg"));
    picture::draw(rows, &file)?;
    say!("picture: {}", file.display());
    Ok(())
}

/// Measures, and draws a picture unless notification and transfer are told apart.
pub(super) fn measure_all(bench: &Bench<'_>, args: &TransportArgs) -> Result<Outcome> {
    let chosen = if args.all {
        &Transport::ALL[..]
    } else {
        &args.transport
    };
    let (mut rows, mut cards, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let mut model = None;
    for transport in chosen {
        let text = scenario(args, *transport);
        let name = "bench-pingpong-transports.toml";
        let loaded = scenario::parse_text(&text, name, &bench.machine.overrides())?;
        let kind = bench.choice.kind;
        model = loaded.host.cpu_model(kind);
        let report = run::boot(bench.imager, &loaded, kind, Firmware::Bios, &mut |_| ())?;
        let more: Vec<Row> = report
            .rows()
            .map(|(_, row)| Row::read(&Value::Object(row)))
            .collect::<Result<_>>()?;
        if !report.ok || more.is_empty() {
            // One that fails does not take the others with it; what it measured before counts.
            let reason = if report.ok {
                "it sent no rows"
            } else {
                &report.reason
            };
            failures.push(format!(
                "{}: {reason} (logs: {})",
                transport.name(),
                report.directory.display()
            ));
        }
        print_rows(&more);
        rows.extend(more);
        for event in report.events_named("nic") {
            let mut fields = event.fields.clone();
            fields.insert("transport".to_owned(), json!(transport.name()));
            cards.push(Value::Object(fields));
        }
    }
    if !args.interfere && !args.apart {
        draw(args, &rows)?;
    }
    let mut results = bench.results("transports", model, rows);
    for (key, value) in [
        ("mtu", json!(args.mtu)),
        ("interfere", json!(args.interfere)),
        ("apic_in_software", json!(args.apic_in_software)),
        ("cards", json!(cards)),
    ] {
        results.more.insert(key.to_owned(), value);
    }
    Ok(Outcome { results, failures })
}

fn cpus(args: &TransportArgs) -> u32 {
    if args.interfere { 3 } else { 2 }
}

/// Two VMs of 128 MiB with a card each, whether the transport uses it or not; and perhaps the third.
fn scenario(args: &TransportArgs, transport: Transport) -> String {
    let sizes: Vec<_> = args.sizes.iter().map(u64::to_string).collect();
    let mut options = format!(
        "modes={} bytes={} runs={} rounds={} budget={}",
        transport.mode(),
        sizes.join(","),
        args.runs,
        args.rounds,
        args.budget
    );
    if args.interfere || args.apart {
        options.push_str(" apart");
    }
    let mut text = format!(
        "[machine]\ncpus = {}\nmemory = \"768M\"\ntimeout = \"3000s\"\ndeterministic = true\napic_virtualization = {}\n\n\
         [[group]]\nname = \"pair\"\n",
        cpus(args),
        !args.apic_in_software
    );
    let roles = [
        ("ping", "10.0.0.1", "10.0.0.2"),
        ("pong", "10.0.0.2", "10.0.0.1"),
    ];
    for (cpu, (role, own, peer)) in roles.into_iter().enumerate() {
        let _ = write!(
            text,
            "\n[[vm]]\nname = \"{role}\"\ngroup = \"pair\"\nimage = \"pingpong\"\nmemory = \"128M\"\ncpu = {cpu}\n\
             cmdline = \"role={role} ip={own}/24 peer={peer} {options}\"\n[[vm.nic]]\nmtu = {}\n",
            args.mtu
        );
    }
    if args.interfere {
        text.push_str(
            "\n[[vm]]\nname = \"third\"\ngroup = \"pair\"\nimage = \"pingpong\"\nmemory = \"128M\"\ncpu = 2\n\
             cmdline = \"role=interfere\"\n[[vm.nic]]\nsegment = \"noise\"\n[[vm.nic]]\nsegment = \"noise\"\n",
        );
    }
    text
}

fn print_rows(rows: &[Row]) {
    say!(
        "\n{:<50}{:>8}{:>11}{:>11}{:>11}{:>11}{:>10}{:>12}  exits",
        "ticks of",
        "rounds",
        "mean",
        "p50",
        "p99",
        "max",
        "copies",
        "bytes copied"
    );
    for row in rows {
        let number = |key: &str| row.more.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        say!(
            "{:<50}{:>8}{:>11}{:>11}{:>11}{:>11}{:>10.2}{:>12.0}  {}",
            row.key(),
            number("rounds"),
            row.ticks.mean,
            row.ticks.p50,
            row.ticks.p99,
            row.ticks.max,
            number("copies_per_round"),
            number("copied_bytes_per_round"),
            row.exits_in_words()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Overrides;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TransportArgs,
    }

    #[test]
    fn every_transport_makes_a_scenario_that_is_right() {
        for transport in Transport::ALL {
            for more in [
                &["--all"][..],
                &["--interfere"],
                &["--mtu", "9000"],
                &["--apic-in-software"],
            ] {
                let line = Line::parse_from([&["bench"], more].concat());
                let text = scenario(&line.args, transport);
                let loaded = scenario::parse_text(&text, "x.toml", &Overrides::default());
                assert!(loaded.is_ok(), "{text}\n{:#}", loaded.expect_err("wrong"));
            }
        }
    }

    #[test]
    fn a_transport_is_called_on_the_command_line_as_in_its_rows() {
        for transport in Transport::ALL {
            let line = Line::parse_from(["bench", "--transport", transport.name()]);
            assert_eq!(line.args.transport, [transport]);
        }
    }
}
