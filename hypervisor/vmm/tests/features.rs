//! CPUID, CR4 and MSRs tell of one CPU: what a leaf offers is there, what it hides is not, whatever the CPU below says.
//!
//! Source: Intel SDM Vol. 2, "CPUID"; Vol. 3, "Control Registers"; Vol. 4. `tests/multiboot/src/features.rs` tries the same in a guest.

use guest_abi::cpuid::LEAF_SIGNATURE;
use nagaya_vmm::control_registers::{CR4_ALLOWED, CR4_SHADOWED};
use nagaya_vmm::cpuid::{CpuidPolicy, Registers, answer, answered_leaf, last_leaf};
use nagaya_vmm::msr::{self, MsrAnswer, MsrState, PASS_THROUGH};

/// Leaf, subleaf, register from EAX on, bit.
type Place = (u32, u32, usize, u32);

const ALL: Registers = Registers {
    eax: u32::MAX,
    ebx: u32::MAX,
    ecx: u32::MAX,
    edx: u32::MAX,
};

fn policy() -> CpuidPolicy {
    CpuidPolicy {
        vm_id: 5,
        vcpu: 2,
        vcpus: 4,
        tsc_khz: 2_500_000,
        in_group: false,
        deterministic: false,
        xcr0: 0xE7,
        xcr0_now: 7,
        has_xsavec: true,
        is_pc: true,
        has_eoi_word: true,
        has_rdtscp: true,
        has_invpcid: true,
        apic_is_on: true,
        last_leaf: last_leaf(0x20, true),
    }
}

/// What a bit that guests are offered needs to be so.
enum Needs {
    /// The CPU has it.
    Cpu,
    /// Nothing: it is software.
    Nothing,
    /// The CPU has it, and guests may: it goes with this change of the policy.
    Leave(fn(&mut CpuidPolicy)),
    /// It is software, for this policy only.
    Software(fn(&mut CpuidPolicy)),
}

use Needs::{Cpu, Leave, Nothing, Software};

