//! What guests find in CPUID: the real CPU's answers, less what they cannot use, plus Nagaya's own leaves.
//!
//! Leaves are let through one by one: a leaf that a later CPU adds is empty here until someone has thought about it.
//! Hot path: one match, nothing allocated. Source: Intel SDM Vol. 2, "CPUID"; `docs/ABI.md` for leaves from 0x4000_0000.

use guest_abi::cpuid::{
    BLOCK, FEATURE_DETERMINISTIC, FEATURE_DOORBELL_VECTOR, FEATURE_EOI_WORD, FEATURE_GROUP,
    LEAF_MAX, LEAF_SIGNATURE, LEAF_TIME, LEAF_TIMING, LEAF_VERSION, SIGNATURE,
};
use serde::{Deserialize, Serialize};

/// The four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the registers they hold")]
pub struct Registers {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What the answers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidPolicy {
    /// The VM's number.
    pub vm_id: u32,
    /// The vCPU's index, its initial APIC ID.
    pub vcpu: u32,
    /// How many vCPUs the VM has.
    pub vcpus: u32,
    /// Calibrated TSC frequency.
    pub tsc_khz: u32,
    /// The VM is in a group.
    pub in_group: bool,
    /// RDRAND and RDSEED are hidden.
    pub deterministic: bool,
    /// What of XCR0 the guest may set.
    pub xcr0: u64,
    /// XCR0 as it is.
    pub xcr0_now: u64,
    /// The CPU's XSAVEC does what the manual says.
    pub has_xsavec: bool,
    /// The guest sees a PC: kernels for PCs look for interfaces that they know.
    pub is_pc: bool,
    /// The guest can end interrupts by a word in its memory (`guest_abi::MSR_EOI_WORD`).
    pub has_eoi_word: bool,
    /// The secondary controls let guests use RDTSCP and RDPID.
    pub has_rdtscp: bool,
    /// They let guests use INVPCID.
    pub has_invpcid: bool,
    /// IA32_APIC_BASE has the local APIC enabled.
    pub apic_is_on: bool,
    /// The highest basic leaf: [`last_leaf`].
    pub last_leaf: u32,
}

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut index = 0;
    while index < list.len() {
        mask |= 1 << list[index];
        index += 1;
    }
    mask
}

/// Leaf 1 ECX: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG, xTPR, PDCM, DCA.
const HIDE_1_ECX: u32 = bits(&[2, 3, 4, 5, 6, 7, 8, 11, 14, 15, 18]);
/// x2APIC and TSC-deadline: the local APIC is software, whatever the CPU's own can do.
const APIC_1_ECX: u32 = bits(&[21, 24]);
/// RDRAND.
const RDRAND: u32 = bits(&[30]);
const OSXSAVE: u32 = bits(&[27]);
const HYPERVISOR: u32 = bits(&[31]);
/// Leaf 1 EDX: MCE, MTRR, MCA, PSN, DS, ACPI, HTT, TM, PBE.
const HIDE_1_EDX: u32 = bits(&[7, 12, 14, 18, 21, 22, 28, 29, 31]);
/// APIC.
const APIC_1_EDX: u32 = bits(&[9]);
/// Leaf 7 EBX: TSC_ADJUST, SGX, HLE, INVPCID, RDT-M, RDT-A, MPX, PT.
const HIDE_7_EBX: u32 = bits(&[1, 2, 4, 10, 11, 12, 14, 15, 25]);
const TSC_ADJUST: u32 = bits(&[1]);
const INVPCID: u32 = bits(&[10]);
const RDSEED: u32 = bits(&[18]);
/// Leaf 7 ECX: what needs no control of the hypervisor's: AVX-512 VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG,
/// VPOPCNTDQ, CLDEMOTE, MOVDIRI, MOVDIR64B.
const SHOW_7_ECX: u32 = bits(&[1, 2, 6, 8, 9, 10, 11, 12, 14, 25, 27, 28]);
/// Leaf 7 EDX: AVX512_4VNNIW, AVX512_4FMAPS, FSRM, VP2INTERSECT, MD_CLEAR, SERIALIZE.
const SHOW_7_EDX: u32 = bits(&[2, 3, 4, 8, 10, 14]);
/// Leaf 0x8000_0001 EDX: RDTSCP.
const RDTSCP: u32 = bits(&[27]);
/// Leaf 0x8000_0001 ECX: LAHF, LZCNT, PREFETCHW.
const SHOW_EXT_ECX: u32 = bits(&[0, 5, 8]);
/// Leaf 0x8000_0001 EDX: SYSCALL, NX, 1 GiB pages, long mode.
const SHOW_EXT_EDX: u32 = bits(&[11, 20, 26, 29]);
/// Highest basic leaf that guests see.
const LEAF_LAST: u32 = 0x16;
/// Highest extended leaf that guests see.
const EXTENDED_LEAF_LAST: u32 = 0x8000_0008;

