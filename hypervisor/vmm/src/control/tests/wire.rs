//! Frames and CPU sets.

use super::*;
use crate::config::{DiskConfig, DiskSource, GuestKind, ModuleConfig, NicConfig};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// Every frame that a stream holds, as (version, kind, id, body).
fn frames(decoder: &mut Decoder, bytes: &[u8]) -> Vec<(u8, Kind, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for &byte in bytes {
        if let Some(Ok(frame)) = decoder.push(byte) {
            found.push((frame.version, frame.kind, frame.id, frame.body.to_vec()));
        }
    }
    found
}

fn of_body(id: u32, body: &Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![];
    encode(Kind::Notice, id, body, &mut bytes).expect("fits");
    bytes
}

#[test]
fn the_longest_body_fits_the_buffer_and_one_more_byte_is_refused() {
    // `postcard` writes the length of a vector of this size in two bytes.
    let longest = vec![0xFF; MAX_BODY_BYTES - 2];
    let bytes = of_body(7, &longest);
    assert!(bytes.len() <= MAX_WIRE_BYTES);
    let mut decoder = Decoder::new();
    let found = frames(&mut decoder, &bytes);
    assert_eq!(found.len(), 1);
    assert_eq!(body_of::<Vec<u8>>(&found[0].3), Some(longest));

    let mut output = vec![];
    let too_long = vec![0xFFu8; MAX_BODY_BYTES - 1];
    assert_eq!(
        encode(Kind::Notice, 7, &too_long, &mut output),
        Err(TooLarge {
            bytes: MAX_BODY_BYTES + 1
        })
    );
    assert!(output.is_empty());
}

#[test]
fn a_frame_in_another_layout_says_what_is_wrong() {
    /// The error that a decoded frame with these bytes gives, its checksum put right if asked.
    fn error_of(mut frame: Vec<u8>, mend: bool) -> Option<FrameError> {
        if mend {
            let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&frame);
            frame.extend_from_slice(&crc.to_le_bytes());
        }
        let mut wire = cobs::encode_vec(&frame);
        wire.push(0);
        let mut decoder = Decoder::new();
        let mut result = None;
        for byte in wire {
            if let Some(Err(error)) = decoder.push(byte) {
                result = Some(error);
            }
        }
        assert_eq!(decoder.rejected(), u64::from(result.is_some()));
        result
    }
    let good = [b'N', b'g', VERSION, 0, 1, 0, 0, 0, 1, 0, 99];
    let with = |index: usize, byte: u8| {
        let mut frame = good.to_vec();
        frame[index] = byte;
        frame
    };
    assert_eq!(error_of(good.to_vec(), true), None);
    assert_eq!(error_of(with(1, b'h'), true), Some(FrameError::Magic));
    assert_eq!(error_of(with(3, 9), true), Some(FrameError::Kind));
    assert_eq!(error_of(with(8, 2), true), Some(FrameError::Length));
    assert_eq!(
        error_of(vec![b'N', b'g', 0], true),
        Some(FrameError::TooShort)
    );
    let mut damaged = good.to_vec();
    damaged.extend_from_slice(&[1, 2, 3, 4]);
    assert_eq!(error_of(damaged, false), Some(FrameError::Checksum));
}

