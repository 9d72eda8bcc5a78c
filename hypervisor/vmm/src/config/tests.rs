use super::*;
use crate::control::{CpuSet, GroupMode};
use proptest::prelude::*;
use std::string::ToString;
use std::{format, vec};

const LIMITS: Limits = Limits {
    cpus: 8,
    memory_bytes: 4 << 30,
};

fn pair() -> Scenario {
    let mut scenario = Scenario {
        groups: vec![GroupConfig::new("pair")],
        ..Scenario::default()
    };
    for (cpu, name) in [(0, "ping"), (1, "pong")] {
        let mut vm = VmConfig::new(name, "pingpong");
        vm.group = Some("pair".into());
        vm.cpus = vec![cpu];
        scenario.vms.push(vm);
    }
    scenario
}

/// The places and texts of what is wrong after `change`.
fn complaints(change: impl FnOnce(&mut Scenario)) -> Vec<(String, String)> {
    let mut scenario = pair();
    change(&mut scenario);
    check_scenario(&scenario, &LIMITS)
        .iter()
        .map(|error| (error.key_path().to_string(), error.to_string()))
        .collect()
}

/// Asserts that `change` is the only thing wrong, told at `path` in words that contain each of `words`.
#[track_caller]
fn assert_complaint(path: &str, words: &[&str], change: impl FnOnce(&mut Scenario)) {
    let found = complaints(change);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, path);
    for word in words {
        assert!(found[0].1.contains(word), "{:?} lacks {word:?}", found[0].1);
    }
}

#[test]
fn the_main_scenario_is_right() {
    assert_eq!(complaints(|_| ()), []);
}

#[test]
fn a_scenario_without_vms_is_refused() {
    assert_complaint("scenario", &["[[vm]]"], |s| s.vms.clear());
}

#[test]
fn names_must_fit_a_console_line() {
    for bad in ["", "a b", "ping|", "名", &"x".repeat(32)] {
        assert_complaint("vm[0].name", &["1 to 31"], |s| s.vms[0].name = bad.into());
    }
    assert_eq!(complaints(|s| s.vms[0].name = "x".repeat(31)), []);
}

#[test]
fn the_second_of_two_alike_names_is_refused() {
    assert_complaint("vm[1].name", &["\"ping\"", "entry 1"], |s| {
        s.vms[1].name = "ping".into();
    });
    assert_complaint("group[1].name", &["\"pair\""], |s| {
        s.groups.push(GroupConfig::new("pair"));
    });
}

#[test]
fn an_unknown_group_is_told_with_the_known_ones() {
    assert_complaint("vm[1].group", &["\"pear\"", "pair"], |s| {
        s.vms[1].group = Some("pear".into());
    });
}

#[test]
fn a_region_has_at_least_one_page_and_at_most_the_limit() {
    assert_complaint("group[0].pages", &["0 pages", "1 to 1048576"], |s| {
        s.groups[0].pages = 0;
    });
    assert_complaint("group[0].pages", &["1048577"], |s| {
        s.groups[0].pages = MAX_REGION_PAGES + 1;
    });
}

#[test]
fn a_group_without_doorbells_is_refused() {
    assert_complaint("group[0].doorbells_per_second", &["1"], |s| {
        s.groups[0].doorbells_per_second = 0;
    });
}

#[test]
fn memory_is_within_range_and_a_multiple_of_2m() {
    assert_complaint("vm[0].memory", &["2M", "4M", "3G"], |s| {
        s.vms[0].memory_bytes = 2 << 20;
    });
    assert_complaint("vm[0].memory", &["3074M"], |s| {
        s.vms[0].memory_bytes = (3 << 30) + (2 << 20);
    });
    assert_complaint("vm[0].memory", &["5M", "multiple of 2M"], |s| {
        s.vms[0].memory_bytes = 5 << 20;
    });
}

