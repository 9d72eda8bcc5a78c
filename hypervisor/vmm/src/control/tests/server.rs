//! Requests and what they come to.

use super::*;
use crate::config::{GuestKind, MAX_IMAGE_BYTES, NicConfig};
use crate::debugger::{Hardware, Watch};
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use guest_abi::boot::MAX_CMDLINE_BYTES;

#[test]
fn a_vm_lives_and_dies_by_requests_and_its_group_with_it() {
    let mut bench = Bench::new();
    let frames = bench.machine.frames();
    let vm = bench.create(CreateVm {
        group: Some(name("pi")),
        ..CreateVm::new("pi-0", "pi")
    });
    assert_eq!(bench.ask(&Request::Pause(Selector::Id(vm))), Answer::Ok);
    let Answer::Vms { rows, next: None } = bench.ask(&Request::ListVms { from: 0 }) else {
        panic!("a list of one page");
    };
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0].name.as_str(), rows[0].state),
        ("pi-0", VmState::Paused)
    );
    assert_eq!(bench.ask(&Request::Resume(name("pi-0"))), Answer::Ok);
    let change = GroupChange {
        mode: Some(GroupMode::Strict),
        ..GroupChange::default()
    };
    let group = name("pi");
    assert_eq!(bench.ask(&Request::GroupSet { group, change }), Answer::Ok);
    let Answer::Groups { rows, .. } = bench.ask(&Request::ListGroups { from: 0 }) else {
        panic!("a list");
    };
    assert_eq!(
        (rows[0].mode, rows[0].members.as_slice()),
        (GroupMode::Strict, &[vm][..])
    );
    assert_eq!(bench.ask(&Request::Destroy(name("pi-0"))), Answer::Ok);
    assert!(bench.machine.groups.is_empty());
    assert_eq!(bench.ask(&Request::Frames), Answer::Frames(frames));
}

