mod bzimage;
mod multiboot;
mod pvh;

use super::*;
use crate::layout::Layout;
use crate::platform::{ACPI_GPA, HIGH_RAM_GPA, MemoryKind, memory_map};
use elf::abi;
use std::vec;

const MEMORY: u64 = 32 << 20;

/// Guest RAM that refuses what lies outside.
struct Ram(Vec<u8>);

impl Ram {
    fn new(memory_bytes: u64) -> Ram {
        Ram(vec![0; memory_bytes as usize])
    }

    fn bytes(&self, gpa: u64, count: usize) -> &[u8] {
        &self.0[gpa as usize..gpa as usize + count]
    }

    fn u8(&self, gpa: u64) -> u8 {
        self.0[gpa as usize]
    }

    fn u16(&self, gpa: u64) -> u16 {
        u16::from_le_bytes(self.bytes(gpa, 2).try_into().expect("two bytes"))
    }

    fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa, 4).try_into().expect("four bytes"))
    }

    fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().expect("eight bytes"))
    }

    /// The string of C at an address.
    fn text(&self, gpa: u64) -> &str {
        let rest = &self.0[gpa as usize..];
        let end = rest.iter().position(|byte| *byte == 0).expect("it ends");
        core::str::from_utf8(&rest[..end]).expect("is text")
    }
}

impl GuestWriter for Ram {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let slot = usize::try_from(gpa)
            .ok()
            .and_then(|start| Some(start..start.checked_add(bytes.len())?))
            .and_then(|range| self.0.get_mut(range));
        match slot {
            Some(slot) => {
                slot.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}

fn identity(cmdline: &str) -> PcIdentity<'_> {
    PcIdentity {
        layout: Layout::new(MEMORY, u64::MAX),
        vcpus: 2,
        cmdline,
        in_group: true,
    }
}

/// The memory map as a list of address, length, kind.
fn map() -> Vec<(u64, u64, u32)> {
    memory_map(Layout::new(MEMORY, u64::MAX))
        .into_iter()
        .map(|piece| {
            let bytes = piece.range.end - piece.range.start;
            (piece.range.start, bytes, piece.kind as u32)
        })
        .collect()
}

/// One program header of an ELF file.
#[derive(Clone, Debug)]
struct Segment {
    kind: u32,
    physical: u64,
    virtual_start: u64,
    data: Vec<u8>,
    memory_bytes: u64,
}

/// An ELF file of these segments, whose data follow each other from 0x1000 on.
#[derive(Clone, Debug)]
struct Elf {
    is_64: bool,
    kind: u16,
    machine: u16,
    entry: u64,
    segments: Vec<Segment>,
}

impl Elf {
    fn bytes(&self) -> Vec<u8> {
        let word = |file: &mut Vec<u8>, value: u64| {
            let bytes = value.to_le_bytes();
            file.extend(&bytes[..if self.is_64 { 8 } else { 4 }]);
        };
        let (header_bytes, entry_bytes) = if self.is_64 { (64, 56) } else { (52, 32) };
        let mut file = Vec::from(*b"\x7fELF");
        file.extend([if self.is_64 { 2 } else { 1 }, 1, 1]);
        file.resize(16, 0);
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        word(&mut file, self.entry);
        word(&mut file, header_bytes);
        word(&mut file, 0); // no section headers
        file.extend(0_u32.to_le_bytes());
        for half in [
            header_bytes as u16,
            entry_bytes,
            self.segments.len() as u16,
            0,
            0,
            0,
        ] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 0x1000;
        for segment in &self.segments {
            const FLAGS: u32 = abi::PF_R | abi::PF_X;
            file.extend(segment.kind.to_le_bytes());
            if self.is_64 {
                file.extend(FLAGS.to_le_bytes());
            }
            for value in [
                offset,
                segment.virtual_start,
                segment.physical,
                segment.data.len() as u64,
                segment.memory_bytes,
            ] {
                word(&mut file, value);
            }
            if !self.is_64 {
                file.extend(FLAGS.to_le_bytes());
            }
            word(&mut file, 0x1000);
            offset += segment.data.len() as u64;
        }
        file.resize(0x1000, 0);
        for segment in &self.segments {
            file.extend(&segment.data);
        }
        file
    }
}

fn load_kernel(
    kind: GuestKind,
    image: &[u8],
    initramfs: Option<&[u8]>,
    modules: &[(&[u8], &str)],
) -> (Result<LoadedPc, PcLoadError>, Ram) {
    let mut ram = Ram::new(MEMORY);
    let loaded = load_pc(
        kind,
        image,
        initramfs,
        modules,
        &identity("console=ttyS0"),
        &mut ram,
    );
    (loaded, ram)
}

#[test]
fn the_memory_map_covers_ram_once_and_reserves_what_the_platform_has() {
    for memory_bytes in [4 << 20, MEMORY, 3 << 30, (3 << 30) + (2 << 20), 9 << 30] {
        let map = memory_map(Layout::new(memory_bytes, u64::MAX));
        for pair in map.windows(2) {
            assert!(pair[0].range.end <= pair[1].range.start);
        }
        let ram = map.iter().filter(|piece| piece.kind == MemoryKind::Ram);
        let bytes: u64 = ram.map(|piece| piece.range.end - piece.range.start).sum();
        assert_eq!(bytes, memory_bytes - 0x6_0000, "all but the BIOS's part");
        for gpa in [
            ACPI_GPA,
            0xF_FFFF,
            0xFE00_0000,
            0xFE01_7FFF,
            0xFEC0_0000,
            0xFEE0_0FFF,
        ] {
            let found = map.iter().find(|piece| piece.range.contains(&gpa));
            assert_eq!(found.expect("is in it").kind, MemoryKind::Reserved);
        }
        // The guest places devices there, and PCs have a display.
        for gpa in [0xA_0000, 0xB_8000, 0xD_FFFF, 0xE000_0000] {
            assert_eq!(map.iter().find(|piece| piece.range.contains(&gpa)), None);
        }
    }
}

#[test]
fn what_no_loader_takes_is_refused_with_advice() {
    let load = |kind, image| load_kernel(kind, image, None, &[]).0;
    assert_eq!(load(GuestKind::Native, b""), Err(PcLoadError::NoPc));
    for image in [&b""[..], b"MZ", &[0; 4096]] {
        assert_eq!(load(GuestKind::Linux, image), Err(PcLoadError::NotLinux));
        assert_eq!(
            load(GuestKind::Multiboot, image),
            Err(PcLoadError::NoMultibootHeader)
        );
    }
}

#[test]
fn firmware_leaves_its_tables_and_its_data_area() {
    let kernel = multiboot::by_addresses();
    let (loaded, ram) = load_kernel(GuestKind::Multiboot, &kernel, None, &[]);
    loaded.expect("loads");
    assert_eq!(ram.bytes(ACPI_GPA, 8), b"RSD PTR ");
    assert_eq!(ram.bytes(ram.u64(ACPI_GPA + 24), 4), b"XSDT");
    assert_eq!((ram.u16(0x400), ram.u16(0x413)), (0x3F8, 640));
    assert_eq!(ram.bytes(0xF_0000, 4), b"_MP_");
    assert_eq!(ram.bytes(ram.u32(0xF_0004).into(), 4), b"PCMP");
}
