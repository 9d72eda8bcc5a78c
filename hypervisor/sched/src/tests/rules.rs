//! Changes of rules: what was consumed, denied or owed under the old ones does not count against the new ones.

use proptest::prelude::*;
use std::vec::Vec;

use super::driver::MS;
use crate::sim::Machine;
use crate::{Affinity, CpuId, GroupId, Kicks, Mode, Share, Ticks, VcpuId, VmId};

const SLICE: Ticks = 10 * MS;

/// VMs in groups 0 and 1, and by themselves.
const GROUPS: [Option<u32>; 6] = [Some(0), Some(0), Some(1), Some(1), None, None];

/// In `prefer` the members take turns, whatever the weights of their VMs.
const MODES: &[Mode] = &[Mode::Off, Mode::Balance, Mode::Relaxed, Mode::Strict];

/// What holds now.
#[derive(Clone, Debug)]
struct Rules {
    modes: [Mode; 2],
    groups: [Share; 2],
    vms: [Share; 6],
    paused: [bool; 6],
}

#[derive(Clone, Debug)]
enum Change {
    Mode { group: u32, mode: Mode },
    Group { group: u32, share: Share },
    Vm { vm: u32, share: Share },
    Pause { vm: u32, paused: bool },
    Block { ticks: Ticks },
}

fn share() -> impl Strategy<Value = Share> {
    let weight = prop_oneof![Just(1_u16), Just(64), Just(256), Just(512), Just(2048)];
    let cap = prop_oneof![3 => Just(0_u32), 1 => 5..60_u32];
    (weight, cap).prop_map(|(weight, cap)| Share { weight, cap })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => (0..2_u32, prop::sample::select(MODES)).prop_map(|(group, mode)| Change::Mode { group, mode }),
        1 => (0..2_u32, share()).prop_map(|(group, share)| Change::Group { group, share }),
        2 => (0..6_u32, share()).prop_map(|(vm, share)| Change::Vm { vm, share }),
        2 => (0..6_u32, any::<bool>()).prop_map(|(vm, paused)| Change::Pause { vm, paused }),
        1 => (0..900 * MS).prop_map(|ticks| Change::Block { ticks }),
    ]
}

impl Rules {
    fn apply(&mut self, machine: &mut Machine, change: &Change) {
        let now = machine.now;
        let sched = &mut machine.sched;
        let kicks = match *change {
            Change::Mode { group, mode } => {
                self.modes[group as usize] = mode;
                sched.set_mode(GroupId(group), mode, now)
            }
            Change::Group { group, share } => {
                self.groups[group as usize] = share;
                sched.set_group_share(GroupId(group), share, now)
            }
            Change::Vm { vm, share } => {
                self.vms[vm as usize] = share;
                sched.set_vm_share(VmId(vm), share, now)
            }
            Change::Pause { vm, paused } => {
                self.paused[vm as usize] = paused;
                Ok(if paused {
                    sched.pause(VcpuId(vm), now)
                } else {
                    sched.resume(VcpuId(vm), now)
                })
            }
            Change::Block { ticks } => {
                // Whoever runs sleeps for a while.
                let slept = sched.current(CpuId(0));
                machine.block(CpuId(0));
                machine.run_for(ticks);
                if let Some(slept) = slept {
                    machine.wake(slept);
                }
                Ok(Kicks::NONE)
            }
        };
        machine.kick(kicks.expect("it is there"));
        machine.calm();
    }

    /// Three slices of 60. A cap is a budget of three slices' time: who is not there when it is paid out does not get it all.
    fn tolerance(&self) -> f64 {
        let mut shares = self.groups.iter().chain(&self.vms);
        if shares.any(|share| share.cap != 0) {
            0.1
        } else {
            0.05
        }
    }

    /// The other VM of its group, if one of the two is capped.
    fn peer_of(&self, vm: usize) -> Option<usize> {
        let peer = vm ^ 1;
        let is_capped = [vm, peer].into_iter().any(|vm| self.vms[vm].cap != 0);
        (vm < 4 && is_capped).then_some(peer)
    }

