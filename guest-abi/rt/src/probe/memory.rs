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

/// What 32 bits of a device become by XCHG with 5, then INC, BTS 3, BTR 1, NEG, NOT, DEC, and ADC 1 with a carry; and what the
/// exchange found. For registers that make no device touch memory.
pub fn changes(address: u64) -> ([u32; 8], u32) {
    check(address);
    let mut after = [0; 8];
    let [first, rest @ ..] = &mut after;
    let mut found = 5_u32;
    // SAFETY: as in `store_and_or`.
    unsafe {
        asm!("xchg dword ptr [{at}], {value:e}", at = in(reg) address, value = inout(reg) found, options(nostack));
    }
    *first = loads_32(address);
    macro_rules! change {
        ($($instruction:literal),*) => {
            [$({
                // SAFETY: as in `store_and_or`.
                unsafe { asm!($instruction, at = in(reg) address, options(nostack)) };
                loads_32(address)
            }),*]
        };
    }
    *rest = change!(
        "inc dword ptr [{at}]",
        "bts dword ptr [{at}], 3",
        "btr dword ptr [{at}], 1",
        "neg dword ptr [{at}]",
        "not dword ptr [{at}]",
        "dec dword ptr [{at}]",
        "stc\nadc dword ptr [{at}], 1"
    );
    (after, found)
}

/// Bytes of a device by REP MOVSB.
pub fn read_string(address: u64, target: &mut [u8]) {
    check(address);
    // SAFETY: no RAM is where it reads, and `target` has room for what it writes.
    unsafe {
        asm!("rep movsb", inout("rsi") address => _, inout("rdi") target.as_mut_ptr() => _, inout("rcx") target.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Writes 32 bits to a device by MOVSD, then others by STOSD; what a load finds after each.
pub fn write_strings(address: u64, moved: u32, stored: u32) -> [u32; 2] {
    check(address);
    // SAFETY: as in `store_and_or`; it reads `moved`.
    unsafe {
        asm!("movsd", inout("rsi") &raw const moved => _, inout("rdi") address => _, options(nostack, preserves_flags));
    }
    let first = loads_32(address);
    // SAFETY: as in `store_and_or`.
    unsafe {
        asm!("stosd", inout("rdi") address => _, in("eax") stored, options(nostack, preserves_flags));
    }
    [first, loads_32(address)]
}