#[test]
fn what_is_out_of_range_is_named_and_nothing_changes() {
    let mut bench = Bench::new();
    bench.create(CreateVm::new("there", "hog"));
    let before = bench.machine.clone();
    let good = CreateVm::new("new", "hog");
    let vm = || name("there");
    let cases = [
        (
            Request::Create(CreateVm {
                name: "a b".into(),
                ..good.clone()
            }),
            "\"a b\" is no name",
        ),
        (
            Request::Create(CreateVm {
                name: "17".into(),
                ..good.clone()
            }),
            "\"17\" would be taken for a number",
        ),
        (
            Request::Create(CreateVm {
                name: "there".into(),
                ..good.clone()
            }),
            "\"there\" is the name of VM 0",
        ),
        (
            Request::Create(CreateVm {
                platform: PlatformPlan {
                    initramfs: Some("initrd".into()),
                    ..PlatformPlan::default()
                },
                ..good.clone()
            }),
            "initramfs",
        ),
        (
            Request::Create(CreateVm {
                memory_bytes: 8 << 20,
                platform: PlatformPlan {
                    kind: GuestKind::Linux,
                    ..PlatformPlan::default()
                },
                ..good.clone()
            }),
            "linux",
        ),
        (
            Request::Create(CreateVm {
                platform: PlatformPlan {
                    nics: vec![NicConfig::default()],
                    ..PlatformPlan::default()
                },
                ..good.clone()
            }),
            "segment",
        ),
        (
            Request::Create(CreateVm {
                image: "a\n".into(),
                ..good.clone()
            }),
            "no image name",
        ),
        (
            Request::Create(CreateVm {
                image: "none".into(),
                ..good.clone()
            }),
            "no image \"none\"",
        ),
        (
            Request::Create(CreateVm {
                memory_bytes: 5 << 20,
                ..good.clone()
            }),
            "multiple of 2M",
        ),
        (
            Request::Create(CreateVm {
                memory_bytes: 1 << 40,
                ..good.clone()
            }),
            "1024G of memory",
        ),
        (
            Request::Create(CreateVm {
                vcpus: 0,
                ..good.clone()
            }),
            "0 vCPUs",
        ),
        (
            Request::Create(CreateVm {
                weight: 0,
                ..good.clone()
            }),
            "weight 0",
        ),
        (
            Request::Create(CreateVm {
                cap_percent: 6401,
                ..good.clone()
            }),
            "cap 6401",
        ),
        (
            Request::Create(CreateVm {
                affinity: CpuSet(0xF0),
                ..good.clone()
            }),
            "CPUs 4-7: the machine has none of them, only 0-3",
        ),
        (
            Request::Create(CreateVm {
                group: Some(name("")),
                ..good.clone()
            }),
            "\"\" is no name",
        ),
        (
            Request::Create(CreateVm {
                cmdline: "x".repeat(MAX_CMDLINE_BYTES + 1),
                ..good
            }),
            "4097 bytes",
        ),
        (Request::Destroy(name("gone")), "no VM \"gone\""),
        (Request::Pause(Selector::Id(99)), "no VM 99"),
        (Request::Resume(vm()), "VM 0 is running"),
        (
            Request::GroupSet {
                group: name("g"),
                change: GroupChange {
                    weight: Some(1),
                    ..GroupChange::default()
                },
            },
            "no group \"g\"",
        ),
        (
            Request::GroupSet {
                group: name("g"),
                change: GroupChange::default(),
            },
            "nothing to change",
        ),
        (
            Request::VmSet {
                vm: vm(),
                change: VmChange {
                    vcpu: Some(0),
                    ..VmChange::default()
                },
            },
            "nothing to change",
        ),
        (
            Request::VmSet {
                vm: vm(),
                change: VmChange {
                    weight: Some(65_536),
                    ..VmChange::default()
                },
            },
            "weight 65536",
        ),
        (
            Request::VmSet {
                vm: vm(),
                change: VmChange {
                    vcpu: Some(1),
                    affinity: Some(CpuSet(1)),
                    ..VmChange::default()
                },
            },
            "1 vCPUs",
        ),
        (Request::Dump { vm: vm(), vcpu: 1 }, "1 vCPUs"),
        (Request::ConsoleDetach(vm()), "not attached"),
        (
            Request::ConsoleInput {
                vm: vm(),
                bytes: vec![0; MAX_CONSOLE_INPUT_BYTES + 1],
            },
            "1025 bytes",
        ),
    ];
    for (request, expected) in cases {
        let text = bench.refused(&request).text;
        assert!(text.contains(expected), "{request:?}: {text}");
    }
    // A failed creation may use up a ticket, but nothing that a list shows.
    assert_eq!(bench.machine.vms, before.vms);
    assert_eq!(bench.machine.groups, before.groups);
}

#[test]
fn an_order_with_the_longest_names_and_command_line_fits_a_frame() {
    let mut bench = Bench::new();
    let long = "n".repeat(31);
    bench.machine.images[0].name = "i".repeat(MAX_IMAGE_BYTES);
    bench.create(CreateVm {
        memory_bytes: 64 << 20,
        vcpus: 8,
        group: Some(name(&long)),
        group_plan: GroupPlan {
            pages: Some(1 << 14),
            ..GroupPlan::default()
        },
        cmdline: "c".repeat(MAX_CMDLINE_BYTES),
        weight: MAX_WEIGHT,
        cap_percent: MAX_CAP_PERCENT,
        ..CreateVm::new(&long, &"i".repeat(MAX_IMAGE_BYTES))
    });
}

#[test]
fn a_list_of_any_length_comes_in_pages_without_gap_or_repeat() {
    let mut bench = Bench::new();
    bench.machine.cpus = 64;
    let mut made = vec![];
    for number in 0..70 {
        made.push(bench.create(CreateVm {
            memory_bytes: 4 << 20,
            ..CreateVm::new(&format!("vm-{number}"), "hog")
        }));
    }
    // The longest rows there can be.
    for row in bench.machine.vms.values_mut() {
        row.exits = (0..500)
            .map(|reason| ExitCount {
                reason,
                count: u64::MAX,
            })
            .collect();
    }
    bench.ask(&Request::Destroy(Selector::Id(made.remove(3))));
    let mut seen = vec![];
    let mut from = Some(0);
    let mut pages = 0;
    while let Some(at) = from {
        let Answer::Vms { rows, next } = bench.ask(&Request::ListVms { from: at }) else {
            panic!("a list");
        };
        seen.extend(rows.iter().map(|row| row.id));
        from = next;
        pages += 1;
    }
    assert_eq!(seen, made);
    assert!(pages > 5, "{pages}");
    let beyond = bench.ask(&Request::ListVms { from: u32::MAX });
    assert_eq!(
        beyond,
        Answer::Vms {
            rows: vec![],
            next: None
        }
    );
}

