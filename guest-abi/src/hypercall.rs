//! Hypercall numbers.
//!
//! Calling convention (Xen's 64-bit one): `VMCALL`, number in RAX, arguments in RDI, RSI, RDX, R10, R8, result in RAX: 0
//! or positive on success, a negative [`crate::Errno`] else. All other registers are kept.

/// A hypercall by its number in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Number {
    /// `map_shared(va)`: map the group's region at the pages from `va` (paper 000's hypercall 39).
    MapShared = 39,
    /// `version()`: [`crate::ABI_VERSION`]. The cheapest call there is.
    Version = 0x100,
    /// `group_info(buffer_va, buffer_bytes)`: copies a [`crate::GroupInfo`] out, returns its size in bytes.
    GroupInfo = 0x101,
    /// `unmap_shared(va)`: give the caller's own frames back. `va` must be where the caller mapped.
    UnmapShared = 0x102,
    /// `doorbell(member)`: ring the member with that index. 0 delivered, `ESRCH` absent, `EBUSY` masked, `EAGAIN` throttled.
    Doorbell = 0x103,
    /// `wait(timeout_ns)`: block until a doorbell or a change of the group, or `ETIMEDOUT`. Returns and clears the mask of
    /// pending events ([`WAIT_GROUP_CHANGED`] and one bit for each member that rang). A timeout of 0 polls.
    Wait = 0x104,
    /// `yield_to(member)`: let that member of the group run in the caller's place, if it can; [`YIELD_TO_ANY`]: let anybody
    /// run. 0 when the caller runs again; `ESRCH` for a member that is not there.
    YieldTo = 0x105,
    /// `exit(code)`: end this VM with that code. Does not return.
    Exit = 0x106,
    /// `console(va, bytes, channel)`: write text ([`CONSOLE_TEXT`]) or one event ([`CONSOLE_EVENT`]), at most
    /// [`MAX_CONSOLE_BYTES`] a call. Returns the bytes taken.
    Console = 0x107,
    /// `start_vcpu(index, entry_va, stack_va, argument)`: start a further vCPU of this VM in the caller's address space, at
    /// `entry_va` with RSP = `stack_va` and RDI = `argument`.
    StartVcpu = 0x108,
    /// `doorbell_mask(masked)`: 1 refuses doorbells to this VM (`EBUSY` to the caller), 0 takes them again.
    DoorbellMask = 0x109,
    /// `doorbell_vector(vector)`: deliver doorbells as an external interrupt with this vector (32 to 255), too; 0 stops it.
    DoorbellVector = 0x10A,
    /// `set_deadline(tsc)`: the guest TSC value at which a halted vCPU resumes; 0 for none.
    SetDeadline = 0x10B,
}

impl Number {
    /// Every hypercall, for tables and tests.
    pub const ALL: [Number; 13] = [
        Number::MapShared,
        Number::Version,
        Number::GroupInfo,
        Number::UnmapShared,
        Number::Doorbell,
        Number::Wait,
        Number::YieldTo,
        Number::Exit,
        Number::Console,
        Number::StartVcpu,
        Number::DoorbellMask,
        Number::DoorbellVector,
        Number::SetDeadline,
    ];

    /// The hypercall with this number, if there is one.
    #[must_use]
    pub fn from_rax(rax: u64) -> Option<Number> {
        Number::ALL.into_iter().find(|number| *number as u64 == rax)
    }
}

/// Bit of the mask that `wait` returns when a member joined, left or died since the last `wait`.
pub const WAIT_GROUP_CHANGED: u64 = 1 << 62;
/// Longest wait, in nanoseconds (about 146 years); longer ones are cut to it.
pub const MAX_TIMEOUT_NS: u64 = 1 << 62;
/// Most bytes one `console` call takes.
pub const MAX_CONSOLE_BYTES: u64 = 4096;
/// The member that [`Number::YieldTo`] takes for "anybody".
pub const YIELD_TO_ANY: u64 = u64::MAX;
/// Console channel of text for people: the hypervisor prefixes each line with the VM's name.
pub const CONSOLE_TEXT: u64 = 0;
/// Console channel of events for programs: one call is one event, carried as an escaped string in the JSON event stream.
pub const CONSOLE_EVENT: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_decodes_to_itself_and_no_two_are_alike() {
        for number in Number::ALL {
            assert_eq!(Number::from_rax(number as u64), Some(number));
        }
        assert_eq!(Number::from_rax(38), None);
        assert_eq!(Number::from_rax(u64::MAX), None);
    }
}
