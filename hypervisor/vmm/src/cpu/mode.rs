//! How large code is, and what follows from it.

/// What CS says of the code in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or D clear.
    Bits16,
    /// D set.
    Bits32,
    /// L set, in IA-32e mode.
    Bits64,
}

impl CodeSize {
    /// By CS's access rights as the VMCS has them (SDM Vol. 3, "Guest Register State"), and IA32_EFER.LMA. CR0.PE does not count:
    /// what was in CS's descriptor stays in force until CS is loaded.
    #[must_use]
    pub const fn new(access_rights: u32, is_ia32e: bool) -> CodeSize {
        const LONG: u32 = 1 << 13;
        const DEFAULT: u32 = 1 << 14;
        if is_ia32e && access_rights & LONG != 0 {
            CodeSize::Bits64
        } else if access_rights & DEFAULT != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// The linear address of the instruction at `rip`.
    #[inline]
    #[must_use]
    pub const fn linear(self, base: u64, rip: u64) -> u64 {
        match self {
            CodeSize::Bits64 => rip,
            CodeSize::Bits32 | CodeSize::Bits16 => base.wrapping_add(rip) & 0xFFFF_FFFF,
        }
    }

    /// The instruction pointer so many bytes further on.
    #[inline]
    #[must_use]
    pub const fn step(self, rip: u64, bytes: u8) -> u64 {
        self.wrap(rip.wrapping_add(bytes as u64))
    }

    /// What fits the instruction pointer. In 16-bit code, too, that is 32 bits: behind offset 0xFFFF a CPU does not go on at 0, as the
    /// 8086 did, but fetches at 0x1_0000, where the segment's limit stops it by #GP (SDM Vol. 3, "Differences from the 8086").
    #[inline]
    #[must_use]
    pub const fn wrap(self, rip: u64) -> u64 {
        match self {
            CodeSize::Bits64 => rip,
            CodeSize::Bits32 | CodeSize::Bits16 => rip & 0xFFFF_FFFF,
        }
    }

    /// What of a general register an instruction takes whose operand is as wide as registers are: all of it in 64-bit code, else the
    /// lower half (SDM Vol. 2, "MOV—Move to/from Control Registers"; Vol. 1, "General-Purpose Registers in 64-Bit Mode").
    #[inline]
    #[must_use]
    pub const fn operand(self, register: u64) -> u64 {
        match self {
            CodeSize::Bits64 => register,
            CodeSize::Bits32 | CodeSize::Bits16 => register & 0xFFFF_FFFF,
        }
    }

    /// Bits of addresses and operands without prefixes; 64-bit code has 64 for addresses only.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        }
    }
}