#[test]
fn what_takes_time_is_answered_when_it_is_done_and_others_do_not_wait_for_it() {
    let mut bench = Bench::new();
    bench.machine.slowness_polls = 10;
    let mut bytes = request_bytes(5, &Request::Create(CreateVm::new("slow", "hog")));
    bytes.extend(request_bytes(6, &Request::Frames));
    let answers = bench.exchange(&bytes);
    let ids: Vec<u32> = answers.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [6, 5]);
    assert_eq!(answers[1].1, Answer::Created { vm: 0 });
}

#[test]
fn too_many_requests_under_way_are_refused_and_the_first_ones_finish() {
    let mut bench = Bench::new();
    let vm = Selector::Id(bench.create(CreateVm::new("a", "hog")));
    bench.machine.slowness_polls = 19;
    let mut bytes = vec![];
    for id in 0..12 {
        bytes.extend(request_bytes(
            id,
            &Request::Dump {
                vm: vm.clone(),
                vcpu: 0,
            },
        ));
    }
    let answers = bench.exchange(&bytes);
    let busy =
        |answer: &Answer| matches!(answer, Answer::Error(error) if error.code == ErrorCode::Busy);
    assert_eq!(
        answers.iter().filter(|(_, answer)| busy(answer)).count(),
        12 - MAX_PENDING
    );
    assert_eq!(
        answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Answer::Dump(_)))
            .count(),
        MAX_PENDING
    );
}

#[test]
fn a_console_is_heard_while_attached_and_closed_when_its_vm_goes() {
    let mut bench = Bench::new();
    let vm = bench.create(CreateVm::new("talker", "hog"));
    bench.machine.say(vm, b"unheard");
    assert_eq!(
        bench.ask(&Request::ConsoleAttach(name("talker"))),
        Answer::Attached { vm }
    );
    bench.machine.say(vm, b"heard");
    bench.exchange(&[]);
    assert_eq!(
        bench.notices,
        [Notice::ConsoleOutput {
            vm,
            lost: 0,
            bytes: b"heard".to_vec()
        }]
    );
    let input = Request::ConsoleInput {
        vm: Selector::Id(vm),
        bytes: b"ls -l\n".to_vec(),
    };
    assert_eq!(bench.ask(&input), Answer::Accepted { bytes: 3 });
    assert_eq!(bench.machine.typed(vm), b"ls ");
    bench.notices.clear();
    assert_eq!(bench.ask(&Request::Destroy(Selector::Id(vm))), Answer::Ok);
    assert_eq!(bench.notices, [Notice::ConsoleClosed { vm }]);
}

#[test]
fn a_console_is_closed_after_the_last_words_of_a_vm_that_ended() {
    let mut bench = Bench::new();
    let vm = bench.create(CreateVm::new("talker", "hog"));
    bench.ask(&Request::ConsoleAttach(Selector::Id(vm)));
    bench.machine.say(vm, &[b'x'; MAX_CONSOLE_OUTPUT_BYTES + 1]);
    if let Some(row) = bench.machine.vms.get_mut(&vm) {
        row.state = VmState::Ended;
    }
    bench.exchange(&[]);
    assert!(
        matches!(
            bench.notices.as_slice(),
            [Notice::ConsoleOutput { .. }, Notice::ConsoleOutput { bytes, .. }, Notice::ConsoleClosed { .. }] if bytes == b"x"
        ),
        "{:?}",
        bench.notices
    );
    // It can be attached again, to be told the same.
    bench.notices.clear();
    bench.ask(&Request::ConsoleAttach(Selector::Id(vm)));
    bench.exchange(&[]);
    assert_eq!(bench.notices, [Notice::ConsoleClosed { vm }]);
}