/// The interface of KVM's that kernels for PCs know, before ours. With it Linux takes the x2APIC, whose registers are MSRs and not
/// memory, does without delays by port 0x80, and learns of stolen time. Its clock is there for who writes the MSRs, and is not announced.
/// Source: Linux, Documentation/virt/kvm/x86/cpuid.rst, msr.rst.
const KVM_SIGNATURE: u32 = LEAF_SIGNATURE;
const KVM_FEATURES: u32 = LEAF_SIGNATURE + 1;
const KVM_NO_IO_DELAY: u32 = bits(&[1]);
const KVM_STEAL_TIME: u32 = bits(&[5]);
const KVM_EOI_WORD: u32 = bits(&[6]);

/// The highest basic leaf of a guest, given that of the CPU. The TSC's frequency is in the last ones, whether or not the CPU has them
/// itself: kernels for PCs would have to measure it.
#[must_use]
pub const fn last_leaf(host: u32, is_pc: bool) -> u32 {
    if is_pc || host > LEAF_LAST {
        LEAF_LAST
    } else {
        host
    }
}

/// The leaf that is answered, and that the CPU is to be asked for: above the last one it is the last basic one.
#[inline]
#[must_use]
pub const fn answered_leaf(leaf: u32, last_leaf: u32) -> u32 {
    // The commonest first.
    if leaf <= last_leaf {
        return leaf;
    }
    match leaf {
        0x4000_0000..=0x4FFF_FFFF | 0x8000_0000..=EXTENDED_LEAF_LAST => leaf,
        _ => last_leaf,
    }
}

/// Leaves of hypervisors.
fn hypervisor(leaf: u32, policy: &CpuidPolicy) -> Registers {
    match (leaf, policy.is_pc) {
        (LEAF_TIMING, _) => Registers {
            eax: policy.tsc_khz,
            ebx: policy.tsc_khz / crystal_ratio(policy.tsc_khz),
            ..Registers::default()
        },
        (KVM_SIGNATURE, true) => Registers {
            eax: LEAF_TIMING,
            ebx: u32::from_le_bytes(*b"KVMK"),
            ecx: u32::from_le_bytes(*b"VMKV"),
            edx: u32::from_le_bytes(*b"M\0\0\0"),
        },
        (KVM_FEATURES, true) => Registers {
            eax: KVM_NO_IO_DELAY
                | KVM_STEAL_TIME
                | if policy.has_eoi_word { KVM_EOI_WORD } else { 0 },
            ..Registers::default()
        },
        (_, true) => match leaf.checked_sub(BLOCK) {
            Some(leaf) => own(leaf, LEAF_TIME + BLOCK, policy),
            None => Registers::default(),
        },
        (_, false) => own(leaf, LEAF_MAX, policy),
    }
}

