//! What CPUID says of rates. Source: Intel SDM Vol. 2, CPUID, leaf 15H; the timing leaf 0x4000_0010 that hypervisors have agreed
//! on (EAX: TSC in kHz, EBX: APIC timer in kHz).

/// The core crystal clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crystal {
    /// Its rate, which is that of the APIC timer, in Hz.
    pub hz: u64,
    /// The TSC's, in kHz.
    pub tsc_khz: u64,
}

/// From EAX, EBX and ECX of leaf 0x15: denominator and numerator of the TSC over the crystal, and the crystal's rate in Hz. `None` if
/// the CPU leaves one of them out.
#[must_use]
pub fn crystal(eax: u32, ebx: u32, ecx: u32) -> Option<Crystal> {
    if eax == 0 || ebx == 0 || ecx == 0 {
        return None;
    }
    let tsc_hz = u128::from(ecx) * u128::from(ebx) / u128::from(eax);
    Some(Crystal {
        hz: u64::from(ecx),
        tsc_khz: u64::try_from(tsc_hz / 1000).ok()?,
    })
}

/// From the highest hypervisor leaf and EAX and EBX of leaf 0x4000_0010: kHz of the TSC and of the APIC timer, where told.
#[must_use]
pub fn hypervisor_timing(highest: u32, eax: u32, ebx: u32) -> (Option<u64>, Option<u64>) {
    const LEAF: u32 = 0x4000_0010;
    // Without a hypervisor such a leaf has the data of the highest basic one, and a limit beyond the range is none.
    if !(LEAF..LEAF + 0x1_0000).contains(&highest) {
        return (None, None);
    }
    let told = |khz: u32| (khz != 0).then_some(u64::from(khz));
    (told(eax), told(ebx))
}