#[test]
fn a_flood_of_output_is_told_in_pieces_with_what_was_lost_and_delays_no_answer() {
    let mut bench = Bench::new();
    let vm = bench.create(CreateVm::new("talker", "hog"));
    bench.ask(&Request::ConsoleAttach(Selector::Id(vm)));
    bench.machine.say(vm, &[b'x'; 10_000]);
    // Nobody reads: the output stays small enough for an answer to come soon.
    for _ in 0..100 {
        bench.server.poll(&mut bench.machine, &[]);
    }
    assert!(bench.server.output().len() < 1_000);
    bench.exchange(&[]);
    let (mut heard, mut lost_bytes) = (0, 0);
    for notice in &bench.notices {
        if let Notice::ConsoleOutput { bytes, lost, .. } = notice {
            heard += bytes.len() as u64;
            lost_bytes += lost;
        }
    }
    assert_eq!(heard + lost_bytes, 10_000);
}

#[test]
fn a_new_session_hears_nothing_of_the_one_before() {
    let mut bench = Bench::new();
    let vm = bench.create(CreateVm::new("talker", "hog"));
    bench.ask(&Request::ConsoleAttach(Selector::Id(vm)));
    bench.ask(&Request::Events { wanted: true });
    bench.machine.slowness_polls = 15;
    let mut bytes = request_bytes(50, &Request::Reset(Selector::Id(vm)));
    bytes.extend(request_bytes(51, &Request::Hello));
    let answers = bench.exchange(&bytes);
    assert!(
        matches!(answers.as_slice(), [(51, Answer::Hello(_))]),
        "{answers:?}"
    );
    bench.machine.say(vm, b"late");
    bench.machine.happen("vm_end", Some(vm), "late");
    bench.exchange(&[]);
    assert!(bench.notices.is_empty(), "{:?}", bench.notices);
}

#[test]
fn events_come_when_wanted() {
    let mut bench = Bench::new();
    bench.machine.happen("early", None, "");
    bench.ask(&Request::Events { wanted: true });
    bench
        .machine
        .happen("vm_end", Some(4), "exited with code 0");
    bench.exchange(&[]);
    assert!(
        matches!(bench.notices.as_slice(), [Notice::Event(event)] if event.vm == Some(4)),
        "{:?}",
        bench.notices
    );
}

#[test]
fn the_machine_ends_after_the_answer_has_gone_out_and_takes_no_order_then() {
    let mut bench = Bench::new();
    let mut bytes = request_bytes(1, &Request::Shutdown);
    let late = request_bytes(2, &Request::Create(CreateVm::new("late", "hog")));
    bytes.extend(&late);
    let mut input = bytes.as_slice();
    for _ in 0..10 {
        let taken = bench.server.poll(&mut bench.machine, input);
        input = &input[taken..];
    }
    assert!(!bench.machine.is_shut_down, "the answer is still here");
    let answer = bench.server.output().len();
    bench.server.consume_output(answer);
    assert!(
        bench.server.is_busy(),
        "whoever serves must come back to end the machine"
    );
    let answers = bench.exchange(&late);
    assert!(bench.machine.is_shut_down);
    assert!(
        matches!(answers.as_slice(), [(2, Answer::Error(error))] if error.code == ErrorCode::State)
    );
    assert!(bench.machine.vms.is_empty());
}

#[test]
fn a_request_that_comes_twice_is_carried_out_once_and_answered_twice() {
    let mut bench = Bench::new();
    for slowness_polls in [0, 5] {
        bench.machine.slowness_polls = slowness_polls;
        let vms = bench.machine.vms.len();
        let vm = CreateVm::new(&format!("vm-{slowness_polls}"), "hog");
        let create = request_bytes(slowness_polls, &Request::Create(vm));
        let first = bench.exchange(&create);
        assert_eq!(first.len(), 1);
        assert!(matches!(first[0].1, Answer::Created { .. }));
        assert_eq!(bench.exchange(&create), first);
        assert_eq!(bench.machine.vms.len(), vms + 1);
    }
    // While it is under way, too.
    let reset = request_bytes(9, &Request::Reset(Selector::Id(0)));
    let answers = bench.exchange(&[reset.as_slice(), &reset].concat());
    assert_eq!(answers, [(9, Answer::Ok)]);
    // Another request is another request, whatever its id.
    let pause = request_bytes(9, &Request::Pause(Selector::Id(0)));
    assert_eq!(bench.exchange(&pause), [(9, Answer::Ok)]);
    assert_eq!(bench.machine.vms[&0].state, VmState::Paused);
}

