//! `nagayactl snapshot verify`: checks a snapshot on the host as the hypervisor would, and says what is in it. No machine is asked.

use std::path::Path;

use anyhow::{Context, Result};
use nagaya_vmm::snapshot::{
    Activity, Found, KINDS, Reader, RecordSize, Snapshot, SnapshotError, VcpuState,
};
use serde_json::{Value, json};

use super::output::{print, write};
use super::show::{clean, size};
use super::table::Side::{Left, Right};
use super::table::Table;

/// Verifies a file.
pub(super) fn verify(file: &Path, as_json: bool) -> Result<()> {
    let name = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    let refused = || format!("{name} is refused");
    let found = Snapshot::from_bytes(&bytes).with_context(refused)?;
    let records = records(&bytes).with_context(refused)?;
    if as_json {
        print(&to_json(&found, &records))
    } else {
        write(&to_text(&found, &records))
    }
}

fn records(bytes: &[u8]) -> Result<Vec<RecordSize>, SnapshotError> {
    let mut reader = Reader::new(bytes)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record.size());
    }
    Ok(records)
}

fn name_of(number: u16) -> &'static str {
    let kind = KINDS.iter().find(|kind| kind.number == number);
    kind.map_or("(skipped)", |kind| kind.name)
}

fn activity(vcpu: &VcpuState) -> &'static str {
    match vcpu.activity {
        Activity::Active => "active",
        Activity::Halted => "halted",
        Activity::ShutDown => "shut down",
        Activity::WaitsForStartUp => "waits for start-up",
    }
}

fn features(snapshot: &Snapshot) -> Vec<String> {
    let all = snapshot.header.features.all();
    all.map(|feature| feature.to_string()).collect()
}

fn to_text(found: &Found, records: &[RecordSize]) -> String {
    let Found { snapshot, .. } = found;
    let (vm, abi) = (&snapshot.vm, snapshot.header.abi);
    let config = &vm.config;
    let mut lines = vec![
        format!(
            "VM {:?}, number {}: {}, {}, {} vCPUs",
            clean(&config.name),
            vm.number,
            config.kind.word(),
            size(config.memory_bytes),
            config.vcpus
        ),
        format!("contract {}.{}", abi >> 16, abi & 0xFFFF),
        format!(
            "saved at TSC {} of {} kHz, {} s after 1970",
            vm.time.saved_at, vm.time.tsc_khz, vm.time.seconds
        ),
    ];
    if let Some(member) = &snapshot.endpoint.member {
        let region = match &member.region {
            Some(region) => format!("region of {} pages at {:#x}", member.group.pages, region.va),
            None => "region not mapped".into(),
        };
        let group = clean(&member.group.name);
        lines.push(format!(
            "member {} of group {group:?}: {region}",
            member.index
        ));
    }
    for vcpu in &snapshot.vcpus {
        let (index, rip) = (vcpu.index, vcpu.registers.rip);
        lines.push(format!("vCPU {index}: {}, RIP {rip:#x}", activity(vcpu)));
    }
    for (slot, device) in snapshot.devices() {
        lines.push(format!("slot {slot}: {device}"));
    }
    lines.push(format!("needs {}", features(snapshot).join(" ")));
    lines.push(String::new());
    let mut table = Table::new(&[
        ("RECORD", Left),
        ("NUMBER", Right),
        ("VERSION", Right),
        ("BYTES", Right),
    ]);
    for record in records {
        table.row(vec![
            name_of(record.number).into(),
            record.number.to_string(),
            record.version.to_string(),
            record.bytes.to_string(),
        ]);
    }
    lines.extend(table.lines());
    lines.push(String::new());
    lines.push("It is whole, and every part of it can be restored.".into());
    lines.join("\n") + "\n"
}

fn to_json(found: &Found, records: &[RecordSize]) -> Value {
    let Found { snapshot, skipped } = found;
    let vm = &snapshot.vm;
    let records: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({
                "number": record.number,
                "name": name_of(record.number),
                "version": record.version,
                "bytes": record.bytes,
            })
        })
        .collect();
    let vcpus: Vec<Value> = snapshot
        .vcpus
        .iter()
        .map(|vcpu| json!({ "index": vcpu.index, "activity": activity(vcpu), "rip": vcpu.registers.rip }))
        .collect();
    let devices: Vec<Value> = snapshot
        .devices()
        .map(|(slot, device)| json!({ "slot": slot, "device": device }))
        .collect();
    let member = snapshot.endpoint.member.as_ref();
    json!({
        "abi": snapshot.header.abi,
        "features": features(snapshot),
        "vm": {
            "id": vm.number,
            "name": vm.config.name,
            "kind": vm.config.kind.word(),
            "memory_bytes": vm.config.memory_bytes,
            "vcpus": vm.config.vcpus,
        },
        "saved_at": vm.time.saved_at,
        "tsc_khz": vm.time.tsc_khz,
        "seconds": vm.time.seconds,
        "group": member.map(|member| json!({ "name": member.group.name, "index": member.index })),
        "vcpus": vcpus,
        "devices": devices,
        "records": records,
        "skipped": skipped.len(),
    })
}
