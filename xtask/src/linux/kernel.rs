//! From a bzImage to the ELF file inside it, on the host and once, so that no guest has to do it in an emulator.
//!
//! Sources: the kernel's Documentation, "The Linux/x86 Boot Protocol" (setup header), and the ELF-64 object file format.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// Largest kernel that is believed: a broken size is not to fill the memory.
const MOST_BYTES: usize = 512 << 20;

/// Decompresses the payload of a bzImage.
pub(crate) fn decompress(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image)?;
    // The kernel's build puts the size of what is inside behind the compressed data; for xz and lz4 alike.
    let (data, size) = payload
        .split_last_chunk::<4>()
        .context("the payload is empty")?;
    let size = u32::from_le_bytes(*size) as usize;
    ensure!(
        size <= MOST_BYTES,
        "the payload claims to have {size} bytes"
    );
    let kernel = match payload {
        [0x02, 0x21, 0x4C, 0x18, ..] => lz4(&data[4..], size)?,
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => xz(data, size)?,
        [0x1F, 0x8B, ..] => bail!("its payload is in gzip; lz4 and xz can be unpacked"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => bail!("its payload is in zstd; lz4 and xz can be unpacked"),
        [a, b, c, d, ..] => bail!("its payload begins with {a:02x} {b:02x} {c:02x} {d:02x}"),
        _ => bail!("its payload is empty"),
    };
    ensure!(
        kernel.len() == size,
        "its payload has {} bytes and claims to have {size}",
        kernel.len()
    );
    Ok(kernel)
}

/// The compressed kernel in a bzImage, as its setup header says.
fn payload(image: &[u8]) -> Result<&[u8]> {
    /// `setup_sects`, `header`, `version`, `payload_offset`, `payload_length`: offsets in the file.
    const SETUP_SECTORS: usize = 0x1F1;
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24C;
    /// The first protocol with the fields of the payload.
    const OLDEST: u16 = 0x0208;
    let magic: [u8; 4] = bytes(image, MAGIC)?;
    ensure!(&magic == b"HdrS", "it is no bzImage");
    let version = u16::from_le_bytes(bytes(image, VERSION)?);
    ensure!(
        version >= OLDEST,
        "its boot protocol {version:#06x} is older than {OLDEST:#06x}"
    );
    let [sectors]: [u8; 1] = bytes(image, SETUP_SECTORS)?;
    // The protocol says that 0 stands for 4, and does not count the boot sector.
    let sectors = if sectors == 0 {
        4
    } else {
        usize::from(sectors)
    } + 1;
    let start = sectors * 512 + u32::from_le_bytes(bytes(image, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(bytes(image, PAYLOAD_LENGTH)?) as usize;
    part(image, start, length).context("its payload reaches beyond the file")
}

/// The old frame of LZ4, which the kernel's build uses: the size of a block, a block, and so on. All blocks but the last
/// hold 8 MiB.
fn lz4(mut data: &[u8], size: usize) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut kernel = vec![0; size];
    let mut done = 0;
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = part(rest, 0, length).context("a block of LZ4 reaches beyond the payload")?;
        let end = (done + BLOCK).min(size);
        let room = kernel
            .get_mut(done..end)
            .context("too many blocks of LZ4")?;
        done +=
            lz4_flex::block::decompress_into(block, room).context("a block of LZ4 is damaged")?;
        data = &rest[length..];
    }
    kernel.truncate(done);
    Ok(kernel)
}

fn xz(data: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut kernel = Vec::with_capacity(size);
    lzma_rust2::XzReader::new(data, false)
        .take(size as u64 + 1)
        .read_to_end(&mut kernel)
        .context("the payload in xz is damaged")?;
    Ok(kernel)
}

const PROGRAM_HEADER_BYTES: usize = 56;
const LOAD: u32 = 1;
/// A multiple of the page, so that whoever likes to map segments can.
const ALIGN: usize = 4096;

/// A program header. `offset` is where the segment lies in the file, `file_bytes` how much of it.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: usize,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: usize,
    memory_bytes: u64,
    align: u64,
}

