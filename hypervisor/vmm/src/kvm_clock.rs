//! KVM's clock: what a guest reads to know the time, made of its TSC.
//!
//! The clock is 0 when the hypervisor starts, and the same on all vCPUs. Source: Linux, Documentation/virt/kvm/x86/msr.rst.

/// Flag: readings of different vCPUs agree.
const STABLE: u8 = 1 << 0;
/// Flag: the guest was stopped for a while, and is to tell its watchdogs so.
const GUEST_STOPPED: u8 = 1 << 1;

/// What a clock shows: nanoseconds are `(TSC - start) << shift`, or `>> -shift`, times `multiplier`, divided by 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The factor.
    pub multiplier: u32,
    /// The shift to the left.
    pub shift: i8,
}

impl Scale {
    /// That of a TSC with this rate.
    #[must_use]
    pub fn of_khz(tsc_khz: u32) -> Scale {
        // With 2^31 <= multiplier < 2^32 no precision is lost.
        let mut ticks = u128::from(tsc_khz.max(1));
        let mut shift = 0;
        while ticks > 1_000_000 {
            ticks >>= 1;
            shift -= 1;
        }
        // Exactly, now that the shift is known.
        let khz = u128::from(tsc_khz.max(1));
        loop {
            let scaled = if shift <= 0 {
                (1_000_000_u128 << 32 << -shift) / khz
            } else {
                (1_000_000_u128 << 32 >> shift) / khz
            };
            if let Ok(multiplier) = u32::try_from(scaled) {
                return Scale {
                    multiplier,
                    shift: shift as i8,
                };
            }
            shift += 1;
        }
    }
}

/// The structure of 32 bytes: version, TSC at the clock's 0, the clock then, scale, flags. `version` is even.
#[must_use]
pub fn clock(version: u32, start: u64, scale: Scale, was_stopped: bool) -> [u8; 32] {
    let mut bytes = [0; 32];
    let flags = STABLE | if was_stopped { GUEST_STOPPED } else { 0 };
    let mut put = |at: usize, value: &[u8]| {
        if let Some(slot) = bytes.get_mut(at..at + value.len()) {
            slot.copy_from_slice(value);
        }
    };
    put(0, &version.to_le_bytes());
    put(8, &start.to_le_bytes());
    put(24, &scale.multiplier.to_le_bytes());
    put(28, &scale.shift.to_le_bytes());
    put(29, &[flags]);
    bytes
}

/// The structure of 12 bytes with the time of day at the clock's 0.
#[must_use]
pub fn wall_clock(version: u32, seconds: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (first, rest) = bytes.split_at_mut(4);
    first.copy_from_slice(&version.to_le_bytes());
    if let Some(slot) = rest.first_chunk_mut() {
        *slot = (seconds as u32).to_le_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ticks: u64, scale: Scale) -> u64 {
        let ticks = if scale.shift < 0 {
            ticks >> -scale.shift
        } else {
            ticks << scale.shift
        };
        ((u128::from(ticks) * u128::from(scale.multiplier)) >> 32) as u64
    }

    #[test]
    fn the_clock_goes_at_the_rate_of_real_time() {
        for khz in [
            1,
            10_000,
            999_999,
            1_000_000,
            1_000_001,
            2_400_000,
            3_500_123,
            u32::MAX,
        ] {
            let scale = Scale::of_khz(khz);
            for seconds in [1, 3600] {
                let found = read(u64::from(khz) * 1000 * seconds, scale);
                let wanted = seconds * 1_000_000_000;
                assert!(
                    found.abs_diff(wanted) <= wanted / 100_000_000 + 2,
                    "{khz} {found} {scale:?}"
                );
            }
        }
    }

    #[test]
    fn the_structures_are_those_of_kvm() {
        let scale = Scale {
            multiplier: 0x8000_0000,
            shift: -1,
        };
        let bytes = clock(6, 0x1122_3344_5566_7788, scale, true);
        assert_eq!(bytes[..4], [6, 0, 0, 0]);
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(bytes[16..24], [0; 8]);
        assert_eq!(bytes[24..30], [0, 0, 0, 0x80, 0xFF, 3]);
        assert_eq!(clock(0, 0, scale, false)[29], 1);
        assert_eq!(wall_clock(2, 0x0102_0304)[..8], [2, 0, 0, 0, 4, 3, 2, 1]);
    }
}