#[test]
fn notices_are_numbered_from_the_sessions_start() {
    let mut bench = Bench::new();
    let vm = bench.create(CreateVm::new("talker", "hog"));
    for _ in 0..2 {
        bench.ask(&Request::Hello);
        bench.ask(&Request::ConsoleAttach(Selector::Id(vm)));
        bench.notice_ids.clear();
        for _ in 0..3 {
            bench.machine.say(vm, b"x");
            bench.exchange(&[]);
        }
        assert_eq!(bench.notice_ids, [0, 1, 2]);
    }
}

#[test]
fn another_version_is_told_which_one_is_spoken_here() {
    let mut bench = Bench::new();
    let mut bytes = vec![];
    crate::control::frame::encode_as(VERSION + 1, Kind::Request, 9, &"any body", &mut bytes)
        .expect("fits");
    let answers = bench.exchange(&bytes);
    let [(9, Answer::Error(error))] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    assert_eq!(error.code, ErrorCode::Version);
    assert!(error.to_string().contains("version 4"), "{error}");
}

#[test]
fn a_body_that_is_no_request_is_refused_by_its_id() {
    let mut bench = Bench::new();
    let mut bytes = vec![];
    encode(Kind::Request, 9, &[0xFFu8; 30], &mut bytes).expect("fits");
    let answers = bench.exchange(&bytes);
    assert!(
        matches!(answers.as_slice(), [(9, Answer::Error(error))] if error.code == ErrorCode::Malformed),
        "{answers:?}"
    );
}

#[test]
fn rejected_input_is_counted_for_the_operator() {
    let mut bench = Bench::new();
    bench.exchange(b"\0login: \0root\0");
    let Answer::Hello(hello) = bench.ask(&Request::Hello) else {
        panic!("no hello");
    };
    assert_eq!(hello.rejected, 2);
}

/// What a debugger has set and stopped does not outlive its session.
#[test]
fn a_debugger_goes_with_its_session() {
    let mut bench = Bench::new();
    let vm = Selector::Id(bench.machine.add(&CreateVm::new("a", "hog")));
    let debug = |order| Request::Debug {
        vm: vm.clone(),
        order,
    };
    let done = Answer::Debug(DebugAnswer::Done);
    let code = |answer| match answer {
        Answer::Error(error) => Some(error.code),
        _ => None,
    };
    let refused = code(bench.ask(&debug(DebugOrder::Status)));
    assert_eq!(refused, Some(ErrorCode::State));
    assert_eq!(bench.ask(&debug(DebugOrder::Attach)), done);
    let step = DebugOrder::Go {
        step: Some(0),
        only: None,
    };
    assert_eq!(bench.ask(&debug(step)), done);
    let stop = match bench.ask(&debug(DebugOrder::Status)) {
        Answer::Debug(DebugAnswer::Status(status)) => status.stop,
        other => panic!("{other:?}"),
    };
    let reason = StopReason::Stepped;
    assert_eq!(stop, Some(Stop { vcpu: 0, reason }));
    for (bytes, is_good) in [(0, false), (2048, true), (2049, false)] {
        let answer = bench.ask(&debug(DebugOrder::Read {
            vcpu: 0,
            address: 0x20_0000,
            bytes,
        }));
        assert_eq!(matches!(answer, Answer::Debug(_)), is_good, "{bytes}");
    }
    let far = DebugOrder::Go {
        step: None,
        only: Some(8),
    };
    assert_eq!(code(bench.ask(&debug(far))), Some(ErrorCode::Invalid));
    let odd = DebugOrder::Set(Breakpoint::Hardware(Hardware {
        address: 0x1001,
        bytes: 4,
        watch: Watch::Write,
    }));
    assert_eq!(code(bench.ask(&debug(odd))), Some(ErrorCode::Invalid));
    assert!(matches!(bench.ask(&Request::Hello), Answer::Hello(_)));
    let refused = code(bench.ask(&debug(DebugOrder::Status)));
    assert_eq!(refused, Some(ErrorCode::State));
}
