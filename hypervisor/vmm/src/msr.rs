//! What guests find in model-specific registers.
//!
//! Three classes: passed through (the CPU switches them or nobody else uses them), emulated by the small table here, and
//! everything else, which raises #GP as on a CPU that lacks it. Source: Intel SDM Vol. 4; Vol. 3, "MSR-Bitmap Address".

use x86_defs::msr;

/// MSRs that guests use without an exit: the VMCS or the switch between vCPUs keeps them apart.
pub const PASS_THROUGH: [u32; 11] = [
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_FS_BASE,
    msr::IA32_GS_BASE,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
];

/// Bytes of the MSR bitmap.
pub const BITMAP_BYTES: usize = 4096;

/// x2APIC registers that a CPU with APIC virtualisation reads from the virtual-APIC page: ID and version, TPR, PPR, LDR, ISR, TMR,
/// IRR.
const VIRTUALISED_READS: [core::ops::RangeInclusive<u32>; 5] = [
    0x802..=0x803,
    0x808..=0x808,
    0x80A..=0x80A,
    0x80D..=0x80D,
    0x810..=0x827,
];
/// Registers that it writes there: TPR and EOI. The SELF IPI register exits, with all the others: who writes a vector that does
/// not exist is to find that in the error status.
const VIRTUALISED_WRITES: [core::ops::RangeInclusive<u32>; 2] = [0x808..=0x808, 0x80B..=0x80B];

/// Half of the bitmap for reads, and for writes.
const READS: usize = 0;
const WRITES: usize = 2048;

fn pass(bitmap: &mut [u8; BITMAP_BYTES], half: usize, number: u32) {
    let (part, offset) = if number < 0x2000 {
        (0, number)
    } else {
        (1024, number - 0xC000_0000)
    };
    if let Some(byte) = bitmap.get_mut(half + part + offset as usize / 8) {
        *byte &= !(1 << (offset % 8));
    }
}

/// The MSR bitmap: a set bit makes an access exit. Four parts of 1 KiB: reads of 0 to 0x1FFF, reads of 0xC000_0000 to
/// 0xC000_1FFF, writes of the same.
#[must_use]
pub fn bitmap() -> [u8; BITMAP_BYTES] {
    let mut bitmap = [0xFF; BITMAP_BYTES];
    for number in PASS_THROUGH {
        pass(&mut bitmap, READS, number);
        pass(&mut bitmap, WRITES, number);
    }
    bitmap
}

/// The MSR bitmap while the CPU virtualises the guest's x2APIC. With any other controls it would give the guest the real one.
#[must_use]
pub fn bitmap_with_virtual_apic() -> [u8; BITMAP_BYTES] {
    let mut bitmap = bitmap();
    for number in VIRTUALISED_READS.into_iter().flatten() {
        pass(&mut bitmap, READS, number);
    }
    for number in VIRTUALISED_WRITES.into_iter().flatten() {
        pass(&mut bitmap, WRITES, number);
    }
    bitmap
}

/// What the emulated MSRs depend on and change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrState {
    /// IA32_EFER of the guest.
    pub efer: u64,
    /// IA32_PAT of the guest.
    pub pat: u64,
    /// CR0.PG of the guest: LME cannot change while it is set.
    pub paging: bool,
    /// IA32_MISC_ENABLE as the guest last wrote it.
    pub misc_enable: u64,
    /// The guest sees a PC, and has the MSR of KVM's for stolen time.
    pub is_pc: bool,
    /// KVM's MSR_KVM_STEAL_TIME: where the guest wants to read its stolen time, and bit 0 if it does.
    pub steal_time: u64,
}

/// MSR_KVM_STEAL_TIME (Linux, Documentation/virt/kvm/x86/msr.rst).
const KVM_STEAL_TIME: u32 = 0x4B56_4D03;
/// Bits of it that are 0: the structure is 64 bytes and aligned to them.
const KVM_STEAL_TIME_RESERVED: u64 = 0x3E;

impl MsrState {
    /// The guest-physical address of the structure that it reads its stolen time from, if it does.
    #[must_use]
    pub fn steal_time_gpa(&self) -> Option<u64> {
        (self.steal_time & 1 != 0).then_some(self.steal_time & !0x3F)
    }
}

