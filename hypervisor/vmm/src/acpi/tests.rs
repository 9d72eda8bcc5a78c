use super::*;
use crate::platform::PCI_WINDOW;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::string::{String, ToString};
use std::{eprintln, format, fs};

const ALONE: AcpiConfig = AcpiConfig {
    vcpus: 1,
    in_group: false,
};
const EIGHT: AcpiConfig = AcpiConfig {
    vcpus: 8,
    in_group: true,
};

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Finds tables as a kernel does: by the RSDP, through the XSDT or the RSDT.
struct Memory(Vec<PlacedTable>);

impl Memory {
    fn at(&self, gpa: u64) -> &[u8] {
        let found = self.0.iter().find(|table| table.gpa == gpa);
        &found.expect("a table lies there").bytes
    }

    fn rsdp(&self) -> &[u8] {
        self.at(ACPI_GPA)
    }

    fn by_xsdt(&self) -> Vec<u64> {
        let xsdt = self.at(u64_at(self.rsdp(), 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        (36..xsdt.len())
            .step_by(8)
            .map(|at| u64_at(xsdt, at))
            .collect()
    }

    fn by_rsdt(&self) -> Vec<u64> {
        let rsdt = self.at(u32_at(self.rsdp(), 16).into());
        assert_eq!(&rsdt[..4], b"RSDT");
        let entries = (36..rsdt.len()).step_by(4);
        entries.map(|at| u32_at(rsdt, at).into()).collect()
    }

    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        let tables = self.by_xsdt();
        let mut found = tables.iter().map(|gpa| self.at(*gpa));
        found
            .find(|table| &table[..4] == signature)
            .expect("is in the XSDT")
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn every_table_has_its_length_and_its_checksum() {
    for config in [ALONE, EIGHT] {
        let memory = Memory(tables(&config));
        assert_eq!(&memory.rsdp()[..8], b"RSD PTR ");
        assert_eq!(u32_at(memory.rsdp(), 20), 36);
        assert_eq!((sum(&memory.rsdp()[..20]), sum(memory.rsdp())), (0, 0));
        for table in &memory.0[1..] {
            let signature = String::from_utf8_lossy(&table.bytes[..4]);
            assert_eq!(
                u32_at(&table.bytes, 4) as usize,
                table.bytes.len(),
                "{signature}"
            );
            if signature != "FACS" {
                assert_eq!(sum(&table.bytes), 0, "{signature}");
            }
        }
    }
}

#[test]
fn tables_lie_apart_aligned_in_the_bioss_memory() {
    let mut placed = tables(&EIGHT);
    assert_eq!(placed[0].gpa, ACPI_GPA, "where the search begins");
    placed.sort_by_key(|table| table.gpa);
    for pair in placed.windows(2) {
        assert!(pair[0].gpa + pair[0].bytes.len() as u64 <= pair[1].gpa);
    }
    for table in &placed {
        assert!(table.gpa % 16 == 0 && table.gpa + table.bytes.len() as u64 <= ACPI_END_GPA);
        assert!(&table.bytes[..4] != b"FACS" || table.gpa % 64 == 0);
    }
}

#[test]
fn old_and_new_kernels_find_the_same_tables() {
    let memory = Memory(tables(&ALONE));
    assert_eq!(memory.by_xsdt(), memory.by_rsdt());
    let fadt = memory.find(b"FACP");
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140), "the DSDT");
    assert_eq!(&memory.at(u64_at(fadt, 140))[..4], b"DSDT");
    assert_eq!(&memory.at(u32_at(fadt, 36).into())[..4], b"FACS");
}

#[test]
fn the_madt_is_byte_for_byte_what_the_specification_says() {
    let memory = Memory(tables(&AcpiConfig {
        vcpus: 2,
        in_group: false,
    }));
    #[rustfmt::skip]
    let expected = [
        0x00, 0x00, 0xE0, 0xFE, 1, 0, 0, 0,                   // local APICs; 8259s, too
        0, 8, 0, 0, 1, 0, 0, 0,                               // vCPU 0
        0, 8, 1, 1, 1, 0, 0, 0,                               // vCPU 1
        1, 12, 0, 0, 0x00, 0x00, 0xC0, 0xFE, 0, 0, 0, 0,      // I/O APIC
        2, 10, 0, 0, 2, 0, 0, 0, 0, 0,                        // IRQ 0 is GSI 2
        2, 10, 0, 9, 9, 0, 0, 0, 0x0D, 0,                     // the SCI: level, active high
        4, 6, 0xFF, 0, 0, 1,                                  // NMI: LINT1
    ];
    assert_eq!(memory.find(b"APIC")[36..], expected);
}

#[test]
fn the_fadt_has_the_platforms_registers() {
    let memory = Memory(tables(&ALONE));
    let fadt = memory.find(b"FACP");
    assert_eq!(fadt.len(), 276);
    assert_eq!(fadt[46], 9, "SCI");
    assert_eq!(
        u32_at(fadt, 48),
        0,
        "no SMI command: ACPI mode from the start"
    );
    assert_eq!(
        (u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)),
        (0x600, 0x604, 0x608)
    );
    assert_eq!(
        &fadt[88..92],
        [4, 2, 0, 4],
        "lengths of event, control, PM2, timer"
    );
    assert_eq!(fadt[108], 0x32, "century");
    assert_eq!(fadt[109], 0b1_0111, "legacy devices, 8042, no VGA, no ASPM");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & 1 << 20, 0, "not the reduced hardware");
    assert_eq!(
        flags & 0x574,
        0x524,
        "C1, power button and alarm in the fixed registers, no sleep button, 32-bit timer, reset"
    );
    #[rustfmt::skip]
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0, 6], "reset");
    #[rustfmt::skip]
    assert_eq!(fadt[148..160], [1, 32, 0, 2, 0x00, 0x06, 0, 0, 0, 0, 0, 0], "PM1a event");
    #[rustfmt::skip]
    assert_eq!(fadt[208..220], [1, 32, 0, 3, 0x08, 0x06, 0, 0, 0, 0, 0, 0], "PM timer");
}

