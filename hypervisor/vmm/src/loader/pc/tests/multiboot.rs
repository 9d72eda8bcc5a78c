use super::*;
use proptest::prelude::*;

const MAGIC: u32 = 0x1BAD_B002;

fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let sum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(flags);
    let words = [MAGIC, flags, sum];
    let words = words.iter().chain(addresses);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

/// A kernel with address fields: its header at 0x40 of the file, loaded from there to 0x10_0000, with a BSS.
pub(super) fn by_addresses() -> Vec<u8> {
    let mut file = vec![0xEE; 0x40];
    file.extend(header(
        1 << 16 | 3,
        &[0x10_0000, 0x10_0000, 0x10_0100, 0x10_3000, 0x10_0020],
    ));
    file.extend([0xC3; 0x100]);
    file
}

/// The same with other address fields.
fn addresses(fields: [u32; 5]) -> Vec<u8> {
    let mut file = by_addresses();
    let head = header(1 << 16 | 3, &fields);
    file[0x40..0x40 + head.len()].copy_from_slice(&head);
    file
}

/// An ELF kernel, its header at the start of its code.
fn by_elf(is_64: bool) -> Elf {
    let mut code = header(3, &[]);
    code.resize(0x200, 0xC3);
    let segment = |physical, data: Vec<u8>, memory_bytes| Segment {
        kind: abi::PT_LOAD,
        physical,
        virtual_start: 0xC000_0000 + physical,
        data,
        memory_bytes,
    };
    Elf {
        is_64,
        kind: abi::ET_EXEC,
        machine: if is_64 { abi::EM_X86_64 } else { abi::EM_386 },
        entry: 0xC010_0010,
        segments: vec![
            segment(0x10_0000, code, 0x200),
            segment(0x10_1000, vec![0xDA; 0x100], 0x800),
        ],
    }
}

fn try_load(image: &[u8], modules: &[(&[u8], &str)]) -> (Result<LoadedPc, PcLoadError>, Ram) {
    load_kernel(GuestKind::Multiboot, image, None, modules)
}

fn refusal(image: &[u8]) -> PcLoadError {
    try_load(image, &[]).0.expect_err("to be refused")
}

fn parts(loaded: Result<LoadedPc, PcLoadError>) -> (u32, u64, u64, u64) {
    let loaded = loaded.expect("loads");
    let Entry::Multiboot { eip, info } = loaded.entry else {
        panic!("not Multiboot");
    };
    (eip, info.into(), loaded.start, loaded.end)
}

#[test]
fn address_fields_say_what_goes_where() {
    let (loaded, ram) = try_load(&by_addresses(), &[]);
    let (eip, _, start, end) = parts(loaded);
    assert_eq!((eip, start, end), (0x10_0020, 0x10_0000, 0x10_3000));
    assert_eq!(ram.bytes(0x10_0000, 0x100), &by_addresses()[0x40..0x140]);
    assert_eq!(ram.u8(0x10_0100), 0, "BSS");
    // Zeros: to the end of the file, and no BSS. The code may begin before the header.
    let image = addresses([0x10_0040, 0x10_0000, 0, 0, 0x10_0041]);
    let (loaded, ram) = try_load(&image, &[]);
    let (eip, _, start, end) = parts(loaded);
    let bytes = image.len() as u64;
    assert_eq!((eip, start, end), (0x10_0041, 0x10_0000, 0x10_0000 + bytes));
    assert_eq!(ram.bytes(0x10_0000, image.len()), image);
}

/// Linkers put a file's headers in front of the code: below 1 MiB, where the firmware's ROM is, or at the start of memory, on top
/// of the BIOS's data area.
#[test]
fn segments_may_lie_where_firmware_has_what_nobody_needs() {
    for start in [0, 0x300, 0x400, 0xA_0000, 0xE_F000, 0xF_F000] {
        let mut elf = by_elf(false);
        let headers = vec![0xEF; 0x1000];
        elf.segments.push(Segment {
            kind: abi::PT_LOAD,
            physical: start,
            virtual_start: start,
            data: headers,
            memory_bytes: 0x1000,
        });
        let (loaded, ram) = try_load(&elf.bytes(), &[]);
        let (eip, info, first, end) = parts(loaded);
        assert_eq!((eip, first, end), (0x10_0010, start, 0x10_1800));
        assert_eq!(ram.bytes(start, 0x1000), [0xEF; 0x1000]);
        assert!((0x500..0xA_0000).contains(&info));
        assert_eq!(ram.bytes(ACPI_GPA, 8), b"RSD PTR ");
        assert_eq!(ram.bytes(0xF_0000, 4), b"_MP_");
        // What the image leaves free of it, the firmware has.
        assert_eq!(ram.u16(0x413) == 640, start >= 0x500);
    }
    let mut elf = by_elf(true);
    elf.segments[1].physical = 0xE_0F00;
    assert!(matches!(
        refusal(&elf.bytes()),
        PcLoadError::OutOfMemory {
            start: 0xE_0F00,
            ..
        }
    ));
}

