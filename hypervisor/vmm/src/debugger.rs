//! What a debugger sets in a guest's CPU: hardware breakpoints and watchpoints, and whose a debug exception is.
//!
//! The guest keeps debug registers of its own: while a debugger uses the CPU's, MOV DR exits and is answered out of
//! [`GuestDebugRegisters`].
//!
//! Source: Intel SDM Vol. 3, "Debug Registers", "Debug Exceptions".

use serde::{Deserialize, Serialize};
use x86_defs::cr::Rflags;

/// Hardware breakpoints and watchpoints that a CPU has.
pub const HARDWARE_SLOTS: usize = 4;
/// Most software breakpoints of one VM.
pub const MAX_SOFTWARE_BREAKPOINTS: usize = 256;
/// The instruction of a software breakpoint: INT3.
pub const INT3: u8 = 0xCC;

/// What a hardware breakpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// The instruction at its address.
    Execute,
    /// A write.
    Write,
    /// A read or a write: x86 has none for reads alone.
    Access,
}

/// A hardware breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Linear address, a multiple of `bytes`.
    pub address: u64,
    /// 1, 2, 4 or 8; 1 for [`Watch::Execute`].
    pub bytes: u8,
    /// For what.
    pub watch: Watch,
}

impl Hardware {
    /// Whether a CPU can do that.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let fits = match self.watch {
            Watch::Execute => self.bytes == 1,
            Watch::Write | Watch::Access => matches!(self.bytes, 1 | 2 | 4 | 8),
        };
        fits && self.address.is_multiple_of(u64::from(self.bytes))
    }

    /// LEN and R/W of its place in DR7 ("Debug Control Register (DR7)").
    const fn condition(&self) -> u64 {
        let length = match self.bytes {
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => 0b00,
        };
        let kind = match self.watch {
            Watch::Execute => 0b00,
            Watch::Write => 0b01,
            Watch::Access => 0b11,
        };
        length << 2 | kind
    }
}

/// The hardware breakpoints of a VM: the same for each of its vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardwareSlots([Option<Hardware>; HARDWARE_SLOTS]);

/// DR7: bit 10 is always set.
const DR7_FIXED: u64 = 1 << 10;

impl HardwareSlots {
    /// Takes one in; false if all slots are in use. One that is there already stays.
    #[must_use]
    pub fn add(&mut self, wanted: Hardware) -> bool {
        if self.0.contains(&Some(wanted)) {
            return true;
        }
        match self.0.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(wanted);
                true
            }
            None => false,
        }
    }

    /// Takes one out; false if it is not there.
    #[must_use]
    pub fn remove(&mut self, unwanted: Hardware) -> bool {
        match self.0.iter_mut().find(|slot| **slot == Some(unwanted)) {
            Some(slot) => {
                *slot = None;
                true
            }
            None => false,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// DR0 to DR3.
    #[must_use]
    pub fn addresses(&self) -> [u64; HARDWARE_SLOTS] {
        self.0.map(|slot| slot.map_or(0, |slot| slot.address))
    }

    /// DR7: each enabled for all tasks.
    #[must_use]
    pub fn dr7(&self) -> u64 {
        (0..)
            .zip(&self.0)
            .filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
            .fold(DR7_FIXED, |dr7, (index, slot): (u32, &Hardware)| {
                dr7 | 0b10 << (2 * index) | slot.condition() << (16 + 4 * index)
            })
    }

    /// The first that the causes of a #DB (bits of DR6) name.
    #[must_use]
    pub fn hit(&self, causes: u64) -> Option<Hardware> {
        (0..)
            .zip(&self.0)
            .find_map(|(index, slot): (u32, _)| slot.filter(|_| causes >> index & 1 != 0))
    }

    /// Whether one of them waits for the instruction at that address.
    #[must_use]
    pub fn has_instruction(&self, linear: u64) -> bool {
        self.0
            .iter()
            .flatten()
            .any(|slot| slot.watch == Watch::Execute && slot.address == linear)
    }
}

/// The guest's own debug registers while a debugger uses those of the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestDebugRegisters {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR7.
    pub dr7: u64,
}

/// What a MOV DR comes to. DR6 stays the CPU's: whatever a debugger causes is not noted in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugRegister {
    /// DR0 to DR3, or DR7: in [`GuestDebugRegisters`].
    Kept,
    /// DR6: in the CPU.
    Dr6,
    /// DR4 and DR5 where CR4.DE is set: #UD.
    Undefined,
}

/// Which register a MOV DR means.
#[must_use]
pub fn debug_register(number: u8, has_debug_extensions: bool) -> DebugRegister {
    match number {
        4 | 5 if has_debug_extensions => DebugRegister::Undefined,
        4 | 6 => DebugRegister::Dr6,
        _ => DebugRegister::Kept,
    }
}

impl GuestDebugRegisters {
    /// What MOV from a debug register reads; 0 for what is not kept here.
    #[must_use]
    pub fn read(&self, number: u8) -> u64 {
        match number {
            5 | 7 => self.dr7,
            _ => self.addresses.get(usize::from(number)).map_or(0, |it| *it),
        }
    }