#[test]
fn the_vm_that_no_longer_fits_is_refused_and_not_the_one_before() {
    assert_complaint("vm[1].memory", &["2G", "1019M"], |s| {
        s.vms[0].memory_bytes = 3 << 30;
        s.vms[1].memory_bytes = 2 << 30;
    });
}

#[test]
fn vcpus_and_cpus_go_together() {
    assert_complaint("vm[1].cpu", &["1 CPUs for 2 vCPUs"], |s| s.vms[1].vcpus = 2);
    let found = complaints(|s| {
        s.vms[1].vcpus = 0;
        s.vms[1].cpus = vec![];
    });
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "vm[1].vcpus");
    assert_eq!(
        complaints(|s| {
            s.vms[1].vcpus = 2;
            s.vms[1].cpus = vec![];
        }),
        [],
        "vCPUs need not be pinned"
    );
    let found = complaints(|s| s.vms[1].vcpus = 9);
    assert_eq!(found.len(), 2, "the range and the missing CPUs");
}

#[test]
fn a_cpu_must_be_there() {
    assert_complaint("vm[1].cpu", &["CPU 8", "0 to 7"], |s| {
        s.vms[1].cpus = vec![8];
    });
}

#[test]
fn vcpus_may_share_a_cpu_but_not_that_of_a_bare_loop() {
    assert_eq!(complaints(|s| s.vms[1].cpus = vec![0]), []);
    for bare in [0, 1] {
        let change = |s: &mut Scenario| {
            s.machine.allow_bare = true;
            s.vms[bare].bare = true;
            s.vms[1].cpus = vec![0];
        };
        assert_complaint("vm[1].cpu", &["\"ping\"", "bare"], change);
    }
}

#[test]
fn a_bare_vm_is_pinned() {
    assert_complaint("vm[0].cpu", &["cpu = N"], |s| {
        s.machine.allow_bare = true;
        s.vms[0].bare = true;
        s.vms[0].cpus.clear();
    });
}

#[test]
fn shares_of_cpu_time_have_bounds() {
    assert_complaint("vm[0].weight", &["0", "1 to 65535"], |s| {
        s.vms[0].weight = 0
    });
    assert_complaint("group[0].weight", &["65536"], |s| {
        s.groups[0].weight = 65_536
    });
    assert_complaint("vm[1].cap", &["6401"], |s| s.vms[1].cap_percent = 6401);
    assert_complaint("group[0].cap", &["6401"], |s| {
        s.groups[0].cap_percent = 6401
    });
}

#[test]
fn an_affinity_must_leave_a_cpu() {
    assert_complaint("vm[0].affinity", &["8-9", "the machine has 8"], |s| {
        s.vms[0].affinity = CpuSet(0x300);
    });
    assert_complaint("vm[0].soft_affinity", &["none"], |s| {
        s.vms[0].soft_affinity = CpuSet::NONE;
    });
}

#[test]
fn the_machines_times_have_bounds() {
    assert_complaint("machine.slice", &["99 us", "100 us"], |s| {
        s.machine.slice_us = 99;
        s.machine.rate_limit_us = 0;
    });
    assert_complaint("machine.rate_limit", &["2000", "1000"], |s| {
        s.machine.slice_us = 1000;
        s.machine.rate_limit_us = 2000;
    });
    assert_complaint("machine.linger", &["control = true"], |s| {
        s.machine.linger = true
    });
}

#[test]
fn the_33rd_member_is_refused() {
    let mut scenario = pair();
    scenario.vms.clear();
    for number in 0..33 {
        let mut vm = VmConfig::new(&format!("vm{number}"), "idle");
        vm.group = Some("pair".into());
        vm.memory_bytes = 4 << 20;
        vm.cpus = vec![number];
        scenario.vms.push(vm);
    }
    let limits = Limits { cpus: 64, ..LIMITS };
    let errors = check_scenario(&scenario, &limits);
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].key_path(),
        KeyPath::Vm {
            index: 32,
            key: "group"
        }
    );
}

