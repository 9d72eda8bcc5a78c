use super::*;
use proptest::prelude::*;

/// A bzImage with the header of Linux 6.1 for x86-64, and 64 KiB of code.
fn kernel() -> Vec<u8> {
    const SECTORS: usize = 2;
    let mut file = vec![0; (SECTORS + 1) * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[SECTORS as u8]);
    put(0x1F4, &0x1000_u32.to_le_bytes()); // syssize in paragraphs
    put(0x1FE, &[0x55, 0xAA]);
    put(0x200, &[0xEB, 0x6A]);
    put(0x202, b"HdrS");
    put(0x206, &0x020F_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &0x3F_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x248, &0x400_u32.to_le_bytes());
    put(0x24C, &0xF000_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x80_0000_u32.to_le_bytes());
    file.extend((0..0x1_0000_u32).map(|index| index as u8));
    file
}

fn try_load(image: &[u8], initramfs: Option<&[u8]>) -> (Result<LoadedPc, PcLoadError>, Ram) {
    load_kernel(GuestKind::Linux, image, initramfs, &[])
}

/// Why the kernel is refused with these bytes changed.
fn refusal(at: usize, bytes: &[u8]) -> PcLoadError {
    let mut image = kernel();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    try_load(&image, None).0.expect_err("to be refused")
}

#[test]
fn the_kernel_lies_where_it_prefers_and_starts_at_its_64_bit_entry() {
    let (loaded, ram) = try_load(&kernel(), None);
    let loaded = loaded.expect("loads");
    assert_eq!((loaded.start, loaded.end), (0x100_0000, 0x180_0000));
    let Entry::Linux64 { rip, stack, .. } = loaded.entry else {
        panic!("{:?}", loaded.entry);
    };
    assert_eq!(rip, 0x100_0200);
    assert_eq!(ram.bytes(0x100_0000, 0x1_0000), &kernel()[3 * 512..]);
    assert!(stack % 16 == 0 && stack < 0x9_0000);
}

#[test]
fn the_zero_page_is_as_the_protocol_says() {
    let initramfs = [0x5A; 5000];
    let (loaded, ram) = try_load(&kernel(), Some(&initramfs));
    let Entry::Linux64 { zero_page: at, .. } = loaded.expect("loads").entry else {
        panic!("not the 64-bit entry");
    };
    assert_eq!(at % 4096, 0);
    // The header is the file's, from setup_sects to where the jump ends, but for what a loader fills in.
    let written = [0x1FA..0x1FC, 0x210..0x211, 0x214..0x220, 0x228..0x22C];
    let file = kernel();
    for offset in (0x1F1..0x26C).filter(|at| !written.iter().any(|range| range.contains(at))) {
        assert_eq!(ram.u8(at + offset as u64), file[offset], "{offset:#x}");
    }
    assert_eq!(ram.u8(at + 0x1EF), 0, "the sentinel");
    assert_eq!(ram.u8(at + 0x210), 0xFF, "type of loader");
    assert_eq!(ram.u32(at + 0x214), 0x100_0000, "code32_start");
    assert_eq!(ram.u16(at + 0x1FA), 0xFFFF, "video mode");
    assert_eq!(ram.u64(at + 0x70), ACPI_GPA, "RSDP");
    assert_eq!(ram.text(ram.u32(at + 0x228).into()), "console=ttyS0");
    assert_eq!(
        (ram.u32(at + 0xC0), ram.u32(at + 0xC4), ram.u32(at + 0xC8)),
        (0, 0, 0)
    );

    let ramdisk = u64::from(ram.u32(at + 0x218));
    assert_eq!(ramdisk, MEMORY - 0x2000, "as high as whole pages go");
    assert_eq!(ram.u32(at + 0x21C), 5000);
    assert_eq!(ram.bytes(ramdisk, 5000), initramfs);

    let entries = ram.u8(at + 0x1E8);
    let table = (0..u64::from(entries)).map(|index| {
        let entry = at + 0x2D0 + index * 20;
        (ram.u64(entry), ram.u64(entry + 8), ram.u32(entry + 16))
    });
    assert_eq!(table.collect::<Vec<_>>(), map());
}