/// The same program with nothing in the file but what is loaded: no sections, no symbols, no gaps, and no zeros at the ends of
/// segments, which whoever loads it makes by itself. Segments that lie inside others (notes) stay there.
pub(crate) fn trim(elf: &[u8]) -> Result<Vec<u8>> {
    let segments = segments(elf)?;
    let mut trimmed = part(elf, 0, 64).context("it has no ELF header")?.to_vec();
    trimmed[0x20..0x28].copy_from_slice(&64_u64.to_le_bytes()); // e_phoff
    trimmed[0x28..0x30].fill(0); // e_shoff
    trimmed[0x3A..0x40].fill(0); // e_shentsize, e_shnum, e_shstrndx
    trimmed.resize(64 + segments.len() * PROGRAM_HEADER_BYTES, 0);
    // Where each loaded segment went: old start, new start, bytes.
    let mut moved: Vec<(usize, usize, usize)> = Vec::new();
    let mut headers = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == LOAD) {
        let content = part(elf, segment.offset, segment.file_bytes)
            .context("a segment reaches beyond the file")?;
        let used = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        trimmed.resize(trimmed.len().next_multiple_of(ALIGN), 0);
        moved.push((segment.offset, trimmed.len(), used));
        headers.push(Segment {
            offset: trimmed.len(),
            file_bytes: used,
            align: ALIGN as u64,
            ..*segment
        });
        trimmed.extend_from_slice(&content[..used]);
    }
    for segment in segments.iter().filter(|segment| segment.kind != LOAD) {
        let inside = moved.iter().find_map(|(old, new, bytes)| {
            let start = segment.offset.checked_sub(*old)?;
            (start.checked_add(segment.file_bytes)? <= *bytes).then_some(new + start)
        });
        // What is in no loaded segment is of no use to a loader.
        if let Some(offset) = inside {
            headers.push(Segment { offset, ..*segment });
        }
    }
    trimmed[0x38..0x3A].copy_from_slice(&(headers.len() as u16).to_le_bytes()); // e_phnum
    for (index, header) in headers.iter().enumerate() {
        let start = 64 + index * PROGRAM_HEADER_BYTES;
        trimmed[start..start + PROGRAM_HEADER_BYTES].copy_from_slice(&header.to_bytes());
    }
    Ok(trimmed)
}

/// The program headers of an ELF-64 file for this architecture.
fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
    let identity: [u8; 6] = bytes(elf, 0)?;
    ensure!(
        identity == [0x7F, b'E', b'L', b'F', 2, 1],
        "it is no little-endian ELF-64 file"
    );
    const X86_64: u16 = 62;
    let machine = u16::from_le_bytes(bytes(elf, 0x12)?);
    ensure!(machine == X86_64, "it is for machine {machine}, not x86-64");
    let table = number(elf, 0x20)?;
    let size = usize::from(u16::from_le_bytes(bytes(elf, 0x36)?));
    let count = usize::from(u16::from_le_bytes(bytes(elf, 0x38)?));
    ensure!(
        size == PROGRAM_HEADER_BYTES && count > 0,
        "it has {count} program headers of {size} bytes"
    );
    (0..count)
        .map(|index| {
            let header = index
                .checked_mul(size)
                .and_then(|offset| offset.checked_add(table))
                .and_then(|start| part(elf, start, size))
                .context("its program headers reach beyond the file")?;
            Ok(Segment {
                kind: u32::from_le_bytes(bytes(header, 0)?),
                flags: u32::from_le_bytes(bytes(header, 4)?),
                offset: number(header, 8)?,
                virtual_address: u64::from_le_bytes(bytes(header, 16)?),
                physical_address: u64::from_le_bytes(bytes(header, 24)?),
                file_bytes: number(header, 32)?,
                memory_bytes: u64::from_le_bytes(bytes(header, 40)?),
                align: u64::from_le_bytes(bytes(header, 48)?),
            })
        })
        .collect()
}

impl Segment {
    fn to_bytes(self) -> [u8; PROGRAM_HEADER_BYTES] {
        let mut bytes = [0; PROGRAM_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        let words = [
            self.offset as u64,
            self.virtual_address,
            self.physical_address,
            self.file_bytes as u64,
            self.memory_bytes,
            self.align,
        ];
        for (room, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

fn part(bytes: &[u8], start: usize, length: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(length)?)
}

fn bytes<const N: usize>(from: &[u8], start: usize) -> Result<[u8; N]> {
    part(from, start, N)
        .and_then(|found| found.try_into().ok())
        .context("it ends too early")
}

fn number(from: &[u8], start: usize) -> Result<usize> {
    usize::try_from(u64::from_le_bytes(bytes(from, start)?)).context("an offset is too large")
}

#[cfg(test)]
mod tests;
