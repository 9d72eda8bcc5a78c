//! On images made here, and on damaged ones.

use proptest::prelude::*;

use super::*;

/// A bzImage with this payload: one setup sector, the payload 16 bytes into the protected-mode part.
fn image(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 16];
    image[0x1F1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020F_u16.to_le_bytes());
    image[0x248..0x24C].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24C..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

/// One block of at most 14 literals, whose number then fits the token.
fn lz4_payload(content: &[u8]) -> Vec<u8> {
    let mut block = vec![(content.len() as u8) << 4];
    block.extend_from_slice(content);
    let mut payload = vec![0x02, 0x21, 0x4C, 0x18];
    payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
    payload.extend_from_slice(&block);
    payload.extend_from_slice(&(content.len() as u32).to_le_bytes());
    payload
}

/// An ELF file with a segment that ends in zeros, one of zeros only, a note inside the first and one outside of all.
fn elf() -> Vec<u8> {
    let header = |kind, offset, file_bytes, memory_bytes| Segment {
        kind,
        flags: 5,
        offset,
        virtual_address: 0xFFFF_FFFF_8100_0000 + offset as u64,
        physical_address: 0x100_0000 + offset as u64,
        file_bytes,
        memory_bytes,
        align: 0x20_0000,
    };
    let headers = [
        header(LOAD, 0x1000, 0x100, 0x200),
        header(4, 0x1010, 0x10, 0x10),
        header(LOAD, 0x3000, 0x800, 0x800),
        header(4, 0x2000, 0x10, 0x10),
    ];
    let mut elf = vec![0; 0x4000];
    elf[..6].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1]);
    elf[0x12] = 62;
    elf[0x18..0x20].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    elf[0x20..0x28].copy_from_slice(&0x80_u64.to_le_bytes());
    elf[0x28..0x30].copy_from_slice(&0x3900_u64.to_le_bytes());
    elf[0x36] = PROGRAM_HEADER_BYTES as u8;
    elf[0x38] = headers.len() as u8;
    elf[0x3C] = 12;
    for (index, header) in headers.iter().enumerate() {
        elf[0x80 + index * PROGRAM_HEADER_BYTES..][..PROGRAM_HEADER_BYTES]
            .copy_from_slice(&header.to_bytes());
    }
    elf[0x1000..0x1080].fill(0xAA);
    elf[0x1010..0x1020].fill(0xBB);
    elf
}

/// What a loader puts into memory: physical address and bytes, zeros made.
fn loaded(elf: &[u8]) -> Vec<(u64, Vec<u8>)> {
    segments(elf)
        .expect("is ELF")
        .iter()
        .filter(|segment| segment.kind == LOAD)
        .map(|segment| {
            let mut memory = elf[segment.offset..][..segment.file_bytes].to_vec();
            memory.resize(segment.memory_bytes as usize, 0);
            (segment.physical_address, memory)
        })
        .collect()
}

#[test]
fn a_payload_in_lz4_is_found_and_unpacked() {
    let kernel = decompress(&image(&lz4_payload(b"a kernel"))).expect("is good");
    assert_eq!(kernel, b"a kernel");
}

#[test]
fn a_payload_in_xz_is_found_and_unpacked() {
    // `printf 'a kernel, a kernel, a kernel' | xz --check=crc32 --x86 --lzma2`, and the size behind it, as the kernel's build does.
    let mut payload = include_bytes!("payload.xz").to_vec();
    payload.extend_from_slice(&28_u32.to_le_bytes());
    let kernel = decompress(&image(&payload)).expect("is good");
    assert_eq!(kernel, b"a kernel, a kernel, a kernel");
}

#[test]
fn what_cannot_be_unpacked_is_named() {
    let why = |image: &[u8]| format!("{:#}", decompress(image).expect_err("is not good"));
    assert!(why(b"MZ").contains("ends too early"));
    assert!(why(&[0; 2048]).contains("no bzImage"));
    assert!(why(&image(b"\x28\xB5\x2F\xFD\0\0\0\0")).contains("zstd"));
    let mut lies = lz4_payload(b"a kernel");
    lies.truncate(lies.len() - 4);
    lies.extend_from_slice(&7_u32.to_le_bytes());
    assert!(why(&image(&lies)).contains("damaged"));
    let mut huge = lz4_payload(b"a kernel");
    huge.truncate(huge.len() - 4);
    huge.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(why(&image(&huge)).contains("claims"));
}

#[test]
fn a_trimmed_program_loads_to_the_same_memory() {
    let elf = elf();
    let trimmed = trim(&elf).expect("is ELF");
    assert_eq!(loaded(&trimmed), loaded(&elf));
    assert!(trimmed.len() < 0x1100 + ALIGN, "{:#x}", trimmed.len());
    assert_eq!(trimmed[0x18..0x20], elf[0x18..0x20], "the entry point");
    let notes: Vec<Segment> = segments(&trimmed)
        .expect("is ELF")
        .into_iter()
        .filter(|segment| segment.kind == 4)
        .collect();
    assert_eq!(notes.len(), 1, "the one outside is gone");
    assert_eq!(
        trimmed[notes[0].offset..][..notes[0].file_bytes],
        [0xBB; 16]
    );
}

proptest! {
    #[test]
    fn a_damaged_program_is_an_error_and_no_panic(place in 0_usize..0x200, value: u8) {
        let mut elf = elf();
        elf[place] = value;
        let _ = trim(&elf);
    }

    #[test]
    fn a_damaged_image_is_an_error_and_no_panic(place in 0_usize..2000, value: u8) {
        let mut image = image(&lz4_payload(b"a kernel"));
        if let Some(byte) = image.get_mut(place) {
            *byte = value;
        }
        let _ = decompress(&image);
    }
}
