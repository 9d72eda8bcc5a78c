//! Copies in and out of guest memory: whole or not at all, and only where the guest itself may.

use nagaya_mem::test_support::{HistoryStore, TestMemory};
use nagaya_mem::{
    Ept, EptFeatures, Gpa, GuestMemory, GuestMemoryError, GuestRead, Gva, HostMemory, Hpa,
    MemoryType, PagingState, Permissions, WalkFault,
};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;
const RAM: u64 = 0x10_0000;
const READ_ONLY_PAGE: u64 = 0x8000;
const DEVICE_PAGE: u64 = 0x20_0000;
const FEATURES: EptFeatures = EptFeatures {
    large_2m: true,
    large_1g: true,
    accessed_dirty: true,
};

/// A guest with RAM from 0 to 64 KiB: neighbours in guest-physical memory are strangers in host memory. One page is read-only,
/// one is a device.
struct Guest {
    store: HistoryStore,
    ept: Ept,
    host: TestMemory,
}

/// Where the page behind `gpa` lies in the host.
fn home(gpa: u64) -> u64 {
    RAM - PAGE - gpa / PAGE * 2 * PAGE
}

impl Guest {
    fn new() -> Guest {
        let store = HistoryStore::new();
        let ept = Ept::new(&store, FEATURES).expect("frames");
        let map = |gpa: u64, hpa: u64, permissions, memory_type| {
            let mapped = ept.map(
                &store,
                Gpa::new(gpa),
                Hpa::new(hpa),
                PAGE,
                permissions,
                memory_type,
            );
            mapped.expect("free").complete(&store);
        };
        for gpa in (0..16 * PAGE).step_by(PAGE as usize) {
            let permissions = if gpa == READ_ONLY_PAGE {
                Permissions::READ
            } else {
                Permissions::all()
            };
            map(gpa, home(gpa), permissions, MemoryType::WriteBack);
        }
        map(
            DEVICE_PAGE,
            0xFEE0_0000,
            Permissions::READ | Permissions::WRITE,
            MemoryType::Uncacheable,
        );
        Guest {
            store,
            ept,
            host: TestMemory::new(RAM as usize),
        }
    }

    fn memory(&self) -> GuestMemory<'_, HistoryStore, TestMemory> {
        GuestMemory::new(&self.ept, &self.store, &self.host)
    }

    fn set(&self, gpa: u64, word: u64) {
        self.host
            .write(Hpa::new(home(gpa) + gpa % PAGE), &word.to_le_bytes());
    }

    /// The guest's own tables: 0 to 2 MiB one to one, but page 3 is absent and page 5 read-only.
    fn paging(&self) -> PagingState {
        self.set(0xC000, 0xD000 | 7);
        self.set(0xD000, 0xE000 | 7);
        self.set(0xE000, 0xF000 | 7);
        for page in 0..512 {
            let flags = match page {
                3 => 0,
                5 => 5,
                _ => 7,
            };
            self.set(0xF000 + page * 8, (page * PAGE) | flags);
        }
        PagingState {
            cr0: 1 << 31 | 1,
            cr3: 0xC000,
            cr4: 1 << 5,
            efer: 1 << 10,
        }
    }
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|index| (index * 7 + index / 256) as u8)
        .collect()
}

#[test]
fn a_copy_crosses_pages_that_are_no_neighbours_in_the_host() {
    let guest = Guest::new();
    let bytes = pattern(3 * PAGE as usize);
    let start = PAGE - 5;
    guest.memory().write(Gpa::new(start), &bytes).expect("RAM");
    let mut back = vec![0; bytes.len()];
    guest
        .memory()
        .read(Gpa::new(start), &mut back)
        .expect("RAM");
    assert_eq!(back, bytes);
    // Byte by byte in the host, past the accessors.
    for (offset, byte) in bytes.iter().enumerate() {
        let gpa = start + offset as u64;
        let mut found = [0];
        guest
            .host
            .read(Hpa::new(home(gpa) + gpa % PAGE), &mut found);
        assert_eq!(found[0], *byte, "at {gpa:#x}");
    }
}

#[test]
fn a_write_that_reaches_a_read_only_page_writes_nothing() {
    let guest = Guest::new();
    let start = Gpa::new(READ_ONLY_PAGE - 100);
    let refused = GuestMemoryError::Physical {
        gpa: Gpa::new(READ_ONLY_PAGE),
    };
    assert_eq!(guest.memory().write(start, &pattern(200)), Err(refused));
    assert_eq!(guest.host.writes(), 0);
    // Reading it is allowed.
    assert_eq!(guest.memory().read(start, &mut [0; 200]), Ok(()));
}

#[test]
fn a_copy_that_leaves_ram_copies_nothing() {
    let guest = Guest::new();
    let end = 16 * PAGE;
    let refused = Err(GuestMemoryError::Physical { gpa: Gpa::new(end) });
    assert_eq!(guest.memory().write(Gpa::new(end - 1), &[1, 2]), refused);
    assert_eq!(guest.host.writes(), 0);
    let mut buffer = [0xAA; 2];
    assert_eq!(guest.memory().read(Gpa::new(end - 1), &mut buffer), refused);
    assert_eq!(buffer, [0xAA; 2]);
    assert_eq!(
        guest.memory().read(Gpa::new(end - 1), &mut buffer[..1]),
        Ok(())
    );
}

