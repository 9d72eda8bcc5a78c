use super::*;
use crate::cpu::{Effect, SegmentRegister};
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use proptest::prelude::*;
use std::vec::Vec;

const RAX: Register = Register {
    number: 0,
    is_high_byte: false,
};

fn decode_in(size: CodeSize, bytes: &[u8]) -> Result<Instruction, Unsupported> {
    match IcedDecoder::new().decode(bytes, size)? {
        Decoded::Single(instruction, _) => Ok(instruction),
        Decoded::String(_) => Err(Unsupported),
    }
}

fn decode(bytes: &[u8]) -> Result<Instruction, Unsupported> {
    decode_in(CodeSize::Bits64, bytes)
}

fn of(bytes: &[u8]) -> Instruction {
    decode(bytes).expect("supported")
}

#[test]
fn what_drivers_and_compilers_use_is_decoded() {
    let cases: [(&[u8], u8, Width, Operation); 9] = [
        // mov [rdi], ax
        (
            &[0x66, 0x89, 0x07],
            3,
            Width::Word,
            Operation::Store(Source::Register(RAX)),
        ),
        // mov dword [rip + 4], -2
        (
            &[0xC7, 0x05, 4, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF],
            10,
            Width::Dword,
            Operation::Store(Source::Constant(u64::MAX - 1)),
        ),
        // mov byte [rsp + rbx * 2 + 8], 15
        (
            &[0xC6, 0x44, 0x5C, 8, 15],
            5,
            Width::Byte,
            Operation::Store(Source::Constant(15)),
        ),
        // mov r9, [r8]
        (
            &[0x4D, 0x8B, 0x08],
            3,
            Width::Qword,
            Operation::Load {
                target: Register { number: 9, ..RAX },
                width: Width::Qword,
                is_signed: false,
            },
        ),
        // movzx eax, byte [rsi]
        (
            &[0x0F, 0xB6, 0x06],
            3,
            Width::Byte,
            Operation::Load {
                target: RAX,
                width: Width::Dword,
                is_signed: false,
            },
        ),
        // movsx rdx, word [rax + 0x100]
        (
            &[0x48, 0x0F, 0xBF, 0x90, 0, 1, 0, 0],
            8,
            Width::Word,
            Operation::Load {
                target: Register { number: 2, ..RAX },
                width: Width::Qword,
                is_signed: true,
            },
        ),
        // mov [rax], ah
        (
            &[0x88, 0x20],
            2,
            Width::Byte,
            Operation::Store(Source::Register(Register {
                number: 0,
                is_high_byte: true,
            })),
        ),
        // mov [rax], spl
        (
            &[0x40, 0x88, 0x20],
            3,
            Width::Byte,
            Operation::Store(Source::Register(Register { number: 4, ..RAX })),
        ),
        // test byte [rdi + 20], 4
        (
            &[0xF6, 0x47, 20, 4],
            4,
            Width::Byte,
            Operation::Compute {
                arithmetic: Arithmetic::And,
                other: Source::Constant(4),
                is_reversed: false,
                keep: Keep::Flags,
            },
        ),
    ];
    for (bytes, length, width, operation) in cases {
        let expected = Instruction {
            length,
            width,
            operation,
        };
        assert_eq!(decode(bytes), Ok(expected), "{bytes:x?}");
        for short in 0..bytes.len() {
            assert_eq!(decode(&bytes[..short]), Err(Unsupported), "{bytes:x?}");
        }
    }
}

#[test]
fn registers_and_what_is_not_known_are_refused() {
    let refused: [&[u8]; 14] = [
        &[0x89, 0xC3],             // mov ebx, eax
        &[0x87, 0xC3],             // xchg ebx, eax
        &[0xFF, 0xC0],             // inc eax
        &[0x0F, 0xBA, 0xE0, 1],    // bt eax, 1
        &[0x0F, 0xB6, 0xC3],       // movzx eax, bl
        &[0x0F, 0x11, 0x07],       // movups [rdi], xmm0
        &[0x0F, 0xAE, 0x07],       // fxsave [rdi]
        &[0x0F, 0xB1, 0x07],       // cmpxchg [rdi], eax
        &[0x0F, 0xC1, 0x07],       // xadd [rdi], eax
        &[0xFF, 0x37],             // push qword [rdi]
        &[0xFF, 0x17],             // call qword [rdi]
        &[0xD1, 0x27],             // shl dword [rdi], 1
        &[0x8C, 0x1F],             // mov [rdi], ds
        &[0xC5, 0xF8, 0x11, 0x07], // vmovups [rdi], xmm0
    ];
    for bytes in refused {
        assert_eq!(decode(bytes), Err(Unsupported), "{bytes:x?}");
    }
}

