//! Errors of hypercalls: negative Linux errno values in RAX, as Xen and KVM return them.

/// Why a hypercall was refused. The value in RAX is `-(self as i64)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum Errno {
    /// The caller may not do this: a VM in no group, or a call from CPL 3.
    Perm = 1,
    /// The named thing does not exist: no such member ever, or it has ended ("peer absent").
    NoPeer = 3,
    /// The other side refuses for now: it has masked its doorbells ("masked").
    Busy = 16,
    /// Too many calls in too short a time; nothing was delivered, try later ("throttled").
    Again = 11,
    /// The hypervisor has no frames left for this call; nothing was changed.
    NoMem = 12,
    /// An address is not mapped, not writable, not plain RAM of the caller.
    Fault = 14,
    /// An argument is malformed: unaligned, not canonical, out of range.
    Inval = 22,
    /// No such hypercall.
    NoSys = 38,
    /// The group's region lives at another address, fixed by its first mapper.
    AddrInUse = 98,
    /// The time given to a blocking call has passed.
    TimedOut = 110,
}

impl Errno {
    /// Every error, for tables and tests.
    pub const ALL: [Errno; 10] = [
        Errno::Perm,
        Errno::NoPeer,
        Errno::Busy,
        Errno::Again,
        Errno::NoMem,
        Errno::Fault,
        Errno::Inval,
        Errno::NoSys,
        Errno::AddrInUse,
        Errno::TimedOut,
    ];

    /// The value that RAX carries: negative.
    #[must_use]
    pub const fn to_rax(self) -> i64 {
        -(self as i64)
    }

    /// The error that a result in RAX means, `None` for success (0 or positive) and for values outside the contract.
    #[must_use]
    pub fn from_rax(rax: i64) -> Option<Errno> {
        Errno::ALL.into_iter().find(|errno| errno.to_rax() == rax)
    }

    /// The conventional name, as `errno(3)` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Errno::Perm => "EPERM",
            Errno::NoPeer => "ESRCH",
            Errno::Busy => "EBUSY",
            Errno::Again => "EAGAIN",
            Errno::NoMem => "ENOMEM",
            Errno::Fault => "EFAULT",
            Errno::Inval => "EINVAL",
            Errno::NoSys => "ENOSYS",
            Errno::AddrInUse => "EADDRINUSE",
            Errno::TimedOut => "ETIMEDOUT",
        }
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_register() {
        for errno in Errno::ALL {
            assert!(errno.to_rax() < 0);
            assert_eq!(Errno::from_rax(errno.to_rax()), Some(errno));
        }
        assert_eq!(Errno::from_rax(0), None);
        assert_eq!(Errno::from_rax(1), None);
    }
}