/// The answer to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAnswer {
    /// The read gives this; the write is done.
    Value(u64),
    /// The TSC, which the caller reads.
    Tsc,
    /// IA32_EFER is to become this.
    SetEfer(u64),
    /// IA32_PAT is to become this.
    SetPat(u64),
    /// #GP(0).
    GeneralProtection,
}

const EFER_WRITABLE: u64 = msr::EFER_SCE | msr::EFER_LME | msr::EFER_NXE;
/// IA32_MISC_ENABLE: fast strings, and "BTS and PEBS unavailable".
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;

/// RDMSR.
#[must_use]
pub fn read(number: u32, state: &MsrState) -> MsrAnswer {
    MsrAnswer::Value(match number {
        msr::IA32_TSC => return MsrAnswer::Tsc,
        msr::IA32_EFER => state.efer,
        msr::IA32_PAT => state.pat,
        msr::IA32_MISC_ENABLE => state.misc_enable | MISC_ENABLE,
        // No MTRRs but the default type, write-back, enabled.
        msr::IA32_MTRRCAP => 0,
        msr::IA32_MTRR_DEF_TYPE => msr::MTRR_DEF_TYPE_ENABLE | 6,
        msr::IA32_BIOS_SIGN_ID
        | msr::IA32_PLATFORM_ID
        | msr::IA32_MCG_CAP
        | msr::IA32_MCG_STATUS => 0,
        // Locked, with VMX off: a guest that looks before it leaps sees why.
        msr::IA32_FEATURE_CONTROL => msr::FEATURE_CONTROL_LOCKED,
        KVM_STEAL_TIME if state.is_pc => state.steal_time,
        msr::IA32_TSC_ADJUST if state.is_pc => 0,
        _ => return MsrAnswer::GeneralProtection,
    })
}

