//! What guests find in model-specific registers.
//!
//! Three classes: passed through (the CPU switches them or nobody else uses them), emulated by the small table here, and
//! everything else, which raises #GP as on a CPU that lacks it. Source: Intel SDM Vol. 4; Vol. 3, "MSR-Bitmap Address".

use serde::{Deserialize, Serialize};
use x86_defs::msr;

use crate::cpu::DEBUGCTL_WRITABLE;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// IA32_DEBUGCTL.
    pub debugctl: u64,
    /// What the guest's TSC is ahead of the CPU's.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// KVM's MSR_KVM_SYSTEM_TIME: where the guest wants to read its clock, and bit 0 if it does.
    pub clock: u64,
    /// KVM's MSR_KVM_STEAL_TIME: where the guest wants to read its stolen time, and bit 0 if it does.
    pub steal_time: u64,
}

/// MSR_KVM_STEAL_TIME (Linux, Documentation/virt/kvm/x86/msr.rst).
const KVM_STEAL_TIME: u32 = 0x4B56_4D03;
/// Bits of it that are 0: the structure is 64 bytes and aligned to them.
const KVM_STEAL_TIME_RESERVED: u64 = 0x3E;

/// MSR_KVM_WALL_CLOCK and MSR_KVM_SYSTEM_TIME, by their new numbers and by their old ones.
const KVM_WALL_CLOCK: [u32; 2] = [0x4B56_4D00, 0x11];
const KVM_SYSTEM_TIME: [u32; 2] = [0x4B56_4D01, 0x12];
/// EBL_CR_POWERON of the P6: what was strapped at power-on, and that is nothing.
const EBL_CR_POWERON: u32 = 0x2A;

impl MsrState {
    /// The state after a reset.
    #[must_use]
    pub const fn new(is_pc: bool) -> MsrState {
        MsrState {
            efer: 0,
            pat: msr::PAT_RESET,
            paging: true,
            misc_enable: 1,
            is_pc,
            debugctl: 0,
            tsc_offset: 0,
            tsc_adjust: 0,
            clock: 0,
            steal_time: 0,
        }
    }

    /// INIT: what stands for memory of software that is gone, and the debug controls.
    pub const fn init(&mut self) {
        self.debugctl = 0;
        self.clock = 0;
        self.steal_time = 0;
    }

    /// The guest's TSC when the CPU's is `now`.
    #[inline]
    #[must_use]
    pub const fn tsc(&self, now: u64) -> u64 {
        now.wrapping_add(self.tsc_offset)
    }

    /// The CPU's TSC when the guest's is `tsc`.
    #[inline]
    #[must_use]
    pub const fn host_tsc(&self, tsc: u64) -> u64 {
        tsc.wrapping_sub(self.tsc_offset)
    }

    /// The guest-physical address of the structure that it reads its clock from, if it does.
    #[must_use]
    pub fn clock_gpa(&self) -> Option<u64> {
        (self.clock & 1 != 0).then_some(self.clock & !1)
    }

