//! What a guest's write to CR0 or CR4 means, where the hypervisor carries it out: whether it faults, which modes it changes, and
//! what has to be loaded or forgotten with it.
//!
//! A write that touches no bit of the hypervisor's is the CPU's business. One that does is carried out as a whole here, with
//! everything else it changes: a kernel that leaves its trampoline sets PE, PG and NE and clears CD by one instruction.
//!
//! Source: Intel SDM Vol. 2, "MOV—Move to/from Control Registers"; Vol. 3, "Control Registers", "Initializing IA-32e Mode", "PAE
//! Paging".

use x86_defs::cr::{Cr0, Cr4};
use x86_defs::msr;

/// The registers that decide on modes, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// What follows from a write that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The registers afterwards.
    pub after: ControlRegisters,
    /// The four page-directory-pointer-table entries are loaded from where CR3 points to; the write faults if one is malformed.
    pub loads_pdptes: bool,
    /// The CPU forgets the guest's translations.
    pub flushes: bool,
}

/// The write raises #GP(0), and nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// Bits of CR0 that exist; the others are ignored up to bit 31 and fault above.
const CR0_DEFINED: u64 = Cr0::all().bits();
/// Bits of CR3 that are the PCID with CR4.PCIDE.
const PCID: u64 = 0xFFF;
/// Bits of a page-directory-pointer-table entry that must be 0: 1, 2, 5 to 8, and those above physical addresses.
const PDPTE_RESERVED: u64 = 0b1_1110_0110;

/// Bits of CR4 that guests may set where the CPU has them; all others are the hypervisor's. `cpuid` offers what they switch on.
pub const CR4_ALLOWED: u64 = Cr4::VME.bits()
    | Cr4::PVI.bits()
    | Cr4::TSD.bits()
    | Cr4::DE.bits()
    | Cr4::PSE.bits()
    | Cr4::PAE.bits()
    | Cr4::PGE.bits()
    | Cr4::PCE.bits()
    | Cr4::OSFXSR.bits()
    | Cr4::OSXMMEXCPT.bits()
    | Cr4::UMIP.bits()
    | Cr4::FSGSBASE.bits()
    | Cr4::PCIDE.bits()
    | Cr4::OSXSAVE.bits()
    | Cr4::SMEP.bits()
    | Cr4::SMAP.bits();

/// Bits of CR4 that a guest may set but the hypervisor owns: MCE stays on for real, since a machine check while it is off shuts
/// the CPU down, whoever runs on it.
pub const CR4_SHADOWED: u64 = Cr4::MCE.bits();

/// MOV to CR0, CLTS or LMSW with the value that results. `is_64_bit_code`: CS.L is set.
///
/// # Errors
/// [`GeneralProtection`] for a combination that no CPU takes.
pub fn write_cr0(
    before: ControlRegisters,
    value: u64,
    is_64_bit_code: bool,
) -> Result<Change, GeneralProtection> {
    let has = |bit: Cr0| value & bit.bits() != 0;
    let had = |bit: Cr0| before.cr0 & bit.bits() != 0;
    if value >> 32 != 0 || (has(Cr0::PG) && !has(Cr0::PE)) || (has(Cr0::NW) && !has(Cr0::CD)) {
        return Err(GeneralProtection);
    }
    let mut after = ControlRegisters {
        cr0: value & CR0_DEFINED | Cr0::ET.bits(),
        ..before
    };
    let pae = before.cr4 & Cr4::PAE.bits() != 0;
    let mut loads_pdptes = false;
    match (had(Cr0::PG), has(Cr0::PG)) {
        (false, true) if before.efer & msr::EFER_LME != 0 => {
            if !pae || is_64_bit_code {
                return Err(GeneralProtection);
            }
            after.efer |= msr::EFER_LMA;
        }
        (false, true) => loads_pdptes = pae,
        (true, false) if before.efer & msr::EFER_LMA != 0 => {
            // Paging ends in compatibility mode only, and without PCIDs.
            if is_64_bit_code || before.cr4 & Cr4::PCIDE.bits() != 0 {
                return Err(GeneralProtection);
            }
            after.efer &= !msr::EFER_LMA;
        }
        _ => {}
    }
    let translation = Cr0::PG.bits() | Cr0::PE.bits();
    Ok(Change {
        after,
        loads_pdptes,
        flushes: (value ^ before.cr0) & translation != 0,
    })
}

/// MOV to CR4. `allowed` are the bits that the guest's CPU has, `cr3` is CR3.
///
/// # Errors
/// [`GeneralProtection`] for a bit that is not there, for PAE off in long mode, and for PCIDE on outside long mode or with a PCID other
/// than 0 in CR3.
pub fn write_cr4(
    before: ControlRegisters,
    value: u64,
    allowed: u64,
    cr3: u64,
) -> Result<Change, GeneralProtection> {
    let is_long = before.efer & msr::EFER_LMA != 0;
    let pae = Cr4::PAE.bits();
    if value & !allowed != 0 || (is_long && value & pae == 0) {
        return Err(GeneralProtection);
    }
    let changed = value ^ before.cr4;
    let pcide = Cr4::PCIDE.bits();
    if changed & value & pcide != 0 && (!is_long || cr3 & PCID != 0) {
        return Err(GeneralProtection);
    }
    let paging = before.cr0 & Cr0::PG.bits() != 0;
    let structure = (Cr4::PAE | Cr4::PSE | Cr4::PGE | Cr4::SMEP).bits();
    let ends_pcids = changed & before.cr4 & pcide != 0;
    Ok(Change {
        after: ControlRegisters {
            cr4: value,
            ..before
        },
        loads_pdptes: paging && !is_long && value & pae != 0 && changed & structure != 0,
        flushes: changed & structure != 0 || ends_pcids,
    })
}

