use super::*;
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use proptest::prelude::*;
use std::vec::Vec;

const RAX: Register = Register {
    number: 0,
    is_high_byte: false,
};

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
    let refused: [&[u8]; 9] = [
        &[0x89, 0xC3],             // mov ebx, eax
        &[0xF0, 0x09, 0x07],       // lock or [rdi], eax
        &[0xF3, 0xA4],             // rep movsb
        &[0x0F, 0x11, 0x07],       // movups [rdi], xmm0
        &[0x0F, 0xAE, 0x07],       // fxsave [rdi]
        &[0xFF, 0x07],             // inc dword [rdi]
        &[0x11, 0x07],             // adc [rdi], eax
        &[0x87, 0x07],             // xchg [rdi], eax
        &[0xC4, 0xE2, 0x78, 0xF7], // VEX
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// An independent decoder finds the same length, the same width of memory, and the same direction.
    #[test]
    fn what_is_decoded_is_what_another_decoder_finds(bytes in bytes()) {
        let Ok(own) = decode(&bytes) else { return Ok(()) };
        let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
        let other = decoder.decode();
        prop_assert!(!other.is_invalid(), "{bytes:x?}");
        prop_assert_eq!(usize::from(own.length), other.len(), "{} {:x?}", other, bytes);
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&other);
        let [memory] = info.used_memory() else {
            return Err(TestCaseError::fail(std::format!("{other} accesses no single place")));
        };
        prop_assert_eq!(memory.memory_size().size(), own.width.bytes(), "{} {:x?}", other, bytes);
        let stores = match own.operation {
            Operation::Store(_) => OpAccess::Write,
            Operation::Compute { keep: Keep::Memory, .. } => OpAccess::ReadWrite,
            _ => OpAccess::Read,
        };
        prop_assert_eq!(memory.access(), stores, "{}", other);
        // Only an exit of its own direction is its own (bits 0 and 1 of the qualification).
        let own_exits: &[u64] = match memory.access() {
            OpAccess::Read => &[1],
            OpAccess::Write => &[2],
            _ => &[2, 3],
        };
        for directions in 0..4 {
            let is_own = own.explains(EptViolation(0x180 | directions));
            prop_assert_eq!(is_own, own_exits.contains(&directions), "{} {}", other, directions);
        }
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
    fn no_bytes_stop_us(bytes in prop::collection::vec(any::<u8>(), 0..20), memory: u64, register: u64, flags: u64) {
        if let Ok(instruction) = decode(&bytes) {
            prop_assert!(usize::from(instruction.length) <= bytes.len().min(MAX_BYTES));
            let change = instruction.execute(register, memory, flags);
            let ones = instruction.width.ones();
            prop_assert!(change.memory.is_none_or(|value| value & !ones == 0));
        }
    }
}