/// Bits of the registers in [`FEATURE_REGISTERS`] that guests are offered. All others are hidden.
const OFFERED: &[(Place, Needs, &str)] = &[
    ((1, 0, 2, 0), Cpu, "SSE3"),
    ((1, 0, 2, 1), Cpu, "PCLMULQDQ"),
    ((1, 0, 2, 9), Cpu, "SSSE3"),
    ((1, 0, 2, 10), Cpu, "L1 context ID"),
    ((1, 0, 2, 12), Cpu, "FMA"),
    ((1, 0, 2, 13), Cpu, "CMPXCHG16B"),
    ((1, 0, 2, 16), Cpu, "reserved"),
    ((1, 0, 2, 17), Cpu, "PCID"),
    ((1, 0, 2, 19), Cpu, "SSE4.1"),
    ((1, 0, 2, 20), Cpu, "SSE4.2"),
    ((1, 0, 2, 21), Nothing, "x2APIC"),
    ((1, 0, 2, 22), Cpu, "MOVBE"),
    ((1, 0, 2, 23), Cpu, "POPCNT"),
    ((1, 0, 2, 24), Nothing, "TSC deadline"),
    ((1, 0, 2, 25), Cpu, "AES"),
    ((1, 0, 2, 26), Cpu, "XSAVE"),
    ((1, 0, 2, 28), Cpu, "AVX"),
    ((1, 0, 2, 29), Cpu, "F16C"),
    (
        (1, 0, 2, 30),
        Leave(|policy| policy.deterministic = true),
        "RDRAND",
    ),
    ((1, 0, 2, 31), Nothing, "hypervisor"),
    ((1, 0, 3, 0), Cpu, "FPU"),
    ((1, 0, 3, 1), Cpu, "VME"),
    ((1, 0, 3, 2), Cpu, "DE"),
    ((1, 0, 3, 3), Cpu, "PSE"),
    ((1, 0, 3, 4), Cpu, "TSC"),
    ((1, 0, 3, 5), Cpu, "MSR"),
    ((1, 0, 3, 6), Cpu, "PAE"),
    ((1, 0, 3, 8), Cpu, "CMPXCHG8B"),
    (
        (1, 0, 3, 9),
        Software(|policy| policy.apic_is_on = false),
        "APIC",
    ),
    ((1, 0, 3, 10), Cpu, "reserved"),
    ((1, 0, 3, 11), Cpu, "SYSENTER"),
    ((1, 0, 3, 13), Cpu, "PGE"),
    ((1, 0, 3, 15), Cpu, "CMOV"),
    ((1, 0, 3, 16), Cpu, "PAT"),
    ((1, 0, 3, 17), Cpu, "PSE-36"),
    ((1, 0, 3, 19), Cpu, "CLFLUSH"),
    ((1, 0, 3, 20), Cpu, "reserved"),
    ((1, 0, 3, 23), Cpu, "MMX"),
    ((1, 0, 3, 24), Cpu, "FXSAVE"),
    ((1, 0, 3, 25), Cpu, "SSE"),
    ((1, 0, 3, 26), Cpu, "SSE2"),
    ((1, 0, 3, 27), Cpu, "self-snoop"),
    ((1, 0, 3, 30), Cpu, "reserved"),
    ((7, 0, 1, 0), Cpu, "FSGSBASE"),
    (
        (7, 0, 1, 1),
        Software(|policy| policy.is_pc = false),
        "TSC_ADJUST",
    ),
    ((7, 0, 1, 3), Cpu, "BMI1"),
    ((7, 0, 1, 5), Cpu, "AVX2"),
    ((7, 0, 1, 6), Cpu, "x87 data pointer"),
    ((7, 0, 1, 7), Cpu, "SMEP"),
    ((7, 0, 1, 8), Cpu, "BMI2"),
    ((7, 0, 1, 9), Cpu, "ERMS"),
    (
        (7, 0, 1, 10),
        Leave(|policy| policy.has_invpcid = false),
        "INVPCID",
    ),
    ((7, 0, 1, 13), Cpu, "x87 segments"),
    ((7, 0, 1, 16), Cpu, "AVX512F"),
    ((7, 0, 1, 17), Cpu, "AVX512DQ"),
    (
        (7, 0, 1, 18),
        Leave(|policy| policy.deterministic = true),
        "RDSEED",
    ),
    ((7, 0, 1, 19), Cpu, "ADX"),
    ((7, 0, 1, 20), Cpu, "SMAP"),
    ((7, 0, 1, 21), Cpu, "AVX512_IFMA"),
    ((7, 0, 1, 22), Cpu, "reserved"),
    ((7, 0, 1, 23), Cpu, "CLFLUSHOPT"),
    ((7, 0, 1, 24), Cpu, "CLWB"),
    ((7, 0, 1, 26), Cpu, "AVX512PF"),
    ((7, 0, 1, 27), Cpu, "AVX512ER"),
    ((7, 0, 1, 28), Cpu, "AVX512CD"),
    ((7, 0, 1, 29), Cpu, "SHA"),
    ((7, 0, 1, 30), Cpu, "AVX512BW"),
    ((7, 0, 1, 31), Cpu, "AVX512VL"),
    ((7, 0, 2, 1), Cpu, "AVX512_VBMI"),
    ((7, 0, 2, 2), Cpu, "UMIP"),
    ((7, 0, 2, 6), Cpu, "AVX512_VBMI2"),
    ((7, 0, 2, 8), Cpu, "GFNI"),
    ((7, 0, 2, 9), Cpu, "VAES"),
    ((7, 0, 2, 10), Cpu, "VPCLMULQDQ"),
    ((7, 0, 2, 11), Cpu, "AVX512_VNNI"),
    ((7, 0, 2, 12), Cpu, "AVX512_BITALG"),
    ((7, 0, 2, 14), Cpu, "AVX512_VPOPCNTDQ"),
    (
        (7, 0, 2, 22),
        Leave(|policy| policy.has_rdtscp = false),
        "RDPID",
    ),
    ((7, 0, 2, 25), Cpu, "CLDEMOTE"),
    ((7, 0, 2, 27), Cpu, "MOVDIRI"),
    ((7, 0, 2, 28), Cpu, "MOVDIR64B"),
    ((7, 0, 3, 2), Cpu, "AVX512_4VNNIW"),
    ((7, 0, 3, 3), Cpu, "AVX512_4FMAPS"),
    ((7, 0, 3, 4), Cpu, "FSRM"),
    ((7, 0, 3, 8), Cpu, "AVX512_VP2INTERSECT"),
    ((7, 0, 3, 10), Cpu, "MD_CLEAR"),
    ((7, 0, 3, 14), Cpu, "SERIALIZE"),
    ((0xD, 1, 0, 0), Cpu, "XSAVEOPT"),
    (
        (0xD, 1, 0, 1),
        Leave(|policy| policy.has_xsavec = false),
        "XSAVEC",
    ),
    ((0xD, 1, 0, 2), Cpu, "XGETBV of 1"),
    ((0x8000_0001, 0, 2, 0), Cpu, "LAHF"),
    ((0x8000_0001, 0, 2, 5), Cpu, "LZCNT"),
    ((0x8000_0001, 0, 2, 8), Cpu, "PREFETCHW"),
    ((0x8000_0001, 0, 3, 11), Cpu, "SYSCALL"),
    ((0x8000_0001, 0, 3, 20), Cpu, "NX"),
    ((0x8000_0001, 0, 3, 26), Cpu, "1 GiB pages"),
    (
        (0x8000_0001, 0, 3, 27),
        Leave(|policy| policy.has_rdtscp = false),
        "RDTSCP",
    ),
    ((0x8000_0001, 0, 3, 29), Cpu, "long mode"),
    ((0x8000_0007, 0, 3, 8), Cpu, "invariant TSC"),
];