#[test]
fn a_result_of_32_bits_clears_the_upper_half_and_narrower_ones_keep_the_rest() {
    let old = 0x1122_3344_5566_7788;
    let loads: [(&[u8], u64); 8] = [
        (&[0x8A, 0x07], 0x1122_3344_5566_77F1),
        (&[0x8A, 0x27], 0x1122_3344_5566_F188),
        (&[0x66, 0x8B, 0x07], 0x1122_3344_5566_E2F1),
        (&[0x8B, 0x07], 0xC4D3_E2F1),
        (&[0x48, 0x8B, 0x07], 0x8899_AABB_C4D3_E2F1),
        (&[0x0F, 0xB6, 0x07], 0xF1),
        (&[0x0F, 0xBE, 0x07], 0xFFFF_FFF1),
        (&[0x48, 0x63, 0x07], 0xFFFF_FFFF_C4D3_E2F1),
    ];
    for (bytes, new) in loads {
        let change = of(bytes).execute(old, 0x8899_AABB_C4D3_E2F1, 2);
        assert_eq!(change.register, Some(new), "{bytes:x?}");
        assert_eq!((change.memory, change.flags), (None, None));
    }
    let stores: [(&[u8], u64); 5] = [
        (&[0x88, 0x07], 0x88),
        (&[0x88, 0x27], 0x77),
        (&[0x66, 0x89, 0x07], 0x7788),
        (&[0x48, 0x89, 0x07], old),
        (&[0x48, 0xC7, 0x07, 0xFF, 0xFF, 0xFF, 0xFF], u64::MAX),
    ];
    for (bytes, stored) in stores {
        let instruction = of(bytes);
        assert!(!instruction.reads_memory());
        let change = instruction.execute(old, 0, 2);
        assert_eq!(change.memory, Some(stored), "{bytes:x?}");
        assert_eq!((change.register, change.flags), (None, None));
    }
}

#[test]
fn arithmetic_sets_the_flags_of_the_manual() {
    // or dword [rdi], eax; and [rdi], al; cmp [rdi], ax; xor eax, [rdi]; sub eax, [rdi]
    let change = of(&[0x09, 0x07]).execute(0x8000_0000, 1, 0xFFF);
    assert_eq!(change.memory, Some(0x8000_0001));
    assert_eq!(change.flags.map(|flags| flags & 0x8C1), Some(0x80));
    let change = of(&[0x20, 0x07]).execute(0xF0, 0x0F, 0);
    assert_eq!((change.memory, change.flags), (Some(0), Some(0x44)));
    let change = of(&[0x66, 0x39, 0x07]).execute(2, 0x1_0001, 0);
    assert_eq!((change.memory, change.register), (None, None));
    // 1 - 2: carry, auxiliary, sign, parity of 0xFF.
    assert_eq!(change.flags, Some(0x95));
    let change = of(&[0x33, 0x07]).execute(u64::MAX, 0xFFFF_FFFF, 0);
    assert_eq!((change.register, change.flags), (Some(0), Some(0x44)));
    let change = of(&[0x2B, 0x07]).execute(0x8000_0000, 1, 0);
    // The most negative less one: overflow.
    assert_eq!(change.register, Some(0x7FFF_FFFF));
    assert_eq!(change.flags, Some(0x814));
    let change = of(&[0x83, 0x07, 0xFF]).execute(0, 1, 0);
    assert_eq!((change.memory, change.flags), (Some(0), Some(0x55)));
}

