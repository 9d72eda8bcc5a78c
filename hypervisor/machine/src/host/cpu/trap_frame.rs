//! The state that an exception or interrupt found, as its entry stub saves it.

use core::fmt;

use x86_64::registers::control::{Cr2, Cr3};

/// What the entry stubs leave on the stack, lowest address first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    pub(super) vector: u64,
    pub(super) error_code: u64,
    pub(super) rip: u64,
    cs: u64,
    rflags: u64,
    pub(super) rsp: u64,
    ss: u64,
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = x86_defs::interrupt::exception_name(self.vector as u8);
        writeln!(
            f,
            "{name} (vector {}), error code {:#x}",
            self.vector, self.error_code
        )?;
        writeln!(
            f,
            "rip {:#018x} cs {:#06x} rflags {:#010x}",
            self.rip, self.cs, self.rflags
        )?;
        writeln!(
            f,
            "rsp {:#018x} ss {:#06x} cr2 {:#018x}",
            self.rsp,
            self.ss,
            Cr2::read_raw()
        )?;
        writeln!(
            f,
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        write!(
            f,
            "r13 {:016x} r14 {:016x} r15 {:016x} ",
            self.r13, self.r14, self.r15
        )?;
        write!(f, "cr3 {:016x}", Cr3::read().0.start_address().as_u64())
    }
}