#[test]
fn a_stream_without_an_end_takes_no_more_memory_and_the_next_frame_is_read() {
    let mut decoder = Decoder::new();
    for _ in 0..10 * MAX_WIRE_BYTES {
        assert!(decoder.push(0x55).is_none());
    }
    assert_eq!(decoder.push(0), Some(Err(FrameError::TooLong)));
    assert_eq!(frames(&mut decoder, &of_body(3, &vec![1, 2])).len(), 1);
    assert_eq!(decoder.rejected(), 1);
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_whatever_stands_around_it(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..5),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = noise.clone();
        for (id, body) in (0u32..).zip(&bodies) {
            bytes.extend(of_body(id, body));
            bytes.extend(&noise);
        }
        let mut decoder = Decoder::new();
        let found: Vec<_> = frames(&mut decoder, &bytes)
            .into_iter()
            .filter_map(|(_, _, id, body)| Some((id, body_of::<Vec<u8>>(&body)?)))
            .collect();
        // Noise is no frame but by a chance of 2^-48.
        let expected: Vec<_> = (0u32..).zip(bodies).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_frame_is_no_frame_and_the_next_one_is(
        body in prop::collection::vec(any::<u8>(), 0..300),
        place in any::<prop::sample::Index>(),
        flip in 1u8..,
        cut in any::<bool>(),
    ) {
        let mut bytes = of_body(1, &body);
        // Inside the frame, between the zeros.
        let inside = 1 + place.index(bytes.len() - 2);
        if cut {
            bytes.remove(inside);
        } else {
            bytes[inside] ^= flip;
        }
        bytes.extend(of_body(2, &vec![9]));
        let mut decoder = Decoder::new();
        let ids: Vec<u32> = frames(&mut decoder, &bytes).iter().map(|frame| frame.2).collect();
        prop_assert_eq!(ids, vec![2]);
        prop_assert!(decoder.rejected() >= 1);
    }

    #[test]
    fn no_bytes_stop_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
        let mut decoder = Decoder::new();
        frames(&mut decoder, &bytes);
        frames(&mut decoder, &[0]);
        prop_assert_eq!(frames(&mut decoder, &of_body(5, &vec![])).len(), 1);
    }

    #[test]
    fn a_cpu_set_reads_back_as_it_is_written(bits in any::<u64>()) {
        let set = CpuSet(bits);
        prop_assert_eq!(set.to_string().parse(), Ok(set));
    }

    #[test]
    fn no_text_stops_a_cpu_set(text in ".{0,20}") {
        let _ = text.parse::<CpuSet>();
    }
}

#[test]
fn the_frame_of_the_documents_example_is_what_is_sent() {
    // Its checksum by another program: python3 -c "import zlib; print(hex(zlib.crc32(b'Ng\4\0\1\0\0\0\1\0\0')))".
    let hello = [
        0x00, 0x04, 0x4E, 0x67, 0x04, 0x02, 0x01, 0x01, 0x01, 0x02, 0x01, 0x01, 0x05, 0x83, 0xAC,
        0xDB, 0x26, 0x00,
    ];
    assert_eq!(request_bytes(1, &Request::Hello), hello);
}