#[test]
fn a_command_line_fits_its_page() {
    assert_eq!(complaints(|s| s.vms[0].cmdline = "x".repeat(4096)), []);
    assert_complaint("vm[0].cmdline", &["4097", "4096"], |s| {
        s.vms[0].cmdline = "x".repeat(4097);
    });
}

#[test]
fn an_image_has_a_name_that_the_archive_can_hold() {
    for bad in ["", "a\nb", "disk.lz4", &"x".repeat(89)] {
        assert_complaint("vm[0].image", &["image"], |s| s.vms[0].image = bad.into());
    }
}

#[test]
fn a_bare_vm_needs_the_machines_consent() {
    assert_complaint("vm[0].bare", &["allow_bare"], |s| s.vms[0].bare = true);
    assert_eq!(
        complaints(|s| {
            s.machine.allow_bare = true;
            s.vms[0].bare = true;
        }),
        []
    );
}

#[test]
fn only_the_vm_concerned_is_refused() {
    let mut scenario = pair();
    scenario.vms[0].memory_bytes = 1;
    assert_eq!(check_vm(&scenario, 0, &LIMITS).len(), 1);
    assert_eq!(check_vm(&scenario, 1, &LIMITS), []);
    assert_eq!(check_vm(&scenario, 2, &LIMITS), []);
}

#[test]
fn a_broken_group_refuses_its_members_and_nobody_else() {
    let mut scenario = pair();
    scenario.vms[1].group = None;
    scenario.groups[0].pages = 0;
    let errors = check_vm(&scenario, 0, &LIMITS);
    assert_eq!(errors.len(), 1);
    assert_eq!(*errors[0].problem(), Problem::RegionPages(0));
    assert_eq!(check_vm(&scenario, 1, &LIMITS), []);
}

#[test]
fn a_scenario_followed_by_anything_is_malformed() {
    let mut bytes = pair().to_bytes().expect("encodes");
    bytes.push(0);
    assert_eq!(Scenario::from_bytes(&bytes), Err(MalformedScenario));
    bytes.truncate(bytes.len() - 2);
    assert_eq!(Scenario::from_bytes(&bytes), Err(MalformedScenario));
}

prop_compose! {
    fn any_scenario()(
        machine in (any::<bool>(), 0..=SelfTest::ALL.len(), any::<bool>(), 0..3),
        times in (any::<u32>(), any::<u32>(), any::<bool>(), any::<bool>()),
        groups in prop::collection::vec(
            (".{0,40}", any::<u64>(), any::<bool>(), any::<u32>(), 0..5_usize, any::<bool>(), any::<(u32, u32)>()), 0..4),
        vms in prop::collection::vec(
            (".{0,40}", prop::option::of(".{0,4}"), ".{0,100}", any::<u64>(), any::<u32>(),
             prop::collection::vec(any::<u32>(), 0..10), any::<bool>(), any::<(u64, u64, u32, u32)>()), 0..6),
    ) -> Scenario {
        Scenario {
            machine: MachineConfig {
                slice_us: times.0,
                rate_limit_us: times.1,
                control: times.2,
                linger: times.3,
                deterministic: machine.0,
                apic_virtualization: !machine.2,
                selftest: SelfTest::ALL.get(machine.1).copied(),
                allow_bare: machine.2,
                debug_exit: [None, Some(DebugExit::BochsShutdownPort), Some(DebugExit::QemuIsaDebugExit)][machine.3 as usize],
            },
            groups: groups.into_iter().map(|(name, pages, fixed, doorbells_per_second, mode, directed_yield, (weight, cap_percent))| GroupConfig {
                name,
                pages,
                address: if fixed { AddressPolicy::Fixed } else { AddressPolicy::Any },
                doorbells_per_second,
                mode: GroupMode::ALL[mode],
                directed_yield,
                weight,
                cap_percent,
            }).collect(),
            vms: vms.into_iter().map(|(name, group, image, memory_bytes, vcpus, cpus, bare, sched)| VmConfig {
                nics: any_nics(vcpus, sched.2), rng: bare, virtio_console: !bare,
                cmdline: image.clone(), name, group, image, memory_bytes, vcpus, cpus, bare,
                kind: GuestKind::ALL[vcpus as usize % 3],
                initramfs: (sched.2 & 1 != 0).then(|| "built/initramfs".into()),
                modules: any_modules(vcpus, sched.3), disks: any_disks(vcpus, sched.1),
                debug_exit: bare, debug_console: !bare, restarts: bare.then_some(vcpus),
                memory_below_4g_bytes: bare.then(|| u64::from(vcpus) << 30),
                may: if bare { Rights::NONE.with(Right::Fork) } else { Rights::NONE },
                max_children: vcpus, max_memory_bytes: bare.then_some(memory_bytes),
                affinity: CpuSet(sched.0), soft_affinity: CpuSet(sched.1), weight: sched.2, cap_percent: sched.3,
            }).collect(),
        }
    }
}

