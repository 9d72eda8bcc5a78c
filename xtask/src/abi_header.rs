//! The contract with guests as a C header: `guest-kmod/include/uapi/nagaya_abi.h`, made from `guest-abi`.
//!
//! Numbers are taken from the crate itself. Structures are listed here once more, by the names and types of their fields, with
//! their offsets in Rust; the header asserts them, so that a C compiler finds what this list has wrong, and a field without a
//! line here is found by the sizes.

use core::mem::offset_of;
use std::fmt::Write as _;

use guest_abi::boot::BootInfo;
use guest_abi::{
    Errno, ExitKind, GroupInfo, GroupPage, InfoPage, MemberEntry, MemberState, Number, cpuid,
    group, hypercall, info,
};

/// Where it lies.
/// Where it lies, from the root.
pub(crate) const FILE: &str = "guest-kmod/include/uapi/nagaya_abi.h";

/// A field: its declaration in C, its name, its offset in Rust.
struct Field(&'static str, &'static str, usize);

struct Struct {
    name: &'static str,
    what: &'static str,
    size: usize,
    fields: Vec<Field>,
}

macro_rules! fields {
    ($rust:ty: $($name:ident $c:literal),* $(,)?) => {
        vec![$(Field($c, stringify!($name), offset_of!($rust, $name))),*]
    };
}

fn structs() -> Vec<Struct> {
    vec![
        Struct {
            name: "nagaya_abi_member",
            what: "One member in the group page.",
            size: size_of::<MemberEntry>(),
            fields: fields!(MemberEntry:
                state "__u32 state", vm_id "__u32 vm_id", mapped "__u32 mapped", vcpus "__u32 vcpus",
                exit_code "__s64 exit_code", incarnation "__u64 incarnation", name "__u8 name[NAGAYA_NAME_BYTES]"),
        },
        Struct {
            name: "nagaya_abi_group_page",
            what: "The group page, read-only; sequence is odd while it is being changed.",
            size: size_of::<GroupPage>(),
            fields: fields!(GroupPage:
                magic "__u64 magic", abi_version "__u32 abi_version", group_id "__u32 group_id",
                sequence "__u64 sequence", generation "__u64 generation", region_pages "__u64 region_pages",
                region_va "__u64 region_va", member_count "__u32 member_count", address_any "__u32 address_any",
                name "__u8 name[NAGAYA_NAME_BYTES]", reserved "__u64 reserved[5]",
                members "struct nagaya_abi_member members[NAGAYA_MAX_MEMBERS]"),
        },
        Struct {
            name: "nagaya_abi_boot_info",
            what: "What RDI points to at a native guest's entry.",
            size: size_of::<BootInfo>(),
            fields: fields!(BootInfo:
                magic "__u64 magic", abi_version "__u32 abi_version", vm_id "__u32 vm_id",
                memory_bytes "__u64 memory_bytes", image_start_gpa "__u64 image_start_gpa",
                image_end_gpa "__u64 image_end_gpa", tsc_khz "__u64 tsc_khz", group_page_gpa "__u64 group_page_gpa",
                info_page_gpa "__u64 info_page_gpa", cmdline_gpa "__u64 cmdline_gpa",
                cmdline_bytes "__u64 cmdline_bytes", vcpus "__u32 vcpus", member_index "__u32 member_index",
                bare_hypercall "__u64 bare_hypercall", name "__u8 name[NAGAYA_NAME_BYTES]"),
        },
        Struct {
            name: "nagaya_abi_group_info",
            what: "What the hypercall group_info copies out.",
            size: size_of::<GroupInfo>(),
            fields: fields!(GroupInfo:
                abi_version "__u32 abi_version", group_id "__u32 group_id", member_index "__u32 member_index",
                member_count "__u32 member_count", region_pages "__u64 region_pages", region_va "__u64 region_va",
                group_page_gpa "__u64 group_page_gpa", generation "__u64 generation"),
        },
        Struct {
            name: "nagaya_abi_info_page",
            what: "The info page of one vCPU, read-only.",
            size: size_of::<InfoPage>(),
            fields: fields!(InfoPage:
                magic "__u64 magic", abi_version "__u32 abi_version", vcpu "__u32 vcpu",
                exits "__u64 exits[NAGAYA_EXIT_KINDS]", doorbells_received "__u64 doorbells_received",
                stolen_ticks "__u64 stolen_ticks", halt_events "__u64 halt_events"),
        },
    ]
}

