//! The kernel with a header whose address fields say what of the file goes where: for an ELF file as for a flat one.
#![cfg_attr(target_os = "none", no_std, no_main)]
// The header is assembly.
#![allow(unsafe_code)]

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .multiboot, \"a\"",
    ".balign 4",
    // Modules on pages, memory is told, and the address fields are there.
    "10: .long 0x1BADB002, 0x10003, -(0x1BADB002 + 0x10003)",
    ".long 10b, kernel_start, kernel_data_end, kernel_end, multiboot_entry",
    ".popsection",
);

nagaya_multiboot::kernel!();
