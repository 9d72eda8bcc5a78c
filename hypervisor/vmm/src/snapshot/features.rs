//! What of a CPU a guest has been shown, and may rely on.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::cpuid::Registers;

/// Leaves and registers of CPUID that tell features, in the order of the words.
const WORDS: [(u32, u32, Register); CpuFeatures::WORDS] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0xD, 1, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
];

/// Bits that follow from what the guest or the hypervisor does, and not from the CPU: OSXSAVE, hypervisor; APIC; OSPKE.
const IGNORED: [u32; CpuFeatures::WORDS] = [1 << 27 | 1 << 31, 1 << 9, 0, 1 << 4, 0, 0, 0, 0];

#[derive(Clone, Copy, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Features of a CPU as a guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    /// CPUID 1 ECX and EDX; 7 EBX, ECX, EDX; 0xD.1 EAX; 0x8000_0001 ECX and EDX.
    pub words: [u32; CpuFeatures::WORDS],
    /// What of XCR0 the guest may set.
    pub xcr0: u64,
}

/// A feature that a CPU lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFeature {
    /// A bit of [`CpuFeatures::words`].
    Cpuid {
        /// Index of the word.
        word: usize,
        /// The bit.
        bit: u32,
    },
    /// A bit of XCR0.
    Xcr0 {
        /// The bit.
        bit: u32,
    },
}

impl CpuFeatures {
    /// Words of CPUID.
    pub const WORDS: usize = 8;

    /// Those of a guest whose CPUID answers so, by leaf and subleaf.
    #[must_use]
    pub fn of(xcr0: u64, cpuid: impl Fn(u32, u32) -> Registers) -> CpuFeatures {
        let words = WORDS.map(|(leaf, subleaf, register)| {
            let answer = cpuid(leaf, subleaf);
            match register {
                Register::Eax => answer.eax,
                Register::Ebx => answer.ebx,
                Register::Ecx => answer.ecx,
                Register::Edx => answer.edx,
            }
        });
        let mut features = CpuFeatures { words, xcr0 };
        for (word, ignored) in features.words.iter_mut().zip(IGNORED) {
            *word &= !ignored;
        }
        features
    }

