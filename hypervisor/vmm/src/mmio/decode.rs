//! From bytes to [`Instruction`] and [`StringInstruction`], by the crate `iced-x86`.
//!
//! The crate knows every instruction; what of them is carried out is listed here. Its tables are made at the first use, on the heap:
//! [`IcedDecoder::new`] sees to it that this is no guest's doing.

use iced_x86::{Code, Decoder, DecoderOptions, MemorySize, Mnemonic, OpKind, Register as Iced};
use nagaya_devices::pci::Width;

use super::string::{StringInstruction, StringKind};
use super::{
    Arithmetic, BitAction, Instruction, Keep, Operation, Register, Source, Unary, sign_extended,
};
use crate::cpu::CodeSize;
use crate::cpu::SegmentRegister;

/// The longest instruction.
pub const MAX_BYTES: usize = 15;

/// The bytes are no instruction that is carried out, or they end too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

/// What bytes turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An access to one place, and what its address is made of.
    Single(Instruction, OperandAddress),
    /// A string instruction.
    String(StringInstruction),
}

/// What addresses are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPart {
    /// All 64 bits of a general register, by its number.
    General(u8),
    /// The base of a segment.
    Base(SegmentRegister),
}

/// What the address of an operand in memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandAddress {
    base: Option<u8>,
    index: Option<(u8, u8)>,
    displacement: u64,
    is_relative: bool,
    segment: SegmentRegister,
}

impl OperandAddress {
    fn of(found: &iced_x86::Instruction) -> OperandAddress {
        let number = |register: Iced| general(register).map(|(register, _)| register.number);
        OperandAddress {
            base: number(found.memory_base()),
            index: number(found.memory_index())
                .map(|index| (index, found.memory_index_scale() as u8)),
            displacement: found.memory_displacement64(),
            is_relative: found.is_ip_rel_memory_operand(),
            segment: segment(found.memory_segment()),
        }
    }

    /// How far into its page the operand begins, whatever the size of addresses. `rip` is the instruction's, `value` knows the
    /// guest's registers.
    pub fn page_offset(&self, rip: u64, mut value: impl FnMut(AddressPart) -> u64) -> u64 {
        let mut register = |number| value(AddressPart::General(number));
        let base = self.base.map_or(0, &mut register);
        let index = self.index.map_or(0, |(index, scale)| {
            register(index).wrapping_mul(scale.into())
        });
        let relative = if self.is_relative { rip } else { 0 };
        value(AddressPart::Base(self.segment))
            .wrapping_add(base)
            .wrapping_add(index)
            .wrapping_add(self.displacement)
            .wrapping_add(relative)
            % guest_abi::PAGE_BYTES
    }
}

fn segment(register: Iced) -> SegmentRegister {
    match register {
        Iced::ES => SegmentRegister::Es,
        Iced::CS => SegmentRegister::Cs,
        Iced::SS => SegmentRegister::Ss,
        Iced::FS => SegmentRegister::Fs,
        Iced::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// Finds out what instructions mean.
pub trait Decode {
    /// Decodes the instruction that `bytes` begin with. The address of its memory operand is not of interest: the exit tells it.
    ///
    /// # Errors
    /// [`Unsupported`].
    fn decode(&self, bytes: &[u8], size: CodeSize) -> Result<Decoded, Unsupported>;
}

/// The decoder of `iced-x86`.
#[derive(Clone, Copy, Debug)]
pub struct IcedDecoder(());

impl IcedDecoder {
    /// Makes it, with its tables if they are not there yet.
    #[must_use]
    pub fn new() -> IcedDecoder {
        const NOP: u8 = 0x90;
        let decoder = IcedDecoder(());
        // Only to make the tables; it is none of those that are carried out.
        let _ = decoder.decode(&[NOP], CodeSize::Bits64);
        decoder
    }
}

impl Default for IcedDecoder {
    fn default() -> IcedDecoder {
        IcedDecoder::new()
    }
}

impl Decode for IcedDecoder {
    fn decode(&self, bytes: &[u8], size: CodeSize) -> Result<Decoded, Unsupported> {
        let bytes = bytes.get(..MAX_BYTES).unwrap_or(bytes);
        let mut decoder =
            Decoder::try_new(size.bits(), bytes, DecoderOptions::NONE).map_err(|_| Unsupported)?;
        let found = decoder.decode();
        if found.is_invalid() {
            return Err(Unsupported);
        }
        if let Some(string) = string(&found) {
            return Ok(Decoded::String(string));
        }
        // LOCK promises what no device on a PCI bus keeps. Repetitions mean nothing.
        if found.has_rep_prefix() || found.has_repne_prefix() {
            return Err(Unsupported);
        }
        single(&found).map(|instruction| Decoded::Single(instruction, OperandAddress::of(&found)))
    }
}

fn single(found: &iced_x86::Instruction) -> Result<Instruction, Unsupported> {
    let width = match found.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Width::Byte,
        MemorySize::UInt16 | MemorySize::Int16 => Width::Word,
        MemorySize::UInt32 | MemorySize::Int32 => Width::Dword,
        MemorySize::UInt64 | MemorySize::Int64 => Width::Qword,
        _ => return Err(Unsupported),
    };
    let operation = match found.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => match operands(found, width)? {
            (Place::Memory, Some(Place::Other(source))) => Operation::Store(source),
            (Place::Other(Source::Register(target)), Some(Place::Memory)) => {
                load(target, width, false)
            }
            _ => return Err(Unsupported),
        },
        mnemonic @ (Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd) => {
            let (target, of) = general(found.op0_register()).ok_or(Unsupported)?;
            if !is_memory(found.op1_kind()) {
                return Err(Unsupported);
            }
            load(target, of, mnemonic != Mnemonic::Movzx)
        }
        Mnemonic::Xchg => match operands(found, width)? {
            (Place::Memory, Some(Place::Other(Source::Register(other))))
            | (Place::Other(Source::Register(other)), Some(Place::Memory)) => {
                Operation::Exchange(other)
            }
            _ => return Err(Unsupported),
        },
        mnemonic => {
            if let Some((arithmetic, usual)) = arithmetic(mnemonic) {
                compute(arithmetic, usual, operands(found, width)?)?
            } else if let Some(unary) = unary(mnemonic) {
                match operands(found, width)? {
                    (Place::Memory, None) => Operation::Change(unary),
                    _ => return Err(Unsupported),
                }
            } else if let Some(action) = bit_action(mnemonic) {
                match operands(found, width)? {
                    (Place::Memory, Some(Place::Other(index))) => Operation::Bit { action, index },
                    _ => return Err(Unsupported),
                }
            } else {
                return Err(Unsupported);
            }
        }
    };
    Ok(Instruction {
        length: found.len() as u8,
        width,
        operation,
    })
}