/// One of each message, as bodies one after the other. Whoever changes this changes the format: raise the version then, and
/// correct docs/CONTROL.md.
#[test]
fn the_format_of_version_4_stays_as_it_is() {
    let mut machine = MockBackend::new();
    let vm = Selector::Name("a".into());
    machine.add(&CreateVm {
        group: Some(Selector::Name("g".into())),
        ..CreateVm::new("a", "hog")
    });
    machine.pass(300);
    let order = CreateVm {
        group: Some(Selector::Id(3)),
        cmdline: "x y".into(),
        platform: PlatformPlan {
            kind: GuestKind::Multiboot,
            initramfs: Some("i".into()),
            modules: vec![ModuleConfig {
                image: "m".into(),
                cmdline: "c".into(),
            }],
            nics: vec![NicConfig {
                segment: Some("s".into()),
                ..NicConfig::default()
            }],
            disks: vec![DiskConfig {
                source: DiskSource::Ram { bytes: 4096 },
                read_only: true,
            }],
            virtio_console: true,
            ..PlatformPlan::default()
        },
        ..CreateVm::new("new", "pi")
    };
    let change = GroupChange {
        mode: Some(GroupMode::Strict),
        directed_yield: Some(false),
        weight: Some(256),
        cap_percent: None,
    };
    let requests = [
        Request::Hello,
        Request::ListVms { from: 300 },
        Request::ListGroups { from: 0 },
        Request::ListImages { from: 0 },
        Request::Create(order),
        Request::Destroy(vm.clone()),
        Request::Pause(vm.clone()),
        Request::Resume(vm.clone()),
        Request::Reset(vm.clone()),
        Request::GroupSet {
            group: vm.clone(),
            change,
        },
        Request::VmSet {
            vm: vm.clone(),
            change: VmChange {
                vcpu: Some(1),
                affinity: Some(CpuSet(6)),
                ..VmChange::default()
            },
        },
        Request::Dump {
            vm: vm.clone(),
            vcpu: 1,
        },
        Request::ConsoleAttach(vm.clone()),
        Request::ConsoleDetach(vm.clone()),
        Request::ConsoleInput {
            vm: vm.clone(),
            bytes: vec![1, 200],
        },
        Request::Frames,
        Request::Events { wanted: true },
        Request::Shutdown,
        Request::Debug {
            vm: vm.clone(),
            order: DebugOrder::Write {
                vcpu: 1,
                address: 0x20_0000,
                bytes: vec![5, 6],
            },
        },
    ];
    let dump = match machine.dump(Ticket(0), 0, 0) {
        Ok(Step::Finished(Completion::Dump(dump))) => dump,
        other => panic!("{other:?}"),
    };
    let answers = [
        Answer::Ok,
        Answer::Error(ControlError::new(ErrorCode::Internal, "text")),
        Answer::Hello(machine.hello()),
        Answer::Vms {
            rows: machine.vms.values().cloned().collect(),
            next: Some(5),
        },
        Answer::Groups {
            rows: machine.groups.values().cloned().collect(),
            next: None,
        },
        Answer::Images {
            rows: machine.images.clone(),
            next: None,
        },
        Answer::Created { vm: 7 },
        Answer::Dump(dump),
        Answer::Attached { vm: 7 },
        Answer::Accepted { bytes: 9 },
        Answer::Frames(machine.frames()),
        Answer::Debug(DebugAnswer::Status(DebugStatus {
            started: 3,
            stop: Some(Stop {
                vcpu: 1,
                reason: StopReason::Stepped,
            }),
        })),
    ];
    let notices = [
        Notice::ConsoleOutput {
            vm: 1,
            lost: 2,
            bytes: vec![3],
        },
        Notice::ConsoleClosed { vm: 1 },
        Notice::Event(Event {
            ticks: 1,
            name: "n".into(),
            vm: Some(2),
            text: "t".into(),
            lost: 3,
        }),
    ];
    // Each body begins with the number of its variant, as the tables of docs/CONTROL.md have it.
    let mut all = vec![];
    let mut add = |number: usize, body: Vec<u8>| {
        assert_eq!(usize::from(body[0]), number);
        all.extend(body);
    };
    for (number, request) in requests.iter().enumerate() {
        add(number, postcard::to_allocvec(request).expect("encodes"));
    }
    for (number, answer) in answers.iter().enumerate() {
        add(number, postcard::to_allocvec(answer).expect("encodes"));
    }
    for (number, notice) in notices.iter().enumerate() {
        add(number, postcard::to_allocvec(notice).expect("encodes"));
    }
    let checksum = crate::control::frame::checksum(&all);
    assert_eq!((all.len(), checksum), (418, 0x6357_4B8C));
}

#[test]
fn cpu_sets_are_numbers_and_ranges() {
    assert_eq!("0-3,5".parse(), Ok(CpuSet(0b10_1111)));
    assert_eq!(CpuSet(0b10_1111).to_string(), "0-3,5");
    assert_eq!("all".parse(), Ok(CpuSet::ALL));
    assert_eq!("63".parse(), Ok(CpuSet(1 << 63)));
    for bad in [
        "",
        "64",
        "3-1",
        "1,",
        "-1",
        "1-",
        "a",
        "+1",
        "0-99999999999",
    ] {
        assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
    }
}