#[test]
fn device_registers_are_no_memory() {
    let guest = Guest::new();
    let refused = Err(GuestMemoryError::Physical {
        gpa: Gpa::new(DEVICE_PAGE),
    });
    assert_eq!(
        guest.memory().read(Gpa::new(DEVICE_PAGE), &mut [0]),
        refused
    );
    assert_eq!(guest.memory().write(Gpa::new(DEVICE_PAGE), &[0]), refused);
    assert_eq!(guest.memory().read_u64(Gpa::new(DEVICE_PAGE)), None);
}

#[test]
fn ranges_at_the_end_of_the_address_space_are_refused() {
    let guest = Guest::new();
    let memory = guest.memory();
    for gpa in [u64::MAX, 1 << 48, (1 << 48) - 1] {
        assert!(memory.read(Gpa::new(gpa), &mut [0; 8]).is_err(), "{gpa:#x}");
        assert!(memory.write(Gpa::new(gpa), &[0; 8]).is_err(), "{gpa:#x}");
    }
    assert!(
        memory
            .read_virtual(&guest.paging(), Gva::new(u64::MAX), &mut [0; 8])
            .is_err()
    );
}

#[test]
fn nothing_is_always_allowed() {
    let guest = Guest::new();
    assert_eq!(guest.memory().read(Gpa::new(1 << 40), &mut []), Ok(()));
    assert_eq!(guest.memory().write(Gpa::new(1 << 40), &[]), Ok(()));
}

#[test]
fn table_entries_are_read_only_where_there_is_ram_and_aligned() {
    let guest = Guest::new();
    guest.set(0x4008, 0x1234_5678_9ABC_DEF0);
    assert_eq!(
        guest.memory().read_u64(Gpa::new(0x4008)),
        Some(0x1234_5678_9ABC_DEF0)
    );
    assert_eq!(guest.memory().read_u64(Gpa::new(0x4004)), None);
    assert_eq!(guest.memory().read_u64(Gpa::new(16 * PAGE)), None);
}

#[test]
fn a_virtual_copy_follows_the_guests_own_tables() {
    let guest = Guest::new();
    let paging = guest.paging();
    let (memory, bytes) = (guest.memory(), pattern(6000));
    memory
        .write_virtual(&paging, Gva::new(0x5F0), &bytes)
        .expect("pages 0 and 1 are mapped");
    let mut back = vec![0; bytes.len()];
    memory
        .read_virtual(&paging, Gva::new(0x5F0), &mut back)
        .expect("mapped");
    assert_eq!(back, bytes);
}

#[test]
fn a_virtual_copy_over_a_bad_page_copies_nothing() {
    let guest = Guest::new();
    let paging = guest.paging();
    let memory = guest.memory();
    let before = guest.host.writes();
    let gva = Gva::new(3 * PAGE);
    let absent = Err(GuestMemoryError::Virtual {
        gva,
        fault: WalkFault::NotPresent { level: 1 },
    });
    assert_eq!(
        memory.write_virtual(&paging, Gva::new(3 * PAGE - 1), &[0; 2]),
        absent
    );
    assert_eq!(
        memory.read_virtual(&paging, Gva::new(3 * PAGE - 1), &mut [0; 2]),
        absent
    );
    let gva = Gva::new(5 * PAGE);
    assert_eq!(
        memory.write_virtual(&paging, Gva::new(5 * PAGE - 1), &[0; 2]),
        Err(GuestMemoryError::ReadOnly { gva })
    );
    // Writable for the guest's tables, not for its EPT; and no RAM behind the guest's page.
    let gpa = Gpa::new(READ_ONLY_PAGE);
    assert_eq!(
        memory.write_virtual(&paging, Gva::new(READ_ONLY_PAGE), &[0; 2]),
        Err(GuestMemoryError::Physical { gpa })
    );
    let gpa = Gpa::new(16 * PAGE);
    assert_eq!(
        memory.read_virtual(&paging, Gva::new(16 * PAGE), &mut [0; 2]),
        Err(GuestMemoryError::Physical { gpa })
    );
    assert_eq!(guest.host.writes(), before);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Writes land where a flat array would have them; those that touch what is not writable change nothing.
    #[test]
    fn copies_agree_with_a_flat_memory(writes in proptest::collection::vec((0..17 * PAGE, 0..9000_usize), 1..12)) {
        let guest = Guest::new();
        let mut flat = vec![0_u8; 16 * PAGE as usize];
        for (number, (start, length)) in writes.into_iter().enumerate() {
            let bytes: Vec<u8> = pattern(length).into_iter().map(|byte| byte ^ number as u8).collect();
            let end = start + length as u64;
            let allowed = length == 0
                || (end <= 16 * PAGE && (end <= READ_ONLY_PAGE || start >= READ_ONLY_PAGE + PAGE));
            prop_assert_eq!(guest.memory().write(Gpa::new(start), &bytes).is_ok(), allowed);
            if allowed && length > 0 {
                flat[start as usize..end as usize].copy_from_slice(&bytes);
            }
            let mut now = vec![0; flat.len()];
            prop_assert_eq!(guest.memory().read(Gpa::new(0), &mut now), Ok(()));
            prop_assert!(now == flat);
        }
    }
}
