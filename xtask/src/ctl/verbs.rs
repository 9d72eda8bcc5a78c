//! What the verbs do.

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use nagaya_harness::interrupt;
use nagaya_vmm::config::AddressPolicy;
use nagaya_vmm::control::{
    Answer, ControlError, CreateVm, GroupChange, GroupMode, GroupPlan, Notice, Request, Selector,
    VcpuDump, VmChange, VmRow, VmState,
};
use serde_json::{Value, json};

use super::args::{
    Args, Create, GroupSelector, GroupVerb, Ps, SnapshotVerb, Switch, Verb, VmSelector,
};
use super::client::{Client, unexpected};
use super::link::Link;
use super::output::{SIGNAL_POLL, print, write};
use super::{REFUSED, console, gdb, json, show, snapshot, top};

/// Does what the arguments say.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if let Verb::Completions { shell } = args.verb {
        let command = clap::Command::new("nagayactl");
        let mut command = <Args as clap::Args>::augment_args(command);
        clap_complete::generate(shell, &mut command, "nagayactl", &mut io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    if let Verb::Snapshot {
        verb: SnapshotVerb::Verify { file },
    } = &args.verb
    {
        snapshot::verify(file, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let link = Link::open(args.connect.as_deref(), args.baud, args.timeout)?;
    let mut client = Client::begin(link, args.timeout)?;
    let done = |answer: Result<()>| -> Result<ExitCode> {
        answer?;
        if args.json {
            print(&json!({ "ok": true }))?;
        }
        Ok(ExitCode::SUCCESS)
    };
    match &args.verb {
        Verb::Ps(wish) => ps(&mut client, wish, args.json)?,
        Verb::Top(wish) => top::run(&mut client, wish, args.json)?,
        Verb::Create(wish) => create(&mut client, wish, args.json)?,
        Verb::Destroy(wish) => return each(&mut client, &wish.vms, Request::Destroy, args.json),
        Verb::Pause(wish) => return each(&mut client, &wish.vms, Request::Pause, args.json),
        Verb::Resume(wish) => return each(&mut client, &wish.vms, Request::Resume, args.json),
        Verb::Reset(wish) => return each(&mut client, &wish.vms, Request::Reset, args.json),
        Verb::Group {
            verb: GroupVerb::Ls,
        } => {
            let rows = client.groups()?;
            if args.json {
                print(&rows.iter().map(json::group).collect())?;
            } else {
                write(&show::groups(&rows))?;
            }
        }
        Verb::Group {
            verb: GroupVerb::Set(wish),
        } => {
            let change = GroupChange {
                mode: wish.change.mode.map(GroupMode::from),
                directed_yield: wish
                    .change
                    .directed_yield
                    .map(|switch| switch == Switch::On),
                weight: wish.change.weight,
                cap_percent: wish.change.cap,
            };
            let GroupSelector(group) = wish.group.clone();
            return done(client.order(&Request::GroupSet { group, change }));
        }
        Verb::Weight { vm, weight } => {
            let change = VmChange {
                weight: Some(*weight),
                ..VmChange::default()
            };
            return done(set(&mut client, vm, change));
        }
        Verb::Cap { vm, percent } => {
            let change = VmChange {
                cap_percent: Some(*percent),
                ..VmChange::default()
            };
            return done(set(&mut client, vm, change));
        }
        Verb::Pin {
            vm,
            cpus,
            vcpu,
            soft,
        } => {
            let change = VmChange {
                vcpu: *vcpu,
                affinity: (!soft).then_some(*cpus),
                soft_affinity: soft.then_some(*cpus),
                ..VmChange::default()
            };
            return done(set(&mut client, vm, change));
        }
        Verb::Console { vm } => console::run(&mut client, &vm.0, args.json)?,
        Verb::Dump { vm, vcpu } => dump(&mut client, vm, *vcpu, args.json)?,
        Verb::Gdb { vm, vcpu, port } => gdb::run(&mut client, &vm.0, *vcpu, *port, args.json)?,
        Verb::Frames => match client.ask(&Request::Frames)? {
            Answer::Frames(frames) if args.json => print(&json::frames(&frames))?,
            Answer::Frames(frames) => write(&show::frames(&frames))?,
            other => return Err(unexpected(&other)),
        },
        Verb::Images => {
            let rows = client.images()?;
            if args.json {
                print(&rows.iter().map(json::image).collect())?;
            } else {
                write(&show::images(&rows))?;
            }
        }
        Verb::Info if args.json => print(&json::info(client.hello()))?,
        Verb::Info => write(&show::info(client.hello()))?,
        Verb::Events => events(&mut client, args.json)?,
        Verb::Shutdown => return done(client.order(&Request::Shutdown)),
        Verb::Completions { .. } | Verb::Snapshot { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn ps(client: &mut Client, wish: &Ps, as_json: bool) -> Result<()> {
    let mut rows = client.vms()?;
    rows.retain(|row| wish.all || row.state != VmState::Ended);
    let hello = client.hello();
    if wish.quiet {
        if as_json {
            return print(&rows.iter().map(|row| row.id).collect());
        }
        let lines: Vec<String> = rows.iter().map(|row| format!("{}\n", row.id)).collect();
        return write(&lines.concat());
    }
    if as_json {
        return print(&rows.iter().map(|row| json::vm(row, hello)).collect());
    }
    write(&show::vms(&rows, hello, wish.long))
}

fn create(client: &mut Client, wish: &Create, as_json: bool) -> Result<()> {
    let name = match &wish.name {
        Some(name) => name.clone(),
        None => free_name(&wish.image, &client.vms()?),
    };
    let order = CreateVm {
        memory_bytes: wish.memory,
        vcpus: wish.vcpus,
        group: wish.group.as_ref().map(|group| group.0.clone()),
        group_plan: GroupPlan {
            pages: wish.pages,
            address: if wish.any_address {
                AddressPolicy::Any
            } else {
                AddressPolicy::Fixed
            },
            mode: wish.mode.map(GroupMode::from),
            directed_yield: None,
        },
        cmdline: wish.cmdline.join(" "),
        weight: wish.weight,
        cap_percent: wish.cap,
        affinity: wish.cpus,
        soft_affinity: wish.soft_cpus,
        paused: wish.paused,
        platform: wish.platform(),
        ..CreateVm::new(&name, &wish.image)
    };
    match client.ask(&Request::Create(order))? {
        Answer::Created { vm } if as_json => print(&json!({ "vm": vm, "name": name })),
        Answer::Created { vm } => write(&format!("{vm} {name}\n")),
        other => Err(unexpected(&other)),
    }
}

/// A name for a VM of that image which no other has.
fn free_name(image: &str, rows: &[VmRow]) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '-'
        }
    };
    let mut base: String = image.chars().take(24).map(plain).collect();
    if base.bytes().all(|byte| byte.is_ascii_digit()) {
        base.insert_str(0, "vm-");
    } else if base.starts_with('-') {
        // It would be taken for an option.
        base.insert_str(0, "vm");
    }
    let numbered = (2..).map(|number: u32| format!("{base}-{number}"));
    let mut names = std::iter::once(base.clone()).chain(numbered);
    let free = names.find(|name| rows.iter().all(|row| row.name != *name));
    free.unwrap_or(base)
}

fn set(client: &mut Client, vm: &VmSelector, change: VmChange) -> Result<()> {
    let vm = vm.0.clone();
    client.order(&Request::VmSet { vm, change })
}

/// One request for each VM. A refusal of one does not keep the others from theirs.
fn each(
    client: &mut Client,
    vms: &[VmSelector],
    request: fn(Selector) -> Request,
    as_json: bool,
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut told = Vec::new();
    for VmSelector(vm) in vms {
        let name = match vm {
            Selector::Id(id) => id.to_string(),
            Selector::Name(name) => name.clone(),
        };
        match client.order(&request(vm.clone())) {
            Ok(()) if as_json => told.push(json!({ "vm": name, "ok": true })),
            Ok(()) => write(&format!("{name}\n"))?,
            Err(error) => {
                // What is no refusal concerns the line, and so the VMs that follow.
                let refused: ControlError = error.downcast()?;
                code = ExitCode::from(REFUSED);
                if as_json {
                    let error = json!({ "code": refused.code.word(), "text": refused.text });
                    told.push(json!({ "vm": name, "error": error }));
                } else {
                    crate::note!("error: {}", show::clean(&refused.text));
                }
            }
        }
    }
    if as_json {
        print(&Value::Array(told))?;
    }
    Ok(code)
}

fn dump(client: &mut Client, vm: &VmSelector, vcpu: Option<u32>, as_json: bool) -> Result<()> {
    let mut ask = |vcpu| -> Result<Box<VcpuDump>> {
        let vm = vm.0.clone();
        match client.ask(&Request::Dump { vm, vcpu })? {
            Answer::Dump(dump) => Ok(dump),
            other => Err(unexpected(&other)),
        }
    };
    let first = ask(vcpu.unwrap_or(0))?;
    let others = if vcpu.is_none() { 1..first.vcpus } else { 0..0 };
    let mut dumps = vec![first];
    for vcpu in others {
        // One that has not been started has no registers: the others are shown all the same.
        match ask(vcpu) {
            Ok(dump) => dumps.push(dump),
            Err(error) => eprintln!("vCPU {vcpu}: {error:#}"),
        }
    }
    if as_json {
        return print(&dumps.iter().map(|dump| json::dump(dump)).collect());
    }
    let texts: Vec<String> = dumps.iter().map(|dump| show::dump(dump)).collect();
    write(&texts.join("\n"))
}

fn events(client: &mut Client, as_json: bool) -> Result<()> {
    interrupt::install();
    client.order(&Request::Events { wanted: true })?;
    let tsc_khz = client.hello().tsc_khz;
    while !interrupt::requested() {
        match client.notice(Instant::now() + SIGNAL_POLL)? {
            Some(Notice::Event(event)) if as_json => print(&json::event(&event))?,
            Some(Notice::Event(event)) => write(&(show::event(&event, tsc_khz) + "\n"))?,
            Some(Notice::ConsoleOutput { .. } | Notice::ConsoleClosed { .. }) | None => {}
        }
    }
    client.order(&Request::Events { wanted: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagaya_vmm::control::{Backend, MockBackend, Ticket};

    #[test]
    fn a_vm_without_a_name_gets_one_that_is_free_and_valid() {
        let mut machine = MockBackend::new();
        for (number, name) in ["hog", "hog-2"].into_iter().enumerate() {
            let _ = machine.create(Ticket(number as u64), &CreateVm::new(name, "hog"));
        }
        let rows: Vec<VmRow> = machine.vms.values().cloned().collect();
        assert_eq!(free_name("hog", &rows), "hog-3");
        assert_eq!(free_name("42", &rows), "vm-42");
        for image in [
            "a very.long/name with everything in it",
            "é",
            "vmlinux-6.1.0",
        ] {
            let name = free_name(image, &rows);
            assert!(nagaya_vmm::config::is_valid_name(&name), "{name}");
        }
    }
}