/// Registers whose bits are features.
const FEATURE_REGISTERS: [(u32, u32, usize); 10] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (0xD, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0007, 0, 2),
    (0x8000_0007, 0, 3),
];

fn has(place: Place, host: Registers, policy: &CpuidPolicy) -> bool {
    let (leaf, subleaf, register, bit) = place;
    let found = answer(leaf, subleaf, host, policy, false);
    let word = [found.eax, found.ebx, found.ecx, found.edx][register];
    word >> bit & 1 != 0
}

fn is_offered(place: Place) -> bool {
    OFFERED.iter().any(|(offered, ..)| *offered == place)
}

#[test]
fn every_feature_is_offered_by_name_or_hidden() {
    for (leaf, subleaf, register) in FEATURE_REGISTERS {
        for bit in 0..32 {
            let place = (leaf, subleaf, register, bit);
            assert_eq!(
                has(place, ALL, &policy()),
                is_offered(place),
                "{leaf:#x}.{subleaf}, register {register}, bit {bit}"
            );
        }
    }
}

#[test]
fn nothing_is_offered_that_neither_the_cpu_nor_software_has() {
    for (place, needs, name) in OFFERED {
        let with = has(*place, ALL, &policy());
        let without = has(*place, Registers::default(), &policy());
        let is_software = matches!(needs, Nothing | Software(_));
        assert_eq!((with, without), (true, is_software), "{name}");
        if let Leave(change) | Software(change) = needs {
            let mut policy = policy();
            change(&mut policy);
            assert!(!has(*place, ALL, &policy), "{name}");
        }
    }
}

/// Bits of CR4, and what brings each. Those without a place are of every CPU with long mode.
const CR4_BITS: &[(u32, Option<Place>)] = &[
    (0, Some((1, 0, 3, 1))),   // VME
    (1, Some((1, 0, 3, 1))),   // PVI
    (2, Some((1, 0, 3, 4))),   // TSD
    (3, Some((1, 0, 3, 2))),   // DE
    (4, Some((1, 0, 3, 3))),   // PSE
    (5, Some((1, 0, 3, 6))),   // PAE
    (7, Some((1, 0, 3, 13))),  // PGE
    (8, None),                 // PCE
    (9, Some((1, 0, 3, 24))),  // OSFXSR
    (10, Some((1, 0, 3, 25))), // OSXMMEXCPT
    (11, Some((7, 0, 2, 2))),  // UMIP
    (12, Some((7, 0, 2, 16))), // LA57
    (13, Some((1, 0, 2, 5))),  // VMXE
    (14, Some((1, 0, 2, 6))),  // SMXE
    (16, Some((7, 0, 1, 0))),  // FSGSBASE
    (17, Some((1, 0, 2, 17))), // PCIDE
    (18, Some((1, 0, 2, 26))), // OSXSAVE
    (19, Some((7, 0, 2, 23))), // KL
    (20, Some((7, 0, 1, 7))),  // SMEP
    (21, Some((7, 0, 1, 20))), // SMAP
    (22, Some((7, 0, 2, 3))),  // PKE
    (23, Some((7, 0, 2, 7))),  // CET
    (24, Some((7, 0, 2, 31))), // PKS
    (25, Some((7, 0, 3, 5))),  // UINTR
];

#[test]
fn guests_may_set_the_bits_of_cr4_that_cpuid_offers() {
    for bit in 0..64 {
        let brought = CR4_BITS.iter().find(|(number, _)| *number == bit);
        let wanted = brought.is_some_and(|(_, place)| place.is_none_or(is_offered));
        assert_eq!(CR4_ALLOWED >> bit & 1 != 0, wanted, "bit {bit}");
    }
    // Machine checks are hidden, as there are no banks; the bit can be set all the same, for kernels that do not look.
    assert_eq!(CR4_SHADOWED, 1 << 6);
}