#[test]
fn a_kernel_that_could_be_moved_lies_where_it_says() {
    let mut elf = by_elf(true);
    elf.kind = abi::ET_DYN;
    assert_eq!(parts(try_load(&elf.bytes(), &[]).0).0, 0x10_0010);
}

#[test]
fn elf_kernels_of_both_widths_start_at_the_physical_address_of_their_entry() {
    for is_64 in [false, true] {
        let (loaded, ram) = try_load(&by_elf(is_64).bytes(), &[]);
        let (eip, _, start, end) = parts(loaded);
        assert_eq!((eip, start, end), (0x10_0010, 0x10_0000, 0x10_1800));
        assert_eq!(ram.u32(0x10_0000), MAGIC);
        assert_eq!(ram.bytes(0x10_1000, 0x100), [0xDA; 0x100]);
        let mut physical = by_elf(is_64);
        physical.entry = 0x10_0011;
        assert_eq!(parts(try_load(&physical.bytes(), &[]).0).0, 0x10_0011);
        physical.entry = 0x20_0000;
        assert_eq!(
            refusal(&physical.bytes()),
            PcLoadError::BadEntry { entry: 0x20_0000 }
        );
    }
}

#[test]
fn the_information_is_byte_for_byte_what_the_specification_says() {
    let modules: [(&[u8], &str); 2] = [(&[1; 0x1001], "first one"), (&[2; 5], "")];
    let (loaded, ram) = try_load(&by_addresses(), &modules);
    let (_, at, _, end) = parts(loaded);
    let word = |offset| ram.u32(at + offset);
    assert_eq!(
        word(0),
        0b10_0100_1101,
        "memory, command line, modules, map, name"
    );
    assert_eq!(u64::from(word(4)), 640);
    assert_eq!(u64::from(word(8)), (MEMORY - HIGH_RAM_GPA) >> 10);
    assert_eq!(ram.text(word(16).into()), "console=ttyS0");
    assert_eq!(ram.text(word(64).into()), "Nagaya");
    for absent in [12, 28, 32, 36, 40, 52, 56, 60, 68, 72, 76, 80, 84, 88, 112] {
        assert_eq!(word(absent), 0, "{absent}");
    }

    assert_eq!(word(20), 2);
    let list = u64::from(word(24));
    let first = u64::from(ram.u32(list));
    assert_eq!(first, end, "from the first page behind the image");
    assert_eq!(u64::from(ram.u32(list + 4)), first + 0x1001);
    assert_eq!(ram.text(ram.u32(list + 8).into()), "first one");
    let second = u64::from(ram.u32(list + 16));
    assert_eq!(second, first + 0x2000, "aligned to pages");
    assert_eq!(ram.u32(list + 20), second as u32 + 5);
    assert_eq!(ram.text(ram.u32(list + 24).into()), "");
    assert_eq!(ram.bytes(first, 0x1001), [1; 0x1001]);
    assert_eq!(ram.bytes(second, 5), [2; 5]);

    let (bytes, mut entry) = (u64::from(word(44)), u64::from(word(48)));
    let end = entry + bytes;
    let mut found = Vec::new();
    while entry < end {
        found.push((ram.u64(entry + 4), ram.u64(entry + 12), ram.u32(entry + 20)));
        entry += u64::from(ram.u32(entry)) + 4;
    }
    assert_eq!((entry, found), (end, map()));
}

#[test]
fn a_kernel_in_low_memory_and_the_information_keep_apart() {
    // As GRUB's own core image lies.
    let image = addresses([0x8200, 0x8200, 0, 0x9_E000, 0x8210]);
    let (loaded, ram) = try_load(&image, &[(b"module", "m")]);
    let (_, at, start, end) = parts(loaded);
    assert_eq!((start, end), (0x8200, 0x9_E000));
    for offset in [16, 24, 48, 64] {
        let place = u64::from(ram.u32(at + offset));
        assert!((end..0xA_0000).contains(&place), "{place:#x}");
    }
    assert_eq!(
        ram.u32(ram.u32(at + 24).into()),
        0x10_0000,
        "modules are high"
    );
    let full = addresses([0x600, 0x600, 0, 0xA_0000, 0x610]);
    let (_, at, _, _) = parts(try_load(&full, &[(b"module", "m")]).0);
    assert!(
        (HIGH_RAM_GPA..MEMORY).contains(&at),
        "there is no other room"
    );
}