    /// What each VM is to get of one CPU, if all that are not paused want it.
    fn shares(&self) -> Vec<f64> {
        let mut shares = [0.0; 6];
        // Gangs: the groups, and the VMs without one.
        let gangs: [(Share, &[usize]); 4] = [
            (self.groups[0], &[0, 1]),
            (self.groups[1], &[2, 3]),
            (self.vms[4], &[4]),
            (self.vms[5], &[5]),
        ];
        let gangs: Vec<_> = gangs
            .into_iter()
            .map(|(share, vms)| {
                let vms: Vec<usize> = vms.iter().copied().filter(|vm| !self.paused[*vm]).collect();
                let most: f64 = vms.iter().map(|vm| most(self.vms[*vm])).sum();
                (share, most.min(most_of(share, vms.len())), vms)
            })
            .filter(|(.., vms)| !vms.is_empty())
            .collect();
        let of_gangs = fill(
            1.0,
            &gangs
                .iter()
                .map(|(share, most, _)| (share.weight, *most))
                .collect::<Vec<_>>(),
        );
        for ((_, _, vms), part) in gangs.iter().zip(of_gangs) {
            let claims: Vec<_> = vms
                .iter()
                .map(|vm| (self.vms[*vm].weight, most(self.vms[*vm])))
                .collect();
            for (vm, part) in vms.iter().zip(fill(part, &claims)) {
                shares[*vm] = part;
            }
        }
        shares.to_vec()
    }
}

fn most(share: Share) -> f64 {
    most_of(share, 1)
}

fn most_of(share: Share, vcpus: usize) -> f64 {
    if share.cap == 0 {
        vcpus as f64
    } else {
        f64::from(share.cap) / 100.0
    }
}