/// WRMSR.
#[must_use]
pub fn write(number: u32, value: u64, state: &mut MsrState) -> MsrAnswer {
    match number {
        msr::IA32_EFER => {
            let lme_changes = (value ^ state.efer) & msr::EFER_LME != 0;
            if value & !(EFER_WRITABLE | msr::EFER_LMA) != 0 || (state.paging && lme_changes) {
                return MsrAnswer::GeneralProtection;
            }
            state.efer = (value & EFER_WRITABLE) | (state.efer & msr::EFER_LMA);
            MsrAnswer::SetEfer(state.efer)
        }
        msr::IA32_PAT => {
            if value
                .to_le_bytes()
                .into_iter()
                .any(|kind| !matches!(kind, 0 | 1 | 4 | 5 | 6 | 7))
            {
                return MsrAnswer::GeneralProtection;
            }
            state.pat = value;
            MsrAnswer::SetPat(value)
        }
        msr::IA32_MISC_ENABLE => {
            state.misc_enable = value & 1;
            MsrAnswer::Value(value)
        }
        // Microcode: reading the revision begins with a write of 0 here.
        msr::IA32_BIOS_SIGN_ID | msr::IA32_MCG_STATUS => MsrAnswer::Value(value),
        // All vCPUs have one TSC, and it stays as it is.
        msr::IA32_TSC_ADJUST if state.is_pc && value == 0 => MsrAnswer::Value(0),
        KVM_STEAL_TIME if state.is_pc && value & KVM_STEAL_TIME_RESERVED == 0 => {
            state.steal_time = value;
            MsrAnswer::Value(value)
        }
        _ => MsrAnswer::GeneralProtection,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const STATE: MsrState = MsrState {
        efer: msr::EFER_LME | msr::EFER_LMA,
        pat: msr::PAT_RESET,
        paging: true,
        misc_enable: 1,
        is_pc: false,
        steal_time: 0,
    };

    #[test]
    fn unknown_msrs_fault_both_ways() {
        let mut state = STATE;
        for number in [
            0x2,
            0x123,
            msr::IA32_VMX_BASIC,
            0x4000_0000,
            0xC000_1FFF,
            u32::MAX,
        ] {
            assert_eq!(
                read(number, &state),
                MsrAnswer::GeneralProtection,
                "{number:#x}"
            );
            assert_eq!(
                write(number, 0, &mut state),
                MsrAnswer::GeneralProtection,
                "{number:#x}"
            );
        }
        assert_eq!(state, STATE);
    }

    #[test]
    fn long_mode_cannot_be_left_under_paging_and_reserved_bits_fault() {
        let mut state = STATE;
        assert_eq!(
            write(msr::IA32_EFER, 0, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(
            write(msr::IA32_EFER, msr::EFER_LME | 1 << 20, &mut state),
            MsrAnswer::GeneralProtection
        );
        let wanted = msr::EFER_LME | msr::EFER_NXE;
        assert_eq!(
            write(msr::IA32_EFER, wanted, &mut state),
            MsrAnswer::SetEfer(wanted | msr::EFER_LMA)
        );
    }

    #[test]
    fn pat_takes_only_memory_types_that_exist() {
        let mut state = STATE;
        assert_eq!(
            write(msr::IA32_PAT, 0x0007_0406_0007_0402, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(write(msr::IA32_PAT, 0, &mut state), MsrAnswer::SetPat(0));
    }

    #[test]
    fn the_tsc_of_a_pc_reads_as_never_adjusted_and_stays_so() {
        let mut state = MsrState {
            is_pc: true,
            ..STATE
        };
        assert_eq!(read(msr::IA32_TSC_ADJUST, &state), MsrAnswer::Value(0));
        assert_eq!(
            write(msr::IA32_TSC_ADJUST, 0, &mut state),
            MsrAnswer::Value(0)
        );
        assert_eq!(
            write(msr::IA32_TSC_ADJUST, 5, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(
            read(msr::IA32_TSC_ADJUST, &STATE),
            MsrAnswer::GeneralProtection
        );
    }

    #[test]
    fn stolen_time_is_told_where_a_pcs_kernel_asks_for_it() {
        let mut state = STATE;
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1001, &mut state),
            MsrAnswer::GeneralProtection
        );
        state.is_pc = true;
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1003, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(state.steal_time_gpa(), None);
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1041, &mut state),
            MsrAnswer::Value(0x1041)
        );
        assert_eq!(state.steal_time_gpa(), Some(0x1040));
        assert_eq!(read(KVM_STEAL_TIME, &state), MsrAnswer::Value(0x1041));
        let _ = write(KVM_STEAL_TIME, 0, &mut state);
        assert_eq!(state.steal_time_gpa(), None);
    }

    #[test]
    fn only_the_listed_msrs_do_not_exit() {
        let bitmap = bitmap();
        let exits = |number: u32, write: bool| {
            let (part, offset) = if number < 0x2000 {
                (0, number)
            } else {
                (1024, number - 0xC000_0000)
            };
            let half = if write { 2048 } else { 0 };
            bitmap[half + part + offset as usize / 8] & (1 << (offset % 8)) != 0
        };
        for number in (0..0x2000).chain(0xC000_0000..0xC000_2000) {
            for write in [false, true] {
                assert_eq!(
                    exits(number, write),
                    !PASS_THROUGH.contains(&number),
                    "{number:#x}"
                );
            }
        }
    }

    /// SDM, "Virtualizing MSR-Based APIC Accesses": with APIC-register virtualisation all reads of 0x800 to 0x8FF come from the
    /// page, but only ID, version, TPR, PPR, LDR, ISR, TMR and IRR are kept there; of writes only TPR, EOI and SELF IPI are virtualised.
    #[test]
    fn of_the_apic_only_what_the_page_keeps_does_not_exit() {
        let (plain, bitmap) = (bitmap(), bitmap_with_virtual_apic());
        let mut differ = Vec::new();
        for bit in 0..BITMAP_BYTES * 8 {
            let is_set = |bitmap: &[u8]| bitmap[bit / 8] >> (bit % 8) & 1 == 1;
            if is_set(&plain) != is_set(&bitmap) {
                assert!(is_set(&plain));
                differ.push((bit / 8 >= 2048, bit % (2048 * 8)));
            }
        }
        let reads = [0x802, 0x803, 0x808, 0x80A, 0x80D].into_iter();
        let reads = reads.chain(0x810..0x828);
        let writes = [0x808, 0x80B].into_iter();
        let expected: Vec<_> = reads
            .map(|number| (false, number))
            .chain(writes.map(|number| (true, number)))
            .collect();
        assert_eq!(differ, expected);
    }
}