#[test]
fn a_guest_that_races_against_itself_is_given_up_only_if_it_never_wins() {
    let mut mismatches = Mismatches::default();
    for _ in 0..10 {
        for _ in 0..MOST_MISMATCHES {
            assert_eq!(mismatches.note(), Retry::Again);
        }
        mismatches.clear();
    }
    let tries = (0..1000).take_while(|_| mismatches.note() == Retry::Again);
    assert_eq!(tries.count(), usize::from(MOST_MISMATCHES));
}

#[test]
fn every_other_form_does_what_the_manual_says() {
    const CARRY: u64 = 1;
    // Instruction, RAX, memory, flags; then RAX, memory, and the carry and zero flags if flags change.
    type After = (Option<u64>, Option<u64>, Option<u64>);
    let cases: [(&[u8], u64, u64, u64, After); 20] = [
        // xchg [rdi], eax; xchg [rdi], ah; xchg [rdi], ax
        (
            &[0x87, 0x07],
            u64::MAX,
            5,
            0,
            (Some(5), Some(0xFFFF_FFFF), None),
        ),
        (
            &[0x86, 0x27],
            0x1234,
            0x56,
            0,
            (Some(0x5634), Some(0x12), None),
        ),
        (
            &[0x66, 0x87, 0x07],
            0xA_1234,
            0x56,
            0,
            (Some(0xA_0056), Some(0x1234), None),
        ),
        // inc dword [rdi]; dec byte [rdi]; carry stays what it is
        (
            &[0xFF, 0x07],
            0,
            0xFFFF_FFFF,
            CARRY,
            (None, Some(0), Some(0x41)),
        ),
        (&[0xFE, 0x0F], 0, 0, 0, (None, Some(0xFF), Some(0))),
        // not word [rdi]; neg dword [rdi]
        (
            &[0x66, 0xF7, 0x17],
            0,
            0xF0F0,
            CARRY,
            (None, Some(0x0F0F), None),
        ),
        (&[0xF7, 0x1F], 0, 1, 0, (None, Some(0xFFFF_FFFF), Some(1))),
        (&[0xF7, 0x1F], 0, 0, CARRY, (None, Some(0), Some(0x40))),
        // adc [rdi], eax; sbb [rdi], eax; sbb eax, [rdi]
        (
            &[0x11, 0x07],
            0xFFFF_FFFF,
            7,
            CARRY,
            (None, Some(7), Some(1)),
        ),
        (
            &[0x19, 0x07],
            7,
            7,
            CARRY,
            (None, Some(0xFFFF_FFFF), Some(1)),
        ),
        (&[0x1B, 0x07], 7, 6, CARRY, (Some(0), None, Some(0x40))),
        // bt dword [rdi], 33; bts [rdi], eax; btr word [rdi], 3; btc qword [rdi], 63
        (&[0x0F, 0xBA, 0x27, 33], 0, 2, 0, (None, None, Some(1))),
        (&[0x0F, 0xAB, 0x07], 36, 0, CARRY, (None, Some(16), Some(0))),
        (
            &[0x66, 0x0F, 0xBA, 0x37, 3],
            0,
            0xFF,
            0,
            (None, Some(0xF7), Some(1)),
        ),
        (
            &[0x48, 0x0F, 0xBA, 0x3F, 63],
            0,
            0,
            0,
            (None, Some(1 << 63), Some(0)),
        ),
        // test [rdi], eax; cmp byte [rdi], 5; cmp eax, [rdi]
        (&[0x85, 0x07], 4, 3, CARRY, (None, None, Some(0x40))),
        (&[0x80, 0x3F, 5], 0, 4, 0, (None, None, Some(1))),
        (&[0x3B, 0x07], 4, 4, 0, (None, None, Some(0x40))),
        // add qword [rdi], -1; movnti [rdi], eax
        (
            &[0x48, 0x83, 0x07, 0xFF],
            0,
            1,
            0,
            (None, Some(0), Some(0x41)),
        ),
        (&[0x0F, 0xC3, 0x07], 9, 1, CARRY, (None, Some(9), None)),
    ];
    for (bytes, register, memory, flags, (to_register, to_memory, to_flags)) in cases {
        let change = of(bytes).execute(register, memory, flags);
        assert_eq!(change.register, to_register, "{bytes:x?}");
        assert_eq!(change.memory, to_memory, "{bytes:x?}");
        assert_eq!(
            change.flags.map(|flags| flags & 0x41),
            to_flags,
            "{bytes:x?}"
        );
    }
}