/// MSRs that can be read, and what brings each.
const MSRS: &[(u32, Place)] = &[
    (0x10, (1, 0, 3, 4)),                   // IA32_TSC
    (0x3B, (7, 0, 1, 1)),                   // IA32_TSC_ADJUST
    (0x174, (1, 0, 3, 11)),                 // IA32_SYSENTER_CS
    (0x175, (1, 0, 3, 11)),                 // IA32_SYSENTER_ESP
    (0x176, (1, 0, 3, 11)),                 // IA32_SYSENTER_EIP
    (0x1A0, (1, 0, 3, 5)),                  // IA32_MISC_ENABLE
    (0x1D9, (1, 0, 3, 5)),                  // IA32_DEBUGCTL
    (0x277, (1, 0, 3, 16)),                 // IA32_PAT
    (0xC000_0080, (0x8000_0001, 0, 3, 29)), // IA32_EFER
    (0xC000_0081, (0x8000_0001, 0, 3, 11)), // IA32_STAR
    (0xC000_0082, (0x8000_0001, 0, 3, 11)), // IA32_LSTAR
    (0xC000_0083, (0x8000_0001, 0, 3, 11)), // IA32_CSTAR
    (0xC000_0084, (0x8000_0001, 0, 3, 11)), // IA32_FMASK
    (0xC000_0100, (0x8000_0001, 0, 3, 29)), // IA32_FS_BASE
    (0xC000_0101, (0x8000_0001, 0, 3, 29)), // IA32_GS_BASE
    (0xC000_0102, (0x8000_0001, 0, 3, 29)), // IA32_KERNEL_GS_BASE
    (0xC000_0103, (0x8000_0001, 0, 3, 27)), // IA32_TSC_AUX
    // KVM's, behind the signature of KVM.
    (0x11, (1, 0, 2, 31)),
    (0x12, (1, 0, 2, 31)),
    (0x4B56_4D01, (1, 0, 2, 31)),
    (0x4B56_4D03, (1, 0, 2, 31)),
];

/// MSRs that say "none of it" or "locked" to kernels that read them without looking at CPUID: platform and microcode, power-on straps,
/// VMX, machine checks, MTRRs.
const TELL_THAT_THERE_IS_NONE: [u32; 8] = [0x17, 0x2A, 0x3A, 0x8B, 0xFE, 0x179, 0x17A, 0x2FF];

/// The APIC's are the APIC's business (`devices::apic`).
fn is_of_the_apic(number: u32) -> bool {
    matches!(number, 0x1B | 0x6E0 | 0x800..=0x8FF)
}

#[test]
fn msrs_are_those_of_what_cpuid_offers() {
    let ranges = [
        0..0x2000_u32,
        0x4000_0000..0x4000_0200,
        0x4B56_4D00..0x4B56_4D20,
        0xC000_0000..0xC000_2000,
        0xC001_0000..0xC001_2000,
    ];
    for number in ranges.into_iter().flatten() {
        if is_of_the_apic(number) {
            continue;
        }
        let state = MsrState::new(true);
        let there = msr::read(number, 1, &state) != MsrAnswer::GeneralProtection
            || PASS_THROUGH.contains(&number);
        let brought = MSRS.iter().find(|(brought, _)| *brought == number);
        let wanted = brought.is_some_and(|(_, place)| is_offered(*place))
            || TELL_THAT_THERE_IS_NONE.contains(&number);
        // KVM's wall clock and its old number are written only: 0x11 and 0x4B56_4D00.
        let only_written = matches!(number, 0x11 | 0x4B56_4D00);
        assert_eq!(there, wanted && !only_written, "MSR {number:#x}");
        if !wanted && !only_written {
            let mut state = state;
            for value in [0, 1, u64::MAX] {
                let answer = msr::write(number, value, 1, &mut state);
                assert_eq!(answer, MsrAnswer::GeneralProtection, "MSR {number:#x}");
            }
        }
    }
}

/// A CPU that says anything.
fn hosts() -> impl Iterator<Item = Registers> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    let random = core::iter::repeat_with(move || Registers {
        eax: next(),
        ebx: next(),
        ecx: next(),
        edx: next(),
    });
    [Registers::default(), ALL]
        .into_iter()
        .chain(random.take(30))
}