/// Nagaya's own, by their numbers in a native guest.
fn own(leaf: u32, last: u32, policy: &CpuidPolicy) -> Registers {
    match leaf {
        LEAF_SIGNATURE => {
            let word = |at: usize| {
                SIGNATURE
                    .get(at..at + 4)
                    .and_then(|bytes| bytes.first_chunk())
                    .map_or(0, |bytes| u32::from_le_bytes(*bytes))
            };
            Registers {
                eax: last,
                ebx: word(0),
                ecx: word(4),
                edx: word(8),
            }
        }
        LEAF_VERSION => Registers {
            eax: guest_abi::ABI_VERSION,
            ebx: FEATURE_DOORBELL_VECTOR
                | if policy.in_group { FEATURE_GROUP } else { 0 }
                | if policy.deterministic {
                    FEATURE_DETERMINISTIC
                } else {
                    0
                }
                | if policy.has_eoi_word {
                    FEATURE_EOI_WORD
                } else {
                    0
                },
            ecx: policy.vm_id,
            edx: policy.vcpu,
        },
        LEAF_TIME => Registers {
            eax: policy.tsc_khz,
            ..Registers::default()
        },
        _ => Registers::default(),
    }
}

/// The answer to a leaf and subleaf. `host` is what this CPU answers to the same; `os_xsave` is the guest's CR4.OSXSAVE.
#[inline]
#[must_use]
pub fn answer(
    leaf: u32,
    subleaf: u32,
    host: Registers,
    policy: &CpuidPolicy,
    os_xsave: bool,
) -> Registers {
    match leaf {
        0 => Registers {
            eax: policy.last_leaf,
            ..host
        },
        1 => {
            let mut ecx = host.ecx & !HIDE_1_ECX & !OSXSAVE | HYPERVISOR | APIC_1_ECX;
            if os_xsave {
                ecx |= OSXSAVE;
            }
            if policy.deterministic {
                ecx &= !RDRAND;
            }
            let apic = if policy.apic_is_on { APIC_1_EDX } else { 0 };
            Registers {
                ebx: host.ebx & 0x0000_FFFF | 1 << 16 | policy.vcpu << 24,
                ecx,
                edx: host.edx & !(HIDE_1_EDX | APIC_1_EDX) | apic,
                ..host
            }
        }
        // Cache and TLB descriptors.
        2 => host,
        // Deterministic cache parameters: as one core of its own.
        4 => Registers {
            eax: host.eax & 0x3FFF,
            ..host
        },
        7 if subleaf == 0 => {
            let mut ebx = host.ebx & !HIDE_7_EBX;
            if policy.is_pc {
                // Linux looks whether firmware has adjusted the TSC, and needs no other clock to watch it then.
                ebx |= TSC_ADJUST;
            }
            if policy.has_invpcid {
                ebx |= host.ebx & INVPCID;
            }
            if policy.deterministic {
                ebx &= !RDSEED;
            }
            let rdpid = if policy.has_rdtscp { bits(&[22]) } else { 0 };
            Registers {
                eax: 0,
                ebx,
                ecx: host.ecx & (SHOW_7_ECX | rdpid),
                edx: host.edx & SHOW_7_EDX,
            }
        }
        // Topology: one thread a core, all vCPUs in one package.
        0xB => match subleaf {
            0 => Registers {
                eax: 0,
                ebx: 1,
                ecx: 1 << 8,
                edx: policy.vcpu,
            },
            1 => Registers {
                eax: 3,
                ebx: policy.vcpus,
                ecx: 2 << 8 | 1,
                edx: policy.vcpu,
            },
            _ => Registers {
                ecx: subleaf & 0xFF,
                edx: policy.vcpu,
                ..Registers::default()
            },
        },
        0xD => xsave(subleaf, host, policy),
        // The TSC is EBX / EAX times a crystal of ECX Hz, which also drives the APIC's timer: as calibrated, since what the CPU
        // says need not be so (in an emulator).
        0x15 => {
            let ratio = crystal_ratio(policy.tsc_khz);
            Registers {
                eax: 1,
                ebx: ratio,
                ecx: (u64::from(policy.tsc_khz) * 1000 / u64::from(ratio)) as u32,
                edx: 0,
            }
        }
        // Base, maximum and bus frequency in MHz, rounded.
        0x16 => Registers {
            eax: policy.tsc_khz.saturating_add(500) / 1000,
            ebx: policy.tsc_khz.saturating_add(500) / 1000,
            ..Registers::default()
        },
        0x4000_0000..=0x4FFF_FFFF => hypervisor(leaf, policy),
        0x8000_0000 => Registers {
            eax: host.eax.min(EXTENDED_LEAF_LAST),
            ..Registers::default()
        },
        0x8000_0001 => {
            let rdtscp = if policy.has_rdtscp { RDTSCP } else { 0 };
            Registers {
                eax: host.eax,
                ebx: 0,
                ecx: host.ecx & SHOW_EXT_ECX,
                edx: host.edx & (SHOW_EXT_EDX | rdtscp),
            }
        }
        // Brand string; L2 cache.
        0x8000_0002..=0x8000_0004 | 0x8000_0006 => host,
        // Invariant TSC.
        0x8000_0007 => Registers {
            edx: host.edx & bits(&[8]),
            ..Registers::default()
        },
        // Width of physical addresses, and of linear ones: 48 bits, as there are 4 levels of page tables.
        0x8000_0008 => Registers {
            eax: host.eax & 0xFF | 48 << 8,
            ..Registers::default()
        },
        // Besides what nobody may use: MONITOR (5), thermal (6), direct cache access (9), performance monitoring (0xA), RDT (0xF,
        // 0x10), SGX (0x12), PT (0x14), SoC (0x17), TLB (0x18), key locker (0x19), hybrid (0x1A), and leaves that are none.
        _ => Registers::default(),
    }
}

