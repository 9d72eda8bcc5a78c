//! Hypercalls, as functions.
//!
//! Every one can be called from any vCPU at any time. Calls that change this VM's memory behind an address are not here but
//! where their effects are kept in check: [`crate::region`], [`crate::smp`].

use core::arch::asm;

use guest_abi::{Errno, GroupInfo, Number, hypercall as abi};

/// The signature behind `BootInfo::bare_hypercall`.
type BareHypercall = extern "sysv64" fn(u64, u64, u64, u64, u64, u64) -> i64;

/// Makes a hypercall and returns RAX as it is.
///
/// # Safety
/// The call must not make the hypervisor write to, or take away, memory that Rust believes to own.
pub(crate) unsafe fn raw(number: u64, arguments: [u64; 5]) -> i64 {
    let [a1, a2, a3, a4, a5] = arguments;
    if let Some(info) = crate::boot_info()
        && info.bare_hypercall != 0
    {
        // SAFETY: the contract says that a non-zero `bare_hypercall` is the address of a function of this type.
        let call = unsafe { core::mem::transmute::<*const (), BareHypercall>(info.bare_hypercall as *const ()) };
        return call(number, a1, a2, a3, a4, a5);
    }
    let result: i64;
    // SAFETY: VMCALL changes RAX only (the calling convention in `guest_abi::hypercall`); what it does to memory is the
    // caller's promise, and the compiler is told that memory may change (no `nomem`).
    unsafe {
        asm!(
            "vmcall",
            inlateout("rax") number => result,
            in("rdi") a1,
            in("rsi") a2,
            in("rdx") a3,
            in("r10") a4,
            in("r8") a5,
            options(nostack),
        );
    }
    result
}

/// Turns RAX into a result. A negative value outside the contract counts as `ENOSYS`: a newer hypervisor may know more errors.
pub(crate) fn decode(rax: i64) -> Result<u64, Errno> {
    match u64::try_from(rax) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::from_rax(rax).unwrap_or(Errno::NoSys)),
    }
}

fn call(number: Number, arguments: [u64; 5]) -> Result<u64, Errno> {
    // SAFETY: only called below, with calls that touch no memory, or with buffers that are borrowed for the call.
    decode(unsafe { raw(number as u64, arguments) })
}

/// The hypervisor's ABI version, `major << 16 | minor`: the cheapest call there is.
///
/// # Errors
/// None of its own.
pub fn version() -> Result<u32, Errno> {
    call(Number::Version, [0; 5]).map(|version| version as u32)
}

/// What the hypervisor says of the caller's group.
///
/// # Errors
/// `EPERM` in no group.
pub fn group_info() -> Result<GroupInfo, Errno> {
    let mut info = GroupInfo::default();
    let buffer = &raw mut info;
    call(Number::GroupInfo, [buffer as u64, size_of::<GroupInfo>() as u64, 0, 0, 0])?;
    Ok(info)
}

/// `group_info` with a buffer of the caller's choice, for tests of bad ones.
///
/// # Errors
/// `EFAULT`, `EINVAL`. An address inside this VM's RAM is refused here with `EINVAL`, for it might be anything's.
pub fn group_info_at(va: u64, bytes: u64) -> Result<u64, Errno> {
    if crate::paging::touches_ram(va, bytes) {
        return Err(Errno::Inval);
    }
    call(Number::GroupInfo, [va, bytes, 0, 0, 0])
}

/// Rings the member with that index in the caller's group.
///
/// # Errors
/// `ESRCH` absent or ended, `EBUSY` masked, `EAGAIN` throttled, `EPERM` in no group.
pub fn doorbell(member: u32) -> Result<(), Errno> {
    call(Number::Doorbell, [u64::from(member), 0, 0, 0, 0]).map(drop)
}

/// Blocks until a doorbell or a change of the group, at most `timeout_ns` nanoseconds; 0 polls. Returns and clears the mask
/// of pending events: one bit for each member that rang, and `WAIT_GROUP_CHANGED`.
///
/// # Errors
/// `ETIMEDOUT`; `EPERM` in no group.
pub fn wait(timeout_ns: u64) -> Result<u64, Errno> {
    call(Number::Wait, [timeout_ns, 0, 0, 0, 0])
}

/// Gives the CPU to another member, once there is a scheduler.
///
/// # Errors
/// `ENOSYS` until then.
pub fn yield_to(member: u32) -> Result<(), Errno> {
    call(Number::YieldTo, [u64::from(member), 0, 0, 0, 0]).map(drop)
}

/// Ends this VM with `code`. Held-back console text is printed first by [`crate::entry!`] only.
pub fn exit(code: i64) -> ! {
    loop {
        // The call does not return. If it did, the hypervisor would be broken, and trying again is all that is left.
        let _ = call(Number::Exit, [code as u64, 0, 0, 0, 0]);
    }
}

/// Writes to the console of this VM; returns the bytes taken.
///
/// # Errors
/// `EINVAL` beyond [`abi::MAX_CONSOLE_BYTES`] or for an unknown channel.
pub fn console(bytes: &[u8], channel: u64) -> Result<u64, Errno> {
    console_at(bytes.as_ptr() as u64, bytes.len() as u64, channel)
}

/// `console` with any address and length, for tests of bad ones. The hypervisor only reads there.
///
/// # Errors
/// As [`console`], and `EFAULT`.
pub fn console_at(va: u64, bytes: u64, channel: u64) -> Result<u64, Errno> {
    call(Number::Console, [va, bytes, channel, 0, 0])
}

/// Whether this VM refuses doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Doorbells {
    /// They are taken.
    Open = 0,
    /// Whoever rings gets `EBUSY`.
    Masked = 1,
}

/// Refuses doorbells to this VM, or takes them again.
///
/// # Errors
/// `EPERM` in no group.
pub fn doorbell_mask(doorbells: Doorbells) -> Result<(), Errno> {
    call(Number::DoorbellMask, [doorbells as u64, 0, 0, 0, 0]).map(drop)
}

/// Has doorbells come as interrupts with this vector, too; 0 stops it. [`crate::doorbell::on_vector`] also sets a handler.
///
/// # Errors
/// `EINVAL` for 1 to 31 and beyond 255.
pub fn doorbell_vector(vector: u64) -> Result<(), Errno> {
    call(Number::DoorbellVector, [vector, 0, 0, 0, 0]).map(drop)
}

/// The TSC value at which the calling vCPU, if halted, resumes; 0 for none.
///
/// # Errors
/// None of its own.
pub fn set_deadline(tsc: u64) -> Result<(), Errno> {
    call(Number::SetDeadline, [tsc, 0, 0, 0, 0]).map(drop)
}

/// Makes a call with a number that is not in the contract; `None` if it is in there.
#[must_use]
pub fn unknown(number: u64) -> Option<i64> {
    if Number::from_rax(number).is_some() {
        return None;
    }
    // SAFETY: a hypervisor of this ABI's major number knows no such call, and later minor ones must not be noticed by old
    // guests; the arguments are no addresses.
    Some(unsafe { raw(number, [0; 5]) })
}
