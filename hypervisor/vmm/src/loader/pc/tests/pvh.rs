use super::*;
use proptest::prelude::*;

fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, description.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(description);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A vmlinux: code, data with a BSS, and the notes of the code's segment.
fn kernel() -> Elf {
    let mut notes = note(b"GNU\0", 3, &[7; 20]);
    notes.extend(note(b"Xen\0", 6, b"linux\0"));
    notes.extend(note(b"Xen\0", 18, &0x100_0080_u64.to_le_bytes()));
    let segment = |kind, physical, data: Vec<u8>, memory_bytes| Segment {
        kind,
        physical,
        virtual_start: 0xFFFF_FFFF_8000_0000 + physical,
        data,
        memory_bytes,
    };
    Elf {
        is_64: true,
        kind: abi::ET_EXEC,
        machine: abi::EM_X86_64,
        entry: 0x100_0000,
        segments: vec![
            segment(abi::PT_LOAD, 0x100_0000, vec![0xC3; 0x200], 0x200),
            segment(abi::PT_LOAD, 0x120_0000, vec![0xDA; 0x100], 0x20_0000),
            segment(abi::PT_NOTE, 0x100_0100, notes, 0),
        ],
    }
}

fn try_load(elf: &Elf, initramfs: Option<&[u8]>) -> (Result<LoadedPc, PcLoadError>, Ram) {
    load_kernel(GuestKind::Linux, &elf.bytes(), initramfs, &[])
}

fn refusal(change: impl FnOnce(&mut Elf)) -> PcLoadError {
    let mut elf = kernel();
    change(&mut elf);
    try_load(&elf, None).0.expect_err("to be refused")
}

#[test]
fn segments_lie_at_their_physical_addresses_and_the_note_is_the_entry() {
    let (loaded, ram) = try_load(&kernel(), None);
    let loaded = loaded.expect("loads");
    assert_eq!((loaded.start, loaded.end), (0x100_0000, 0x140_0000));
    assert!(matches!(
        loaded.entry,
        Entry::Pvh {
            eip: 0x100_0080,
            ..
        }
    ));
    assert_eq!(ram.bytes(0x100_0000, 0x200), [0xC3; 0x200]);
    assert_eq!(ram.bytes(0x120_0000, 0x100), [0xDA; 0x100]);
    assert_eq!(ram.u8(0x120_0100), 0, "BSS");
}

#[test]
fn the_start_info_is_of_version_1_with_map_module_and_rsdp() {
    let initramfs = [0x5A; 3000];
    let (loaded, ram) = try_load(&kernel(), Some(&initramfs));
    let Entry::Pvh { start_info, .. } = loaded.expect("loads").entry else {
        panic!("not PVH");
    };
    let at = u64::from(start_info);
    let words = [0, 4, 8, 12].map(|offset| ram.u32(at + offset));
    assert_eq!(words, [0x336E_C578, 1, 0, 1]);
    let module = ram.u64(at + 16);
    assert_eq!(ram.text(ram.u64(at + 24)), "console=ttyS0");
    assert_eq!(ram.u64(at + 32), ACPI_GPA);
    let (table, entries) = (ram.u64(at + 40), ram.u32(at + 48));
    assert_eq!(ram.u32(at + 52), 0, "reserved");
    let table = (0..u64::from(entries)).map(|index| {
        let entry = table + index * 24;
        assert_eq!(ram.u32(entry + 20), 0, "reserved");
        (ram.u64(entry), ram.u64(entry + 8), ram.u32(entry + 16))
    });
    assert_eq!(table.collect::<Vec<_>>(), map());

    let words = [0, 8, 16, 24].map(|offset| ram.u64(module + offset));
    assert_eq!(words, [MEMORY - 0x1000, 3000, 0, 0]);
    assert_eq!(ram.bytes(MEMORY - 0x1000, 3000), initramfs);
}

#[test]
fn the_entry_may_be_a_word_of_32_bits_and_must_lie_in_the_image() {
    let mut elf = kernel();
    elf.segments[2].data = note(b"Xen\0", 18, &0x100_0010_u32.to_le_bytes());
    let loaded = try_load(&elf, None).0.expect("loads");
    assert!(matches!(
        loaded.entry,
        Entry::Pvh {
            eip: 0x100_0010,
            ..
        }
    ));
    for entry in [0, 0x100_0200, 0x1_0100_0080, u64::MAX] {
        let found = refusal(|elf| elf.segments[2].data = note(b"Xen\0", 18, &entry.to_le_bytes()));
        assert_eq!(found, PcLoadError::BadEntry { entry });
    }
    let odd = refusal(|elf| elf.segments[2].data = note(b"Xen\0", 18, &[1; 6]));
    assert_eq!(odd, PcLoadError::BadSegment { index: 2 });
}

#[test]
fn a_kernel_without_the_note_is_refused() {
    for notes in [
        vec![],
        note(b"Xen\0", 1, &[0; 8]),
        note(b"Xen\0", 18, &[0; 8])[..20].to_vec(),
        vec![0xFF; 40],
    ] {
        let found = refusal(|elf| elf.segments[2].data = notes);
        assert_eq!(found, PcLoadError::NoPvhEntry);
    }
    assert_eq!(
        refusal(|elf| elf.segments.truncate(2)),
        PcLoadError::NoPvhEntry
    );
}

