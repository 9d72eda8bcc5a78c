//! The info page: what a vCPU can read of itself without an exit.

/// Kinds of VM exits as they are counted, vendor-neutral. The discriminant is the index into [`InfoPage::exits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum ExitKind {
    /// VMCALL.
    Hypercall = 0,
    /// CPUID.
    Cpuid = 1,
    /// RDMSR.
    MsrRead = 2,
    /// WRMSR.
    MsrWrite = 3,
    /// IN, OUT, INS, OUTS.
    Port = 4,
    /// HLT.
    Halt = 5,
    /// A physical interrupt arrived (a kick by IPI, a timer).
    ExternalInterrupt = 6,
    /// A physical NMI arrived (an urgent kick).
    Nmi = 7,
    /// The VMX preemption timer ran out.
    PreemptionTimer = 8,
    /// An access that the EPT does not allow.
    MemoryViolation = 9,
    /// The guest can now take an interrupt, or an NMI.
    InterruptWindow = 10,
    /// A control-register access.
    ControlRegister = 11,
    /// An exception that the hypervisor intercepts.
    Exception = 12,
    /// Any other instruction that the hypervisor intercepts (INVD, XSETBV, MONITOR, RDRAND..).
    Instruction = 13,
    /// Everything else.
    Other = 14,
}

impl ExitKind {
    /// Number of kinds.
    pub const COUNT: usize = 15;

    /// Every kind in the order of [`InfoPage::exits`].
    pub const ALL: [ExitKind; ExitKind::COUNT] = [
        ExitKind::Hypercall,
        ExitKind::Cpuid,
        ExitKind::MsrRead,
        ExitKind::MsrWrite,
        ExitKind::Port,
        ExitKind::Halt,
        ExitKind::ExternalInterrupt,
        ExitKind::Nmi,
        ExitKind::PreemptionTimer,
        ExitKind::MemoryViolation,
        ExitKind::InterruptWindow,
        ExitKind::ControlRegister,
        ExitKind::Exception,
        ExitKind::Instruction,
        ExitKind::Other,
    ];

    /// A short name for tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            ExitKind::Hypercall => "hypercall",
            ExitKind::Cpuid => "cpuid",
            ExitKind::MsrRead => "msr-read",
            ExitKind::MsrWrite => "msr-write",
            ExitKind::Port => "port",
            ExitKind::Halt => "halt",
            ExitKind::ExternalInterrupt => "external-interrupt",
            ExitKind::Nmi => "nmi",
            ExitKind::PreemptionTimer => "preemption-timer",
            ExitKind::MemoryViolation => "memory-violation",
            ExitKind::InterruptWindow => "interrupt-window",
            ExitKind::ControlRegister => "control-register",
            ExitKind::Exception => "exception",
            ExitKind::Instruction => "instruction",
            ExitKind::Other => "other",
        }
    }
}

/// `InfoPage::magic`: "NAGAYAIP" as little-endian bytes.
pub const INFO_MAGIC: u64 = u64::from_le_bytes(*b"NAGAYAIP");

/// The info page of one vCPU, read-only to its VM. Written by the hypervisor, on the CPU that runs the vCPU, between exit and
/// entry; the vCPU itself therefore never sees a half-made change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct InfoPage {
    /// [`INFO_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// The vCPU's index.
    pub vcpu: u32,
    /// VM exits of this vCPU by [`ExitKind`].
    pub exits: [u64; ExitKind::COUNT],
    /// Doorbells delivered to this VM (coalesced ones included).
    pub doorbells_received: u64,
    /// Ticks in which this vCPU could have run and was not let: another one had its CPU, or its gang was stopped. Brought up to
    /// date whenever it runs again.
    pub stolen_ticks: u64,
    /// The events that vCPU 0's last HLT took when it ended, 0 for none; always 0 unless [`crate::Number::HaltEvents`] asked for it.
    pub halt_events: u64,
}

const _: () = assert!(size_of::<InfoPage>() <= crate::PAGE_BYTES as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_in_the_order_of_their_index() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
