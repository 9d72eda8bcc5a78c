//! Hypercall numbers.
//!
//! Calling convention (Xen's 64-bit one): `VMCALL`, number in RAX, arguments in RDI, RSI, RDX, R10, R8, result in RAX: 0
//! or positive on success, a negative [`crate::Errno`] else. All other registers are kept.

use crate::Errno;

/// What is said of a hypercall beside its number: for the reference in `docs/ABI.md`, and for tests of both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// As the reference calls it.
    pub name: &'static str,
    /// Its arguments, in the order of RDI, RSI, RDX, R10, R8.
    pub arguments: &'static [&'static str],
    /// The ABI that had it first: major, minor.
    pub since: (u16, u16),
    /// What it answers on success.
    pub answers: &'static str,
    /// The errors it may answer, with when; empty for what the error's own description says. `EPERM` from CPL other than 0 may come from
    /// every call.
    pub errors: &'static [(Errno, &'static str)],
}

/// The table of hypercalls: a call is one entry here. The decoder of `nagaya-vmm` and what carries calls out match on [`Number`] without a
/// default, so that the compiler names what else an entry needs.
macro_rules! hypercalls {
    ($($(#[$doc:meta])* $number:literal $variant:ident = $name:ident($($argument:ident),*) since $major:literal.$minor:literal,
        answers $answers:literal $(, $errno:ident $when:literal)*;)*) => {
        /// A hypercall by its number in RAX.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u64)]
        pub enum Number {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Number {
            /// Every hypercall, in the order of the table.
            pub const ALL: [Number; [$(Number::$variant),*].len()] = [$(Number::$variant),*];

            /// The hypercall with this number, if there is one.
            #[inline]
            #[must_use]
            pub const fn from_rax(rax: u64) -> Option<Number> {
                match rax {
                    $($number => Some(Number::$variant),)*
                    _ => None,
                }
            }

            /// What is said of it.
            #[must_use]
            pub const fn description(self) -> Description {
                match self {
                    $(Number::$variant => Description {
                        name: stringify!($name),
                        arguments: &[$(stringify!($argument)),*],
                        since: ($major, $minor),
                        answers: $answers,
                        errors: &[$((Errno::$errno, $when)),*],
                    },)*
                }
            }
        }
    };
}

hypercalls! {
    /// Maps the group's region at the pages from `va` (paper 000's hypercall 39).
    39 MapShared = map_shared(va) since 1 . 0, answers "0",
        Perm "in no group",
        Inval "unaligned, not canonical, or the range leaves its half",
        Fault "a page is not present, not writable, not plain RAM, or stands behind two addresses of the range",
        AddrInUse "the group, or this VM, has it elsewhere",
        NoMem "";
    /// [`crate::ABI_VERSION`]. The cheapest call there is.
    0x100 Version = version() since 1 . 0, answers "ABI version";
    /// Copies a [`crate::GroupInfo`] out, returns its size in bytes.
    0x101 GroupInfo = group_info(buffer, bytes) since 1 . 0, answers "bytes written",
        Perm "in no group", Inval "too small, or not canonical", Fault "";
    /// Gives the caller's own frames back. `va` must be where the caller mapped.
    0x102 UnmapShared = unmap_shared(va) since 1 . 0, answers "0",
        Inval "not mapped there", Perm "in no group", NoMem "it shares memory with others, and there is none for tables of its own";
    /// Rings a member: the index in the low 8 bits, above them the incarnation that it is to have ([`crate::group::life`]), 0 for any.
    0x103 Doorbell = doorbell(member) since 1 . 0, answers "0 delivered",
        NoPeer "absent, or in another life", Busy "masked", Again "throttled", Perm "in no group";
    /// Blocks until a doorbell or a change of the group. Returns and clears the mask of pending events ([`WAIT_GROUP_CHANGED`] and one
    /// bit for each member that rang). A timeout of 0 polls.
    0x104 Wait = wait(timeout_ns) since 1 . 0, answers "mask of events, cleared",
        TimedOut "";
    /// Lets that member of the group, named as for a doorbell, run in the caller's place, if it can; [`YIELD_TO_ANY`]: lets anybody run.
    /// 0 when the caller runs again.
    0x105 YieldTo = yield_to(member) since 1 . 0,
        answers "0, after others had their turn: that member first if it waits for a CPU; all ones names nobody",
        Perm "in no group", NoPeer "absent, or in another life";
    /// Ends this VM with that code. Does not return.
    0x106 Exit = exit(code) since 1 . 0, answers "does not return";
    /// Writes text ([`CONSOLE_TEXT`]) or one event ([`CONSOLE_EVENT`]), at most [`MAX_CONSOLE_BYTES`] a call. Returns the bytes taken.
    0x107 Console = console(buffer, bytes, channel) since 1 . 0, answers "bytes taken",
        Inval "more than 4096, another channel, or not canonical", Fault "";
    /// Starts a further vCPU of this VM in the caller's address space, at `entry` with RSP = `stack` and RDI = `argument`.
    0x108 StartVcpu = start_vcpu(index, entry, stack, argument) since 1 . 0, answers "0",
        Inval "no such vCPU, it runs already, or not canonical", Again "INIT is on its way to it";
    /// 1 refuses doorbells to this VM (`EBUSY` to the caller), 0 takes them again.
    0x109 DoorbellMask = doorbell_mask(masked) since 1 . 0, answers "0", Inval "neither 0 nor 1";
    /// Delivers doorbells as an external interrupt with this vector (32 to 255), too; 0 stops it.
    0x10A DoorbellVector = doorbell_vector(vector) since 1 . 0, answers "0", Inval "1 to 31, or above 255";
    /// The guest TSC value at which a halted vCPU resumes; 0 for none.
    0x10B SetDeadline = set_deadline(tsc) since 1 . 0, answers "0";
    /// Takes back what software that ran in this VM before has left in the hypervisor: [`FORGET_REGION`], [`FORGET_DOORBELLS`],
    /// [`FORGET_VCPU`]. What there is none of is no error.
    0x10C Forget = forget(what) since 1 . 2, answers "0", Inval "a bit that means nothing", NoMem "as unmap_shared";
    /// Rings every member whose bit is set in the mask, as [`Number::Doorbell`] does one. Returns the mask of those to whom it was not
    /// delivered: absent, masked or throttled.
    0x10D DoorbellMaskMany = doorbell_mask_many(members) since 1 . 2, answers "mask of those it was not delivered to, 0 for none",
        Inval "a bit that is no member's number", Perm "in no group";
    /// 1: from now on a HLT of vCPU 0 takes the events that are pending when it ends, as [`Number::Wait`] does, and
    /// `InfoPage::halt_events` says which they were. 0: it takes none.
    0x10E HaltEvents = halt_events(wanted) since 1 . 2, answers "0", Inval "neither 0 nor 1";
    /// Makes a VM that is as the caller is: memory, all vCPUs, place in the group, region. Memory is copied when one of them writes to it.
    0x110 Fork = fork(count, flags) since 1 . 3, answers "the child's number; 0 in the child",
        Perm "it has no right to", Inval "count is not 1, or flags is not 0",
        Again "as many live as may descend from it, its group is full, or another vCPU forks", NoMem "";
    /// Blocks until a child has ended, and writes a [`crate::ChildStatus`]: once for each. [`crate::process::CHILD_ANY`]: any. A timeout of 0 polls.
    0x111 WaitChild = wait_child(child, timeout_ns, buffer) since 1 . 3, answers "the child's number",
        Perm "it has no right to have any", NoPeer "no such child, or it has been told already", TimedOut "", Fault "", Inval "not canonical",
        NoMem "";
    /// Ends a VM that descends from the caller: [`crate::process::KILL_NOW`].
    0x112 Kill = kill(vm, how) since 1 . 3, answers "0",
        Perm "it has no right to", NoPeer "none that lives and descends from the caller", Inval "another way";
    /// The caller's own number.
    0x113 VmSelf = vm_self() since 1 . 3, answers "the VM's number";
    /// The number of the VM that the caller is a child of.
    0x114 Parent = parent() since 1 . 3, answers "the parent's number", NoPeer "it has none, or that has ended";
    /// Copies the numbers of the caller's children that live or have not been waited for, 32 bits each, as many as fit.
    0x115 Children = children(buffer, bytes) since 1 . 3, answers "how many children there are",
        Inval "not canonical", Fault "", NoMem "";
}

/// Bit of the mask that `wait` returns when a member joined, left or died since the last `wait`.
pub const WAIT_GROUP_CHANGED: u64 = 1 << 62;
/// Longest wait, in nanoseconds (about 146 years); longer ones are cut to it.
pub const MAX_TIMEOUT_NS: u64 = 1 << 62;
/// Most bytes one `console` call takes.
pub const MAX_CONSOLE_BYTES: u64 = 4096;
/// The member that [`Number::YieldTo`] takes for "anybody".
pub const YIELD_TO_ANY: u64 = u64::MAX;
/// What `forget` takes back: the group's region gives way to the VM's own pages, wherever it is mapped.
pub const FORGET_REGION: u64 = 1;
/// Doorbells come without a vector and are not masked, and a HLT takes none.
pub const FORGET_DOORBELLS: u64 = 1 << 1;
/// Of the calling vCPU: the deadline, the word for ends of interrupts, the steal-time area. A further vCPU loses them by INIT.
pub const FORGET_VCPU: u64 = 1 << 2;
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

    #[test]
    fn no_call_takes_more_than_there_are_registers_and_none_is_newer_than_the_abi() {
        for number in Number::ALL {
            let Description {
                arguments,
                since,
                errors,
                ..
            } = number.description();
            assert!(arguments.len() <= 5, "{number:?}");
            assert!(since <= (crate::ABI_MAJOR, crate::ABI_MINOR), "{number:?}");
            for (index, (errno, _)) in errors.iter().enumerate() {
                assert!(
                    errors[..index].iter().all(|(other, _)| other != errno),
                    "{number:?}: {errno} twice"
                );
            }
        }
    }
}
