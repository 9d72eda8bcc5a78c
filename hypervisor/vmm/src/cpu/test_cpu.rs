//! A CPU of plain values.

use x86_defs::interrupt::{EventInjection, Interruptibility};

use super::CpuState;

/// The registers, and what has been raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TestCpu {
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) cr0: u64,
    pub(crate) efer: u64,
    pub(crate) code_rights: u32,
    pub(crate) blocking: Interruptibility,
    pub(crate) pending_debug: u64,
    pub(crate) debugctl: u64,
    pub(crate) dr7: u64,
    pub(crate) event: Option<EventInjection>,
}

impl TestCpu {
    /// 64-bit code.
    pub(crate) fn bits_64() -> TestCpu {
        TestCpu {
            rip: 0x1000,
            rflags: 2,
            cr0: 0x8000_0001,
            efer: 0x500,
            code_rights: 0xA09B,
            blocking: Interruptibility::empty(),
            pending_debug: 0,
            debugctl: 0,
            dr7: 0x400,
            event: None,
        }
    }

    /// 32-bit code in long mode.
    pub(crate) fn compatibility() -> TestCpu {
        TestCpu {
            code_rights: 0xC09B,
            ..TestCpu::bits_64()
        }
    }

    /// 32-bit code in protected mode.
    pub(crate) fn bits_32() -> TestCpu {
        TestCpu {
            efer: 0,
            ..TestCpu::compatibility()
        }
    }

    /// Real mode.
    pub(crate) fn bits_16() -> TestCpu {
        TestCpu {
            cr0: 0x10,
            code_rights: 0x9B,
            ..TestCpu::bits_32()
        }
    }
}

impl CpuState for TestCpu {
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn code_rights(&self) -> u32 {
        self.code_rights
    }
    fn blocking(&self) -> Interruptibility {
        self.blocking
    }
    fn set_blocking(&mut self, blocking: Interruptibility) {
        self.blocking = blocking;
    }
    fn pending_debug(&self) -> u64 {
        self.pending_debug
    }
    fn set_pending_debug(&mut self, causes: u64) {
        self.pending_debug = causes;
    }
    fn debugctl(&self) -> u64 {
        self.debugctl
    }
    fn set_debugctl(&mut self, value: u64) {
        self.debugctl = value;
    }
    fn dr7(&self) -> u64 {
        self.dr7
    }
    fn set_dr7(&mut self, value: u64) {
        self.dr7 = value;
    }
    fn set_event(&mut self, event: EventInjection) {
        self.event = Some(event);
    }
}