    /// What MOV to a debug register writes; false: the upper half of DR7 must be 0 (#GP).
    #[must_use]
    pub fn write(&mut self, number: u8, value: u64) -> bool {
        match number {
            5 | 7 if value >> 32 != 0 => return false,
            5 | 7 => self.dr7 = value & !0xD800 | DR7_FIXED,
            _ => {
                if let Some(address) = self.addresses.get_mut(usize::from(number)) {
                    *address = value;
                }
            }
        }
        true
    }
}

/// Flags that a debugger may change: those that computing sets, and DF. Others decide what may be delivered, or are borrowed.
const CHANGEABLE: u64 = Rflags::CF
    .union(Rflags::PF)
    .union(Rflags::AF)
    .union(Rflags::ZF)
    .union(Rflags::SF)
    .union(Rflags::DF)
    .union(Rflags::OF)
    .bits();

/// RFLAGS after a debugger has set them.
///
/// # Errors
/// The bits that it would change and must not.
pub const fn changed_flags(now: u64, wanted: u64) -> Result<u64, u64> {
    match (now ^ wanted) & !CHANGEABLE {
        0 => Ok(wanted),
        refused => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: u64, bytes: u8, watch: Watch) -> Hardware {
        Hardware {
            address,
            bytes,
            watch,
        }
    }

    #[test]
    fn dr7_says_of_each_slot_how_long_and_for_what() {
        let mut slots = HardwareSlots::default();
        assert_eq!(slots.dr7(), 0x400);
        assert!(slots.is_empty());
        assert!(slots.add(at(0x1000, 1, Watch::Execute)));
        assert!(slots.add(at(0x2000, 8, Watch::Write)));
        assert!(slots.add(at(0x3004, 4, Watch::Access)));
        // G0 to G2; LEN and R/W of slot 1: 10 01, of slot 2: 11 11 (figure "Debug Registers").
        assert_eq!(slots.dr7(), 0x400 | 0b10_1010 | 0b1001 << 20 | 0b1111 << 24);
        assert_eq!(slots.addresses(), [0x1000, 0x2000, 0x3004, 0]);
        assert!(slots.has_instruction(0x1000) && !slots.has_instruction(0x2000));
    }

    #[test]
    fn a_fifth_is_refused_and_a_slot_that_was_given_back_is_used_again() {
        let mut slots = HardwareSlots::default();
        for index in 0..4 {
            assert!(slots.add(at(index, 1, Watch::Write)));
        }
        // The same once more takes no slot.
        assert!(slots.add(at(3, 1, Watch::Write)));
        assert!(!slots.add(at(4, 1, Watch::Write)));
        assert!(!slots.remove(at(4, 1, Watch::Write)));
        assert!(slots.remove(at(1, 1, Watch::Write)));
        assert!(slots.add(at(4, 1, Watch::Write)));
        assert_eq!(slots.addresses(), [0, 4, 2, 3]);
        assert_eq!(slots.hit(0b0010), Some(at(4, 1, Watch::Write)));
        assert_eq!(slots.hit(1 << 14), None);
    }

    #[test]
    fn only_what_a_cpu_can_watch_is_possible() {
        assert!(at(0x1001, 1, Watch::Execute).is_possible());
        assert!(!at(0x1000, 4, Watch::Execute).is_possible());
        assert!(at(0x1008, 8, Watch::Write).is_possible());
        assert!(!at(0x1004, 8, Watch::Write).is_possible());
        assert!(!at(0x1000, 3, Watch::Access).is_possible());
        assert!(!at(0x1000, 0, Watch::Access).is_possible());
    }

    #[test]
    fn the_guest_finds_in_its_registers_what_it_put_there() {
        let mut guest = GuestDebugRegisters::default();
        assert!(guest.write(2, 0xFFFF_8000_0000_1234));
        assert_eq!(guest.read(2), 0xFFFF_8000_0000_1234);
        assert!(guest.write(7, 0xFFFF_FFFF));
        // Bits 11, 12, 14 and 15 are 0, bit 10 is 1.
        assert_eq!(guest.read(7), 0xFFFF_27FF);
        assert_eq!(guest.read(5), guest.read(7));
        assert!(!guest.write(7, 1 << 32));
        assert_eq!(debug_register(4, true), DebugRegister::Undefined);
        assert_eq!(debug_register(4, false), DebugRegister::Dr6);
        assert_eq!(debug_register(6, true), DebugRegister::Dr6);
        assert_eq!(debug_register(7, true), DebugRegister::Kept);
    }

    #[test]
    fn flags_that_decide_of_interrupts_and_steps_stay() {
        assert_eq!(changed_flags(0x202, 0x246), Ok(0x246));
        assert_eq!(changed_flags(0x202, 0x002), Err(0x200));
        assert_eq!(changed_flags(0x202, 0x1_0302), Err(0x1_0100));
    }
}