/// A few modules, made of numbers.
fn any_modules(vcpus: u32, number: u32) -> Vec<ModuleConfig> {
    (0..vcpus % 3)
        .map(|index| ModuleConfig {
            image: "x".repeat((number as usize + index as usize) % 99),
            cmdline: "y".repeat(number as usize % 1030),
        })
        .collect()
}

/// A few disks, made of numbers.
fn any_disks(vcpus: u32, number: u64) -> Vec<DiskConfig> {
    (0..vcpus % 10)
        .map(|index| DiskConfig {
            source: if number & 1 << index != 0 {
                DiskSource::Image(format!("disk{number}"))
            } else {
                DiskSource::Ram { bytes: number }
            },
            read_only: number & 2 << index != 0,
        })
        .collect()
}

/// A few cards, made of numbers.
fn any_nics(vcpus: u32, number: u32) -> Vec<NicConfig> {
    (0..vcpus as u8 % 3)
        .map(|index| NicConfig {
            segment: (number & 1 != 0).then(|| "lan".into()),
            mac: (number & 2 != 0).then_some(Mac([number as u8, 0, 0, 0, 0, index])),
            mtu: (number & 4 != 0).then_some(number as u16),
            offloads: number & 8 != 0,
            check_source: number & 16 != 0,
            rate: (number & 32 != 0).then(|| u64::from(number)),
        })
        .collect()
}

