//! `nagayactl snapshot`: no machine is asked.

use std::path::Path;
use std::process::Command;

use nagaya_vmm::snapshot::{Header, Reader, Snapshot, Writer, sample};
use serde_json::Value;

fn verify(file: &Path, more: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nagayactl"));
    // Without a machine: it would be looked for, and found to be missing.
    command.args(["--connect", "/nowhere", "snapshot", "verify"]);
    let output = command.arg(file).args(more).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_snapshot_is_checked_and_what_is_in_it_is_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("web.snapshot");
    let bytes = sample::snapshot().to_bytes().expect("fits");
    std::fs::write(&file, &bytes).expect("is written");
    let (is_success, text, errors) = verify(&file, &[]);
    assert!(is_success, "{errors}");
    let abi = guest_abi::ABI_VERSION;
    let expected = format!(
        "\
VM \"web\", number 3: multiboot, 128M, 2 vCPUs
contract {}.{}
saved at TSC 5000000000 of 1000000 kHz, 1800000000 s after 1970
member 1 of group \"pair\": region of {} pages at 0x4000000000
vCPU 0: halted, RIP 0x100000
vCPU 1: halted, RIP 0x100000
slot 1: network card
slot 2: source of entropy
slot 3: console
slot 4: disk
needs xsave avx sse avx2 lahf long-mode xcr0 bit 0 xcr0 bit 1 xcr0 bit 2

",
        abi >> 16,
        abi & 0xFFFF,
        guest_abi::DEFAULT_REGION_PAGES
    );
    assert!(text.starts_with(&expected), "{text}");
    assert!(
        text.contains("\nRECORD    NUMBER  VERSION  BYTES\nvm             1        1"),
        "{text}"
    );
    assert!(text.ends_with("\nIt is whole, and every part of it can be restored.\n"));
    let (is_success, text, _) = verify(&file, &["--json"]);
    assert!(is_success);
    let json: Value = serde_json::from_str(&text).expect("is JSON");
    assert_eq!(json["vm"]["name"], "web");
    assert_eq!(json["records"].as_array().map(Vec::len), Some(6));
    assert_eq!(json["devices"][3]["device"], "disk");
}

#[test]
fn what_is_damaged_or_not_known_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad");
    let bytes = sample::snapshot().to_bytes().expect("fits");
    let said = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("is written");
        let (is_success, text, errors) = verify(&file, &[]);
        assert!(!is_success && text.is_empty(), "{text}");
        errors
    };
    assert!(said(b"\x7FELF").contains("this is no snapshot of a VM"));
    assert!(said(&bytes[..100]).contains("it ends at byte 100, in a record: it was cut off"));
    let mut snapshot = sample::snapshot();
    snapshot.vcpus[1].xcr0 = 5;
    let error = said(&snapshot.to_bytes().expect("fits"));
    assert!(
        error.contains("record vcpu: vcpu[1].xcr0 is 0x5"),
        "{error}"
    );
    let reader = Reader::new(&bytes).expect("is one");
    let Header { abi, features } = *reader.header();
    let mut writer = Writer::new(&Header { abi, features });
    assert!(writer.record(4711, 1, true, b"news"));
    let error = said(&writer.end());
    assert!(
        error.contains("has number 4711, which is needed and not known"),
        "{error}"
    );
    let (is_success, _, errors) = verify(&directory.path().join("none"), &[]);
    assert!(!is_success && errors.contains("cannot read"), "{errors}");
    // What it is refused for is what the hypervisor would say.
    assert!(Snapshot::from_bytes(&bytes).is_ok());
}
