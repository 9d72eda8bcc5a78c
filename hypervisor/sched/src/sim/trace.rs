//! What happened, in lines and in pieces of time.

use core::fmt;
use std::vec::Vec;

use crate::{CpuId, CpuSet, Ticks, VcpuId};

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A CPU asked and was told this.
    Told {
        /// The CPU.
        cpu: CpuId,
        /// What it is to run.
        run: Option<VcpuId>,
        /// Until when; `Ticks::MAX` for no end.
        until: Ticks,
    },
    /// CPUs were told to ask.
    Kick(CpuSet),
    /// A vCPU waits for an event.
    Block(VcpuId),
    /// A vCPU can run.
    Wake {
        /// Which.
        vcpu: VcpuId,
        /// By a doorbell.
        boosted: bool,
    },
    /// A vCPU lets others go first.
    Yield(VcpuId),
    /// A vCPU spins, and its CPU has noticed.
    Spin(VcpuId),
    /// The last member came to a barrier.
    Open(usize),
    /// A vCPU has got a lock.
    Locked(usize, VcpuId),
}

/// An event and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub time: Ticks,
    /// What.
    pub event: Event,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10} ", self.time)?;
        match self.event {
            Event::Told { cpu, run, until } => {
                write!(f, "cpu{} ", cpu.0)?;
                match run {
                    Some(vcpu) => write!(f, "runs v{}", vcpu.0)?,
                    None => write!(f, "idles")?,
                }
                if until != Ticks::MAX {
                    write!(f, " until {until}")?;
                }
                Ok(())
            }
            Event::Kick(cpus) => {
                write!(f, "kick")?;
                cpus.iter().try_for_each(|cpu| write!(f, " cpu{}", cpu.0))
            }
            Event::Block(vcpu) => write!(f, "v{} blocks", vcpu.0),
            Event::Wake { vcpu, boosted } => {
                let how = if boosted { " boosted" } else { "" };
                write!(f, "v{} wakes{how}", vcpu.0)
            }
            Event::Yield(vcpu) => write!(f, "v{} yields", vcpu.0),
            Event::Spin(vcpu) => write!(f, "v{} spins", vcpu.0),
            Event::Open(barrier) => write!(f, "barrier{barrier} opens"),
            Event::Locked(lock, vcpu) => write!(f, "v{} has lock{lock}", vcpu.0),
        }
    }
}

/// A CPU ran a vCPU for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The CPU.
    pub cpu: CpuId,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// It did nothing but wait for another.
    pub spinning: bool,
    /// From when.
    pub from: Ticks,
    /// Until when.
    pub to: Ticks,
}

/// Keeps what it is asked to keep.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) lines: Option<Vec<Line>>,
    pub(super) segments: Option<Vec<Segment>>,
    /// What each CPU does now, and since when.
    open: Vec<Option<(VcpuId, bool, Ticks)>>,
}

impl Recorder {
    pub(super) fn line(&mut self, time: Ticks, event: Event) {
        if let Some(lines) = &mut self.lines {
            lines.push(Line { time, event });
        }
    }

    /// A CPU does something else from now on, or the same.
    pub(super) fn running(&mut self, cpu: CpuId, vcpu: Option<VcpuId>, spins: bool, now: Ticks) {
        let Some(segments) = &mut self.segments else {
            return;
        };
        let index = cpu.0 as usize;
        if self.open.len() <= index {
            self.open.resize(index + 1, None);
        }
        let Some(open) = self.open.get_mut(index) else {
            return;
        };
        if open.map(|(id, spinning, _)| (id, spinning)) == vcpu.map(|id| (id, spins)) {
            return;
        }
        if let Some((vcpu, spinning, from)) = *open
            && from < now
        {
            segments.push(Segment {
                cpu,
                vcpu,
                spinning,
                from,
                to: now,
            });
        }
        *open = vcpu.map(|id| (id, spins, now));
    }

    /// Ends all pieces that go on.
    pub(super) fn close(&mut self, now: Ticks) {
        for index in 0..self.open.len() {
            self.running(CpuId(index as u32), None, false, now);
        }
    }
}