fn load(target: Register, width: Width, is_signed: bool) -> Operation {
    Operation::Load {
        target,
        width,
        is_signed,
    }
}

fn compute(
    arithmetic: Arithmetic,
    usual: bool,
    operands: (Place, Option<Place>),
) -> Result<Operation, Unsupported> {
    let (other, is_reversed) = match operands {
        (Place::Memory, Some(Place::Other(other))) => (other, false),
        (Place::Other(other), Some(Place::Memory)) => (other, true),
        _ => return Err(Unsupported),
    };
    let keep = match (usual, is_reversed) {
        (false, _) => Keep::Flags,
        (true, false) => Keep::Memory,
        (true, true) => Keep::Register,
    };
    Ok(Operation::Compute {
        arithmetic,
        other,
        is_reversed,
        keep,
    })
}

/// Arithmetic of two operands, and whether its result is kept.
fn arithmetic(mnemonic: Mnemonic) -> Option<(Arithmetic, bool)> {
    Some(match mnemonic {
        Mnemonic::Add => (Arithmetic::Add, true),
        Mnemonic::Adc => (Arithmetic::AddCarry, true),
        Mnemonic::Or => (Arithmetic::Or, true),
        Mnemonic::And => (Arithmetic::And, true),
        Mnemonic::Sub => (Arithmetic::Subtract, true),
        Mnemonic::Sbb => (Arithmetic::SubtractBorrow, true),
        Mnemonic::Xor => (Arithmetic::ExclusiveOr, true),
        Mnemonic::Cmp => (Arithmetic::Subtract, false),
        Mnemonic::Test => (Arithmetic::And, false),
        _ => return None,
    })
}

fn unary(mnemonic: Mnemonic) -> Option<Unary> {
    Some(match mnemonic {
        Mnemonic::Inc => Unary::Increment,
        Mnemonic::Dec => Unary::Decrement,
        Mnemonic::Not => Unary::Invert,
        Mnemonic::Neg => Unary::Negate,
        _ => return None,
    })
}

fn bit_action(mnemonic: Mnemonic) -> Option<BitAction> {
    Some(match mnemonic {
        Mnemonic::Bt => BitAction::Test,
        Mnemonic::Bts => BitAction::Set,
        Mnemonic::Btr => BitAction::Reset,
        Mnemonic::Btc => BitAction::Complement,
        _ => return None,
    })
}

/// An operand.
enum Place {
    Memory,
    Other(Source),
}

fn is_memory(kind: OpKind) -> bool {
    kind == OpKind::Memory
}

