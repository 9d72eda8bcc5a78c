use super::*;
use proptest::prelude::*;
use std::string::ToString;
use std::vec;

use crate::outcome::Block;

fn bytes() -> Vec<u8> {
    sample::snapshot().to_bytes().expect("fits into records")
}

fn refused(bytes: &[u8]) -> SnapshotError {
    Snapshot::from_bytes(bytes).expect_err("is refused")
}

/// The records of a file: number, version, whether needed, body.
fn records(bytes: &[u8]) -> Vec<(u16, u16, bool, Vec<u8>)> {
    let mut reader = Reader::new(bytes).expect("has a header");
    let mut found = Vec::new();
    while let Some(record) = reader.next_record().expect("is whole") {
        let Record {
            kind,
            version,
            is_needed,
            body,
            ..
        } = record;
        found.push((kind, version, is_needed, body.to_vec()));
    }
    found
}

/// A file of these records, with right checksums.
fn file(header: &Header, records: &[(u16, u16, bool, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(header);
    for (kind, version, is_needed, body) in records {
        assert!(writer.record(*kind, *version, *is_needed, body));
    }
    writer.end()
}

#[test]
fn what_is_saved_is_read_and_saved_again_byte_for_byte() {
    let saved = bytes();
    let found = Snapshot::from_bytes(&saved).expect("is one");
    assert_eq!(found.snapshot, sample::snapshot());
    assert_eq!(found.skipped, []);
    assert_eq!(found.snapshot.to_bytes(), Some(saved));
}

/// The bytes of each version. Who finds another length or checksum here has changed a state: its record gets another version
/// (`Kind::version`), and this list what is found now.
#[test]
fn the_bytes_of_each_version_stay_what_they_are() {
    let crc = |body: &[u8]| crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(body);
    let found: Vec<_> = records(&bytes())
        .into_iter()
        .map(|(kind, version, _, body)| (kind, version, body.len(), crc(&body)))
        .collect();
    let expected = vec![
        (1, 1, 85, 586_698_696),
        (2, 1, 821, 2_624_559_475),
        (2, 1, 821, 592_042_173),
        (3, 1, 460, 1_237_801_895),
        (4, 1, 1518, 2_820_505_113),
        (5, 1, 85, 2_466_714_029),
    ];
    assert_eq!(found, expected);
}

#[test]
fn records_that_are_not_known_are_skipped_or_refused_with_their_number() {
    let header = sample::snapshot().header;
    let mut with = records(&bytes());
    with.insert(2, (0x7777, 9, false, vec![1, 2, 3]));
    let found = Snapshot::from_bytes(&file(&header, &with)).expect("is one");
    assert_eq!(found.skipped, [(0x7777, 3)]);
    assert_eq!(found.snapshot, sample::snapshot());
    with[2].2 = true;
    let error = refused(&file(&header, &with));
    assert!(matches!(error, SnapshotError::Unknown { kind: 0x7777, .. }));
    assert!(error.to_string().contains("number 30583"), "{error}");
}

#[test]
fn each_record_is_there_as_often_as_it_has_to_be_and_of_a_version_that_is_known() {
    let header = sample::snapshot().header;
    let all = records(&bytes());
    for index in 0..all.len() {
        let name = KINDS
            .into_iter()
            .find(|kind| kind.number == all[index].0)
            .expect("is known")
            .name;
        let mut less = all.clone();
        less.remove(index);
        let error = refused(&file(&header, &less));
        // Without the first vCPU the second is the first, and says that it is not.
        let is_first = name == VCPU.name && index == 1;
        let missing = SnapshotError::Missing { record: name };
        assert!(error == missing || is_first, "{name}: {error}");
        let mut more = all.clone();
        more.push(all[index].clone());
        let error = refused(&file(&header, &more));
        assert_eq!(error, SnapshotError::Again { record: name });
        let mut newer = all.clone();
        newer[index].1 = 2;
        let error = refused(&file(&header, &newer));
        assert_eq!(
            error.to_string(),
            std::format!("record {name} has version 2, and 1 is known here")
        );
    }
}

#[test]
fn the_contract_and_the_cpu_have_to_be_those_that_the_guest_knows() {
    let mut snapshot = sample::snapshot();
    let here = snapshot.header.features;
    assert_eq!(snapshot.check_features(&here), Ok(()));
    let mut less = here;
    less.words[2] = 0;
    let error = snapshot.check_features(&less).expect_err("is refused");
    assert!(error.to_string().contains("CPU feature avx2"), "{error}");
    for abi in [ABI_VERSION + 1, ABI_VERSION + (1 << 16)] {
        snapshot.header.abi = abi;
        let error = refused(&snapshot.to_bytes().expect("fits"));
        assert!(matches!(error, SnapshotError::Abi { found, .. } if found == abi));
    }
}

#[test]
fn a_state_that_cannot_be_is_refused_by_its_field() {
    type Change = fn(&mut Snapshot);
    let cases: [(&str, Change); 9] = [
        ("record vcpu: vcpu[1].index ", |it| it.vcpus[1].index = 0),
        ("vcpu[0].xcr0 ", |it| it.vcpus[0].xcr0 = 5),
        ("vcpu[0].xsave.mxcsr ", |it| it.vcpus[0].xsave[27] = 1),
        ("vcpu[0].xsave.header ", |it| it.vcpus[0].xsave[527] = 0x80),
        ("vcpu[0].switched.lstar ", |it| {
            it.vcpus[0].switched.lstar = 1 << 48;
        }),
        ("vcpu[1].debug.dr7 ", |it| it.vcpus[1].debug.dr7 = 1 << 32),
        ("record vm: time.tsc_khz ", |it| it.vm.time.tsc_khz = 0),
        ("record endpoint: member.region.runs[1].pages ", |it| {
            let member = it.endpoint.member.as_mut().expect("is in a group");
            let region = member.region.as_mut().expect("is mapped");
            region.runs[1].2 = u64::MAX;
        }),
        ("record bus: functions.slot ", |it| {
            let again = it.bus.functions[0].clone();
            it.bus.functions.push(again);
        }),
    ];
    for (expected, change) in cases {
        let mut snapshot = sample::snapshot();
        change(&mut snapshot);
        let text = refused(&snapshot.to_bytes().expect("fits")).to_string();
        assert!(text.contains(expected), "{expected:?}: {text}");
    }
}

#[test]
fn all_times_move_together_and_the_guests_tsc_goes_on() {
    let before = sample::snapshot();
    let mut moved = before.clone();
    let now = 1_000_000;
    moved.shift(TscShift::between(sample::SAVED_AT, now));
    assert_eq!(moved.vm.time.saved_at, now);
    assert_eq!(
        moved.vm.time.clock_start,
        1_000 + 1_000_000 - sample::SAVED_AT.cast_signed()
    );
    let (old, new) = (&before.vcpus[0], &moved.vcpus[0]);
    assert_eq!(new.deadline, Some(now + 9));
    assert_eq!(new.waiting, Some(Block::Wait { deadline: now + 5 }));
    assert_eq!(new.emulated.tsc(now), old.emulated.tsc(sample::SAVED_AT));
    let found = Snapshot::from_bytes(&moved.to_bytes().expect("fits")).expect("is one");
    assert_eq!(found.snapshot, moved);
    moved.shift(TscShift::between(now, sample::SAVED_AT));
    assert_eq!(moved.vcpus, before.vcpus);
    assert_eq!(moved.board, before.board);
    assert_eq!(moved.endpoint.member, before.endpoint.member);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bodies with any bytes changed, cut or added, and right checksums: what is not refused can be restored as a whole, and an error says
    /// in which record and field.
    #[test]
    fn damaged_bodies_are_read_or_refused_by_their_field(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..4),
    ) {
        let header = sample::snapshot().header;
        let mut all = records(&bytes());
        let at = which.index(all.len());
        let body = &mut all[at].3;
        for (place, byte, how) in changes {
            let place = place.index(body.len().max(1));
            match how {
                0 => body.truncate(place),
                1 => body.insert(place, byte),
                _ if place < body.len() => body[place] = byte,
                _ => {}
            }
        }
        match Snapshot::from_bytes(&file(&header, &all)) {
            Ok(found) => prop_assert!(found.snapshot.to_bytes().is_some()),
            Err(SnapshotError::Body { error, .. }) => prop_assert!(!error.field.is_empty()),
            Err(SnapshotError::State { error, .. }) => prop_assert!(!error.field.is_empty()),
            Err(other) => {
                let is_count = matches!(
                    other,
                    SnapshotError::Missing { .. } | SnapshotError::Again { .. }
                );
                prop_assert!(is_count, "{}", other);
            }
        }
    }

    /// Any bytes at all, and a snapshot that is cut off or changed anywhere.
    #[test]
    fn no_bytes_are_taken_for_a_snapshot_that_are_none(
        any in prop::collection::vec(any::<u8>(), 0..200),
        place: prop::sample::Index,
        change in 1..=255_u8,
    ) {
        prop_assert!(Snapshot::from_bytes(&any).is_err());
        let mut behind_header = bytes();
        behind_header.truncate(HEADER_BYTES);
        behind_header.extend(&any);
        prop_assert!(Snapshot::from_bytes(&behind_header).is_err());
        let mut changed = bytes();
        let at = place.index(changed.len());
        changed[at] ^= change;
        prop_assert!(Snapshot::from_bytes(&changed).is_err());
        changed.truncate(at);
        prop_assert!(Snapshot::from_bytes(&changed).is_err());
    }
}
