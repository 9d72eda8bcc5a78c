//! A VM as a value, and that value as a file: all that a VM is besides its RAM (docs/STATE.md).
//!
//! The states of devices are next to the devices; those of what only `vmm` knows are here, with the format. It is a module of this crate
//! and no crate of its own since it joins what is here already: configuration, MSRs, doorbells, start-up, and the devices.
//!
//! A record's body is one state in postcard's encoding. Its version is that of the type: who changes a field, here or in a device, gives
//! the record another version, which the test of the format's bytes reminds him of.
//!
//! Concurrency: none; plain values.

mod error;
mod features;
mod fields;
mod format;
#[cfg(any(test, feature = "test-support"))]
pub mod sample;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

use alloc::vec::Vec;

use guest_abi::ABI_VERSION;
use nagaya_devices::function::{Function, FunctionState};
use nagaya_devices::pc::{Pc, PcState};
use nagaya_devices::pci::{BusState, PciBus};
use nagaya_devices::state::{StateError, TscShift};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::SnapshotError;
pub use features::{CpuFeatures, MissingFeature};
pub use fields::{FieldError, Problem};
pub use format::{
    FORMAT, HEADER_BYTES, Header, MAGIC, MAX_BODY_BYTES, RECORD_HEAD_BYTES, Reader, Record, Writer,
};
pub use vcpu::{Activity, DebugRegisters, InterruptSource, PendingEvent, SwitchedMsrs, VcpuState};
pub use vm::{EndpointState, MemberState, RegionState, TimeState, VmState};

/// A kind of record: number, name, version of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: &'static str,
    /// The version that is written and read.
    pub version: u16,
}

/// The VM itself: [`VmState`]. First, and once.
pub const VM: Kind = Kind {
    number: 1,
    name: "vm",
    version: 1,
};
/// A vCPU: [`VcpuState`]. As many as the VM has, in the order of their indices.
pub const VCPU: Kind = Kind {
    number: 2,
    name: "vcpu",
    version: 1,
};
/// The devices of a PC: [`PcState`]. Once, if the VM sees one.
pub const BOARD: Kind = Kind {
    number: 3,
    name: "board",
    version: 1,
};
/// The PCI bus with its functions: [`BusState`]. Once.
pub const BUS: Kind = Kind {
    number: 4,
    name: "bus",
    version: 1,
};
/// Doorbells and the place in a group: [`EndpointState`]. Once.
pub const ENDPOINT: Kind = Kind {
    number: 5,
    name: "endpoint",
    version: 1,
};

/// All of them.
pub const KINDS: [Kind; 5] = [VM, VCPU, BOARD, BUS, ENDPOINT];

/// All that a VM is besides its RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The version of the contract that the guest knows, and the CPU features that it has been shown.
    pub header: Header,
    /// The VM.
    pub vm: VmState,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuState>,
    /// Its board.
    pub board: Option<PcState>,
    /// Its bus.
    pub bus: BusState<FunctionState>,
    /// How doorbells reach it.
    pub endpoint: EndpointState,
}

/// What was found in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub snapshot: Snapshot,
    /// Records that are not needed and not known: number and bytes.
    pub skipped: Vec<(u16, usize)>,
}

/// A record without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSize {
    /// Its number.
    pub number: u16,
    /// Version of its body.
    pub version: u16,
    /// Bytes of its body.
    pub bytes: usize,
}

impl Record<'_> {
    /// What it is without its body.
    #[must_use]
    pub fn size(&self) -> RecordSize {
        RecordSize {
            number: self.kind,
            version: self.version,
            bytes: self.body.len(),
        }
    }
}

fn write<T: Serialize>(writer: &mut Writer, kind: Kind, state: &T) -> Option<()> {
    let body = fields::to_bytes(state)?;
    let Kind {
        number, version, ..
    } = kind;
    writer.record(number, version, true, &body).then_some(())
}

fn read<T: DeserializeOwned>(kind: Kind, record: &Record<'_>) -> Result<T, SnapshotError> {
    if record.version != kind.version {
        return Err(SnapshotError::Version {
            record: kind.name,
            found: record.version,
            known: kind.version,
        });
    }
    fields::from_bytes(record.body).map_err(|error| SnapshotError::Body {
        record: kind.name,
        error,
    })
}

/// Fills a place that is filled once.
fn read_once<T: DeserializeOwned>(
    place: &mut Option<T>,
    kind: Kind,
    record: &Record<'_>,
) -> Result<(), SnapshotError> {
    if place.is_some() {
        return Err(SnapshotError::Again { record: kind.name });
    }
    *place = Some(read(kind, record)?);
    Ok(())
}

fn found<T>(place: Option<T>, kind: Kind) -> Result<T, SnapshotError> {
    place.ok_or(SnapshotError::Missing { record: kind.name })
}