#[test]
fn the_note_is_known_by_its_type_and_xens_comes_first() {
    let eip = |notes: Vec<u8>, align_8: bool| {
        let mut elf = kernel();
        elf.segments[2].data = notes;
        let mut image = elf.bytes();
        if align_8 {
            // p_align of the third program header.
            image[64 + 2 * 56 + 48..][..8].copy_from_slice(&8_u64.to_le_bytes());
        }
        let loaded = load_kernel(GuestKind::Linux, &image, None, &[]).0;
        match loaded.expect("loads").entry {
            Entry::Pvh { eip, .. } => eip,
            other => panic!("{other:?}"),
        }
    };
    let entry = |name: &[u8], entry: u32| note(name, 18, &entry.to_le_bytes());
    for name in [&b""[..], b"XEN\0", b"Xen", b"Unikernel\0"] {
        assert_eq!(eip(entry(name, 0x100_0010), false), 0x100_0010, "{name:?}");
    }
    let both = [entry(b"Other\0", 0x100_0010), entry(b"Xen\0", 0x100_0020)].concat();
    assert_eq!(eip(both, false), 0x100_0020);
    // A property note before it, aligned to 8 bytes: its name ends at 16, its descriptor of 4 at 24.
    let mut wide = note(b"GNU\0", 5, &[1; 4]);
    wide.resize(24, 0);
    let mut xen = note(b"Xen\0", 18, &0x100_0030_u64.to_le_bytes());
    xen.resize(24, 0);
    wide.extend(xen);
    assert_eq!(eip(wide, true), 0x100_0030);
}

#[test]
fn segments_that_cannot_be_are_refused() {
    let bad = PcLoadError::BadSegment { index: 1 };
    assert_eq!(refusal(|elf| elf.segments[1].memory_bytes = 0xFF), bad);
    assert_eq!(refusal(|elf| elf.segments[1].memory_bytes = u64::MAX), bad);
    assert_eq!(refusal(|elf| elf.segments[1].physical = 0xFFF0_0000), bad);
    let overlap = refusal(|elf| elf.segments[0].memory_bytes = 0x20_0001);
    assert_eq!(
        overlap,
        PcLoadError::Overlap {
            first: 0,
            second: 1
        }
    );
    for start in [0xD_0000, 0xE_1000, 0xF_0000, MEMORY - 0x1000, 0xE000_0000] {
        let found = refusal(|elf| elf.segments[1].physical = start);
        assert!(
            matches!(found, PcLoadError::OutOfMemory { start: told, .. } if told == start),
            "{start:#x}: {found:?}"
        );
    }
    assert_eq!(
        refusal(|elf| elf.kind = abi::ET_REL),
        PcLoadError::WrongType { found: abi::ET_REL }
    );
    assert_eq!(refusal(|elf| elf.machine = 183), PcLoadError::NotElf);
    assert_eq!(
        refusal(|elf| elf.machine = abi::EM_386),
        PcLoadError::NotElf
    );
    let empty = refusal(|elf| elf.segments.retain(|segment| segment.kind == abi::PT_NOTE));
    assert_eq!(empty, PcLoadError::BadEntry { entry: 0x100_0080 });
}

#[test]
fn a_command_line_that_linux_would_cut_is_refused() {
    let long = "x".repeat(2048);
    let mut ram = Ram::new(MEMORY);
    let image = kernel().bytes();
    let mut load = |cmdline| {
        load_pc(
            GuestKind::Linux,
            &image,
            None,
            &[],
            &identity(cmdline),
            &mut ram,
        )
    };
    assert!(load(&long[1..]).is_ok());
    let refused = PcLoadError::CmdlineTooLong {
        bytes: 2048,
        most: 2047,
    };
    assert_eq!(load(&long), Err(refused));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_kernels_load_inside_ram_or_are_refused(
        changes in prop::collection::vec((prop_oneof![0..0xF0_usize, 0x1300..0x1360_usize], any::<u8>()), 1..6),
        cut in prop_oneof![4 => Just(0_usize), 1 => 0..0x1350_usize],
        initramfs in prop::option::of(0..0x100_0000_usize),
    ) {
        let mut image = kernel().bytes();
        for (at, value) in changes {
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(image.len() - cut);
        let initramfs = initramfs.map(|bytes| vec![1; bytes]);
        let loaded = load_kernel(GuestKind::Linux, &image, initramfs.as_deref(), &[]).0;
        if let Ok(loaded) = loaded {
            prop_assert!(loaded.end <= MEMORY);
            let Entry::Pvh { eip, start_info } = loaded.entry else {
                return Err(TestCaseError::fail("not PVH"));
            };
            prop_assert!((loaded.start..loaded.end).contains(&eip.into()));
            prop_assert!(LINUX_LOW.contains(&start_info.into()));
        }
    }
}
