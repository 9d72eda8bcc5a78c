//! Behind an instruction that the hypervisor has carried out.

use x86_defs::cr::Rflags;
use x86_defs::interrupt::Interruptibility;

use super::CpuState;
use super::debug::{BTF, SINGLE_STEP};

/// What blocks interrupts for one instruction.
const BLOCKED_INTERRUPTS: Interruptibility =
    Interruptibility::BLOCKED_BY_STI.union(Interruptibility::BLOCKED_BY_MOV_SS);
/// Flags that the end of an instruction looks at.
const WATCHED: u64 = Rflags::TF.bits() | Rflags::RF.bits();

/// Whether a trap is due behind the instruction. HLT then does not wait.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// The next instruction follows.
    Plainly,
    /// A debug trap comes before it.
    IntoTrap,
}

/// Steps over the instruction that exited.
#[inline]
pub fn step(cpu: &mut impl CpuState, length: u32) -> Stepped {
    let rip = cpu.rip();
    let mut next = rip.wrapping_add(length.into());
    // A wrap carries out of the lower half: the mode is asked for only then.
    if (rip ^ next) >> 32 != 0 {
        next = wrapped(cpu, next);
    }
    cpu.set_rip(next);
    end_instruction(cpu)
}

/// Steps over the instruction at `rip` if the next one follows plainly, which is nearly always so. False: nothing has been done, and
/// [`step`] is to.
#[must_use]
#[inline]
pub fn step_plainly(cpu: &mut impl CpuState, rip: u64, length: u32) -> bool {
    /// Of an instruction (SDM Vol. 2, "Instruction Format").
    const MOST_BYTES: u32 = 15;
    if rip as u32 > u32::MAX - MOST_BYTES
        || !cpu.blocking().allows_interrupt()
        || cpu.rflags() & WATCHED != 0
    {
        return false;
    }
    cpu.set_rip(rip.wrapping_add(length.into()));
    true
}

#[cold]
fn wrapped(cpu: &impl CpuState, next: u64) -> u64 {
    cpu.code_size().wrap(next)
}

/// What the end of an instruction brings, wherever RIP is by then: blocking by STI or MOV SS is over, RF is clear, and with TF set a
/// debug trap is pending. A CPU that exits by the instruction has done none of it (SDM, "Changes to Instruction Behavior in VMX
/// Non-Root Operation", "Delivery of Pending Debug Exceptions after VM Entry").
#[inline]
pub fn end_instruction(cpu: &mut impl CpuState) -> Stepped {
    let blocking = cpu.blocking();
    if !blocking.allows_interrupt() {
        unblock(cpu, blocking);
    }
    let flags = cpu.rflags();
    if flags & WATCHED == 0 {
        return Stepped::Plainly;
    }
    trap(cpu, flags)
}

#[cold]
fn trap(cpu: &mut impl CpuState, flags: u64) -> Stepped {
    if flags & Rflags::RF.bits() != 0 {
        cpu.set_rflags(flags & !Rflags::RF.bits());
    }
    // With BTF only branches trap, and no branch is carried out by the hypervisor.
    if flags & Rflags::TF.bits() == 0 || cpu.debugctl() & BTF != 0 {
        return Stepped::Plainly;
    }
    cpu.set_pending_debug(cpu.pending_debug() | SINGLE_STEP);
    Stepped::IntoTrap
}

/// Ends blocking by STI or MOV SS.
#[inline]
pub(super) fn unblock(cpu: &mut impl CpuState, blocking: Interruptibility) {
    cpu.set_blocking(blocking - BLOCKED_INTERRUPTS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::test_cpu::TestCpu;

    const TF: u64 = Rflags::TF.bits();
    const RF: u64 = Rflags::RF.bits();

    #[test]
    fn the_instruction_pointer_wraps_where_its_mode_says() {
        let cases = [
            (TestCpu::bits_64(), 0xFFFF_FFFE, 0x1_0000_0001),
            (TestCpu::bits_64(), u64::MAX - 1, 1),
            (TestCpu::bits_32(), 0xFFFF_FFFE, 1),
            (TestCpu::bits_32(), 0xFFFF, 0x1_0002),
            // The segment's limit is for the next fetch to look at.
            (TestCpu::bits_16(), 0xFFFE, 0x1_0001),
            (TestCpu::bits_16(), 0xFFFF_FFFD, 0),
            // Code of 32 bits in long mode.
            (TestCpu::compatibility(), 0xFFFF_FFFD, 0),
        ];
        for (mut cpu, rip, next) in cases {
            cpu.rip = rip;
            assert_eq!(step(&mut cpu, 3), Stepped::Plainly);
            assert_eq!(cpu.rip, next, "{rip:#x}");
        }
    }

    #[test]
    fn a_plain_step_is_taken_only_where_it_is_all_there_is() {
        let blockings = [
            Interruptibility::empty(),
            Interruptibility::BLOCKED_BY_NMI,
            Interruptibility::BLOCKED_BY_STI,
            Interruptibility::BLOCKED_BY_MOV_SS,
        ];
        for rip in [0x1000, 0xFFFF_FFF0, 0xFFFF_FFF1, 0x7_FFFF_FFFD, u64::MAX] {
            for flags in [2, 2 | TF, 2 | RF, 0x246] {
                for blocking in blockings {
                    for start in [TestCpu::bits_64(), TestCpu::compatibility()] {
                        let mut plain = TestCpu {
                            rip,
                            rflags: flags,
                            blocking,
                            ..start
                        };
                        let (before, mut full) = (plain, plain);
                        let is_done = step_plainly(&mut plain, rip, 3);
                        let stepped = step(&mut full, 3);
                        let expected = if is_done { full } else { before };
                        assert_eq!(plain, expected);
                        let is_changed = full.blocking != blocking || full.rflags != flags;
                        assert!(!is_done || stepped == Stepped::Plainly && !is_changed);
                        let is_usual = flags & WATCHED == 0 && rip == 0x1000;
                        assert!(is_done || !is_usual || !blocking.allows_interrupt());
                    }
                }
            }
        }
    }

    #[test]
    fn a_stepped_instruction_leaves_the_trap_that_tf_asks_for() {
        let mut cpu = TestCpu::bits_64();
        cpu.rflags = 2 | TF;
        cpu.blocking = Interruptibility::BLOCKED_BY_STI | Interruptibility::BLOCKED_BY_NMI;
        assert_eq!(step(&mut cpu, 2), Stepped::IntoTrap);
        assert_eq!(cpu.pending_debug, SINGLE_STEP);
        assert_eq!(cpu.blocking, Interruptibility::BLOCKED_BY_NMI);
        assert_eq!(cpu.rflags, 2 | TF);
    }

    #[test]
    fn with_btf_only_branches_trap() {
        let mut cpu = TestCpu::bits_64();
        (cpu.rflags, cpu.debugctl) = (2 | TF, BTF);
        assert_eq!(step(&mut cpu, 2), Stepped::Plainly);
        assert_eq!(cpu.pending_debug, 0);
    }

    #[test]
    fn rf_is_clear_behind_an_instruction() {
        let mut cpu = TestCpu::bits_32();
        cpu.rflags = 2 | RF;
        assert_eq!(step(&mut cpu, 2), Stepped::Plainly);
        assert_eq!((cpu.rflags, cpu.pending_debug), (2, 0));
    }
}