/// Leaves whose answer does not come from the CPU, or only where [`every_feature_is_offered_by_name_or_hidden`] looks.
const KNOWN: &[u32] = &[
    0,
    1,
    2,
    4,
    7,
    0xB,
    0xD,
    0x15,
    0x16,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
];

#[test]
fn every_leaf_is_known_or_empty_and_none_is_beyond_the_last() {
    for is_pc in [false, true] {
        let policy = CpuidPolicy { is_pc, ..policy() };
        for host in hosts() {
            let ask = |leaf: u32, subleaf| {
                answer(
                    answered_leaf(leaf, policy.last_leaf),
                    subleaf,
                    host,
                    &policy,
                    false,
                )
            };
            let last = ask(0, 0).eax;
            let last_extended = ask(0x8000_0000, 0).eax;
            assert!(last <= 0x16 && last_extended <= 0x8000_0008);
            for leaf in (0..0x40).chain(0x8000_0000..0x8000_0040) {
                for subleaf in 0..64 {
                    let found = ask(leaf, subleaf);
                    let is_beyond = if leaf < 0x8000_0000 {
                        leaf > last
                    } else {
                        leaf > 0x8000_0008
                    };
                    if is_beyond {
                        assert_eq!(found, ask(last, subleaf), "{leaf:#x}.{subleaf}");
                    } else if !KNOWN.contains(&leaf) {
                        assert_eq!(found, Registers::default(), "{leaf:#x}.{subleaf}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_leaves_of_hypervisors_end_where_they_say() {
    for is_pc in [false, true] {
        let policy = CpuidPolicy { is_pc, ..policy() };
        let mut told = Vec::new();
        for leaf in 0x4000_0000..0x4001_0000_u32 {
            let found = answer(leaf, 0, ALL, &policy, false);
            // No leaf depends on what the CPU below says, nor on the subleaf.
            for host in hosts() {
                assert_eq!(answer(leaf, 7, host, &policy, true), found, "{leaf:#x}");
            }
            if found != Registers::default() {
                told.push(leaf);
            }
        }
        // Each block begins with its signature, which says which is its last leaf.
        let blocks: Vec<_> = told.iter().filter(|leaf| *leaf % 0x100 == 0).collect();
        assert_eq!(blocks.len(), if is_pc { 2 } else { 1 }, "{told:x?}");
        assert_eq!(*blocks[0], LEAF_SIGNATURE);
        for leaf in &told {
            let block = leaf & !0xFF;
            let last = answer(block, 0, ALL, &policy, false).eax;
            assert!(
                *leaf <= last.max(0x4000_0010),
                "{leaf:#x} is beyond {last:#x}"
            );
        }
    }
}

#[test]
fn the_topology_is_one_whatever_the_leaf() {
    for host in hosts() {
        for (vcpu, vcpus) in [(0, 1), (2, 4), (7, 8)] {
            let policy = CpuidPolicy {
                vcpu,
                vcpus,
                ..policy()
            };
            let ask = |leaf, subleaf| answer(leaf, subleaf, host, &policy, false);
            assert_eq!(ask(1, 0).ebx >> 24, vcpu);
            assert_eq!(ask(1, 0).ebx >> 16 & 0xFF, 1);
            for subleaf in 0..4 {
                assert_eq!(ask(0xB, subleaf).edx, vcpu);
                // Each cache is one core's, and the package has no other cores.
                assert_eq!(ask(4, subleaf).eax >> 14, 0);
            }
            assert_eq!((ask(0xB, 0).ebx, ask(0xB, 1).ebx), (1, vcpus));
        }
    }
}

#[test]
fn state_that_is_not_allowed_has_no_size() {
    for host in hosts() {
        for xcr0 in [1_u64, 3, 7, 0xE7] {
            let policy = CpuidPolicy { xcr0, ..policy() };
            assert_eq!(answer(0xD, 0, host, &policy, true).eax, xcr0 as u32);
            for component in 2..64 {
                let found = answer(0xD, component, host, &policy, true);
                let wanted = if xcr0 >> component & 1 != 0 {
                    host
                } else {
                    Registers::default()
                };
                assert_eq!(found, wanted, "component {component} of {xcr0:#x}");
            }
            // IA32_XSS does not exist.
            let one = answer(0xD, 1, host, &policy, true);
            assert_eq!((one.eax >> 3 & 1, one.ecx, one.edx), (0, 0, 0));
        }
    }
}
