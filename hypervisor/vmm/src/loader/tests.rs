use super::*;
use elf::abi;
use guest_abi::boot::IMAGE_BASE_GPA;
use guest_abi::{BootInfo, pack_name};
use proptest::prelude::*;
use std::mem::offset_of;
use std::vec;
use std::vec::Vec;

const MEMORY: u64 = 8 << 20;

/// Guest RAM that refuses what lies outside.
struct Ram(Vec<u8>);

impl Ram {
    fn new() -> Ram {
        Ram(vec![0; MEMORY as usize])
    }

    fn u64(&self, gpa: u64) -> u64 {
        let at = gpa as usize;
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
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

#[derive(Clone, Debug)]
struct Load {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// An image made of program headers over one body, which follows the headers at offset 0x1000.
#[derive(Clone, Debug)]
struct Image {
    kind: u16,
    entry: u64,
    loads: Vec<Load>,
    body: Vec<u8>,
}

const BODY: u64 = 0x1000;

impl Image {
    fn bytes(&self) -> Vec<u8> {
        let mut file = vec![];
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend(self.kind.to_le_bytes());
        file.extend(abi::EM_X86_64.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        file.extend(64_u64.to_le_bytes()); // program headers
        file.extend(0_u64.to_le_bytes()); // no section headers
        file.extend(0_u32.to_le_bytes());
        for half in [64, 56, self.loads.len() as u16, 0, 0, 0_u16] {
            file.extend(half.to_le_bytes());
        }
        for load in &self.loads {
            file.extend(load.kind.to_le_bytes());
            file.extend(load.flags.to_le_bytes());
            for word in [
                load.offset,
                load.address,
                load.address,
                load.file_bytes,
                load.memory_bytes,
                0x1000,
            ] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(BODY as usize, 0);
        file.extend(&self.body);
        file
    }

    /// A position-independent image as linkers make it: code with a relocation table, then data with a BSS, then the
    /// dynamic segment inside the data.
    fn relocatable() -> Image {
        let mut body = vec![0xC3; 0x100]; // code
        body.extend(relas(&[(0x2000, 8, 0x10), (0x2008, 8, 0x2000)])); // at 0x100
        body.resize(0x1000, 0);
        body.extend([0; 0x10]); // data at 0x1000, virtual 0x2000
        body.extend(dynamic(&[
            (abi::DT_RELA, 0x100),
            (abi::DT_RELASZ, 48),
            (abi::DT_RELAENT, 24),
        ])); // 0x1010
        let data_bytes = body.len() as u64 - 0x1000;
        let load = |kind, flags, offset, address, file_bytes, memory_bytes| Load {
            kind,
            flags,
            offset: BODY + offset,
            address,
            file_bytes,
            memory_bytes,
        };
        Image {
            kind: abi::ET_DYN,
            entry: 0x10,
            loads: vec![
                load(abi::PT_LOAD, abi::PF_R | abi::PF_X, 0, 0, 0x130, 0x130),
                load(
                    abi::PT_LOAD,
                    abi::PF_R | abi::PF_W,
                    0x1000,
                    0x2000,
                    data_bytes,
                    0x3000,
                ),
                load(
                    abi::PT_DYNAMIC,
                    abi::PF_R,
                    0x1010,
                    0x2010,
                    data_bytes - 0x10,
                    data_bytes - 0x10,
                ),
            ],
            body,
        }
    }

    /// A fixed image of one segment.
    fn fixed(address: u64) -> Image {
        Image {
            kind: abi::ET_EXEC,
            entry: address,
            loads: vec![Load {
                kind: abi::PT_LOAD,
                flags: abi::PF_R | abi::PF_X,
                offset: BODY,
                address,
                file_bytes: 4,
                memory_bytes: 0x2000,
            }],
            body: vec![1, 2, 3, 4],
        }
    }
}

fn relas(list: &[(u64, u32, i64)]) -> Vec<u8> {
    let mut bytes = vec![];
    for (offset, kind, addend) in list {
        bytes.extend(offset.to_le_bytes());
        bytes.extend(u64::from(*kind).to_le_bytes());
        bytes.extend(addend.to_le_bytes());
    }
    bytes
}

fn dynamic(list: &[(i64, u64)]) -> Vec<u8> {
    let mut bytes = vec![];
    for (tag, value) in list.iter().chain(&[(abi::DT_NULL, 0)]) {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

fn identity(cmdline: &str) -> Identity<'_> {
    Identity {
        vm_id: 3,
        name: pack_name("ping"),
        memory_bytes: MEMORY,
        vcpus: 2,
        member_index: Some(1),
        tsc_khz: 10_000,
        cmdline,
        bare_hypercall: 0,
    }
}

fn try_load(image: &[u8]) -> (Result<Loaded, LoadError>, Ram) {
    let mut ram = Ram::new();
    (load(image, &identity("role=ping"), &mut ram), ram)
}

fn refusal(change: impl FnOnce(&mut Image)) -> LoadError {
    let mut image = Image::relocatable();
    change(&mut image);
    try_load(&image.bytes()).0.expect_err("to be refused")
}

#[test]
fn a_relocatable_image_runs_at_the_image_base() {
    let (loaded, ram) = try_load(&Image::relocatable().bytes());
    assert_eq!(
        loaded,
        Ok(Loaded {
            entry: IMAGE_BASE_GPA + 0x10,
            start: IMAGE_BASE_GPA,
            end: IMAGE_BASE_GPA + 0x5000,
        })
    );
    assert_eq!(ram.0[IMAGE_BASE_GPA as usize], 0xC3);
    assert_eq!(ram.u64(IMAGE_BASE_GPA + 0x2000), IMAGE_BASE_GPA + 0x10);
    assert_eq!(ram.u64(IMAGE_BASE_GPA + 0x2008), IMAGE_BASE_GPA + 0x2000);
}

#[test]
fn a_fixed_image_stays_where_it_was_linked() {
    let (loaded, ram) = try_load(&Image::fixed(0x40_0000).bytes());
    let loaded = loaded.expect("loads");
    assert_eq!(
        (loaded.entry, loaded.start, loaded.end),
        (0x40_0000, 0x40_0000, 0x40_2000)
    );
    assert_eq!(ram.u64(0x40_0000), 0x0403_0201);
}

#[test]
fn nothing_is_loaded_over_the_boot_structures_or_beyond_memory() {
    for address in [
        0,
        0x9000,
        IMAGE_BASE_GPA - 1,
        MEMORY - 0x1FFF,
        u64::MAX - 0x2000,
    ] {
        let (loaded, ram) = try_load(&Image::fixed(address).bytes());
        assert!(
            matches!(loaded, Err(LoadError::OutOfMemory { start, .. }) if start == address),
            "{address:#x}: {loaded:?}"
        );
        assert!(ram.0.iter().all(|byte| *byte == 0), "nothing was written");
    }
    assert!(try_load(&Image::fixed(MEMORY - 0x2000).bytes()).0.is_ok());
    let wrapping = try_load(&Image::fixed(u64::MAX - 0x1000).bytes()).0;
    assert_eq!(wrapping, Err(LoadError::BadSegment { index: 0 }));
}

#[test]
fn what_is_no_static_x86_64_image_is_told_apart() {
    assert_eq!(try_load(b"#!/bin/sh").0, Err(LoadError::NotElf));
    assert_eq!(
        refusal(|image| image.kind = abi::ET_REL),
        LoadError::WrongType { found: abi::ET_REL }
    );
    assert_eq!(
        refusal(|image| image.loads[2].kind = abi::PT_INTERP),
        LoadError::Dynamic
    );
    assert_eq!(refusal(|image| image.loads.truncate(0)), LoadError::Empty);
    let mut other_machine = Image::relocatable().bytes();
    other_machine[18] = 183; // AArch64
    assert_eq!(try_load(&other_machine).0, Err(LoadError::NotElf));
}

#[test]
fn a_segment_larger_in_the_file_than_in_memory_is_refused() {
    assert_eq!(
        refusal(|image| image.loads[0].memory_bytes = 0x12F),
        LoadError::BadSegment { index: 0 }
    );
    assert_eq!(
        refusal(|image| image.loads[1].offset = u64::MAX),
        LoadError::BadSegment { index: 1 }
    );
}

#[test]
fn segments_that_share_memory_are_refused() {
    assert_eq!(
        refusal(|image| image.loads[0].memory_bytes = 0x2001),
        LoadError::Overlap {
            first: 0,
            second: 1
        }
    );
    let mut touching = Image::relocatable();
    touching.loads[0].memory_bytes = 0x2000;
    assert!(try_load(&touching.bytes()).0.is_ok());
}

#[test]
fn the_entry_point_must_be_code() {
    assert_eq!(
        refusal(|image| image.entry = 0x2000),
        LoadError::BadEntry {
            entry: IMAGE_BASE_GPA + 0x2000
        }
    );
    assert_eq!(
        refusal(|image| image.entry = u64::MAX),
        LoadError::BadEntry { entry: u64::MAX }
    );
}

#[test]
fn relocations_that_need_symbols_are_refused() {
    let change = |image: &mut Image| {
        let table = relas(&[(0x2000, 6, 0)]); // R_X86_64_GLOB_DAT
        image.body[0x100..0x118].copy_from_slice(&table);
    };
    assert_eq!(refusal(change), LoadError::BadRelocation { kind: 6 });
}

#[test]
fn a_relocation_never_reaches_outside_the_segments() {
    for place in [
        0x1000,
        0x4FF9,
        u64::MAX - 4,
        0_u64.wrapping_sub(IMAGE_BASE_GPA),
    ] {
        let change = |image: &mut Image| {
            image.body[0x100..0x118].copy_from_slice(&relas(&[(place, 8, 0)]));
        };
        assert_eq!(refusal(change), LoadError::RelocationOutside { place });
    }
}

#[test]
fn a_relocation_table_outside_the_file_is_refused() {
    for entries in [
        [(abi::DT_RELA, 0x200), (abi::DT_RELASZ, 48)],
        [(abi::DT_RELA, 0x100), (abi::DT_RELASZ, 47)],
        [(abi::DT_RELA, u64::MAX), (abi::DT_RELASZ, 24)],
        [(abi::DT_RELA, 0x100), (abi::DT_RELASZ, u64::MAX)],
        [(abi::DT_RELASZ, 0), (abi::DT_RELSZ, 16)],
    ] {
        let change = |image: &mut Image| {
            let table = dynamic(&entries);
            image.body[0x1010..0x1010 + table.len()].copy_from_slice(&table);
        };
        assert_eq!(
            refusal(change),
            LoadError::BadRelocationTable,
            "{entries:?}"
        );
    }
}

#[test]
fn the_boot_structures_are_what_the_contract_says() {
    let (_, ram) = try_load(&Image::relocatable().bytes());
    let info = boot::BOOT_INFO_GPA;
    assert_eq!(ram.u64(info), boot::BOOT_MAGIC);
    assert_eq!(
        ram.u64(info + offset_of!(BootInfo, memory_bytes) as u64),
        MEMORY
    );
    assert_eq!(
        ram.u64(info + offset_of!(BootInfo, image_end_gpa) as u64),
        IMAGE_BASE_GPA + 0x5000
    );
    assert_eq!(
        ram.u64(info + offset_of!(BootInfo, cmdline_bytes) as u64),
        9
    );
    assert_eq!(
        ram.u64(info + offset_of!(BootInfo, vcpus) as u64),
        1 << 32 | 2
    );
    let name = (info as usize) + offset_of!(BootInfo, name);
    assert_eq!(ram.0[name..name + 32], pack_name("ping"));
    let cmdline = boot::BOOT_CMDLINE_GPA as usize;
    assert_eq!(&ram.0[cmdline..cmdline + 9], b"role=ping");
    assert_eq!(ram.u64(boot::BOOT_GDT_GPA), 0, "the null descriptor");
}

/// Translates by the page tables in RAM; 4-level, as the CPU does it.
fn translate(ram: &Ram, va: u64) -> Option<u64> {
    let mut table = boot::BOOT_PML4_GPA;
    for shift in [39, 30, 21, 12] {
        let entry = ram.u64(table + (va >> shift & 511) * 8);
        if entry & 0b11 != 0b11 {
            return None;
        }
        let address = entry & 0x000F_FFFF_FFFF_F000;
        if shift == 12 || entry & 1 << 7 != 0 {
            let inside = (1 << shift) - 1;
            assert_eq!(address & inside, 0, "a page is aligned to its size");
            return Some(address | va & inside);
        }
        table = address;
    }
    unreachable!("level 1 returns")
}

#[test]
fn the_first_4_gib_are_mapped_one_to_one_but_for_the_two_guards() {
    let (_, ram) = try_load(&Image::relocatable().bytes());
    for page in 0..512 {
        let va = page << 12 | 0xABC;
        let guard = page == 0 || page << 12 == boot::BOOT_STACK_GUARD_GPA;
        assert_eq!(translate(&ram, va), (!guard).then_some(va), "{va:#x}");
    }
    for large in 1..2048 {
        let va = large << 21 | 0x12_3456;
        assert_eq!(translate(&ram, va), Some(va), "{va:#x}");
    }
    assert_eq!(translate(&ram, 4 << 30), None);
    assert_eq!(translate(&ram, 1 << 47), None);
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let image = Image::relocatable().bytes();
    let fits = "x".repeat(boot::MAX_CMDLINE_BYTES);
    assert!(load(&image, &identity(&fits), &mut Ram::new()).is_ok());
    let long = "x".repeat(boot::MAX_CMDLINE_BYTES + 1);
    assert_eq!(
        load(&image, &identity(&long), &mut Ram::new()),
        Err(LoadError::CmdlineTooLong { bytes: long.len() })
    );
}

/// Every store stays inside RAM and above the boot structures until the image is loaded.
struct Strict(Vec<core::ops::Range<u64>>);

impl GuestWriter for Strict {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let Some(end) = gpa.checked_add(bytes.len() as u64) else {
            return false;
        };
        self.0.push(gpa..end);
        end <= MEMORY
    }
}

fn assert_contained(image: &[u8]) {
    let mut ram = Strict(vec![]);
    if let Ok(loaded) = image::load(image, MEMORY, &mut ram) {
        assert!(loaded.start >= IMAGE_BASE_GPA && loaded.end <= MEMORY);
        assert!((loaded.start..loaded.end).contains(&loaded.entry));
        for store in &ram.0 {
            assert!(loaded.start <= store.start && store.end <= loaded.end);
        }
    }
    for store in &ram.0 {
        assert!(store.start >= IMAGE_BASE_GPA && store.end <= MEMORY);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_are_refused_or_contained(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        assert_contained(&bytes);
    }

    #[test]
    fn damaged_images_are_refused_or_contained(
        fixed in any::<bool>(),
        damage in prop::collection::vec((0..0x1100_usize, any::<u8>()), 1..8),
        cut in prop::option::of(0..0x2000_usize),
    ) {
        let image = if fixed { Image::fixed(0x40_0000) } else { Image::relocatable() };
        let mut bytes = image.bytes();
        for (place, value) in damage {
            // Headers are 232 bytes of the first 4096: aim most of the damage at them.
            let place = if place < BODY as usize { place % 232 } else { place };
            if let Some(byte) = bytes.get_mut(place) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        assert_contained(&bytes);
    }

    #[test]
    fn hostile_numbers_in_headers_are_refused_or_contained(
        load in 0..3_usize,
        numbers in prop::array::uniform4(prop_oneof![any::<u64>(), 0..0x80_0000_u64, Just(u64::MAX), Just(0)]),
        entry in 0..0x6000_u64,
    ) {
        let mut image = Image::relocatable();
        image.entry = entry;
        let [offset, address, file_bytes, memory_bytes] = numbers;
        image.loads[load].offset = offset;
        image.loads[load].address = address;
        image.loads[load].file_bytes = file_bytes;
        image.loads[load].memory_bytes = memory_bytes;
        assert_contained(&image.bytes());
    }
}
