//! Whatever comes, the server stays within its bounds, and what is no valid request changes nothing.

use super::*;
use alloc::vec;
use proptest::prelude::*;

/// What may come from the line.
#[derive(Clone, Debug)]
enum Piece {
    Noise(Vec<u8>),
    Valid(u32, Request),
    Damaged {
        id: u32,
        request: Request,
        at: usize,
        flip: u8,
    },
    Truncated {
        id: u32,
        request: Request,
        keep: usize,
    },
    Body(Vec<u8>),
    Idle(u8),
    Pass,
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        (0u32..6).prop_map(Selector::Id),
        prop_oneof!["[a-c]", "\\PC{0,40}"].prop_map(Selector::Name),
    ]
}

fn order() -> impl Strategy<Value = CreateVm> {
    (
        "[a-c]",
        prop_oneof!["hog", "pi", ".{0,4}"],
        0u64..8,
        0u32..10,
        prop::option::of(selector()),
        any::<u64>(),
    )
        .prop_map(|(vm, image, memory, vcpus, group, affinity)| CreateVm {
            memory_bytes: memory << 21,
            vcpus,
            group,
            affinity: CpuSet(affinity),
            ..CreateVm::new(&vm, &image)
        })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Hello),
        any::<u32>().prop_map(|from| Request::ListVms { from }),
        (0u32..9).prop_map(|from| Request::ListGroups { from }),
        (0u32..9).prop_map(|from| Request::ListImages { from }),
        order().prop_map(Request::Create),
        order().prop_map(Request::Create),
        selector().prop_map(Request::Destroy),
        selector().prop_map(Request::Pause),
        selector().prop_map(Request::Resume),
        selector().prop_map(Request::Reset),
        (selector(), any::<Option<u32>>(), any::<Option<u32>>()).prop_map(
            |(group, weight, cap_percent)| {
                let mode = Some(GroupMode::Balance);
                Request::GroupSet {
                    group,
                    change: GroupChange {
                        directed_yield: None,
                        mode,
                        weight,
                        cap_percent,
                    },
                }
            }
        ),
        (selector(), any::<Option<u32>>(), 0u32..9, any::<u64>()).prop_map(
            |(vm, weight, vcpu, affinity)| {
                let change = VmChange {
                    weight,
                    vcpu: Some(vcpu),
                    affinity: Some(CpuSet(affinity)),
                    ..VmChange::default()
                };
                Request::VmSet { vm, change }
            }
        ),
        (selector(), 0u32..9).prop_map(|(vm, vcpu)| Request::Dump { vm, vcpu }),
        selector().prop_map(Request::ConsoleAttach),
        selector().prop_map(Request::ConsoleDetach),
        (selector(), prop::collection::vec(any::<u8>(), 0..1100))
            .prop_map(|(vm, bytes)| Request::ConsoleInput { vm, bytes }),
        Just(Request::Frames),
        any::<bool>().prop_map(|wanted| Request::Events { wanted }),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    let id = any::<u32>();
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Piece::Noise),
        6 => (id, request()).prop_map(|(id, request)| Piece::Valid(id, request)),
        2 => (id, request(), any::<usize>(), 1u8..)
            .prop_map(|(id, request, at, flip)| Piece::Damaged { id, request, at, flip }),
        1 => (id, request(), any::<usize>())
            .prop_map(|(id, request, keep)| Piece::Truncated { id, request, keep }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Piece::Body),
        1 => any::<u8>().prop_map(Piece::Idle),
        1 => Just(Piece::Pass),
    ]
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Piece::Noise(bytes) => bytes.clone(),
            Piece::Valid(id, request) => request_bytes(*id, request),
            Piece::Damaged {
                id,
                request,
                at,
                flip,
            } => {
                let mut bytes = request_bytes(*id, request);
                // Not the zeros around the frame: noise that follows must not be taken for its end.
                let at = 1 + at % (bytes.len() - 2);
                bytes[at] ^= flip;
                bytes
            }
            Piece::Truncated { id, request, keep } => {
                let mut bytes = request_bytes(*id, request);
                // At least one byte of the frame itself is missing, not only the zero behind it.
                bytes.truncate(keep % (bytes.len() - 1));
                bytes
            }
            Piece::Body(body) => {
                let mut bytes = vec![];
                // A frame whose checksum is right around a body that nobody made.
                encode(Kind::Request, 1, &Raw(body), &mut bytes).expect("fits");
                bytes
            }
            Piece::Idle(_) | Piece::Pass => vec![],
        }
    }
}