impl Snapshot {
    /// The file. `None` if a state is longer than a record can be.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let Snapshot {
            header,
            vm,
            vcpus,
            board,
            bus,
            endpoint,
        } = self;
        let mut writer = Writer::new(header);
        write(&mut writer, VM, vm)?;
        for vcpu in vcpus {
            write(&mut writer, VCPU, vcpu)?;
        }
        if let Some(board) = board {
            write(&mut writer, BOARD, board)?;
        }
        write(&mut writer, BUS, bus)?;
        write(&mut writer, ENDPOINT, endpoint)?;
        Some(writer.end())
    }

    /// Reads a file and checks all that is in it, so that each part can be restored. Records that are not needed and not known are skipped.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Found, SnapshotError> {
        let mut reader = Reader::new(bytes)?;
        let header = *reader.header();
        let abi = header.abi;
        if abi >> 16 != ABI_VERSION >> 16 || abi > ABI_VERSION {
            return Err(SnapshotError::Abi {
                found: abi,
                known: ABI_VERSION,
            });
        }
        let (mut vm, mut board, mut bus, mut endpoint) = (None, None, None, None);
        let (mut vcpus, mut skipped) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next_record()? {
            match record.kind {
                kind if kind == VM.number => read_once(&mut vm, VM, &record)?,
                kind if kind == VCPU.number => vcpus.push(read(VCPU, &record)?),
                kind if kind == BOARD.number => read_once(&mut board, BOARD, &record)?,
                kind if kind == BUS.number => read_once(&mut bus, BUS, &record)?,
                kind if kind == ENDPOINT.number => read_once(&mut endpoint, ENDPOINT, &record)?,
                kind if record.is_needed => {
                    return Err(SnapshotError::Unknown {
                        at: record.at,
                        kind,
                    });
                }
                kind => skipped.push((kind, record.body.len())),
            }
        }
        let snapshot = Snapshot {
            header,
            vm: found(vm, VM)?,
            vcpus,
            board,
            bus: found(bus, BUS)?,
            endpoint: found(endpoint, ENDPOINT)?,
        };
        snapshot.check()?;
        Ok(Found { snapshot, skipped })
    }

    /// Moves all its times: from now on they are by another TSC.
    pub fn shift(&mut self, by: TscShift) {
        let Snapshot {
            header: _,
            vm,
            vcpus,
            board,
            bus: _,
            endpoint,
        } = self;
        vm.shift(by);
        vcpus.iter_mut().for_each(|vcpu| vcpu.shift(by));
        if let Some(board) = board {
            board.shift(by);
        }
        endpoint.shift(by);
    }

    /// The devices on its bus: slot, and what it is.
    pub fn devices(&self) -> impl Iterator<Item = (u8, &'static str)> {
        let functions = self.bus.functions.iter();
        functions.map(|(slot, function)| {
            let name = match function {
                FunctionState::Net(_) => "network card",
                FunctionState::Entropy(_) => "source of entropy",
                FunctionState::Console(_) => "console",
                FunctionState::Block(_) => "disk",
            };
            (*slot, name)
        })
    }

    /// Whether the guest finds on a CPU what it has been shown.
    ///
    /// # Errors
    /// [`SnapshotError::Feature`]: it would not.
    pub fn check_features(&self, here: &CpuFeatures) -> Result<(), SnapshotError> {
        match self.header.features.missing_in(here) {
            Some(missing) => Err(SnapshotError::Feature(missing)),
            None => Ok(()),
        }
    }

    /// Whether each part can be restored, and they fit together.
    fn check(&self) -> Result<(), SnapshotError> {
        let Snapshot {
            header,
            vm,
            vcpus,
            board,
            bus,
            endpoint,
        } = self;
        vm.check().map_err(SnapshotError::state(VM.name))?;
        let wanted = vm.config.vcpus as usize;
        if vcpus.len() < wanted {
            return Err(SnapshotError::Missing { record: VCPU.name });
        }
        if vcpus.len() > wanted {
            return Err(SnapshotError::Again { record: VCPU.name });
        }
        for (index, vcpu) in (0..).zip(vcpus) {
            check_vcpu(index, header, vcpu).map_err(|error| SnapshotError::State {
                record: VCPU.name,
                error: error.within(error::field("vcpu", index as usize)),
            })?;
        }
        match (vm.config.kind.is_pc(), board) {
            (true, None) => {
                return Err(SnapshotError::Missing { record: BOARD.name });
            }
            (false, Some(_)) => {
                return Err(SnapshotError::Again { record: BOARD.name });
            }
            (_, Some(board)) => {
                Pc::restore(board).map_err(SnapshotError::state(BOARD.name))?;
            }
            (false, None) => {}
        }
        PciBus::restore(bus, Function::restore).map_err(SnapshotError::state(BUS.name))?;
        endpoint
            .check()
            .map_err(SnapshotError::state(ENDPOINT.name))
    }
}

fn check_vcpu(index: u32, header: &Header, vcpu: &VcpuState) -> Result<(), StateError> {
    use nagaya_devices::state::check;
    check(
        vcpu.index == index,
        "index",
        vcpu.index,
        "the next one's: they are in order",
    )?;
    check(
        vcpu.cpuid.xcr0 & !header.features.xcr0 == 0,
        "cpuid.xcr0",
        vcpu.cpuid.xcr0,
        "of the features in the header",
    )?;
    vcpu.check()
}
