//! Instructions of a guest that the hypervisor has to carry out: fetched through the guest's page tables, decoded, and remembered.
//!
//! Drivers access their devices in few places, so that one of the last instructions is mostly the next. It is taken again only if
//! everything that led to it is as it was: address, CR3, each entry of the page tables on the way, the bytes themselves, and where
//! the VM's RAM is. So nothing has to be told of changes, and what is carried out is what a fetch would have found.
//!
//! Source: Intel SDM Vol. 3, "Information for VM Exits Due to Instruction Execution": the length of the instruction is not among
//! what an EPT violation tells (CPUs that were tried tell it, other hypervisors do not), so it cannot be used for stores whose
//! value does not matter either.

use core::cell::Cell;

use nagaya_devices::GuestRam;
use nagaya_mem::{Gpa, GuestRead, Hpa, PagingState, translate};
use nagaya_vmm::mmio::{
    self, CodeSize, Decode, Decoded, IcedDecoder, Instruction, Mismatches, OperandAddress,
    Unsupported,
};
use spin::Lazy;

use crate::host::memory;
use crate::objects::devices::ram::RamSnapshotGuard;

/// Made with the machine: its tables are no guest's doing.
static DECODER: Lazy<IcedDecoder> = Lazy::new(IcedDecoder::new);

/// Makes the decoder.
pub fn prepare() {
    Lazy::force(&DECODER);
}

/// The most levels of a guest's page tables.
const LEVELS: usize = 4;
/// Bytes that are fetched.
pub type Bytes = [u8; mmio::MAX_BYTES];

/// An instruction, and all that led to it.
#[derive(Clone, Copy, Debug)]
pub struct KnownInstruction {
    rip: u64,
    cr3: u64,
    /// [`RamSnapshotGuard::generation`]: until it changes the addresses below are this VM's RAM.
    generation: u64,
    /// The entries of the page tables: where, and what. The first [`KnownInstruction::levels`] count.
    entries: [(Hpa, u64); LEVELS],
    levels: usize,
    /// Where the bytes are, all in one page.
    code: Hpa,
    bytes: Bytes,
    instruction: Instruction,
    address: OperandAddress,
}

impl KnownInstruction {
    /// The instruction if a fetch would find it again. The guest runs in 64-bit mode, as it did when it was found.
    #[inline]
    fn still(&self, rip: u64, cr3: u64, ram: &RamSnapshotGuard) -> Option<Instruction> {
        if self.rip != rip || self.cr3 != cr3 || self.generation != ram.generation() {
            return None;
        }
        let memory = memory::phys();
        let mut entries = self.entries.iter().take(self.levels);
        // Loaded before the bytes, as a CPU would.
        if !entries.all(|(at, entry)| memory.load_u64(*at) == *entry) {
            return None;
        }
        let mut bytes = Bytes::default();
        memory.read(self.code, &mut bytes);
        (bytes == self.bytes).then_some(self.instruction)
    }
}

/// How many a vCPU remembers: kicks of either queue, and the end of an interrupt.
const PLACES: usize = 4;

/// Instructions of one vCPU, each in the place that its address says.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodedInsnCache {
    places: [Option<KnownInstruction>; PLACES],
    /// Exits by instructions that had been changed by the time they were fetched.
    pub mismatches: Mismatches,
}

impl DecodedInsnCache {
    /// The place of an address: a driver's instructions are some tens of bytes apart, or in different functions.
    #[inline]
    fn place(rip: u64) -> usize {
        (rip ^ rip >> 4 ^ rip >> 8) as usize % PLACES
    }

    /// The instruction at an address, if a fetch would find it again.
    #[inline]
    pub fn find(&self, rip: u64, cr3: u64, ram: &RamSnapshotGuard) -> Option<Instruction> {
        let known = self.places.get(DecodedInsnCache::place(rip))?.as_ref()?;
        known.still(rip, cr3, ram)
    }

    /// What the address of its operand is made of, of an instruction that was found just now.
    pub fn operand_address(&self, rip: u64) -> Option<OperandAddress> {
        let known = self.places.get(DecodedInsnCache::place(rip))?.as_ref()?;
        (known.rip == rip).then_some(known.address)
    }

    /// Remembers one in place of another.
    pub fn keep(&mut self, known: KnownInstruction) {
        if let Some(place) = self.places.get_mut(DecodedInsnCache::place(known.rip)) {
            *place = Some(known);
        }
    }
}

/// Reads of page tables, with a note of each.
struct Noting<'a> {
    ram: &'a RamSnapshotGuard,
    entries: Cell<[(Hpa, u64); LEVELS]>,
    levels: Cell<usize>,
}

impl GuestRead for Noting<'_> {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        let entry = self.ram.read_u64(gpa)?;
        let mut entries = self.entries.get();
        let place = entries.get_mut(self.levels.get())?;
        // Of what is not found at once nothing is remembered: its code is not, either.
        *place = (self.ram.whole(gpa, 8).unwrap_or(Hpa::new(0)), entry);
        self.entries.set(entries);
        self.levels.set(self.levels.get() + 1);
        Some(entry)
    }
}

/// What a fetch found.
pub struct Fetched {
    /// The bytes, zeros from `count` on.
    pub bytes: Bytes,
    /// So many were found.
    pub count: usize,
    /// What they are.
    pub decoded: Result<Decoded, Unsupported>,
    /// To be remembered: of 64-bit code, and not of an instruction whose bytes are in two pages, or may be.
    pub known: Option<KnownInstruction>,
}

/// Fetches the instruction at a linear address and decodes it.
pub fn fetch(linear: u64, size: CodeSize, paging: &PagingState, ram: &RamSnapshotGuard) -> Fetched {
    let mut bytes = Bytes::default();
    let mut done = 0;
    let mut place = None;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let address = match size {
            CodeSize::Bits64 => linear.wrapping_add(done as u64),
            CodeSize::Bits32 | CodeSize::Bits16 => linear.wrapping_add(done as u64) & 0xFFFF_FFFF,
        };
        let noting = Noting {
            ram,
            entries: Cell::new([(Hpa::new(0), 0); LEVELS]),
            levels: Cell::new(0),
        };
        let Ok(found) = translate(paging, &noting, address) else {
            break;
        };
        let left = (guest_abi::PAGE_BYTES - address % guest_abi::PAGE_BYTES) as usize;
        let length = left.min(rest.len());
        let (now, _) = rest.split_at_mut(length);
        match ram.whole(found.gpa, length as u64) {
            Some(code) => {
                memory::phys().read(code, now);
                if length == mmio::MAX_BYTES {
                    place = Some((noting.entries.get(), noting.levels.get(), code));
                }
            }
            None if ram.read(found.gpa, now).is_ok() => {}
            None => break,
        }
        done += length;
    }
    let decoded = DECODER.decode(bytes.get(..done).unwrap_or_default(), size);
    let single = match decoded {
        Ok(Decoded::Single(instruction, address)) if size == CodeSize::Bits64 => {
            Some((instruction, address))
        }
        _ => None,
    };
    let known = single
        .zip(place)
        .map(
            |((instruction, address), (entries, levels, code))| KnownInstruction {
                rip: linear,
                cr3: paging.cr3,
                generation: ram.generation(),
                entries,
                levels,
                code,
                bytes,
                instruction,
                address,
            },
        );
    Fetched {
        bytes,
        count: done,
        decoded,
        known,
    }
}