/// TSC ticks of one tick of the crystal, which is also one count of the APIC's timer divided by 1: 1 where the crystal's
/// frequency then fits its register.
#[must_use]
pub const fn crystal_ratio(tsc_khz: u32) -> u32 {
    // 2^32 - 1 kHz are less than 1000 times 2^32 Hz.
    if tsc_khz as u64 * 1000 <= u32::MAX as u64 {
        1
    } else {
        1000
    }
}

/// Leaf 0xD, subleaf 1, EAX.
const XSAVEOPT: u32 = 1 << 0;
const XSAVEC: u32 = 1 << 1;
const XGETBV_1: u32 = 1 << 2;

fn xsave(subleaf: u32, host: Registers, policy: &CpuidPolicy) -> Registers {
    match subleaf {
        // EBX is what XCR0 as it is now needs, which the CPU knows, for it is the guest's; ECX is what all allowed bits need.
        0 => Registers {
            eax: policy.xcr0 as u32,
            ebx: host.ebx,
            ecx: host.ecx.min(xsave_bytes(policy.xcr0)),
            edx: (policy.xcr0 >> 32) as u32,
        },
        // XSAVEOPT, XSAVEC and XGETBV with ECX = 1, not XSAVES: IA32_XSS is not there. EBX is what XSAVEC needs now.
        1 if policy.has_xsavec && host.eax & XSAVEC != 0 => Registers {
            eax: host.eax & (XSAVEOPT | XSAVEC | XGETBV_1),
            ebx: compacted_bytes(policy.xcr0_now),
            ..Registers::default()
        },
        1 => Registers {
            eax: host.eax & (XSAVEOPT | XGETBV_1),
            ..Registers::default()
        },
        2..=62 if policy.xcr0 & (1 << subleaf) != 0 => host,
        _ => Registers::default(),
    }
}

/// Bytes of an XSAVE area in the standard format for these components: where the last of them ends on every CPU of Intel's
/// (SDM Vol. 1, "XSAVE-Managed State").
const fn xsave_bytes(xcr0: u64) -> u32 {
    if xcr0 & 1 << 7 != 0 {
        1664 + 1024 // ZMM16 to ZMM31
    } else if xcr0 & 1 << 6 != 0 {
        1152 + 512 // upper halves of ZMM0 to ZMM15
    } else if xcr0 & 1 << 5 != 0 {
        1088 + 64 // mask registers
    } else if xcr0 & 1 << 2 != 0 {
        576 + 256 // upper halves of YMM registers
    } else {
        576 // legacy area and header
    }
}

