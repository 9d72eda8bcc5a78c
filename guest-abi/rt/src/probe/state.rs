//! Registers that no VMCS holds, and debug exceptions: for tests that vCPUs which share a CPU keep theirs, and that what a guest
//! does to its own debugging reaches its own handler.

use core::arch::asm;

/// MOV to CR8. Values above 15 end the VM by an exception.
pub fn set_task_priority(value: u64) {
    // SAFETY: holds back interrupts of a priority; this program's runtime relies on none.
    unsafe { asm!("mov cr8, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// MOV from CR8.
#[must_use]
pub fn task_priority() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes DR0 to DR3. No breakpoint is enabled.
pub fn set_debug_addresses(values: [u64; 4]) {
    // SAFETY: DR7 enables none of them; nothing else uses them.
    unsafe {
        asm!(
            "mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
            in(reg) values[0], in(reg) values[1], in(reg) values[2], in(reg) values[3],
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// DR0 to DR3.
#[must_use]
pub fn debug_addresses() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: reads registers.
    unsafe {
        asm!(
            "mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
            out(reg) a, out(reg) b, out(reg) c, out(reg) d,
            options(nomem, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// Why the last debug exception came.
#[must_use]
pub fn debug_status() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Forgets why debug exceptions came.
pub fn clear_debug_status() {
    // SAFETY: nothing else uses the register.
    unsafe {
        asm!("mov dr6, {}", in(reg) 0xFFFF_0FF0_u64, options(nomem, nostack, preserves_flags));
    };
}

/// Fills XMM0 to XMM15 with values made from `seed`.
pub fn set_vectors(seed: u64) {
    // SAFETY: this soft-float program uses no vector register.
    unsafe {
        asm!(
            "movq xmm0, {s}", "inc {s}", "movq xmm1, {s}", "inc {s}", "movq xmm2, {s}", "inc {s}", "movq xmm3, {s}", "inc {s}",
            "movq xmm4, {s}", "inc {s}", "movq xmm5, {s}", "inc {s}", "movq xmm6, {s}", "inc {s}", "movq xmm7, {s}", "inc {s}",
            "movq xmm8, {s}", "inc {s}", "movq xmm9, {s}", "inc {s}", "movq xmm10, {s}", "inc {s}", "movq xmm11, {s}", "inc {s}",
            "movq xmm12, {s}", "inc {s}", "movq xmm13, {s}", "inc {s}", "movq xmm14, {s}", "inc {s}", "movq xmm15, {s}",
            s = inout(reg) seed => _,
            options(nomem, nostack)
        );
    }
}

/// Whether they still have the values that [`set_vectors`] made from `seed`.
#[must_use]
pub fn vectors_hold(seed: u64) -> bool {
    let mut found = [0_u64; 16];
    // SAFETY: writes 16 words to an array of 16.
    unsafe {
        asm!(
            "movq [{p}], xmm0", "movq [{p} + 8], xmm1", "movq [{p} + 16], xmm2", "movq [{p} + 24], xmm3",
            "movq [{p} + 32], xmm4", "movq [{p} + 40], xmm5", "movq [{p} + 48], xmm6", "movq [{p} + 56], xmm7",
            "movq [{p} + 64], xmm8", "movq [{p} + 72], xmm9", "movq [{p} + 80], xmm10", "movq [{p} + 88], xmm11",
            "movq [{p} + 96], xmm12", "movq [{p} + 104], xmm13", "movq [{p} + 112], xmm14", "movq [{p} + 120], xmm15",
            p = in(reg) &raw mut found,
            options(nostack, preserves_flags)
        );
    }
    found
        .iter()
        .enumerate()
        .all(|(index, value)| *value == seed.wrapping_add(index as u64))
}

/// INT1: raises a debug exception, whose handler returns behind it.
pub fn int1() {
    // SAFETY: the caller has set a handler for vector 1, or the VM ends.
    unsafe { asm!(".byte 0xF1") };
}

/// Executes one NOP with the trap flag set. The handler for vector 1 has to clear the flag.
pub fn single_step() {
    // SAFETY: as in `int1`.
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop");
    };
}

/// INT1 just behind a load of SS, while the trap flag is set: the exception comes while debug exceptions are held back. The
/// handler for vector 1 has to clear the flag.
pub fn int1_behind_stack_load() {
    // SAFETY: SS is loaded with what it holds; else as in `int1`.
    unsafe {
        asm!(
            "mov {t:x}, ss", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "mov ss, {t:x}", ".byte 0xF1", "nop",
            t = out(reg) _
        );
    };
}