#[test]
fn bytes_mean_what_the_size_of_the_code_says() {
    // mov [di], ax or mov [edi], eax, by CS and prefixes.
    let of_size =
        |size, bytes: &[u8]| decode_in(size, bytes).map(|found| (found.length, found.width));
    use CodeSize::{Bits16, Bits32, Bits64};
    assert_eq!(of_size(Bits16, &[0x89, 0x05]), Ok((2, Width::Word)));
    assert_eq!(
        of_size(Bits16, &[0x66, 0x67, 0x89, 0x07]),
        Ok((4, Width::Dword))
    );
    // In 16-bit code mode 0 with place 6 is a displacement of two bytes, in 32-bit code place 5 one of four.
    assert_eq!(of_size(Bits16, &[0x89, 0x06, 1, 2]), Ok((4, Width::Word)));
    assert_eq!(
        of_size(Bits32, &[0x89, 0x05, 1, 2, 3, 4]),
        Ok((6, Width::Dword))
    );
    // Moffs: two, four and eight bytes of address.
    assert_eq!(of_size(Bits16, &[0xA3, 1, 2]), Ok((3, Width::Word)));
    assert_eq!(of_size(Bits32, &[0xA3, 1, 2, 3, 4]), Ok((5, Width::Dword)));
    assert_eq!(
        of_size(Bits64, &[0xA3, 1, 2, 3, 4, 5, 6, 7, 8]),
        Ok((9, Width::Dword))
    );
    // 0x48 is REX.W only in 64-bit code; elsewhere it is dec eax.
    assert_eq!(of_size(Bits64, &[0x48, 0x89, 0x07]), Ok((3, Width::Qword)));
    assert_eq!(of_size(Bits32, &[0x48, 0x89, 0x07]), Err(Unsupported));

    let long = 1 << 13;
    let default = 1 << 14;
    assert_eq!(CodeSize::new(long, true), Bits64);
    assert_eq!(CodeSize::new(default, true), Bits32);
    assert_eq!(CodeSize::new(long | default, false), Bits32);
    assert_eq!(CodeSize::new(0, true), Bits16);
    assert_eq!(
        Bits64.linear(0x1000, 0xFFFF_8000_0000_0000),
        0xFFFF_8000_0000_0000
    );
    assert_eq!(Bits32.linear(0xFFFF_F000, 0x1234), 0x234);
    assert_eq!(Bits16.linear(0xF_0000, 0xFFF0), 0xF_FFF0);
    assert_eq!(Bits16.step(0xFFFE, 3), 0x1_0001);
    assert_eq!(Bits32.step(0xFFFF_FFFE, 3), 1);
}

#[test]
fn strings_are_told_apart_with_their_addresses_and_segments() {
    let string = |size, bytes: &[u8]| match IcedDecoder::new().decode(bytes, size) {
        Ok(Decoded::String(found)) => found,
        other => panic!("{bytes:x?} is {other:?}"),
    };
    use CodeSize::{Bits16, Bits32, Bits64};
    let expected = |length, width, kind, repeats, address, source| StringInstruction {
        length,
        width,
        kind,
        repeats,
        goes_on_with: None,
        address,
        source,
    };
    let cases = [
        // rep movsd; movsb in 16-bit code; rep stosq; lodsw by es; rep insw; rep outsb by gs with 32-bit addresses
        (
            Bits64,
            &[0xF3, 0xA5][..],
            expected(
                2,
                Width::Dword,
                StringKind::Move,
                true,
                Width::Qword,
                Segment::Ds,
            ),
        ),
        (
            Bits16,
            &[0xA4],
            expected(
                1,
                Width::Byte,
                StringKind::Move,
                false,
                Width::Word,
                Segment::Ds,
            ),
        ),
        (
            Bits64,
            &[0xF3, 0x48, 0xAB],
            expected(
                3,
                Width::Qword,
                StringKind::Store,
                true,
                Width::Qword,
                Segment::Ds,
            ),
        ),
        (
            Bits32,
            &[0x26, 0x66, 0xAD],
            expected(
                3,
                Width::Word,
                StringKind::Load,
                false,
                Width::Dword,
                Segment::Es,
            ),
        ),
        (
            Bits16,
            &[0xF3, 0x6D],
            expected(
                2,
                Width::Word,
                StringKind::In,
                true,
                Width::Word,
                Segment::Ds,
            ),
        ),
        (
            Bits64,
            &[0x65, 0x67, 0xF2, 0x6E],
            expected(
                4,
                Width::Byte,
                StringKind::Out,
                true,
                Width::Dword,
                Segment::Gs,
            ),
        ),
    ];
    for (size, bytes, expected) in cases {
        assert_eq!(string(size, bytes), expected, "{bytes:x?}");
    }
}