#[test]
fn page_tables_map_4_gib_one_to_one_and_the_gdt_has_the_selectors() {
    let (loaded, ram) = try_load(&kernel(), None);
    let Entry::Linux64 {
        page_table,
        gdt,
        gdt_limit,
        ..
    } = loaded.expect("loads").entry
    else {
        panic!("not the 64-bit entry");
    };
    for gpa in [0_u64, 0x1F_FFFF, 0x100_0000, 0xC000_0000, 0xFFFF_FFFF] {
        let pml4e = ram.u64(page_table + (gpa >> 39) * 8);
        let pdpte = ram.u64((pml4e & !0xFFF) + (gpa >> 30 & 511) * 8);
        let pde = ram.u64((pdpte & !0xFFF) + (gpa >> 21 & 511) * 8);
        assert_eq!(
            (pml4e & 0xFFF, pdpte & 0xFFF, pde & 0x1F_FFFF),
            (3, 3, 0x83)
        );
        assert_eq!(pde & !0x1F_FFFF, gpa & !0x1F_FFFF);
    }
    assert_eq!(ram.u64(page_table + 8), 0, "nothing above");
    assert_eq!(gdt_limit, 0x1F);
    let code = ram.u64(gdt + u64::from(LINUX_CODE_SELECTOR));
    let data = ram.u64(gdt + u64::from(LINUX_DATA_SELECTOR));
    // Present, DPL 0, code that can be read and is of 64 bits; present, DPL 0, data that can be written.
    assert_eq!((code >> 40 & 0xFE, code >> 52 & 0xF), (0x9A, 0xA));
    assert_eq!((data >> 40 & 0xFE, data >> 52 & 0xF), (0x92, 0xC));
}

#[test]
fn a_relocatable_kernel_moves_down_where_memory_ends_early() {
    let mut image = kernel();
    image[0x260..0x264].copy_from_slice(&0x110_0000_u32.to_le_bytes());
    let loaded = try_load(&image, None).0.expect("loads");
    assert_eq!((loaded.start, loaded.end), (0x20_0000, 0x130_0000));
    image[0x234] = 0;
    assert_eq!(
        try_load(&image, None).0,
        Err(PcLoadError::OutOfMemory {
            start: 0x100_0000,
            end: 0x210_0000,
            memory_bytes: MEMORY,
        })
    );
    image[0x234] = 1;
    image[0x260..0x264].copy_from_slice(&0x1F0_0000_u32.to_le_bytes());
    assert!(matches!(
        try_load(&image, None).0,
        Err(PcLoadError::OutOfMemory { .. })
    ));
}

#[test]
fn an_initramfs_lies_below_what_the_kernel_reaches_and_beside_it() {
    let mut image = kernel();
    image[0x22C..0x230].copy_from_slice(&0x00FF_FFFF_u32.to_le_bytes());
    let (loaded, ram) = try_load(&image, Some(&[1; 0x1001]));
    let Entry::Linux64 { zero_page, .. } = loaded.expect("loads").entry else {
        panic!("not the 64-bit entry");
    };
    assert_eq!(ram.u32(zero_page + 0x218), 0xFF_E000);
    let large = vec![0; 16 << 20];
    assert_eq!(
        try_load(&kernel(), Some(&large)).0,
        Err(PcLoadError::NoRoom {
            what: "the initramfs",
            bytes: 16 << 20,
            memory_bytes: MEMORY,
        })
    );
}