    /// The first of these that a CPU does not have.
    #[must_use]
    pub fn missing_in(&self, here: &CpuFeatures) -> Option<MissingFeature> {
        let words = self.words.iter().zip(here.words).zip(IGNORED);
        let of_cpuid = words
            .enumerate()
            .find_map(|(word, ((needed, has), ignored))| {
                let missing = needed & !has & !ignored;
                let bit = missing.trailing_zeros();
                (missing != 0).then_some(MissingFeature::Cpuid { word, bit })
            });
        let missing = self.xcr0 & !here.xcr0;
        let of_xcr0 = (missing != 0).then(|| MissingFeature::Xcr0 {
            bit: missing.trailing_zeros(),
        });
        of_cpuid.or(of_xcr0)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = MissingFeature> {
        let words = self.words.into_iter().enumerate();
        let of_cpuid = words.flat_map(|(word, bits)| {
            (0..32)
                .filter(move |bit| bits & 1 << bit != 0)
                .map(move |bit| MissingFeature::Cpuid { word, bit })
        });
        let xcr0 = self.xcr0;
        let of_xcr0 = (0..64)
            .filter(move |bit| xcr0 & 1 << bit != 0)
            .map(|bit| MissingFeature::Xcr0 { bit });
        of_cpuid.chain(of_xcr0)
    }
}

/// Names of features that guests are shown (SDM Vol. 2, "CPUID"): word, bit, name.
const NAMES: &[(usize, u32, &str)] = &[
    (0, 0, "sse3"),
    (0, 1, "pclmulqdq"),
    (0, 9, "ssse3"),
    (0, 12, "fma"),
    (0, 13, "cmpxchg16b"),
    (0, 19, "sse4.1"),
    (0, 20, "sse4.2"),
    (0, 21, "x2apic"),
    (0, 22, "movbe"),
    (0, 23, "popcnt"),
    (0, 24, "tsc-deadline"),
    (0, 25, "aes"),
    (0, 26, "xsave"),
    (0, 28, "avx"),
    (0, 29, "f16c"),
    (0, 30, "rdrand"),
    (1, 0, "fpu"),
    (1, 3, "pse"),
    (1, 4, "tsc"),
    (1, 6, "pae"),
    (1, 8, "cmpxchg8b"),
    (1, 11, "sysenter"),
    (1, 13, "pge"),
    (1, 15, "cmov"),
    (1, 16, "pat"),
    (1, 17, "pse36"),
    (1, 19, "clflush"),
    (1, 23, "mmx"),
    (1, 24, "fxsr"),
    (1, 25, "sse"),
    (1, 26, "sse2"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 7, "smep"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 10, "invpcid"),
    (2, 16, "avx512f"),
    (2, 17, "avx512dq"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 20, "smap"),
    (2, 21, "avx512ifma"),
    (2, 23, "clflushopt"),
    (2, 24, "clwb"),
    (2, 28, "avx512cd"),
    (2, 29, "sha"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (3, 1, "avx512vbmi"),
    (3, 2, "umip"),
    (3, 6, "avx512vbmi2"),
    (3, 8, "gfni"),
    (3, 9, "vaes"),
    (3, 10, "vpclmulqdq"),
    (3, 11, "avx512vnni"),
    (3, 12, "avx512bitalg"),
    (3, 14, "avx512vpopcntdq"),
    (3, 25, "cldemote"),
    (3, 27, "movdiri"),
    (3, 28, "movdir64b"),
    (4, 2, "avx5124vnniw"),
    (4, 3, "avx5124fmaps"),
    (4, 4, "fsrm"),
    (4, 8, "avx512vp2intersect"),
    (4, 10, "md-clear"),
    (4, 14, "serialize"),
    (5, 0, "xsaveopt"),
    (5, 1, "xsavec"),
    (5, 2, "xgetbv1"),
    (6, 0, "lahf"),
    (6, 5, "lzcnt"),
    (6, 8, "prefetchw"),
    (7, 11, "syscall"),
    (7, 20, "nx"),
    (7, 26, "1gib-pages"),
    (7, 27, "rdtscp"),
    (7, 29, "long-mode"),
];

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MissingFeature::Xcr0 { bit } => write!(f, "xcr0 bit {bit}"),
            MissingFeature::Cpuid { word, bit } => {
                let name = NAMES.iter().find(|named| (named.0, named.1) == (word, bit));
                match (name, WORDS.get(word)) {
                    (Some((_, _, name)), _) => f.write_str(name),
                    (None, Some((leaf, subleaf, register))) => {
                        write!(f, "CPUID {leaf:#x}.{subleaf} {register:?} bit {bit}")
                    }
                    (None, None) => write!(f, "word {word} bit {bit}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn of(leaf: u32, registers: Registers) -> CpuFeatures {
        CpuFeatures::of(7, |asked, _| {
            if asked == leaf {
                registers
            } else {
                Registers::default()
            }
        })
    }

    #[test]
    fn what_a_cpu_lacks_is_named() {
        let avx2 = of(
            7,
            Registers {
                ebx: 1 << 5,
                ..Registers::default()
            },
        );
        let missing = avx2.missing_in(&CpuFeatures {
            xcr0: 7,
            ..CpuFeatures::default()
        });
        assert_eq!(missing.expect("is missing").to_string(), "avx2");
        let strange = CpuFeatures {
            words: [0, 0, 1 << 27, 0, 0, 0, 0, 0],
            xcr0: 0,
        };
        let missing = strange.missing_in(&avx2).expect("is missing");
        assert_eq!(missing.to_string(), "CPUID 0x7.0 Ebx bit 27");
        let missing = avx2.missing_in(&CpuFeatures { xcr0: 3, ..avx2 });
        assert_eq!(missing.expect("is missing").to_string(), "xcr0 bit 2");
        assert_eq!(avx2.missing_in(&avx2), None);
        assert_eq!(avx2.all().count(), 4);
    }

    #[test]
    fn what_the_guest_switches_by_itself_is_no_feature() {
        let osxsave = of(
            1,
            Registers {
                ecx: 1 << 27 | 1 << 26,
                ..Registers::default()
            },
        );
        let bare = of(
            1,
            Registers {
                ecx: 1 << 26,
                ..Registers::default()
            },
        );
        assert_eq!(osxsave, bare);
    }
}
