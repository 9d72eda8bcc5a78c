//! Whether Rust and C mean the same by `/dev/nagaya`'s ioctls and by what lies in the region.
#![cfg(all(feature = "linux", not(loom)))]

use core::fmt::Write as _;
use core::mem::{align_of, offset_of};
use std::process::Command;

use nagaya_rt::linux::uapi::{self, Group, Life, Map, Member, Version, Wait};
use nagaya_rt::sync::{Barrier, RingHeader, SpinLock};

/// A program that asserts each expression of C to have the value that Rust gives it.
fn assertions() -> String {
    let mut text = "#include \"libnagaya.h\"\n#include <sys/ioctl.h>\n".to_owned();
    let mut assert = |c: &str, rust: u64| {
        let _ = writeln!(text, "_Static_assert(({c}) == {rust}ULL, \"{c}\");");
    };
    assert("NAGAYA_OFFSET_GROUP_PAGE", uapi::OFFSET_GROUP_PAGE);
    for (c, rust) in [
        ("VERSION", uapi::VERSION),
        ("GROUP", uapi::GROUP),
        ("MEMBER", uapi::MEMBER),
        ("MAP", uapi::MAP),
        ("DOORBELL", uapi::DOORBELL),
        ("DOORBELL_LIFE", uapi::DOORBELL_LIFE),
        ("WAIT", uapi::WAIT),
    ] {
        assert(&format!("NAGAYA_IOC_{c}"), u64::from(rust));
    }
    macro_rules! layout {
        ($rust:ty, $c:literal: $($field:ident)*) => {
            assert(concat!("sizeof(struct ", $c, ")"), size_of::<$rust>() as u64);
            $(assert(
                concat!("offsetof(struct ", $c, ", ", stringify!($field), ")"),
                offset_of!($rust, $field) as u64,
            );)*
        };
    }
    layout!(Version, "nagaya_version": abi_version features vm_id driver_version);
    layout!(Group, "nagaya_group": group_id member_index member_count address_any region_bytes region_address
        mapped_address generation name);
    layout!(Member, "nagaya_member": index state vm_id vcpus mapped reserved exit_code incarnation name);
    layout!(Map, "nagaya_map": address bytes flags reserved);
    layout!(Life, "nagaya_life": member reserved incarnation);
    layout!(Wait, "nagaya_wait": timeout_ns events);
    layout!(SpinLock, "nagaya_lock":);
    layout!(Barrier, "nagaya_barrier":);
    layout!(RingHeader, "nagaya_ring_header":);
    assert(
        "_Alignof(struct nagaya_barrier)",
        align_of::<Barrier>() as u64,
    );
    assert(
        "_Alignof(struct nagaya_ring_header)",
        align_of::<RingHeader>() as u64,
    );
    text
}

#[test]
fn rust_and_c_have_the_same_layouts_and_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("uapi.c");
    std::fs::write(&source, assertions()).expect("is written");
    let kmod = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-kmod");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-fsyntax-only"])
        .arg(format!("-I{kmod}/lib"))
        .arg(format!("-I{kmod}/include/uapi"))
        .arg(&source)
        .output()
        .expect("cc runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