    /// Moves the TSC by so much (SDM Vol. 3, "IA32_TSC_ADJUST Register": a write of either register moves both).
    const fn move_tsc(&mut self, by: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add(by);
        self.tsc_adjust = self.tsc_adjust.wrapping_add(by);
    }

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
    /// The TSC has been moved: [`MsrState::tsc_offset`] is another.
    TscMoved,
    /// IA32_DEBUGCTL is to become this.
    SetDebugctl(u64),
    /// The guest's clock is to be written where [`MsrState::clock_gpa`] says.
    WriteClock,
    /// The time of day when the clock was 0 is to be written to that guest-physical address.
    WriteWallClock(u64),
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

/// RDMSR. `now` is the CPU's TSC.
#[must_use]
pub fn read(number: u32, now: u64, state: &MsrState) -> MsrAnswer {
    MsrAnswer::Value(match number {
        msr::IA32_TSC => state.tsc(now),
        msr::IA32_DEBUGCTL => state.debugctl,
        EBL_CR_POWERON => 0,
        msr::IA32_EFER => state.efer,
        msr::IA32_PAT => state.pat,
        msr::IA32_MISC_ENABLE => state.misc_enable | MISC_ENABLE & !1,
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
        msr::IA32_TSC_ADJUST if state.is_pc => state.tsc_adjust,
        _ if state.is_pc && KVM_SYSTEM_TIME.contains(&number) => state.clock,
        _ => return MsrAnswer::GeneralProtection,
    })
}

/// WRMSR. `now` is the CPU's TSC.
#[must_use]
pub fn write(number: u32, value: u64, now: u64, state: &mut MsrState) -> MsrAnswer {
    match number {
        msr::IA32_TSC => {
            state.move_tsc(value.wrapping_sub(state.tsc(now)));
            MsrAnswer::TscMoved
        }
        msr::IA32_TSC_ADJUST if state.is_pc => {
            state.move_tsc(value.wrapping_sub(state.tsc_adjust));
            MsrAnswer::TscMoved
        }
        msr::IA32_DEBUGCTL if value & !DEBUGCTL_WRITABLE == 0 => {
            state.debugctl = value;
            MsrAnswer::SetDebugctl(value)
        }
        // The wall clock's structure has 12 bytes, the clock's 32; both are aligned to 4.
        _ if state.is_pc && KVM_WALL_CLOCK.contains(&number) && value & 3 == 0 => {
            MsrAnswer::WriteWallClock(value)
        }
        _ if state.is_pc && KVM_SYSTEM_TIME.contains(&number) && value & 2 == 0 => {
            state.clock = value;
            MsrAnswer::WriteClock
        }
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
        // What is not offered cannot be enabled; the bits that only tell are not changed by writing them.
        msr::IA32_MISC_ENABLE if value & !MISC_ENABLE == 0 => {
            state.misc_enable = value & 1;
            MsrAnswer::Value(value)
        }
        // Microcode: reading the revision begins with a write of 0 here.
        msr::IA32_BIOS_SIGN_ID | msr::IA32_MCG_STATUS => MsrAnswer::Value(value),
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
        ..MsrState::new(false)
    };
    const NOW: u64 = 1_000_000;

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
                read(number, NOW, &state),
                MsrAnswer::GeneralProtection,
                "{number:#x}"
            );
            assert_eq!(
                write(number, 0, NOW, &mut state),
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
            write(msr::IA32_EFER, 0, NOW, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(
            write(msr::IA32_EFER, msr::EFER_LME | 1 << 20, NOW, &mut state),
            MsrAnswer::GeneralProtection
        );
        let wanted = msr::EFER_LME | msr::EFER_NXE;
        assert_eq!(
            write(msr::IA32_EFER, wanted, NOW, &mut state),
            MsrAnswer::SetEfer(wanted | msr::EFER_LMA)
        );
    }

    #[test]
    fn pat_takes_only_memory_types_that_exist() {
        let mut state = STATE;
        assert_eq!(
            write(msr::IA32_PAT, 0x0007_0406_0007_0402, NOW, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(
            write(msr::IA32_PAT, 0, NOW, &mut state),
            MsrAnswer::SetPat(0)
        );
    }

    /// SDM Vol. 3, "IA32_TSC_ADJUST Register": a write of the TSC adds to the adjustment what it adds to the TSC, and the other way
    /// round.
    #[test]
    fn the_tsc_and_its_adjustment_move_together() {
        let mut state = MsrState {
            is_pc: true,
            ..STATE
        };
        let tsc = |state: &MsrState, now| read(msr::IA32_TSC, now, state);
        let adjust = |state: &MsrState| read(msr::IA32_TSC_ADJUST, NOW, state);
        assert_eq!(tsc(&state, NOW), MsrAnswer::Value(NOW));
        assert_eq!(adjust(&state), MsrAnswer::Value(0));
        let moved = write(msr::IA32_TSC, 0, NOW, &mut state);
        assert_eq!(moved, MsrAnswer::TscMoved);
        assert_eq!(tsc(&state, NOW + 5), MsrAnswer::Value(5));
        assert_eq!(adjust(&state), MsrAnswer::Value(NOW.wrapping_neg()));
        assert_eq!(state.host_tsc(state.tsc(77)), 77);
        let _ = write(msr::IA32_TSC_ADJUST, 5, NOW, &mut state);
        assert_eq!(tsc(&state, NOW), MsrAnswer::Value(NOW + 5));
        assert_eq!(adjust(&state), MsrAnswer::Value(5));
        // Natively there is no such register, but the TSC can be written.
        let mut state = STATE;
        assert_eq!(adjust(&state), MsrAnswer::GeneralProtection);
        let moved = write(msr::IA32_TSC, 9, NOW, &mut state);
        assert_eq!(
            (moved, tsc(&state, NOW)),
            (MsrAnswer::TscMoved, MsrAnswer::Value(9))
        );
    }

    #[test]
    fn debug_controls_are_steps_by_branches_and_nothing_else() {
        let mut state = STATE;
        let set = write(msr::IA32_DEBUGCTL, 2, NOW, &mut state);
        assert_eq!(set, MsrAnswer::SetDebugctl(2));
        assert_eq!(read(msr::IA32_DEBUGCTL, NOW, &state), MsrAnswer::Value(2));
        for bit in (0..64).filter(|bit| *bit != 1) {
            let answer = write(msr::IA32_DEBUGCTL, 1 << bit, NOW, &mut state);
            assert_eq!(answer, MsrAnswer::GeneralProtection, "{bit}");
        }
    }

    #[test]
    fn of_misc_enable_what_is_offered_can_be_written() {
        let mut state = STATE;
        let MsrAnswer::Value(found) = read(msr::IA32_MISC_ENABLE, NOW, &state) else {
            panic!("it is there");
        };
        for bit in 0..64 {
            let answer = write(msr::IA32_MISC_ENABLE, 1 << bit, NOW, &mut state);
            let is_offered = MISC_ENABLE >> bit & 1 != 0;
            assert_eq!(answer != MsrAnswer::GeneralProtection, is_offered, "{bit}");
        }
        assert_eq!(
            write(msr::IA32_MISC_ENABLE, found & !1, NOW, &mut state),
            MsrAnswer::Value(found & !1)
        );
        assert_eq!(
            read(msr::IA32_MISC_ENABLE, NOW, &state),
            MsrAnswer::Value(found & !1)
        );
    }

    #[test]
    fn a_pcs_kernel_has_the_clock_of_kvm_by_both_of_its_numbers() {
        let mut state = MsrState::new(true);
        for number in KVM_SYSTEM_TIME {
            let answer = write(number, 0x1_0041, NOW, &mut state);
            assert_eq!(
                (answer, state.clock_gpa()),
                (MsrAnswer::WriteClock, Some(0x1_0040))
            );
            assert_eq!(read(number, NOW, &state), MsrAnswer::Value(0x1_0041));
            let _ = write(number, 0, NOW, &mut state);
            assert_eq!(state.clock_gpa(), None);
        }
        for number in KVM_WALL_CLOCK {
            let answer = write(number, 0x2004, NOW, &mut state);
            assert_eq!(answer, MsrAnswer::WriteWallClock(0x2004));
        }
        let mut native = STATE;
        for number in KVM_SYSTEM_TIME.into_iter().chain(KVM_WALL_CLOCK) {
            let answer = write(number, 0, NOW, &mut native);
            assert_eq!(answer, MsrAnswer::GeneralProtection);
        }
    }

    #[test]
    fn stolen_time_is_told_where_a_pcs_kernel_asks_for_it() {
        let mut state = STATE;
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1001, NOW, &mut state),
            MsrAnswer::GeneralProtection
        );
        state.is_pc = true;
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1003, NOW, &mut state),
            MsrAnswer::GeneralProtection
        );
        assert_eq!(state.steal_time_gpa(), None);
        assert_eq!(
            write(KVM_STEAL_TIME, 0x1041, NOW, &mut state),
            MsrAnswer::Value(0x1041)
        );
        assert_eq!(state.steal_time_gpa(), Some(0x1040));
        assert_eq!(read(KVM_STEAL_TIME, NOW, &state), MsrAnswer::Value(0x1041));
        let _ = write(KVM_STEAL_TIME, 0, NOW, &mut state);
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
