//! The contract between the Nagaya hypervisor and its guests: hypercall numbers, memory layouts, errors.
//!
//! This crate has no dependencies and holds no code that touches the machine, so that the hypervisor, guests, host tools
//! and tests all compile the very same definitions. The prose of the contract is `docs/ABI.md`; the runtime that turns
//! it into a safe API for Rust guests is `nagaya-rt`.
//!
//! Concurrency: every structure that the hypervisor writes while guests read is documented field by field with who
//! writes it and when.

#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod cpuid;
pub mod errno;
pub mod group;
pub mod hypercall;
pub mod info;
pub mod process;

pub use boot::BootInfo;
pub use errno::Errno;
pub use group::{GroupInfo, GroupPage, MemberEntry, MemberState};
pub use hypercall::Number;
pub use info::{ExitKind, InfoPage};
pub use process::{ChildEnd, ChildStatus};

/// Major number of the contract: a guest built for another one must not run.
pub const ABI_MAJOR: u16 = 1;
/// Minor number of the contract: grows with additions that old guests cannot notice.
pub const ABI_MINOR: u16 = 3;
/// The version as CPUID, the `version` hypercall and every shared page give it: `major << 16 | minor`.
pub const ABI_VERSION: u32 = (ABI_MAJOR as u32) << 16 | ABI_MINOR as u32;

/// Bytes in a page, the granule of everything in the contract.
pub const PAGE_BYTES: u64 = 4096;
/// Pages of a group's shared region unless the scenario says otherwise (paper 000: 1025 pages).
pub const DEFAULT_REGION_PAGES: u64 = 1025;
/// Most members a group can have; a doorbell mask has one bit for each.
pub const MAX_MEMBERS: usize = 32;
/// Bytes of a name (VM or group) in a shared structure, padded with zeros.
pub const NAME_BYTES: usize = 32;

/// Copies a name into its fixed field: cut at [`NAME_BYTES`] bytes (never inside a UTF-8 character), padded with zeros.
#[must_use]
pub fn pack_name(name: &str) -> [u8; NAME_BYTES] {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let mut field = [0; NAME_BYTES];
    for (slot, byte) in field.iter_mut().zip(&name.as_bytes()[..end]) {
        *slot = *byte;
    }
    field
}

/// Reads a name out of its fixed field: up to the first zero byte, empty if it is not UTF-8.
#[must_use]
pub fn unpack_name(field: &[u8; NAME_BYTES]) -> &str {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(NAME_BYTES);
    core::str::from_utf8(&field[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_packing() {
        assert_eq!(unpack_name(&pack_name("ping")), "ping");
        assert_eq!(unpack_name(&pack_name("")), "");
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let long = "ab長屋長屋長屋長屋長屋長屋長屋"; // 2 + 14 * 3 bytes: byte 32 is the end of a character
        assert_eq!(unpack_name(&pack_name(long)), "ab長屋長屋長屋長屋長屋");
        let odd = "a長屋長屋長屋長屋長屋長屋"; // byte 32 is inside a character
        assert_eq!(unpack_name(&pack_name(odd)), "a長屋長屋長屋長屋長屋");
    }
}
