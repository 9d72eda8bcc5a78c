//! Bits of the control registers, of RFLAGS and of XCR0.
//!
//! Source: SDM volume 3, "Control Registers" and "Extended Control Registers"; volume 1, "EFLAGS Register".

use bitflags::bitflags;

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation: x87 instructions raise #NM.
        const EM = 1 << 2;
        /// Task switched: x87 and SSE instructions raise #NM.
        const TS = 1 << 3;
        /// Extension type; always 1.
        const ET = 1 << 4;
        /// Numeric error: x87 errors raise #MF.
        const NE = 1 << 5;
        /// Supervisor writes obey read-only pages.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC at CPL 0 only.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// 4 MiB pages under 32-bit paging.
        const PSE = 1 << 4;
        /// Physical-address extension; always on in long mode.
        const PAE = 1 << 5;
        /// Machine-check exceptions.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC at any CPL.
        const PCE = 1 << 8;
        /// FXSAVE, FXRSTOR and SSE.
        const OSFXSR = 1 << 9;
        /// #XM for SSE errors.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT and the like at CPL 0 only.
        const UMIP = 1 << 11;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// VMXON works.
        const VMXE = 1 << 13;
        /// GETSEC works.
        const SMXE = 1 << 14;
        /// RDFSBASE and the like work.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE and XCR0.
        const OSXSAVE = 1 << 18;
        /// Key locker.
        const KL = 1 << 19;
        /// No supervisor execution of user pages.
        const SMEP = 1 << 20;
        /// No supervisor access to user pages.
        const SMAP = 1 << 21;
        /// Protection keys of user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys of supervisor pages.
        const PKS = 1 << 24;
        /// User interrupts.
        const UINTR = 1 << 25;
    }
}

bitflags! {
    /// RFLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always 1.
        const RESERVED_ONE = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap after each instruction.
        const TF = 1 << 8;
        /// Interrupts are taken.
        const IF = 1 << 9;
        /// Direction of string instructions.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, 2 bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: no instruction breakpoint for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment checks.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is there.
        const ID = 1 << 21;
    }
}

bitflags! {
    /// XCR0: which state components XSAVE manages.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Xcr0: u64 {
        /// x87; always 1.
        const X87 = 1 << 0;
        /// XMM registers.
        const SSE = 1 << 1;
        /// Upper halves of YMM registers.
        const AVX = 1 << 2;
        /// MPX bound registers.
        const BNDREGS = 1 << 3;
        /// MPX configuration.
        const BNDCSR = 1 << 4;
        /// AVX-512 mask registers.
        const OPMASK = 1 << 5;
        /// Upper halves of ZMM0 to ZMM15.
        const ZMM_HI256 = 1 << 6;
        /// ZMM16 to ZMM31.
        const HI16_ZMM = 1 << 7;
        /// PKRU.
        const PKRU = 1 << 9;
        /// AMX configuration.
        const TILECFG = 1 << 17;
        /// AMX data.
        const TILEDATA = 1 << 18;
    }
}

impl Xcr0 {
    /// Whether XSETBV takes this value on a CPU that supports `supported` (CPUID leaf 0xD, EDX:EAX); if not, it is #GP.
    ///
    /// Source: SDM volume 1, "Enabling the XSAVE Feature Set and XSAVE-Enabled Features".
    #[must_use]
    pub const fn is_valid(raw: u64, supported: Xcr0) -> bool {
        const AVX_512: u64 = Xcr0::OPMASK.bits() | Xcr0::ZMM_HI256.bits() | Xcr0::HI16_ZMM.bits();
        const MPX: u64 = Xcr0::BNDREGS.bits() | Xcr0::BNDCSR.bits();
        const AMX: u64 = Xcr0::TILECFG.bits() | Xcr0::TILEDATA.bits();
        const fn all_or_none(raw: u64, bits: u64) -> bool {
            raw & bits == 0 || raw & bits == bits
        }
        raw & !supported.bits() == 0
            && raw & Xcr0::X87.bits() != 0
            && (raw & Xcr0::AVX.bits() == 0 || raw & Xcr0::SSE.bits() != 0)
            && (raw & AVX_512 == 0 || raw & Xcr0::AVX.bits() != 0)
            && all_or_none(raw, AVX_512)
            && all_or_none(raw, MPX)
            && all_or_none(raw, AMX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_takes_only_what_the_cpu_would_take() {
        let all = Xcr0::all();
        assert!(Xcr0::is_valid(0b1, all));
        assert!(Xcr0::is_valid(0b111, all));
        assert!(!Xcr0::is_valid(0b110, all), "x87 is not optional");
        assert!(!Xcr0::is_valid(0b101, all), "AVX needs SSE");
        assert!(!Xcr0::is_valid(0b10_0111, all), "AVX-512 goes as one");
        assert!(!Xcr0::is_valid(0b1110_0011, all), "AVX-512 needs AVX");
        assert!(Xcr0::is_valid(0b1110_0111, all));
        assert!(!Xcr0::is_valid(0b111, Xcr0::X87 | Xcr0::SSE));
        assert!(!Xcr0::is_valid(1 << 63 | 1, all));
    }
}