const HEAD: &str = "\
/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * The contract between Nagaya and its guests. Made from the Rust crate
 * guest-abi by `cargo xtask tidy --write`; do not change it here.
 */
#ifndef _UAPI_NAGAYA_ABI_H
#define _UAPI_NAGAYA_ABI_H

#include <linux/types.h>

";

/// The header's text.
pub(crate) fn text() -> String {
    let mut out = HEAD.to_owned();
    let mut section = |title: &str, lines: &[(String, String)]| {
        let _ = writeln!(out, "/* {title} */");
        for (name, value) in lines {
            // Tabs as the kernel's style has them: values begin at column 48 where the names allow.
            let tabs = 5_usize.saturating_sub(name.len() / 8).max(1);
            let _ = writeln!(out, "#define {name}{}{value}", "\t".repeat(tabs));
        }
        out.push('\n');
    };
    let number = |name: &str, value: u64| (format!("NAGAYA_{name}"), value.to_string());
    let hex = |name: &str, value: u64| (format!("NAGAYA_{name}"), format!("{value:#x}"));
    section(
        "Version and sizes",
        &[
            number("ABI_MAJOR", guest_abi::ABI_MAJOR.into()),
            number("ABI_MINOR", guest_abi::ABI_MINOR.into()),
            number("PAGE_BYTES", guest_abi::PAGE_BYTES),
            number("DEFAULT_REGION_PAGES", guest_abi::DEFAULT_REGION_PAGES),
            number("MAX_MEMBERS", guest_abi::MAX_MEMBERS as u64),
            number("LIFE_SHIFT", group::LIFE_SHIFT.into()),
            number("MAX_VCPUS", guest_abi::boot::MAX_VCPUS.into()),
            number("NAME_BYTES", guest_abi::NAME_BYTES as u64),
        ],
    );
    section(
        "CPUID: leaves, relative to the one with the signature; features",
        &[
            (
                "NAGAYA_CPUID_SIGNATURE".into(),
                format!("{:?}", String::from_utf8_lossy(&cpuid::SIGNATURE)),
            ),
            number(
                "CPUID_VERSION",
                (cpuid::LEAF_VERSION - cpuid::LEAF_SIGNATURE).into(),
            ),
            number(
                "CPUID_TIME",
                (cpuid::LEAF_TIME - cpuid::LEAF_SIGNATURE).into(),
            ),
            hex("FEATURE_GROUP", cpuid::FEATURE_GROUP.into()),
            hex(
                "FEATURE_DOORBELL_VECTOR",
                cpuid::FEATURE_DOORBELL_VECTOR.into(),
            ),
            hex("FEATURE_DETERMINISTIC", cpuid::FEATURE_DETERMINISTIC.into()),
            hex("FEATURE_EOI_WORD", cpuid::FEATURE_EOI_WORD.into()),
        ],
    );
    section(
        "Hypercalls",
        &Number::ALL.map(|call| {
            hex(
                &format!("CALL_{}", constant(&format!("{call:?}"))),
                call as u64,
            )
        }),
    );
    section(
        "What NAGAYA_CALL_FORGET takes back",
        &[
            hex("FORGET_REGION", hypercall::FORGET_REGION),
            hex("FORGET_DOORBELLS", hypercall::FORGET_DOORBELLS),
            hex("FORGET_VCPU", hypercall::FORGET_VCPU),
        ],
    );
    section(
        "Channels of NAGAYA_CALL_CONSOLE",
        &[
            number("CONSOLE_TEXT", hypercall::CONSOLE_TEXT),
            number("CONSOLE_EVENT", hypercall::CONSOLE_EVENT),
        ],
    );
    section(
        "A native guest's entry: RDI, RSP, control registers, where images begin, the magic of what RDI points to",
        &[
            hex("BOOT_INFO_GPA", guest_abi::boot::BOOT_INFO_GPA),
            hex("BOOT_STACK_POINTER", guest_abi::boot::BOOT_STACK_POINTER),
            hex("BOOT_CR0", guest_abi::boot::BOOT_CR0),
            hex("BOOT_CR4", guest_abi::boot::BOOT_CR4),
            hex("BOOT_EFER", guest_abi::boot::BOOT_EFER),
            hex("IMAGE_BASE_GPA", guest_abi::boot::IMAGE_BASE_GPA),
            hex("BOOT_MAGIC", guest_abi::boot::BOOT_MAGIC),
        ],
    );
    section(
        "Errors of hypercalls, negative in RAX; they are errno(3)'s",
        &Errno::ALL.map(|errno| number(&format!("ERROR_{}", errno.name()), errno as u64)),
    );
    section(
        "Events: bit n says that member n rang",
        &[(
            "NAGAYA_EVENT_GROUP_CHANGED".into(),
            format!(
                "(1ULL << {})",
                hypercall::WAIT_GROUP_CHANGED.trailing_zeros()
            ),
        )],
    );
    section(
        "Guest-physical addresses of pages, and what they begin with",
        &[
            hex("GROUP_PAGE_GPA", guest_abi::boot::GROUP_PAGE_GPA),
            hex("INFO_PAGE_GPA", guest_abi::boot::INFO_PAGE_GPA),
            hex("GROUP_MAGIC", group::GROUP_MAGIC),
            hex("INFO_MAGIC", info::INFO_MAGIC),
        ],
    );
    let states: Vec<_> = (0..)
        .map_while(MemberState::from_raw)
        .map(|state| {
            number(
                &format!("MEMBER_{}", constant(&format!("{state:?}"))),
                state as u64,
            )
        })
        .collect();
    section("States of a member", &states);
    let mut kinds = ExitKind::ALL.to_vec();
    kinds.sort_by_key(|kind| *kind as usize);
    let mut exits: Vec<_> = kinds
        .into_iter()
        .map(|kind| {
            number(
                &format!("EXIT_{}", constant(&format!("{kind:?}"))),
                kind as u64,
            )
        })
        .collect();
    exits.push(number("EXIT_KINDS", ExitKind::COUNT as u64));
    section("Kinds of VM exits: indices into the info page", &exits);
    for Struct {
        name,
        what,
        size,
        fields,
    } in structs()
    {
        let _ = writeln!(out, "/* {what} {size} bytes. */\nstruct {name} {{");
        for Field(c, ..) in &fields {
            let _ = writeln!(out, "\t{c};");
        }
        out.push_str("};\n\n");
    }
    out.push_str(
        "#if !defined(__cplusplus) && defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L\n",
    );
    for Struct {
        name, size, fields, ..
    } in structs()
    {
        let _ = writeln!(
            out,
            "_Static_assert(sizeof(struct {name}) == {size},\n\t       \"size of {name}\");"
        );
        for Field(_, field, offset) in &fields {
            let _ = writeln!(
                out,
                "_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset},\n\t       \"offset of {field}\");"
            );
        }
    }
    out.push_str("#endif\n\n#endif /* _UAPI_NAGAYA_ABI_H */\n");
    out
}

/// `GroupInfo` as a constant's name: `GROUP_INFO`.
fn constant(name: &str) -> String {
    let mut constant = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_ascii_uppercase() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::Cmd;

    #[test]
    fn the_header_in_the_tree_is_what_the_crate_says() {
        let found = std::fs::read_to_string(crate::paths::root().join(FILE)).expect("is there");
        assert!(
            found == text(),
            "{FILE} is stale: `cargo xtask tidy --write` renews it"
        );
    }

    #[test]
    fn a_c_compiler_finds_the_structures_laid_out_as_in_rust() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = folder.path().join("abi.c");
        std::fs::write(&source, text()).expect("is written");
        Cmd::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
            .arg(&source)
            .read()
            .expect("compiles");
    }

    #[test]
    fn names_are_spelled_as_constants() {
        assert_eq!(constant("GroupInfo"), "GROUP_INFO");
        assert_eq!(constant("Absent"), "ABSENT");
    }
}