#[test]
fn registers_of_a_string_move_within_their_width_and_page() {
    let string = StringInstruction {
        length: 2,
        width: Width::Word,
        kind: StringKind::In,
        repeats: true,
        goes_on_with: None,
        address: Width::Word,
        source: Segment::Ds,
    };
    const DOWN: u64 = 1 << 10;
    assert_eq!(string.left(0xA_0003), 3);
    assert_eq!(string.at_a_time(0xFFFF), MAX_ELEMENTS);
    assert_eq!(string.counted(0xA_0003, 2), 0xA_0001);
    // Sixteen bits turn over and leave the rest alone.
    assert_eq!(string.moved(0xA_FFFE, 2, 0), 0xA_0002);
    assert_eq!(string.moved(0xA_0000, 1, DOWN), 0xA_FFFE);
    assert_eq!(string.offset(0xA_FFFE, 1, 0), 0);
    let wide = StringInstruction {
        address: Width::Dword,
        ..string
    };
    // 32 bits clear the upper half, unless nothing is done.
    assert_eq!(wide.moved(1 << 40 | 4, 1, 0), 6);
    assert_eq!(wide.moved(1 << 40 | 4, 0, 0), 1 << 40 | 4);
    assert_eq!((wide.in_page(0x1FFE, 0), wide.in_page(0x1FFF, 0)), (1, 0));
    assert_eq!(
        (wide.in_page(0x1004, DOWN), wide.in_page(0x1FFF, DOWN)),
        (3, 0)
    );
    assert_eq!(wide.loaded(0x1234_5678, 0xABCD), 0x1234_ABCD);
    let once = StringInstruction {
        repeats: false,
        ..string
    };
    assert_eq!((once.left(0), once.counted(9, 1)), (1, 9));
}

#[test]
fn the_place_in_its_page_is_told_by_registers_and_displacement() {
    let value = |part| match part {
        AddressPart::General(number) => 0x1000_0000 * (u64::from(number) + 1) + u64::from(number),
        AddressPart::Base(SegmentRegister::Gs) => 0x800,
        AddressPart::Base(_) => 0,
    };
    // mov eax, [rdi]; mov eax, [rbx+rcx*4+0x10]; mov eax, gs:[rdi]; mov eax, [rip+0x20]; mov al, moffs
    let cases: [(&[u8], u64); 5] = [
        (&[0x8B, 0x07], 7),
        (&[0x8B, 0x44, 0x8B, 0x10], 3 + 4 + 0x10),
        (&[0x65, 0x8B, 0x07], 0x807),
        (&[0x8B, 0x05, 0x20, 0, 0, 0], 0x120 + 6),
        (&[0xA0, 0x34, 0x12, 0, 0, 0, 0, 0, 0], 0x234),
    ];
    for (bytes, offset) in cases {
        let Ok(Decoded::Single(_, address)) = IcedDecoder::new().decode(bytes, CodeSize::Bits64)
        else {
            panic!("{bytes:x?} is decoded");
        };
        assert_eq!(address.page_offset(0x7100, value), offset, "{bytes:x?}");
    }
}

