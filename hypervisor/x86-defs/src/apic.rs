//! The local APIC's two register formats. Source: Intel SDM Vol. 3, "Advanced Programmable Interrupt Controller (APIC)": "Local APIC
//! ID", "Interrupt Command Register (ICR)", "ICR Operation in x2APIC Mode".

/// How a local APIC is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Registers in memory; IDs have 8 bits.
    XApic,
    /// Registers are MSRs; IDs have 32 bits.
    X2Apic,
}

impl ApicMode {
    /// The ID in the ID register: bits 31:24 of an xAPIC's, all 32 of an x2APIC's.
    #[must_use]
    pub const fn id_of(self, register: u32) -> u32 {
        match self {
            ApicMode::XApic => register >> 24,
            ApicMode::X2Apic => register,
        }
    }

    /// Bits 63:32 of the ICR for an IPI to that ID: the destination field is bits 63:56 of an xAPIC's.
    #[must_use]
    pub const fn icr_destination(self, apic_id: u32) -> u32 {
        match self {
            ApicMode::XApic => apic_id << 24,
            ApicMode::X2Apic => apic_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xapic_has_ids_in_the_upper_byte_and_an_x2apic_in_the_whole_register() {
        assert_eq!(ApicMode::XApic.icr_destination(3), 0x0300_0000);
        assert_eq!(ApicMode::XApic.id_of(0x0300_0000), 3);
        assert_eq!(ApicMode::X2Apic.icr_destination(0x1_0003), 0x1_0003);
        for mode in [ApicMode::XApic, ApicMode::X2Apic] {
            for id in 0..=255 {
                assert_eq!(mode.id_of(mode.icr_destination(id)), id);
            }
        }
    }
}
