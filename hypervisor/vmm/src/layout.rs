//! Where a VM's RAM is: from 0 to where the devices begin, and what is more than that from 4 GiB on, as on a PC.

use guest_abi::boot::DEVICE_SPACE_GPA;

/// Where RAM goes on above the devices.
pub const ABOVE_DEVICES_GPA: u64 = 1 << 32;
/// Most RAM of a VM that sees a PC. Whether the CPU has so many bits of addresses is asked when the VM is made.
pub const MAX_PC_MEMORY_BYTES: u64 = 256 << 30;

/// How a VM's RAM is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    below: u64,
    above: u64,
}

impl Layout {
    /// So much RAM in bytes, of which at most `most_below` lies below the devices; these begin at 3 GiB.
    #[must_use]
    pub const fn new(memory_bytes: u64, most_below: u64) -> Layout {
        let most = if most_below < DEVICE_SPACE_GPA {
            most_below
        } else {
            DEVICE_SPACE_GPA
        };
        let below = if memory_bytes < most {
            memory_bytes
        } else {
            most
        };
        Layout {
            below,
            above: memory_bytes - below,
        }
    }

    /// Bytes of RAM below the devices, from 0 on.
    #[must_use]
    pub const fn below(self) -> u64 {
        self.below
    }

    /// Bytes of RAM from 4 GiB on.
    #[must_use]
    pub const fn above(self) -> u64 {
        self.above
    }

    /// Whether all of it can be named with so many bits of an address.
    #[must_use]
    pub const fn fits(self, physical_bits: u32) -> bool {
        let end = if self.above > 0 {
            ABOVE_DEVICES_GPA + self.above
        } else {
            self.below
        };
        physical_bits >= u64::BITS || end <= 1 << physical_bits
    }

    /// The guest-physical address of a byte of RAM, counted from the first.
    #[inline]
    #[must_use]
    pub const fn gpa_of(self, offset: u64) -> u64 {
        match offset.checked_sub(self.below) {
            None => offset,
            Some(above) => ABOVE_DEVICES_GPA.wrapping_add(above),
        }
    }

    /// Which byte of RAM is at an address, counted from the first; `None` where there is none.
    #[inline]
    #[must_use]
    pub const fn offset_of(self, gpa: u64) -> Option<u64> {
        if gpa < self.below {
            return Some(gpa);
        }
        match gpa.checked_sub(ABOVE_DEVICES_GPA) {
            Some(above) if above < self.above => Some(self.below + above),
            _ => None,
        }
    }

    /// Whether all of a range is RAM.
    #[must_use]
    pub const fn is_ram(self, gpa: u64, bytes: u64) -> bool {
        let Some(end) = gpa.checked_add(bytes) else {
            return false;
        };
        end <= self.below || gpa >= ABOVE_DEVICES_GPA && end - ABOVE_DEVICES_GPA <= self.above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_goes_on_behind_the_devices() {
        let eight = Layout::new(8 * GIB, u64::MAX);
        assert_eq!((eight.below(), eight.above()), (3 * GIB, 5 * GIB));
        for (offset, gpa) in [
            (0, 0),
            (3 * GIB - 1, 3 * GIB - 1),
            (3 * GIB, 4 * GIB),
            (5 * GIB, 6 * GIB),
            (8 * GIB - 1, 9 * GIB - 1),
        ] {
            assert_eq!(eight.gpa_of(offset), gpa);
            assert_eq!(eight.offset_of(gpa), Some(offset));
        }
        for gpa in [3 * GIB, 4 * GIB - 1, 9 * GIB, u64::MAX] {
            assert_eq!(eight.offset_of(gpa), None, "{gpa:#x}");
        }
        let one = Layout::new(GIB, u64::MAX);
        assert_eq!((one.below(), one.above()), (GIB, 0));
        assert_eq!(one.offset_of(GIB), None);
        assert!(eight.fits(34) && !eight.fits(33) && eight.fits(64));
        assert!(one.fits(30) && !one.fits(29));
        let divided = Layout::new(GIB, GIB / 4);
        assert_eq!((divided.below(), divided.above()), (GIB / 4, GIB / 4 * 3));
        assert_eq!(divided.gpa_of(GIB / 4), 4 * GIB);
    }

    #[test]
    fn a_range_is_ram_if_all_of_it_is() {
        for (gpa, bytes, memory, expected) in [
            (0, GIB, GIB, true),
            (0, GIB + 1, GIB, false),
            (GIB, 1, GIB, false),
            (3 * GIB - 1, 1, 5 * GIB, true),
            (3 * GIB - 1, 2, 5 * GIB, false),
            (3 * GIB, 1, 5 * GIB, false),
            (4 * GIB - 1, 1, 5 * GIB, false),
            (4 * GIB - 1, 2, 5 * GIB, false),
            (4 * GIB, 2 * GIB, 5 * GIB, true),
            (4 * GIB, 2 * GIB + 1, 5 * GIB, false),
            (4 * GIB, 1, 3 * GIB, false),
            (3 * GIB - 1, GIB + 2, 5 * GIB, false),
            (u64::MAX, 1, u64::MAX, false),
        ] {
            let layout = Layout::new(memory, u64::MAX);
            assert_eq!(
                layout.is_ram(gpa, bytes),
                expected,
                "{gpa:#x} {bytes:#x} of {memory:#x}"
            );
        }
    }
}
