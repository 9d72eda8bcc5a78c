//! Answers as JSON for programs. Pure functions. The keys are described in docs/CONTROL.md: programs depend on them.

use nagaya_vmm::control::{
    CpuSet, Event, FrameCounts, GroupRow, Hello, ImageRow, LastExit, VcpuDump, VmRow,
};
use serde_json::{Map, Value, json};

use super::show;

/// CPUs as a list, those only that the machine has.
fn cpus(set: CpuSet, hello: &Hello) -> Value {
    set.and(CpuSet::first(hello.cpus)).iter().collect()
}

pub(super) fn vm(row: &VmRow, hello: &Hello) -> Value {
    let exits: Vec<Value> = row
        .exits
        .iter()
        .map(|exit| json!({ "reason": exit.reason, "name": exit.name(), "count": exit.count }))
        .collect();
    json!({
        "id": row.id,
        "name": row.name,
        "group": row.group.as_ref().map(|tag| json!({ "id": tag.id, "name": tag.name })),
        "state": row.state.word(),
        "vcpus": row.vcpus,
        "memory_bytes": row.memory_bytes,
        "cpus": cpus(row.cpus, hello),
        "affinity": cpus(row.affinity, hello),
        "soft_affinity": cpus(row.soft_affinity, hello),
        "ticks": {
            "running": row.ticks.running,
            "runnable": row.ticks.runnable,
            "co_stopped": row.ticks.co_stopped,
            "blocked": row.ticks.blocked,
            "idle": row.ticks.idle,
            "total": row.ticks.total,
        },
        "exits": exits,
        "doorbells": {
            "sent": row.doorbells.sent,
            "delivered": row.doorbells.delivered,
            "throttled": row.doorbells.throttled,
        },
        "switches": row.switches,
        "migrations": row.migrations,
        "weight": row.weight,
        "cap_percent": row.cap_percent,
        "resets": row.resets,
        "cause": row.cause,
    })
}

pub(super) fn group(row: &GroupRow) -> Value {
    json!({
        "id": row.id,
        "name": row.name,
        "mode": row.mode.word(),
        "directed_yield": row.directed_yield,
        "weight": row.weight,
        "cap_percent": row.cap_percent,
        "members": row.members,
        "generation": row.generation,
        "address": (row.address != 0).then_some(row.address),
        "region_pages": row.region_pages,
        "run_ticks": row.run_ticks,
        "hazard_ticks": row.hazard_ticks,
    })
}

pub(super) fn image(row: &ImageRow) -> Value {
    json!({ "name": row.name, "bytes": row.bytes })
}

pub(super) fn frames(frames: &FrameCounts) -> Value {
    json!({
        "total": frames.total,
        "free": frames.free,
        "reserved": frames.reserved,
        "hypervisor": frames.hypervisor,
        "vm": frames.vm,
        "group": frames.group,
    })
}

pub(super) fn info(hello: &Hello) -> Value {
    json!({
        "version": hello.version,
        "cpus": hello.cpus,
        "tsc_khz": hello.tsc_khz,
        "ticks": hello.ticks,
        "frames": frames(&hello.frames),
        "rejected": hello.rejected,
    })
}

pub(super) fn event(event: &Event) -> Value {
    json!({
        "ticks": event.ticks,
        "event": event.name,
        "vm": event.vm,
        "text": event.text,
        "lost": event.lost,
    })
}

pub(super) fn dump(dump: &VcpuDump) -> Value {
    let general = show::GENERAL.into_iter().zip(dump.registers.general);
    let registers: Map<String, Value> = show::controls(&dump.registers)
        .into_iter()
        .chain(general)
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    let segments: Map<String, Value> = show::segments(&dump.registers)
        .map(|(name, segment)| {
            let value = json!({
                "selector": segment.selector,
                "base": segment.base,
                "limit": segment.limit,
                "access": segment.access,
            });
            (name.to_owned(), value)
        })
        .collect();
    let tables: Map<String, Value> = [("gdtr", dump.registers.gdtr), ("idtr", dump.registers.idtr)]
        .into_iter()
        .map(|(name, table)| {
            (
                name.to_owned(),
                json!({ "base": table.base, "limit": table.limit }),
            )
        })
        .collect();
    json!({
        "vm": dump.vm,
        "vcpu": dump.vcpu,
        "vcpus": dump.vcpus,
        "cpu": dump.cpu,
        "registers": registers,
        "segments": segments,
        "tables": tables,
        "last_exits": dump.last_exits.iter().map(last_exit).collect::<Vec<_>>(),
    })
}

fn last_exit(exit: &LastExit) -> Value {
    json!({
        "ticks": exit.ticks,
        "reason": exit.reason,
        "name": exit.name(),
        "qualification": exit.qualification,
        "rip": exit.rip,
        "gpa": exit.gpa,
    })
}
