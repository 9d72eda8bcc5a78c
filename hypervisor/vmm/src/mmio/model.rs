//! Another decoder, written by hand, for tests: it knows some instructions of 64-bit mode and is to agree with the other on them.

use nagaya_devices::pci::Width;

use super::{Arithmetic, Instruction, Keep, MAX_BYTES, Operation, Register, Source, Unsupported};

/// Bytes yet to come.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    #[inline]
    fn byte(&mut self) -> Result<u8, Unsupported> {
        let byte = *self.bytes.get(self.at).ok_or(Unsupported)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn skip(&mut self, bytes: usize) -> Result<(), Unsupported> {
        self.at += bytes;
        if self.at <= self.bytes.len() {
            Ok(())
        } else {
            Err(Unsupported)
        }
    }

    /// A constant, sign-extended.
    fn constant(&mut self, bytes: usize) -> Result<u64, Unsupported> {
        let raw = self.bytes.get(self.at..self.at + bytes);
        let raw = raw.ok_or(Unsupported)?;
        self.at += bytes;
        Ok(match *raw {
            [a] => i64::from(a as i8) as u64,
            [a, b] => i64::from(i16::from_le_bytes([a, b])) as u64,
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])) as u64,
            _ => return Err(Unsupported),
        })
    }
}

/// What comes before the opcode.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand_size: bool,
    address_size: bool,
    rex: Option<u8>,
}

impl Prefixes {
    /// Width of an operand that is no byte.
    fn wide(self) -> Width {
        if self.rex.is_some_and(|rex| rex & 8 != 0) {
            Width::Qword
        } else if self.operand_size {
            Width::Word
        } else {
            Width::Dword
        }
    }

    /// Width by the lowest bit of most opcodes.
    fn width(self, opcode: u8) -> Width {
        if opcode & 1 == 0 {
            Width::Byte
        } else {
            self.wide()
        }
    }

    /// The register of a ModRM's middle field; without REX bytes 4 to 7 are the second bytes of the first four.
    fn register(self, field: u8, width: Width) -> Register {
        let extension = self.rex.unwrap_or(0) << 1 & 8;
        if width == Width::Byte && self.rex.is_none() && field >= 4 {
            return Register {
                number: field - 4,
                is_high_byte: true,
            };
        }
        Register {
            number: field | extension,
            is_high_byte: false,
        }
    }
}

/// Decodes the instruction that `bytes` begin with. Its memory operand's address is not of interest: the exit tells it.
///
/// # Errors
/// [`Unsupported`].
pub(super) fn decode(bytes: &[u8]) -> Result<Instruction, Unsupported> {
    let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let mut reader = Reader { bytes, at: 0 };
    let mut prefixes = Prefixes::default();
    let opcode = loop {
        match reader.byte()? {
            0x66 => prefixes.operand_size = true,
            0x67 => prefixes.address_size = true,
            // Segments: the exit's address has them in it.
            0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 => {}
            // LOCK and repetitions are not for registers of devices.
            0xF0 | 0xF2 | 0xF3 => return Err(Unsupported),
            rex @ 0x40..=0x4F => {
                prefixes.rex = Some(rex);
                break reader.byte()?;
            }
            opcode => break opcode,
        }
    };
    let (width, operation) = if opcode == 0x0F {
        two_bytes(&mut reader, prefixes)?
    } else {
        one_byte(opcode, &mut reader, prefixes)?
    };
    Ok(Instruction {
        length: reader.at as u8,
        width,
        operation,
    })
}