/// Debian's disassembler and compiler of AML; `None`, with a word about it, where it is not installed.
fn iasl() -> Option<Command> {
    let found = Command::new("iasl").arg("-v").output();
    if found.is_err() {
        eprintln!("skipped: there is no iasl (Debian's package acpica-tools)");
        return None;
    }
    Some(Command::new("iasl"))
}

/// Runs iasl and gives all it says.
fn run(mut iasl: Command, arguments: &[&str], file: &Path) -> String {
    let output = iasl.args(arguments).arg(file).output().expect("runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).to_string();
    assert!(output.status.success(), "{said}");
    said
}

/// A folder of this test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("nagaya-acpi-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// The table's source as iasl reads it.
fn disassembled(folder: &Path, bytes: &[u8], name: &str) -> Option<String> {
    let file = folder.join(format!("{name}.aml"));
    fs::write(&file, bytes).expect("is written");
    let said = run(iasl()?, &["-d"], &file);
    let text = fs::read_to_string(file.with_extension("dsl")).expect("iasl writes it");
    for word in ["rror", "arning", "nvalid", "nknown"] {
        assert!(!said.contains(word), "{said}");
        assert!(!text.contains(word), "{text}");
    }
    Some(text)
}

#[test]
fn iasl_reads_every_table_and_finds_nothing_wrong() {
    let folder = folder("all");
    for (config, which) in [(ALONE, "alone"), (EIGHT, "eight")] {
        for table in &tables(&config)[1..] {
            let name = String::from_utf8_lossy(&table.bytes[..4]).to_string();
            if disassembled(&folder, &table.bytes, &format!("{name}-{which}")).is_none() {
                return;
            }
        }
    }
    let _ = fs::remove_dir_all(&folder);
}

#[test]
fn the_dsdt_compiles_again_without_a_warning_and_says_what_is_there() {
    let folder = folder("dsdt");
    for (config, which) in [(ALONE, "alone"), (EIGHT, "eight")] {
        let all = tables(&config);
        let table = all.iter().find(|table| table.bytes.starts_with(b"DSDT"));
        let bytes = &table.expect("is there").bytes;
        let Some(text) = disassembled(&folder, bytes, which) else {
            return;
        };
        let said = run(
            iasl().expect("is there"),
            &["-p", &folder.join("again").to_string_lossy()],
            &folder.join(format!("{which}.dsl")),
        );
        let clean = "0 Errors, 0 Warnings, 0 Remarks";
        assert!(said.contains(clean), "{said}\n{text}");
        for device in [
            "PNP0A03", "PNP0501", "PNP0B00", "PNP0100", "PNP0000", "NGYA0001", "ACPI0007",
            "PNP0303", "QEMU0001",
        ] {
            assert!(text.contains(device), "{device} is not in {text}");
        }
        for absent in ["PNP0F13", "_PRT", "PNP0C0C", "PNP0103"] {
            assert!(!text.contains(absent), "{absent} is in {text}");
        }
        assert_eq!(text.matches("ACPI0007").count(), config.vcpus as usize);
        assert!(
            text.contains("0x1000,") && text.contains("0xF000,"),
            "the ports of BARs: from, and how many"
        );
        assert!(
            text.contains(&format!("0x{:08X}", PCI_WINDOW.start)),
            "{text}"
        );
        let groups_page = text.contains(&format!("0x{:08X}", guest_abi::boot::GROUP_PAGE_GPA));
        assert_eq!(groups_page, config.in_group, "{text}");
    }
    let _ = fs::remove_dir_all(&folder);
}