/// Divides what there is by weight, nobody getting more than its most.
fn fill(whole: f64, claims: &[(u16, f64)]) -> Vec<f64> {
    let mut parts = std::vec![None; claims.len()];
    loop {
        let left = whole - parts.iter().flatten().sum::<f64>();
        let weights: f64 = claims
            .iter()
            .zip(&parts)
            .filter(|(_, part)| part.is_none())
            .map(|((weight, _), _)| f64::from(*weight))
            .sum();
        let full = claims
            .iter()
            .zip(&parts)
            .position(|((weight, most), part)| {
                part.is_none() && left * f64::from(*weight) / weights > *most
            });
        match full {
            Some(at) => parts[at] = Some(claims[at].1),
            None => {
                return claims
                    .iter()
                    .zip(&parts)
                    .map(|((weight, _), part)| part.unwrap_or(left * f64::from(*weight) / weights))
                    .collect();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// On one CPU, whatever held before: from three slices after a change on, shares over 60 slices are those of the rules that hold.
    #[test]
    fn shares_are_those_of_the_new_rules_within_three_slices(
        changes in prop::collection::vec((change(), 0..2_000 * MS), 1..10),
    ) {
        let mut machine = Machine::new(1);
        let mut rules = Rules {
            modes: [Mode::Off; 2],
            groups: [Share::default(); 2],
            vms: [Share::default(); 6],
            paused: [false; 6],
        };
        for group in 0..2 {
            machine.group(group, Mode::Off, Share::default());
        }
        for (vm, group) in (0..).zip(GROUPS) {
            machine.hog(vm, group, Share::default(), Affinity::any());
        }
        for (change, ticks) in changes {
            rules.apply(&mut machine, &change);
            machine.run_for(3 * SLICE);
            let before: Vec<u64> = (0..6).map(|vm| machine.ran(vm)).collect();
            let window = 60 * SLICE;
            machine.run_for(window);
            let got: Vec<f64> = (0..6)
                .map(|vm| (machine.ran(vm as u32) - before[vm as usize]) as f64 / window as f64)
                .collect();
            for (vm, share) in rules.shares().into_iter().enumerate() {
                let (share, got) = match rules.peer_of(vm) {
                    // A VM's cap is a bound; what it gets of its group's turns depends on when in a period they come.
                    Some(peer) => {
                        prop_assert!(got[vm] <= most(rules.vms[vm]) + 0.05);
                        (share + rules.shares()[peer], got[vm] + got[peer])
                    }
                    None => (share, got[vm]),
                };
                prop_assert!((got - share).abs() <= rules.tolerance(), "VM {} got {:.3} instead of {:.3} after {:?}: {:?}", vm, got, share, change, rules);
            }
            machine.run_for(ticks);
        }
    }
}

/// Member 0 of group 0 alone on CPU 0, member 1 on CPU 1 beside one of group 1.
fn pinned_pair(mode: Mode) -> Machine {
    let mut machine = Machine::new(2);
    machine.group(0, mode, Share::default());
    machine.group(1, Mode::Off, Share::default());
    machine.hog(0, Some(0), Share::default(), Affinity::pinned(CpuId(0)));
    machine.hog(1, Some(0), Share::default(), Affinity::pinned(CpuId(1)));
    machine.hog(2, Some(1), Share::default(), Affinity::pinned(CpuId(1)));
    machine.calm();
    machine
}

fn set_cap(machine: &mut Machine, vm: u32, cap: u32) {
    let share = Share { weight: 256, cap };
    let kicks = machine.sched.set_vm_share(VmId(vm), share, machine.now);
    machine.kick(kicks.expect("it is there"));
    machine.calm();
}

fn set_mode(machine: &mut Machine, mode: Mode) {
    let kicks = machine.sched.set_mode(GroupId(0), mode, machine.now);
    machine.kick(kicks.expect("it is there"));
    machine.calm();
}

/// What a vCPU ran over the next `slices`.
fn runs(machine: &mut Machine, vcpu: u32, slices: u64) -> u64 {
    let before = machine.ran(vcpu);
    machine.run_for(slices * SLICE);
    machine.ran(vcpu) - before
}

/// A member that was capped, paused, or in another mode for long is waited for by no other for longer than the skew.
#[test]
fn nobody_stands_still_for_what_another_was_denied_by_its_own_rule() {
    let steady = {
        let mut machine = pinned_pair(Mode::Relaxed);
        machine.run_for(100 * SLICE);
        runs(&mut machine, 0, 20)
    };
    let allowed = steady - 3 * SLICE;

    // Capped while the mode was another.
    let mut machine = pinned_pair(Mode::Off);
    set_cap(&mut machine, 1, 5);
    machine.run_for(1_400 * SLICE);
    set_cap(&mut machine, 1, 0);
    machine.run_for(200 * SLICE);
    set_mode(&mut machine, Mode::Relaxed);
    let ran = runs(&mut machine, 0, 20);
    assert!(ran >= allowed, "after `off`: {ran} of {steady}");

    // Capped in this mode: meanwhile nobody waits for it, and afterwards only for what is new.
    set_cap(&mut machine, 1, 5);
    machine.run_for(3 * SLICE);
    let ran = runs(&mut machine, 0, 100);
    assert!(ran >= 90 * SLICE, "beside a capped one: {ran}");
    machine.run_for(1_400 * SLICE);
    set_cap(&mut machine, 1, 0);
    let ran = runs(&mut machine, 0, 20);
    assert!(ran >= allowed, "after a cap: {ran} of {steady}");

    // Paused, and asleep.
    let kicks = machine.sched.pause(VcpuId(1), machine.now);
    machine.kick(kicks);
    machine.run_for(1_400 * SLICE);
    let kicks = machine.sched.resume(VcpuId(1), machine.now);
    machine.kick(kicks);
    let ran = runs(&mut machine, 0, 20);
    assert!(ran >= allowed, "after a pause: {ran} of {steady}");
}

/// Members of unequal weight in a relaxed gang: the heavier one is not stopped for what is its due.
#[test]
fn weights_hold_within_a_relaxed_gang() {
    let mut machine = Machine::new(1);
    machine.group(0, Mode::Relaxed, Share::default());
    let heavy = Share {
        weight: 1024,
        cap: 0,
    };
    machine.hog(0, Some(0), heavy, Affinity::any());
    machine.hog(1, Some(0), Share::default(), Affinity::any());
    machine.run_for(100 * SLICE);
    let share = machine.ran(0) as f64 / machine.now as f64;
    assert!((share - 0.8).abs() <= 0.02, "{share}");
}

/// One that ran alone on its CPU, at no cost to anybody, is moved to where others share one.
#[test]
fn one_that_is_moved_owes_nothing_for_what_nobody_else_wanted() {
    let mut machine = Machine::new(2);
    for id in 0..3 {
        let cpu = CpuId(u32::from(id == 2));
        machine.hog(id, None, Share::default(), Affinity::pinned(cpu));
    }
    machine.run_for(1_000 * SLICE);
    let to_0 = Affinity::pinned(CpuId(0));
    let kicks = machine.sched.set_affinity(VcpuId(2), to_0, machine.now);
    machine.kick(kicks.expect("it is there"));
    machine.run_for(3 * SLICE);
    let ran = runs(&mut machine, 2, 60);
    assert!(ran.abs_diff(20 * SLICE) <= 2 * SLICE, "{ran}");
}

/// A sleeper is measured by those it will share its CPU with, not by a crowd elsewhere in which each gets little; and one that ran
/// alone meanwhile and blinks does not owe it that.
#[test]
fn one_that_slept_does_not_keep_its_cpu_from_those_who_ran_there() {
    let mut machine = Machine::new(2);
    for id in 0..4 {
        machine.hog(id, None, Share::default(), Affinity::pinned(CpuId(0)));
    }
    machine.hog(4, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(SLICE / 2);
    machine.block(CpuId(1));
    machine.hog(5, None, Share::default(), Affinity::pinned(CpuId(1)));
    machine.run_for(2_000 * SLICE);
    machine.wake(VcpuId(4));
    machine.run_for(3 * SLICE);
    let ran = runs(&mut machine, 5, 60);
    assert!(ran.abs_diff(30 * SLICE) <= 2 * SLICE, "{ran}");
}