fn one_byte(
    opcode: u8,
    reader: &mut Reader<'_>,
    prefixes: Prefixes,
) -> Result<(Width, Operation), Unsupported> {
    let width = prefixes.width(opcode);
    let operation = match opcode {
        0x88 | 0x89 => {
            let field = memory(reader)?;
            Operation::Store(Source::Register(prefixes.register(field, width)))
        }
        0x8A | 0x8B => {
            let field = memory(reader)?;
            load(prefixes.register(field, width), width)
        }
        0xA0..=0xA3 => {
            reader.skip(if prefixes.address_size { 4 } else { 8 })?;
            let accumulator = Register {
                number: 0,
                is_high_byte: false,
            };
            if opcode < 0xA2 {
                load(accumulator, width)
            } else {
                Operation::Store(Source::Register(accumulator))
            }
        }
        0xC6 | 0xC7 => match memory(reader)? {
            0 => Operation::Store(Source::Constant(reader.constant(constant_bytes(width))?)),
            _ => return Err(Unsupported),
        },
        // MOVSXD with REX.W; without it would be a plain MOV, which nobody writes so.
        0x63 if prefixes.wide() == Width::Qword => {
            let field = memory(reader)?;
            return Ok((
                Width::Dword,
                Operation::Load {
                    target: prefixes.register(field, Width::Qword),
                    width: Width::Qword,
                    is_signed: true,
                },
            ));
        }
        0x84 | 0x85 => {
            let field = memory(reader)?;
            Operation::Compute {
                arithmetic: Arithmetic::And,
                other: Source::Register(prefixes.register(field, width)),
                is_reversed: false,
                keep: Keep::Flags,
            }
        }
        0xF6 | 0xF7 => match memory(reader)? {
            0 => Operation::Compute {
                arithmetic: Arithmetic::And,
                other: Source::Constant(reader.constant(constant_bytes(width))?),
                is_reversed: false,
                keep: Keep::Flags,
            },
            _ => return Err(Unsupported),
        },
        0x80 | 0x81 | 0x83 => {
            let (arithmetic, keep) = arithmetic(memory(reader)?)?;
            let bytes = if opcode == 0x81 {
                constant_bytes(width)
            } else {
                1
            };
            Operation::Compute {
                arithmetic,
                other: Source::Constant(reader.constant(bytes)?),
                is_reversed: false,
                keep: keep.unwrap_or(Keep::Memory),
            }
        }
        0x00..=0x3F if opcode & 7 < 4 => {
            let (arithmetic, keep) = arithmetic(opcode >> 3)?;
            let field = memory(reader)?;
            let is_reversed = opcode & 2 != 0;
            let usual = if is_reversed {
                Keep::Register
            } else {
                Keep::Memory
            };
            Operation::Compute {
                arithmetic,
                other: Source::Register(prefixes.register(field, width)),
                is_reversed,
                keep: keep.unwrap_or(usual),
            }
        }
        _ => return Err(Unsupported),
    };
    Ok((width, operation))
}

fn two_bytes(
    reader: &mut Reader<'_>,
    prefixes: Prefixes,
) -> Result<(Width, Operation), Unsupported> {
    let opcode = reader.byte()?;
    let from = match opcode {
        0xB6 | 0xBE => Width::Byte,
        0xB7 | 0xBF => Width::Word,
        // MOVNTI.
        0xC3 if !prefixes.operand_size => {
            let width = prefixes.wide();
            let field = memory(reader)?;
            let source = Source::Register(prefixes.register(field, width));
            return Ok((width, Operation::Store(source)));
        }
        _ => return Err(Unsupported),
    };
    let width = prefixes.wide();
    let field = memory(reader)?;
    let operation = Operation::Load {
        target: prefixes.register(field, width),
        width,
        is_signed: opcode & 8 != 0,
    };
    Ok((from, operation))
}

fn load(target: Register, width: Width) -> Operation {
    Operation::Load {
        target,
        width,
        is_signed: false,
    }
}

/// By the three bits that opcodes 0x00 to 0x3F and 0x80 to 0x83 have for it. ADC and SBB are left out.
fn arithmetic(bits: u8) -> Result<(Arithmetic, Option<Keep>), Unsupported> {
    Ok(match bits {
        0 => (Arithmetic::Add, None),
        1 => (Arithmetic::Or, None),
        4 => (Arithmetic::And, None),
        5 => (Arithmetic::Subtract, None),
        6 => (Arithmetic::ExclusiveOr, None),
        7 => (Arithmetic::Subtract, Some(Keep::Flags)),
        _ => return Err(Unsupported),
    })
}

/// Constants have at most 32 bits.
const fn constant_bytes(width: Width) -> usize {
    match width {
        Width::Byte => 1,
        Width::Word => 2,
        Width::Dword | Width::Qword => 4,
    }
}

/// Reads ModRM, SIB and displacement of an operand in memory; its middle field comes back.
fn memory(reader: &mut Reader<'_>) -> Result<u8, Unsupported> {
    let modrm = reader.byte()?;
    let (mode, place) = (modrm >> 6, modrm & 7);
    let mut displacement = match mode {
        0 if place == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return Err(Unsupported),
    };
    if place == 4 {
        let sib = reader.byte()?;
        if mode == 0 && sib & 7 == 5 {
            displacement = 4;
        }
    }
    reader.skip(displacement)?;
    Ok(modrm >> 3 & 7)
}