#[test]
fn the_header_is_found_only_where_it_may_be() {
    let image = |before: usize| {
        let mut file = vec![0; before];
        let fields = [0x10_0000, 0x10_0000, 0, 0, 0x10_0000];
        file.extend(header(1 << 16, &fields));
        file.extend([0; 64]);
        file
    };
    assert!(try_load(&image(8192 - 32), &[]).0.is_ok());
    for before in [8192 - 28, 8192, 2] {
        assert_eq!(refusal(&image(before)), PcLoadError::NoMultibootHeader);
    }
    let mut broken = image(0);
    broken[8] ^= 1;
    assert_eq!(refusal(&broken), PcLoadError::NoMultibootHeader);
    // A magic number by chance before the header does not hide it.
    let mut twice = image(64);
    twice[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    assert!(try_load(&twice, &[]).0.is_ok());
}

#[test]
fn unknown_demands_are_refused_and_wishes_are_not() {
    let with = |flags: u32| {
        let mut file = header(flags | 1 << 16, &[0x10_0000, 0x10_0000, 0, 0, 0x10_0000]);
        file.extend([0; 64]);
        file
    };
    for bit in 3..16 {
        let flags = 1 << bit;
        assert_eq!(refusal(&with(flags)), PcLoadError::UnknownDemands { flags });
    }
    for bit in [0, 1, 2, 17, 31] {
        assert!(try_load(&with(1 << bit), &[]).0.is_ok(), "{bit}");
    }
}

#[test]
fn address_fields_that_cannot_be_are_told_by_their_name() {
    let bad = |field, value| PcLoadError::BadField { field, value };
    let good = [0x10_0000, 0x10_0000, 0x10_0100, 0x10_3000, 0x10_0020];
    let with = |index: usize, value: u32| {
        let mut fields = good;
        fields[index] = value;
        refusal(&addresses(fields))
    };
    assert_eq!(with(1, 0x10_0001), bad("load_addr", 0x10_0001));
    assert_eq!(with(1, 0x0F_FFBF), bad("header_addr", 0x10_0000));
    assert_eq!(with(2, 0x0F_FFFF), bad("load_end_addr", 0x0F_FFFF));
    assert_eq!(with(3, 0x10_00FF), bad("bss_end_addr", 0x10_00FF));
    assert_eq!(
        with(4, 0x10_3000),
        PcLoadError::BadEntry { entry: 0x10_3000 }
    );
    let missing = PcLoadError::CutShort {
        wanted_bytes: 0x40 + 0x200,
        image_bytes: by_addresses().len(),
    };
    assert_eq!(with(2, 0x10_0200), missing);
    assert!(matches!(
        with(3, u32::MAX),
        PcLoadError::OutOfMemory {
            end: 0xFFFF_FFFF,
            ..
        }
    ));
    for start in [0xE_0000, 0xF_0010, MEMORY as u32 - 1, 0xFFFF_FFF0] {
        let found = refusal(&addresses([start, start, 0, 0, start]));
        assert!(
            matches!(found, PcLoadError::OutOfMemory { start: told, .. } if told == start.into()),
            "{start:#x}: {found:?}"
        );
    }
}

#[test]
fn modules_that_do_not_fit_are_refused() {
    let large = vec![0; 31 << 20];
    assert_eq!(
        try_load(&by_addresses(), &[(&large, "")]).0,
        Err(PcLoadError::NoRoom {
            what: "a module",
            bytes: 31 << 20,
            memory_bytes: MEMORY,
        })
    );
    let long = "x".repeat(32 << 20);
    assert!(matches!(
        try_load(&by_addresses(), &[(b"", &long)]).0,
        Err(PcLoadError::NoRoom {
            what: "a module's command line",
            ..
        })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_kernels_load_inside_ram_or_are_refused(
        which in 0..3_u8,
        changes in prop::collection::vec((0..0x100_usize, any::<u8>()), 0..5),
        fields in prop::option::of(any::<[u32; 5]>()),
        cut in prop_oneof![4 => Just(0_usize), 1 => 0..0x100_usize],
        module in prop::option::of(0..0x20_0000_usize),
    ) {
        let mut image = match (which, fields) {
            (0, None) => by_addresses(),
            (0, Some(fields)) => addresses(fields.map(|field| field & 0x1FF_FFFF)),
            (which, _) => by_elf(which == 1).bytes(),
        };
        for (at, value) in changes {
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(image.len() - cut);
        let module = module.map(|bytes| vec![1; bytes]);
        let modules: Vec<(&[u8], &str)> = module.iter().map(|bytes| (&bytes[..], "m")).collect();
        if let Ok(loaded) = try_load(&image, &modules).0 {
            let Entry::Multiboot { eip, info } = loaded.entry else {
                return Err(TestCaseError::fail("not Multiboot"));
            };
            prop_assert!(loaded.end <= MEMORY);
            prop_assert!((loaded.start..loaded.end).contains(&eip.into()));
            prop_assert!((0x500..0xA_0000).contains(&info));
        }
    }
}