fn outline(bytes: &[u8]) -> Outline {
    let value = |part| match part {
        AddressPart::General(4) => 0x9000,
        AddressPart::General(number) => 0x1000 * u64::from(number),
        AddressPart::Base(_) => 0,
    };
    look(bytes, CodeSize::Bits64, value).expect("an instruction")
}

#[test]
fn operands_of_all_instructions_are_told_with_what_happens_to_them() {
    let operand = |linear, bytes, is_read, writes| MemoryOperand {
        linear,
        bytes,
        is_read,
        writes,
    };
    use Writes::{Always, Never, Perhaps};
    // RDI is 0x7000, RSI 0x6000, RAX 0, RCX 0x1000, RSP 0x9000.
    let cases: [(&[u8], &[MemoryOperand]); 9] = [
        // lock xadd [rdi], eax; movups [rdi], xmm0; cmpxchg16b [rdi]
        (
            &[0xF0, 0x0F, 0xC1, 0x07],
            &[operand(0x7000, 4, true, Always)],
        ),
        (&[0x0F, 0x11, 0x07], &[operand(0x7000, 16, false, Always)]),
        (
            &[0x48, 0x0F, 0xC7, 0x0F],
            &[operand(0x7000, 16, true, Always)],
        ),
        // push qword [rdi]: two of them.
        (
            &[0xFF, 0x37],
            &[
                operand(0x8FF8, 8, false, Always),
                operand(0x7000, 8, true, Never),
            ],
        ),
        // bts [rdi], ecx: 0x1000 bits are 0x200 bytes further on.
        (&[0x0F, 0xAB, 0x0F], &[operand(0x7200, 4, true, Always)]),
        // vmaskmovps [rdi], xmm0, xmm1: by a mask.
        (
            &[0xC4, 0xE2, 0x79, 0x2E, 0x0F],
            &[operand(0x7000, 16, true, Perhaps)],
        ),
        // prefetcht0 [rdi]; clflush [rdi]: nothing is read or written.
        (&[0x0F, 0x18, 0x0F], &[]),
        (&[0x0F, 0xAE, 0x3F], &[operand(0x7000, 1, false, Never)]),
        // mov eax, ecx
        (&[0x89, 0xC8], &[]),
    ];
    for (bytes, expected) in cases {
        let mut found = outline(bytes).operands.expect("they can be told");
        found.sort_by_key(|operand| core::cmp::Reverse(operand.linear));
        assert_eq!(found, expected, "{bytes:x?}");
    }
    // fxsave [rdi]: too large for a device; vpgatherdd: addresses in a vector register.
    assert_eq!(outline(&[0x0F, 0xAE, 0x07]).operands, None);
    let gather = outline(&[0xC4, 0xE2, 0x69, 0x90, 0x04, 0x8E]);
    assert_eq!(gather.operands, None);
}

#[test]
fn what_loads_or_pushes_flags_is_told() {
    assert_eq!(outline(&[0x9D]).effect, Effect::LoadsFlags);
    assert_eq!(outline(&[0x48, 0xCF]).effect, Effect::LoadsFlags);
    let interrupt = outline(&[0xCD, 0xFF]);
    assert_eq!(interrupt.effect, Effect::Interrupts { vector: 0xFF });
    assert_eq!(interrupt.length, 2);
    assert_eq!(outline(&[0x89, 0x07]).effect, Effect::Usual);
    assert_eq!(look(&[0xFF, 0xFF], CodeSize::Bits64, |_| 0), None);
}

#[test]
fn comparisons_end_by_the_zero_flag_or_the_count() {
    const ZERO: u64 = 1 << 6;
    let decoded = |bytes: &[u8]| match IcedDecoder::new().decode(bytes, CodeSize::Bits64) {
        Ok(Decoded::String(found)) => found,
        other => panic!("{bytes:x?} is {other:?}"),
    };
    // repe cmpsb; repne scasd; cmpsw
    for (bytes, kind, goes_on_with) in [
        (&[0xF3, 0xA6][..], StringKind::Compare, Some(true)),
        (&[0xF2, 0xAF], StringKind::Scan, Some(false)),
        (&[0x66, 0xA7], StringKind::Compare, None),
    ] {
        let found = decoded(bytes);
        assert_eq!((found.kind, found.goes_on_with), (kind, goes_on_with));
        assert!(found.has_target() && !found.writes_target());
        assert_eq!(found.has_source(), kind == StringKind::Compare);
        assert_eq!(found.ends_with(ZERO), goes_on_with == Some(false));
        assert_eq!(found.ends_with(0), goes_on_with == Some(true));
    }
    // 1 - 2: carry, auxiliary, sign, parity of 0xFF; the direction flag stays.
    let scan = decoded(&[0xF2, 0xAE]);
    assert_eq!(scan.compared(0xA01, 0xB02, 0x400), 0x495);
    assert_eq!(scan.compared(0xA02, 0xB02, 0), 0x44);
}