#[test]
fn headers_that_cannot_be_are_told_by_their_field() {
    let bad = |field, value| PcLoadError::BadField { field, value };
    assert_eq!(
        refusal(0x206, &[0x0B, 2]),
        PcLoadError::OldProtocol { found: 0x020B }
    );
    assert_eq!(
        refusal(0x236, &[0x3E, 0]),
        PcLoadError::No64BitEntry { flags: 0x3E }
    );
    assert_eq!(refusal(0x211, &[0x80]), bad("loadflags", 0x80));
    assert_eq!(refusal(0x201, &[0x40]), bad("jump", 0x40));
    assert_eq!(refusal(0x201, &[0xFF]), bad("jump", 0xFF));
    assert_eq!(refusal(0x1F4, &[0x20, 0]), bad("syssize", 0x20));
    assert_eq!(
        refusal(0x24C, &[0xFF; 4]),
        bad("payload_length", 0xFFFF_FFFF)
    );
    assert_eq!(
        refusal(0x248, &[0x01, 0x10, 0, 0]),
        bad("payload_length", 0xF000)
    );
    assert_eq!(refusal(0x230, &[0; 4]), bad("kernel_alignment", 0));
    assert_eq!(
        refusal(0x230, &[1, 0, 0x20, 0]),
        bad("kernel_alignment", 0x20_0001)
    );
    assert_eq!(refusal(0x260, &[0; 4]), bad("init_size", 0));
    assert_eq!(refusal(0x258, &[0; 8]), bad("pref_address", 0));
    assert_eq!(refusal(0x258, &[0xFF; 8]), bad("pref_address", u64::MAX));
    assert_eq!(
        refusal(0x258, &0xFFFF_0000_u64.to_le_bytes()),
        bad("pref_address", 0xFFFF_0000)
    );
    assert_eq!(
        refusal(0x238, &[12, 0, 0, 0]),
        PcLoadError::CmdlineTooLong {
            bytes: 13,
            most: 12
        }
    );
    assert_eq!(refusal(0x202, b"hdrs"), PcLoadError::NotLinux);
}

#[test]
fn a_kernel_cut_short_is_told_how_much_is_missing() {
    let image = kernel();
    assert_eq!(
        try_load(&image[..image.len() - 16], None).0,
        Err(PcLoadError::CutShort {
            wanted_bytes: image.len() as u64,
            image_bytes: image.len() - 16,
        })
    );
    // The last paragraph need not be whole, and a signature behind it is none of the kernel's.
    assert!(try_load(&image[..image.len() - 15], None).0.is_ok());
    let mut signed = image.clone();
    signed.extend([0xEE; 3000]);
    let (loaded, ram) = try_load(&signed, None);
    assert!(loaded.is_ok() && ram.u8(0x101_0000) == 0);
    for bytes in [0x206, 0x212, 0x238, 0x263] {
        assert!(matches!(
            try_load(&image[..bytes], None).0,
            Err(PcLoadError::CutShort { .. })
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_kernels_load_inside_ram_or_are_refused(
        changes in prop::collection::vec((0x1F1..0x270_usize, any::<u8>()), 1..6),
        cut in prop_oneof![4 => Just(0_usize), 1 => 0..0x1_0000_usize],
        initramfs in prop::option::of(0..0x100_0000_usize),
    ) {
        let mut image = kernel();
        for (at, value) in changes {
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(image.len() - cut);
        let initramfs = initramfs.map(|bytes| vec![1; bytes]);
        if let Ok(loaded) = try_load(&image, initramfs.as_deref()).0 {
            prop_assert!(loaded.start >= HIGH_RAM_GPA && loaded.end <= MEMORY);
            let Entry::Linux64 { rip, zero_page, page_table, gdt, stack, .. } = loaded.entry else {
                return Err(TestCaseError::fail("not the 64-bit entry"));
            };
            prop_assert!(loaded.start < rip && rip < loaded.end);
            for low in [zero_page, page_table, gdt, stack] {
                prop_assert!(LINUX_LOW.contains(&low));
            }
        }
    }
}

/// A kernel that unpacks nothing, as memtest86+ is, and one that lies where it says and so needs no alignment.
#[test]
fn a_kernel_without_a_payload_is_one() {
    let loads = |at: usize, value: &[u8]| {
        let mut image = kernel();
        image[at..at + value.len()].copy_from_slice(value);
        load_kernel(GuestKind::Linux, &image, None, &[]).0
    };
    assert!(loads(0x24C, &[0; 4]).is_ok());
    assert!(loads(0x248, &[0; 8]).is_ok());
    // kernel_alignment and relocatable_kernel.
    assert!(loads(0x230, &[0; 5]).is_ok());
}