/// Bytes of an XSAVE area in the compacted format for these components: one behind the other, none of them aligned (SDM Vol. 1,
/// "Compacted Format of XSAVE Area").
const fn compacted_bytes(xcr0: u64) -> u32 {
    const COMPONENTS: [(u32, u32); 4] = [(2, 256), (5, 64), (6, 512), (7, 1024)];
    let mut bytes = 576;
    let mut at = 0;
    while at < COMPONENTS.len() {
        let (bit, size) = COMPONENTS[at];
        if xcr0 & 1 << bit != 0 {
            bytes += size;
        }
        at += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Registers = Registers {
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    };
    const POLICY: CpuidPolicy = CpuidPolicy {
        vm_id: 5,
        vcpu: 2,
        vcpus: 4,
        tsc_khz: 10_000,
        in_group: true,
        deterministic: true,
        xcr0: 7,
        xcr0_now: 1,
        has_xsavec: true,
        is_pc: false,
        has_eoi_word: false,
        has_rdtscp: true,
        has_invpcid: true,
        apic_is_on: true,
        last_leaf: LEAF_LAST,
    };

    #[test]
    fn a_guest_sees_a_hypervisor_and_no_vt_x() {
        let leaf = answer(1, 0, ALL, &POLICY, false);
        assert_ne!(leaf.ecx & HYPERVISOR, 0);
        assert_eq!(leaf.ecx & (1 << 5), 0, "VMX");
        assert_eq!(leaf.ecx & OSXSAVE, 0);
        assert_eq!(leaf.ebx >> 24, 2, "initial APIC ID");
        assert_ne!(answer(1, 0, ALL, &POLICY, true).ecx & OSXSAVE, 0);
    }

    #[test]
    fn a_guest_finds_the_local_apic_that_is_software_whatever_the_cpu_has() {
        for host in [ALL, Registers::default()] {
            let leaf = answer(1, 0, host, &POLICY, false);
            assert_ne!(leaf.edx & APIC_1_EDX, 0, "APIC");
            assert_ne!(leaf.ecx & 1 << 21, 0, "x2APIC");
            assert_ne!(leaf.ecx & 1 << 24, 0, "TSC deadline");
        }
    }

    #[test]
    fn random_numbers_are_hidden_only_in_repeatable_runs() {
        let free = CpuidPolicy {
            deterministic: false,
            ..POLICY
        };
        assert_eq!(answer(1, 0, ALL, &POLICY, false).ecx & RDRAND, 0);
        assert_eq!(answer(7, 0, ALL, &POLICY, false).ebx & RDSEED, 0);
        assert_ne!(answer(1, 0, ALL, &free, false).ecx & RDRAND, 0);
        assert_ne!(answer(7, 0, ALL, &free, false).ebx & RDSEED, 0);
    }

    #[test]
    fn the_signature_spells_the_name() {
        let leaf = answer(LEAF_SIGNATURE, 0, ALL, &POLICY, false);
        let mut name = [0; 12];
        for (slot, word) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        assert_eq!(&name, b"NagayaNagaya");
        assert_eq!(leaf.eax, LEAF_MAX);
        assert_eq!(
            answer(LEAF_VERSION, 0, ALL, &POLICY, false).eax,
            guest_abi::ABI_VERSION
        );
        assert_eq!(answer(LEAF_TIME, 0, ALL, &POLICY, false).eax, 10_000);
    }

    #[test]
    fn extended_state_is_no_more_than_allowed() {
        assert_eq!(answer(0xD, 0, ALL, &POLICY, false).eax, 7);
        assert_eq!(answer(0xD, 2, ALL, &POLICY, false), ALL);
        assert_eq!(answer(0xD, 9, ALL, &POLICY, false), Registers::default());
        assert_eq!(answer(0xD, 1, ALL, &POLICY, false).eax & 8, 0, "XSAVES");
    }

    #[test]
    fn the_area_of_extended_state_is_as_large_as_what_is_allowed_needs() {
        assert_eq!(answer(0xD, 0, ALL, &POLICY, false).ecx, 832);
        let avx512 = CpuidPolicy {
            xcr0: 0xE7,
            ..POLICY
        };
        assert_eq!(answer(0xD, 0, ALL, &avx512, false).ecx, 2688);
    }

    #[test]
    fn the_tsc_is_told_as_it_was_calibrated() {
        let leaf = answer(0x15, 0, ALL, &POLICY, false);
        let hz = |leaf: Registers| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
        assert_eq!(hz(leaf), u64::from(POLICY.tsc_khz) * 1000);
        let fast = CpuidPolicy {
            tsc_khz: 5_000_123,
            ..POLICY
        };
        assert_eq!(hz(answer(0x15, 0, ALL, &fast, false)), 5_000_123_000);
    }

    #[test]
    fn what_has_no_place_in_a_guest_is_empty_whatever_the_cpu_says() {
        let hidden = [
            3,
            5,
            6,
            9,
            0xA,
            0xC,
            0xF,
            0x10,
            0x12,
            0x14,
            0x19,
            0x1A,
            0x1F,
            0x20,
            0x3FFF_FFFF,
            0x4000_0003,
            0x4FFF_FFFF,
            0x8000_0005,
            0x8000_0009,
            0x8000_000A,
            0x8000_001F,
            u32::MAX,
        ];
        for leaf in hidden {
            assert_eq!(
                answer(leaf, 0, ALL, &POLICY, false),
                Registers::default(),
                "{leaf:#x}"
            );
        }
        assert_eq!(answer(7, 1, ALL, &POLICY, false), Registers::default());
        assert_eq!(
            answer(0x8000_0001, 0, ALL, &POLICY, false).ecx & 1 << 2,
            0,
            "SVM"
        );
        assert_eq!(
            answer(7, 0, ALL, &POLICY, false).ecx & 1 << 16,
            0,
            "5-level paging"
        );
    }

    #[test]
    fn no_guest_is_told_of_leaves_that_are_hidden() {
        assert_eq!((last_leaf(0x20, false), last_leaf(0xD, false)), (0x16, 0xD));
        let old = CpuidPolicy {
            last_leaf: 0xD,
            ..POLICY
        };
        assert_eq!(answer(0, 0, ALL, &old, false).eax, 0xD);
        assert_eq!(answer(0x8000_0000, 0, ALL, &POLICY, false).eax, 0x8000_0008);
    }

    /// SDM Vol. 2, "CPUID": "the data for the highest basic information leaf is returned".
    #[test]
    fn above_the_last_leaf_is_the_last_leaf() {
        for leaf in [
            0x17,
            0x66,
            0x1F,
            0x8000_0009,
            0x8FFF_FFFF,
            u32::MAX,
            0x5000_0000,
        ] {
            assert_eq!(answered_leaf(leaf, 0x16), 0x16, "{leaf:#x}");
        }
        for leaf in [0, 7, 0x16, 0x4000_0000, 0x4000_0010, 0x8000_0008] {
            assert_eq!(answered_leaf(leaf, 0x16), leaf, "{leaf:#x}");
        }
        assert_eq!(answered_leaf(0x15, 0xD), 0xD);
    }

    #[test]
    fn the_apic_is_seen_while_it_is_enabled() {
        let off = CpuidPolicy {
            apic_is_on: false,
            ..POLICY
        };
        assert_eq!(answer(1, 0, ALL, &off, false).edx & APIC_1_EDX, 0);
    }

    #[test]
    fn frequencies_are_rounded_and_told_as_other_hypervisors_tell_them() {
        let policy = CpuidPolicy {
            tsc_khz: 2_999_999,
            ..POLICY
        };
        assert_eq!(answer(0x16, 0, ALL, &policy, false).eax, 3000);
        for is_pc in [false, true] {
            let policy = CpuidPolicy { is_pc, ..policy };
            let timing = answer(LEAF_TIMING, 0, ALL, &policy, false);
            assert_eq!((timing.eax, timing.ebx), (2_999_999, 2_999_999));
        }
    }

    #[test]
    fn invpcid_is_offered_where_its_control_is_there() {
        assert_ne!(answer(7, 0, ALL, &POLICY, false).ebx & INVPCID, 0);
        let without = CpuidPolicy {
            has_invpcid: false,
            ..POLICY
        };
        assert_eq!(answer(7, 0, ALL, &without, false).ebx & INVPCID, 0);
    }

    #[test]
    fn the_compacted_area_has_the_components_that_are_on_now() {
        for (xcr0_now, bytes) in [(1, 576), (7, 832), (0xE7, 2432)] {
            let policy = CpuidPolicy {
                xcr0: 0xE7,
                xcr0_now,
                ..POLICY
            };
            assert_eq!(
                answer(0xD, 1, ALL, &policy, true).ebx,
                bytes,
                "{xcr0_now:#x}"
            );
        }
    }

    #[test]
    fn an_xsavec_that_loses_registers_is_not_offered() {
        let policy = CpuidPolicy {
            has_xsavec: false,
            ..POLICY
        };
        let leaf = answer(0xD, 1, ALL, &policy, true);
        assert_eq!((leaf.eax, leaf.ebx), (XSAVEOPT | XGETBV_1, 0));
        assert_eq!(answer(0xD, 1, ALL, &POLICY, true).eax & XSAVEC, XSAVEC);
    }

    #[test]
    fn kernels_for_pcs_find_the_interface_of_kvm_and_ours_behind_it() {
        let pc = CpuidPolicy {
            is_pc: true,
            ..POLICY
        };
        let name = |found: Registers| -> std::vec::Vec<u8> {
            [found.ebx, found.ecx, found.edx]
                .into_iter()
                .flat_map(u32::to_le_bytes)
                .collect()
        };
        let found = answer(KVM_SIGNATURE, 0, ALL, &pc, false);
        assert_eq!(name(found), b"KVMKVMKVM\0\0\0");
        assert_eq!(found.eax, LEAF_TIMING);
        // Each of these bits is one that KVM has, and stands for something that works.
        let features = 1 << 1 | 1 << 5;
        assert_eq!(answer(KVM_FEATURES, 0, ALL, &pc, false).eax, features);
        let word = CpuidPolicy {
            has_eoi_word: true,
            ..pc
        };
        let with_word = answer(KVM_FEATURES, 0, ALL, &word, false).eax;
        assert_eq!(with_word, features | 1 << 6);

        let ours = answer(LEAF_SIGNATURE + BLOCK, 0, ALL, &pc, false);
        assert_eq!(name(ours), SIGNATURE);
        assert_eq!(ours.eax, LEAF_TIME + BLOCK);
        for leaf in [LEAF_VERSION, LEAF_TIME] {
            let native = answer(leaf, 0, ALL, &POLICY, false);
            assert_eq!(answer(leaf + BLOCK, 0, ALL, &pc, false), native);
            let none = answer(leaf + BLOCK, 0, ALL, &POLICY, false);
            assert_eq!(none, Registers::default());
        }
        let eoi = |policy| answer(LEAF_VERSION, 0, ALL, policy, false).ebx & FEATURE_EOI_WORD;
        assert_eq!(eoi(&POLICY), 0);
        assert_eq!(
            answer(0x4000_0002, 0, ALL, &pc, false),
            Registers::default()
        );
    }

    #[test]
    fn a_pc_is_told_the_tscs_frequency_by_cpus_that_do_not_tell() {
        assert_eq!(last_leaf(0xD, true), LEAF_LAST);
        assert_ne!(answer(0x15, 0, Registers::default(), &POLICY, false).ecx, 0);
    }

    #[test]
    fn each_vcpu_finds_itself_in_the_topology() {
        let leaf = answer(0xB, 1, ALL, &POLICY, false);
        assert_eq!((leaf.ebx, leaf.edx), (POLICY.vcpus, POLICY.vcpu));
        let end = answer(0xB, 2, ALL, &POLICY, false);
        assert_eq!(
            (end.eax, end.ebx, end.ecx),
            (0, 0, 2),
            "an invalid level ends the list"
        );
    }
}