/// Prefixes, an opcode that this module knows something of, and whatever follows.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = prop::collection::vec(
        prop::sample::select(std::vec![0x66_u8, 0x67, 0x3E, 0x65, 0x48, 0x44, 0x4D, 0x40]),
        0..3,
    );
    let opcodes = (prop::bool::ANY, any::<u8>());
    let rest = prop::collection::vec(any::<u8>(), 14);
    (prefixes, opcodes, rest).prop_map(|(mut bytes, (is_two, opcode), rest)| {
        if is_two {
            bytes.push(0x0F);
        }
        bytes.push(opcode);
        bytes.extend(rest);
        bytes.truncate(MAX_BYTES);
        bytes
    })
}

fn sizes() -> impl Strategy<Value = CodeSize> {
    prop::sample::select(std::vec![
        CodeSize::Bits16,
        CodeSize::Bits32,
        CodeSize::Bits64
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// A decoder of our own finds the same, where it finds anything.
    #[test]
    fn what_is_decoded_is_what_another_decoder_finds(bytes in bytes()) {
        if let Ok(other) = model::decode(&bytes) {
            prop_assert_eq!(decode(&bytes), Ok(other), "{:x?}", bytes);
        }
    }

    /// Length, width of memory, direction and registers are those of the crate's own tables of operands.
    #[test]
    fn operands_are_what_they_are_said_to_be(bytes in bytes(), size in sizes()) {
        let Ok(own) = decode_in(size, &bytes) else { return Ok(()) };
        let bits = match size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let mut decoder = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE);
        let other = decoder.decode();
        prop_assert_eq!(usize::from(own.length), other.len(), "{} {:x?}", other, bytes);
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&other);
        let [memory] = info.used_memory() else {
            return Err(TestCaseError::fail(std::format!("{other} accesses no single place")));
        };
        prop_assert_eq!(memory.memory_size().size(), own.width.bytes(), "{} {:x?}", other, bytes);
        let access = match (own.reads_memory(), own.writes_memory()) {
            (true, true) => OpAccess::ReadWrite,
            (false, true) => OpAccess::Write,
            _ => OpAccess::Read,
        };
        prop_assert_eq!(memory.access(), access, "{}", other);
        let registers: Vec<_> = (0..other.op_count())
            .filter(|index| other.op_kind(*index) == OpKind::Register)
            .map(|index| other.op_register(index))
            .collect();
        let numbers: Vec<_> = registers.iter().map(|register| register.full_register().number()).collect();
        let expected: Vec<_> = own.register().map(usize::from).into_iter().collect();
        prop_assert_eq!(numbers, expected, "{}", other);
        let is_signed = matches!(other.mnemonic(), Mnemonic::Movsx | Mnemonic::Movsxd);
        if let Operation::Load { is_signed: own, .. } = own.operation {
            prop_assert_eq!(own, is_signed);
        }
    }

    #[test]
    fn no_bytes_stop_us(bytes in prop::collection::vec(any::<u8>(), 0..20), size in sizes(), memory: u64, register: u64, flags: u64) {
        if let Ok(instruction) = decode_in(size, &bytes) {
            prop_assert!(usize::from(instruction.length) <= bytes.len().min(MAX_BYTES));
            let change = instruction.execute(register, memory, flags);
            let ones = instruction.width.ones();
            prop_assert!(change.memory.is_none_or(|value| value & !ones == 0));
        }
    }
}