proptest! {
    #[test]
    fn every_scenario_survives_the_archive(scenario in any_scenario()) {
        let bytes = scenario.to_bytes().expect("encodes");
        prop_assert_eq!(Scenario::from_bytes(&bytes), Ok(scenario));
    }

    #[test]
    fn damaged_scenarios_are_decoded_or_refused_but_never_stop_us(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(scenario) = Scenario::from_bytes(&bytes) {
            let _ = check_scenario(&scenario, &LIMITS);
        }
    }

    #[test]
    fn host_and_hypervisor_agree_on_what_is_right(scenario in any_scenario(), cpus in 0..10_u32, memory in any::<u64>()) {
        let limits = Limits { cpus, memory_bytes: memory };
        let all = check_scenario(&scenario, &limits);
        for vm in 0..scenario.vms.len() {
            for error in check_vm(&scenario, vm, &limits) {
                prop_assert!(all.contains(&error));
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}

#[test]
fn a_card_is_on_a_segment_and_has_an_address_of_its_own_there() {
    let nic = |mac: u8, segment: Option<&str>| NicConfig {
        mac: Some(Mac([2, 0, 0, 0, 0, mac])),
        segment: segment.map(String::from),
        ..NicConfig::default()
    };
    assert_complaint(
        "vm[1].nic[1].mac",
        &["02:00:00:00:00:01", "\"ping\""],
        |s| {
            s.vms[0].nics = vec![nic(1, None)];
            // The group's segment by its name is the same one.
            s.vms[1].nics = vec![nic(2, None), nic(1, Some("pair"))];
        },
    );
    let other = complaints(|s| {
        s.vms[0].nics = vec![nic(1, None), nic(2, None), nic(1, Some("x"))];
    });
    assert_eq!(other, []);
    assert_complaint("vm[0].nic[0].segment", &["segment"], |s| {
        s.vms[0].group = None;
        s.vms[0].nics = vec![NicConfig::default()];
    });
    assert_complaint("vm[0].nic", &["9 network cards", "8"], |s| {
        s.vms[0].nics = vec![NicConfig::default(); 9];
    });
    assert_complaint("vm[0].bare", &["rng"], |s| {
        s.machine.allow_bare = true;
        s.vms[0].bare = true;
        s.vms[0].rng = true;
    });
}

fn linux(s: &mut Scenario) {
    s.vms[0].kind = GuestKind::Linux;
}

#[test]
fn linux_takes_an_initramfs_and_other_kinds_do_not() {
    let with = |s: &mut Scenario| s.vms[0].initramfs = Some("built/initramfs".into());
    assert_eq!(
        complaints(|s| {
            linux(s);
            with(s);
        }),
        []
    );
    assert_complaint("vm[0].initramfs", &["linux", "\"native\""], with);
    assert_complaint("vm[0].initramfs", &["linux", "\"multiboot\""], |s| {
        s.vms[0].kind = GuestKind::Multiboot;
        with(s);
    });
    assert_complaint("vm[0].initramfs", &["no image name"], |s| {
        linux(s);
        s.vms[0].initramfs = Some("x".repeat(89));
    });
}

#[test]
fn memory_below_4g_is_for_pcs_and_leaves_the_kernel_room() {
    let key = "vm[0].memory_below_4g";
    for (wanted, words) in [
        (14 << 20, ["14M", "16M", "128M"]),
        (130 << 20, ["130M", "16M", "128M"]),
        ((64 << 20) + 1, ["67108865", "multiple", "2M"]),
    ] {
        assert_complaint(key, &words, |s| {
            linux(s);
            s.vms[0].memory_bytes = 128 << 20;
            s.vms[0].memory_below_4g_bytes = Some(wanted);
        });
    }
    assert_complaint(key, &["3074M", "3G"], |s| {
        linux(s);
        s.vms[0].memory_bytes = 3328 << 20;
        s.vms[0].memory_below_4g_bytes = Some(3074 << 20);
    });
    // Also what would be there without the key.
    assert_complaint(key, &["multiboot"], |s| {
        s.vms[0].memory_below_4g_bytes = Some(3 << 30)
    });
    let divided = complaints(|s| {
        linux(s);
        s.vms[0].memory_bytes = 128 << 20;
        s.vms[0].memory_below_4g_bytes = Some(64 << 20);
    });
    assert_eq!(divided, []);
}

#[test]
fn a_linux_vm_has_16m_or_more() {
    assert_complaint("vm[0].memory", &["14M", "linux", "16M", "256G"], |s| {
        linux(s);
        s.vms[0].memory_bytes = 14 << 20;
    });
    assert_eq!(
        complaints(|s| {
            linux(s);
            s.vms[0].memory_bytes = 16 << 20;
        }),
        []
    );
}

#[test]
fn modules_go_with_multiboot_kernels_and_have_bounds() {
    let module = |image: &str, cmdline: usize| ModuleConfig {
        image: image.into(),
        cmdline: "x".repeat(cmdline),
    };
    assert_complaint("vm[0].module", &["[[vm.module]]", "multiboot"], |s| {
        linux(s);
        s.vms[0].modules = vec![module("m", 0)];
    });
    let multiboot = |s: &mut Scenario, modules| {
        s.vms[0].kind = GuestKind::Multiboot;
        s.vms[0].modules = modules;
    };
    assert_eq!(
        complaints(|s| multiboot(s, vec![module("m", 1024); 16])),
        []
    );
    assert_complaint("vm[0].module", &["17 modules", "16"], |s| {
        multiboot(s, vec![module("m", 0); 17]);
    });
    assert_complaint("vm[0].module[1].image", &["no image name"], |s| {
        multiboot(s, vec![module("m", 0), module("", 0)]);
    });
    assert_complaint("vm[0].module[0].cmdline", &["1025", "1024"], |s| {
        multiboot(s, vec![module("m", 1025)]);
    });
    assert_complaint("vm[0].module[0].cmdline", &["zero byte"], |s| {
        multiboot(s, vec![module("m", 0)]);
        s.vms[0].modules[0].cmdline = "a\0b".into();
    });
}

#[test]
fn a_pcs_command_line_has_no_zero_in_it() {
    assert_complaint("vm[0].cmdline", &["zero byte"], |s| {
        linux(s);
        s.vms[0].cmdline = "quiet\0".into();
    });
    assert_eq!(complaints(|s| s.vms[0].cmdline = "quiet\0".into()), []);
}

#[test]
fn debug_ports_are_those_of_a_pc() {
    for kind in [GuestKind::Linux, GuestKind::Multiboot] {
        assert_eq!(
            complaints(|s| {
                s.vms[0].kind = kind;
                s.vms[0].debug_exit = true;
                s.vms[0].debug_console = true;
            }),
            []
        );
    }
    assert_complaint("vm[0].debug_exit", &["multiboot"], |s| {
        s.vms[0].debug_exit = true;
    });
    assert_complaint("vm[0].debug_console", &["multiboot"], |s| {
        s.vms[0].debug_console = true;
    });
}

#[test]
fn a_bare_vm_is_of_the_native_kind_and_has_no_disk() {
    assert_complaint("vm[0].bare", &["\"linux\""], |s| {
        s.machine.allow_bare = true;
        s.vms[0].bare = true;
        linux(s);
    });
    assert_complaint("vm[0].bare", &["disk"], |s| {
        s.machine.allow_bare = true;
        s.vms[0].bare = true;
        s.vms[0].disks = vec![ram_disk(4096)];
    });
}

fn ram_disk(bytes: u64) -> DiskConfig {
    DiskConfig {
        source: DiskSource::Ram { bytes },
        read_only: false,
    }
}

#[test]
fn disks_have_bounds() {
    let disks = |s: &mut Scenario, disks| s.vms[0].disks = disks;
    assert_eq!(complaints(|s| disks(s, vec![ram_disk(64 << 20); 8])), []);
    assert_complaint("vm[0].disk", &["9 disks", "8"], |s| {
        disks(s, vec![ram_disk(4096); 9]);
    });
    for bad in [0, 4095, 6144, (2 << 30) + 4096, u64::MAX] {
        assert_complaint("vm[0].disk[1].ram", &["RAM disk", "4K", "2G"], |s| {
            disks(s, vec![ram_disk(4096), ram_disk(bad)]);
        });
    }
    assert_complaint("vm[0].disk[0].image", &["no image name"], |s| {
        let source = DiskSource::Image(String::new());
        let read_only = true;
        disks(s, vec![DiskConfig { source, read_only }]);
    });
}

#[test]
fn ram_disks_count_as_memory_of_the_machine() {
    assert_complaint("vm[0].disk[1].ram", &["2G", "leave"], |s| {
        s.vms[0].disks = vec![ram_disk(2 << 30), ram_disk(2 << 30)];
        s.vms.pop();
    });
    assert_complaint("vm[1].memory", &["2G", "left"], |s| {
        s.vms[0].disks = vec![ram_disk(2 << 30)];
        s.vms[1].memory_bytes = 2 << 30;
    });
}

#[test]
fn every_kind_has_a_word_of_its_own() {
    for kind in GuestKind::ALL {
        assert_eq!(GuestKind::from_word(kind.word()), Some(kind));
    }
    assert_eq!(GuestKind::from_word("Linux"), None);
}
