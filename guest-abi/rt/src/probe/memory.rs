//! Memory of devices, accessed by given instructions: to see that each of them is carried out as the CPU would.

use core::arch::asm;
use core::ops::RangeInclusive;

use guest_abi::boot;

/// Addresses that hold no RAM, so that no access touches anything of Rust's.
const DEVICES: RangeInclusive<u64> = boot::DEVICE_SPACE_GPA..=0xFFFF_FFF8;

fn check(address: u64) {
    assert!(DEVICES.contains(&address), "{address:#x} is no device's");
}

/// What loads of each kind make of a register that was all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the instructions")]
pub struct Loads {
    pub mov_8: u64,
    pub mov_16: u64,
    pub mov_32: u64,
    pub mov_64: u64,
    pub movzx_8: u64,
    pub movsx_8_to_64: u64,
    pub movsx_16_to_32: u64,
    pub movsxd: u64,
}

/// Loads from a device in all ways.
#[must_use]
pub fn loads(address: u64) -> Loads {
    check(address);
    macro_rules! load {
        ($instruction:literal) => {{
            let value: u64;
            // SAFETY: no RAM is there; a device's registers have no effect on memory by being read.
            unsafe {
                asm!($instruction, value = inout(reg) u64::MAX => value, at = in(reg) address,
                    options(nostack, preserves_flags, readonly));
            }
            value
        }};
    }
    Loads {
        mov_8: load!("mov {value:l}, byte ptr [{at}]"),
        mov_16: load!("mov {value:x}, word ptr [{at}]"),
        mov_32: load!("mov {value:e}, dword ptr [{at}]"),
        mov_64: load!("mov {value}, qword ptr [{at}]"),
        movzx_8: load!("movzx {value:e}, byte ptr [{at}]"),
        movsx_8_to_64: load!("movsx {value}, byte ptr [{at}]"),
        movsx_16_to_32: load!("movsx {value:e}, word ptr [{at}]"),
        movsxd: load!("movsxd {value}, dword ptr [{at}]"),
    }
}

/// Whether `mask` has bits in common with 32 bits of a device, by TEST with memory.
#[must_use]
pub fn has_bits(address: u64, mask: u32) -> bool {
    check(address);
    let found: u8;
    // SAFETY: as in `loads`.
    unsafe {
        asm!("test dword ptr [{at}], {mask:e}", "setnz {found}", at = in(reg) address, mask = in(reg) mask,
            found = out(reg_byte) found, options(nostack, readonly));
    }
    found != 0
}

/// 32 bits of a device.
#[must_use]
pub fn read_u32(address: u64) -> u32 {
    loads_32(address)
}

fn loads_32(address: u64) -> u32 {
    check(address);
    let value: u32;
    // SAFETY: as in `loads`.
    unsafe {
        asm!("mov {value:e}, dword ptr [{at}]", value = out(reg) value, at = in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
    value
}

/// Stores 32 bits, then ORs 32 bits in. For registers that make no device touch memory.
pub fn store_and_or(address: u64, value: u32, bits: u32) {
    check(address);
    // SAFETY: no RAM is there, and the caller names a register by which a device starts nothing.
    unsafe {
        asm!("mov dword ptr [{at}], {value:e}", "or dword ptr [{at}], {bits:e}", at = in(reg) address, value = in(reg) value,
            bits = in(reg) bits, options(nostack));
    }
}

/// An access to a device that the hypervisor does not emulate: it ends the VM.
pub fn exchange(address: u64) -> u64 {
    check(address);
    let value: u64;
    // SAFETY: as in `loads`.
    unsafe {
        asm!("xchg {value}, qword ptr [{at}]", value = inout(reg) 0_u64 => value, at = in(reg) address, options(nostack));
    }
    value
}