/// One or two operands. Registers are as wide as memory is, or the instruction is none of ours.
fn operands(
    found: &iced_x86::Instruction,
    width: Width,
) -> Result<(Place, Option<Place>), Unsupported> {
    let operand = |index: u32| match found.op_kind(index) {
        OpKind::Memory => Ok(Place::Memory),
        OpKind::Register => match general(found.op_register(index)) {
            Some((register, of)) if of == width => Ok(Place::Other(Source::Register(register))),
            _ => Err(Unsupported),
        },
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => {
            let value = found.immediate(index) & width.ones();
            Ok(Place::Other(Source::Constant(sign_extended(value, width))))
        }
        _ => Err(Unsupported),
    };
    match found.op_count() {
        1 => Ok((operand(0)?, None)),
        2 => Ok((operand(0)?, Some(operand(1)?))),
        _ => Err(Unsupported),
    }
}

/// A general register and its width. The crate numbers them in this order.
pub(super) fn general(register: Iced) -> Option<(Register, Width)> {
    let number = register as u8;
    let from = |first: Iced| number.wrapping_sub(first as u8);
    let plain = |number: u8| Register {
        number,
        is_high_byte: false,
    };
    let high = |number: u8| Register {
        number,
        is_high_byte: true,
    };
    Some(match register {
        Iced::AH | Iced::CH | Iced::DH | Iced::BH => (high(from(Iced::AH)), Width::Byte),
        Iced::AL | Iced::CL | Iced::DL | Iced::BL => (plain(from(Iced::AL)), Width::Byte),
        _ if from(Iced::SPL) < 12 => (plain(from(Iced::SPL) + 4), Width::Byte),
        _ if from(Iced::AX) < 16 => (plain(from(Iced::AX)), Width::Word),
        _ if from(Iced::EAX) < 16 => (plain(from(Iced::EAX)), Width::Dword),
        _ if from(Iced::RAX) < 16 => (plain(from(Iced::RAX)), Width::Qword),
        _ => return None,
    })
}

fn string(found: &iced_x86::Instruction) -> Option<StringInstruction> {
    let (kind, width) = match found.code() {
        Code::Movsb_m8_m8 => (StringKind::Move, Width::Byte),
        Code::Movsw_m16_m16 => (StringKind::Move, Width::Word),
        Code::Movsd_m32_m32 => (StringKind::Move, Width::Dword),
        Code::Movsq_m64_m64 => (StringKind::Move, Width::Qword),
        Code::Stosb_m8_AL => (StringKind::Store, Width::Byte),
        Code::Stosw_m16_AX => (StringKind::Store, Width::Word),
        Code::Stosd_m32_EAX => (StringKind::Store, Width::Dword),
        Code::Stosq_m64_RAX => (StringKind::Store, Width::Qword),
        Code::Lodsb_AL_m8 => (StringKind::Load, Width::Byte),
        Code::Lodsw_AX_m16 => (StringKind::Load, Width::Word),
        Code::Lodsd_EAX_m32 => (StringKind::Load, Width::Dword),
        Code::Lodsq_RAX_m64 => (StringKind::Load, Width::Qword),
        Code::Cmpsb_m8_m8 => (StringKind::Compare, Width::Byte),
        Code::Cmpsw_m16_m16 => (StringKind::Compare, Width::Word),
        Code::Cmpsd_m32_m32 => (StringKind::Compare, Width::Dword),
        Code::Cmpsq_m64_m64 => (StringKind::Compare, Width::Qword),
        Code::Scasb_AL_m8 => (StringKind::Scan, Width::Byte),
        Code::Scasw_AX_m16 => (StringKind::Scan, Width::Word),
        Code::Scasd_EAX_m32 => (StringKind::Scan, Width::Dword),
        Code::Scasq_RAX_m64 => (StringKind::Scan, Width::Qword),
        Code::Insb_m8_DX => (StringKind::In, Width::Byte),
        Code::Insw_m16_DX => (StringKind::In, Width::Word),
        Code::Insd_m32_DX => (StringKind::In, Width::Dword),
        Code::Outsb_DX_m8 => (StringKind::Out, Width::Byte),
        Code::Outsw_DX_m16 => (StringKind::Out, Width::Word),
        Code::Outsd_DX_m32 => (StringKind::Out, Width::Dword),
        _ => return None,
    };
    let kinds = [found.op0_kind(), found.op1_kind()];
    let address = kinds.into_iter().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Width::Word),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Width::Dword),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Width::Qword),
        _ => None,
    })?;
    let source = segment(found.segment_prefix());
    let compares = matches!(kind, StringKind::Compare | StringKind::Scan);
    let repeats = found.has_rep_prefix() || found.has_repne_prefix();
    Some(StringInstruction {
        length: found.len() as u8,
        width,
        kind,
        repeats,
        goes_on_with: (compares && repeats).then(|| !found.has_repne_prefix()),
        address,
        source,
    })
}
