//! The kernel with a header without address fields: a loader takes the ELF file's program headers.
#![cfg_attr(target_os = "none", no_std, no_main)]
// The header is assembly.
#![allow(unsafe_code)]

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .multiboot, \"a\"",
    ".balign 4",
    // Modules on pages, and memory is told.
    ".long 0x1BADB002, 3, -(0x1BADB002 + 3)",
    ".popsection",
);

nagaya_multiboot::kernel!();