/// Bytes that stand in the body as they are.
struct Raw<'a>(&'a [u8]);

impl serde::Serialize for Raw<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The mock machine panics at any call that the server must not make.
    #[test]
    fn every_order_of_pieces_is_served_within_bounds_and_the_port_lives_on(
        pieces in prop::collection::vec(piece(), 0..40),
        slowness_polls in 0u32..4,
        drained in 1usize..600,
    ) {
        let mut bench = Bench::new();
        bench.machine.slowness_polls = slowness_polls;
        for piece in &pieces {
            let bytes = piece.bytes();
            let mut input = bytes.as_slice();
            for _ in 0..if let Piece::Idle(polls) = piece { *polls } else { 0 } {
                bench.server.poll(&mut bench.machine, &[]);
            }
            if matches!(piece, Piece::Pass) {
                bench.machine.pass(1000);
                bench.machine.happen("tick", None, "");
                let ids: Vec<u32> = bench.machine.vms.keys().copied().collect();
                for id in ids {
                    bench.machine.say(id, &[b'x'; 700]);
                }
            }
            while !input.is_empty() {
                let taken = bench.server.poll(&mut bench.machine, input);
                prop_assert!(taken <= MAX_POLL_BYTES);
                input = &input[taken..];
                prop_assert!(bench.server.output().len() <= 2 * MAX_WIRE_BYTES);
                bench.server.consume_output(drained);
            }
            bench.server.poll(&mut bench.machine, &[]);
        }
        // What is still to be said is not the matter here, and the first of it may be half a frame.
        for _ in 0..50 {
            bench.server.consume_output(usize::MAX);
            bench.server.poll(&mut bench.machine, &[]);
        }
        bench.server.consume_output(usize::MAX);
        let answers = bench.exchange(&request_bytes(77, &Request::Hello));
        let is_answered = answers
            .iter()
            .any(|(id, answer)| *id == 77 && matches!(answer, Answer::Hello(_)));
        // A body that nobody made may be a shutdown all the same.
        prop_assert!(is_answered || bench.machine.is_shut_down);
    }

    #[test]
    fn what_is_no_valid_request_changes_nothing(
        pieces in prop::collection::vec(piece(), 0..30)
    ) {
        let mut bench = Bench::new();
        bench.create(CreateVm { group: Some(name("g")), ..CreateVm::new("a", "hog") });
        let before = bench.machine.clone();
        for piece in &pieces {
            if !matches!(piece, Piece::Valid(..) | Piece::Body(_)) {
                let mut bytes = piece.bytes();
                // Else a cut frame and the next piece might make up a whole one.
                bytes.push(0);
                prop_assert_eq!(bench.exchange(&bytes), vec![]);
            }
        }
        prop_assert_eq!(bench.machine, before);
    }

    /// What has to do with the client: an answer from the wire is taken or not, but never a panic.
    #[test]
    fn no_body_stops_the_reader_of_answers(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(answer) = body_of::<Answer>(&body) {
            let _ = answer.is_sane();
        }
        if let Some(notice) = body_of::<Notice>(&body) {
            let _ = notice.is_sane();
        }
    }
}

/// A cheap generator of bytes, so that a long run needs no long vector: xorshift64 (Marsaglia 2003).
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn a_megabyte_of_noise_with_many_zeros_changes_nothing() {
    let mut bench = Bench::new();
    bench.create(CreateVm::new("a", "hog"));
    let before = bench.machine.clone();
    let mut state = 0x9E37_79B9_7F4A_7C15;
    let mut bytes = vec![0u8; 1 << 20];
    for byte in &mut bytes {
        let random = xorshift(&mut state);
        *byte = if random.is_multiple_of(16) {
            0
        } else {
            random as u8
        };
    }
    assert!(bench.exchange(&bytes).is_empty());
    assert_eq!(bench.machine, before);
    assert!(matches!(bench.ask(&Request::Hello), Answer::Hello(hello) if hello.rejected > 1000));
}