/// Whether the CPU takes these entries under PAE paging.
#[must_use]
pub fn are_valid_pdptes(entries: &[u64; 4], physical_bits: u32) -> bool {
    let beyond = u64::MAX.checked_shl(physical_bits).unwrap_or(0);
    entries
        .iter()
        .all(|entry| entry & 1 == 0 || entry & (PDPTE_RESERVED | beyond) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PE: u64 = Cr0::PE.bits();
    const PG: u64 = Cr0::PG.bits();
    const ET: u64 = Cr0::ET.bits();
    const CD: u64 = Cr0::CD.bits();
    const NW: u64 = Cr0::NW.bits();
    const NE: u64 = Cr0::NE.bits();
    const PAE: u64 = Cr4::PAE.bits();
    const ALLOWED: u64 = PAE | Cr4::PSE.bits() | Cr4::PGE.bits() | Cr4::MCE.bits();

    fn real() -> ControlRegisters {
        ControlRegisters {
            cr0: CD | NW | ET,
            cr4: 0,
            efer: 0,
        }
    }

    #[test]
    fn one_write_can_leave_a_trampoline() {
        let before = ControlRegisters {
            cr0: CD | NW | ET | PE,
            cr4: PAE,
            efer: msr::EFER_LME,
        };
        let change = write_cr0(before, PE | PG | NE | ET, false).expect("is allowed");
        assert_eq!(change.after.efer, msr::EFER_LME | msr::EFER_LMA);
        assert_eq!(change.after.cr0, PE | PG | NE | ET);
        assert!(change.flushes && !change.loads_pdptes);
    }

    #[test]
    fn long_mode_needs_pae_and_begins_and_ends_outside_64_bit_code() {
        let mut before = ControlRegisters {
            cr0: PE | ET,
            cr4: 0,
            efer: msr::EFER_LME,
        };
        assert_eq!(
            write_cr0(before, PE | PG | ET, false),
            Err(GeneralProtection)
        );
        before.cr4 = PAE;
        assert_eq!(
            write_cr0(before, PE | PG | ET, true),
            Err(GeneralProtection)
        );
        let long = write_cr0(before, PE | PG | ET, false)
            .expect("is allowed")
            .after;
        assert_eq!(write_cr0(long, PE | ET, true), Err(GeneralProtection));
        assert_eq!(write_cr4(long, 0, ALLOWED, 0), Err(GeneralProtection));
        let out = write_cr0(long, PE | ET, false).expect("is allowed");
        assert_eq!(out.after.efer, msr::EFER_LME);
        assert!(out.flushes);
    }

    #[test]
    fn pae_paging_loads_its_entries_whichever_bit_comes_last() {
        let paging_last = ControlRegisters {
            cr0: PE | ET,
            cr4: PAE,
            efer: 0,
        };
        let change = write_cr0(paging_last, PE | PG | ET, false).expect("is allowed");
        assert!(change.loads_pdptes && change.after.efer == 0);
        let pae_last = ControlRegisters {
            cr0: PE | PG | ET,
            cr4: 0,
            efer: 0,
        };
        assert!(
            write_cr4(pae_last, PAE, ALLOWED, 0)
                .expect("is allowed")
                .loads_pdptes
        );
        assert!(
            !write_cr4(real(), PAE, ALLOWED, 0)
                .expect("is allowed")
                .loads_pdptes
        );
    }

    #[test]
    fn contradictions_and_absent_bits_fault() {
        for bad in [PG, NW, 1 << 32, PG | CD] {
            assert_eq!(
                write_cr0(real(), bad, false),
                Err(GeneralProtection),
                "{bad:#x}"
            );
        }
        for bit in 0..64 {
            let value = 1 << bit;
            assert_eq!(
                write_cr4(real(), value, ALLOWED, 0).is_ok(),
                value & ALLOWED != 0,
                "bit {bit}"
            );
        }
        // Bits of CR0 that do not exist are ignored up to 31, and ET stays.
        let change = write_cr0(real(), PE | 1 << 7, false).expect("is allowed");
        assert_eq!(change.after.cr0, PE | ET);
    }

    #[test]
    fn absent_entries_are_not_looked_at() {
        assert!(are_valid_pdptes(&[0x1001, 0, 0xFFFF_FFFE, 0x2009], 36));
        assert!(!are_valid_pdptes(&[0x1003, 0, 0, 0], 36));
        assert!(!are_valid_pdptes(&[1 << 36 | 1, 0, 0, 0], 36));
        assert!(are_valid_pdptes(&[1 << 35 | 1, 0, 0, 0], 36));
    }

    #[test]
    fn pcids_are_of_long_mode_and_begin_at_0() {
        const PCIDE: u64 = Cr4::PCIDE.bits();
        let long = ControlRegisters {
            cr0: PE | PG | ET,
            cr4: PAE,
            efer: msr::EFER_LME | msr::EFER_LMA,
        };
        let set = |before, cr3| write_cr4(before, PAE | PCIDE, ALLOWED | PCIDE, cr3);
        assert_eq!(set(long, 0x1001), Err(GeneralProtection));
        assert_eq!(set(real(), 0x1000), Err(GeneralProtection));
        let with = set(long, 0x1000).expect("is allowed").after;
        // Once on, CR3 may have one; paging cannot end before it is off.
        assert!(set(with, 0x1001).is_ok());
        assert_eq!(write_cr0(with, PE | ET, false), Err(GeneralProtection));
        // Translations of all identifiers are forgotten as they end, not as they begin.
        assert!(!set(long, 0x1000).expect("is allowed").flushes);
        let off = write_cr4(with, PAE, ALLOWED | PCIDE, 0x1001).expect("is allowed");
        assert!(off.flushes && off.after == long);
    }
}
