//! Hypercalls, as functions.
//!
//! Every one can be called from any vCPU at any time. Calls that change this VM's memory behind an address are not here but
//! where their effects are kept in check: `smp`.

use core::arch::asm;

use guest_abi::group::life;
use guest_abi::hypercall::YIELD_TO_ANY;
use guest_abi::{Errno, GroupInfo, Number};

/// The signature behind `BootInfo::bare_hypercall`.
type BareHypercall = extern "sysv64" fn(u64, u64, u64, u64, u64, u64) -> i64;

/// Makes a hypercall and returns RAX as it is.
///
/// # Safety
/// The call must not make the hypervisor write to, or take away, memory that Rust believes to own.
pub(crate) unsafe fn execute(number: u64, arguments: [u64; 5]) -> i64 {
    let [a1, a2, a3, a4, a5] = arguments;
    if let Some(info) = crate::boot::try_boot_info()
        && info.bare_hypercall != 0
    {
        // SAFETY: the contract says that a non-zero `bare_hypercall` is the address of a function of this type.
        let call = unsafe {
            core::mem::transmute::<*const (), BareHypercall>(info.bare_hypercall as *const ())
        };
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

pub(crate) fn call(number: Number, arguments: [u64; 5]) -> Result<u64, Errno> {
    // SAFETY: only called below and in `process`, with calls that touch no memory, or with buffers that are borrowed for the call.
    decode(unsafe { execute(number as u64, arguments) })
}

/// The hypervisor's ABI version, `major << 16 | minor`: the cheapest call there is.
///
/// # Errors
/// None of its own.
pub fn version() -> Result<u64, Errno> {
    call(Number::Version, [0; 5])
}

/// What the hypervisor says of the caller's group.
///
/// # Errors
/// `EPERM` in no group.
pub fn group_info() -> Result<GroupInfo, Errno> {
    let mut info = GroupInfo::default();
    let buffer = &raw mut info;
    call(
        Number::GroupInfo,
        [buffer as u64, size_of::<GroupInfo>() as u64, 0, 0, 0],
    )?;
    Ok(info)
}

/// `group_info` with a buffer of the caller's choice, for tests of bad ones.
///
/// # Errors
/// `EFAULT`, `EINVAL`. An address inside this VM's RAM is refused here with `EINVAL`, for it might be anything's.
pub fn group_info_at(va: u64, bytes: u64) -> Result<u64, Errno> {
    if touches_ram(va, bytes) {
        return Err(Errno::Inval);
    }
    call(Number::GroupInfo, [va, bytes, 0, 0, 0])
}

/// Whether a range of addresses reaches into the RAM that is mapped one to one: there anything of Rust's may lie.
pub(crate) fn touches_ram(va: u64, bytes: u64) -> bool {
    va.checked_add(bytes).is_some() && va < crate::boot_info().memory_bytes
}

/// Maps the group's region behind the addresses from `va`, as the guest's page tables have them. [`crate::region`] does this with
/// all that belongs to it; the bare call is for tests of bad addresses.
///
/// # Errors
/// `EINVAL`, `EFAULT`, `EADDRINUSE`, `ENOMEM`, `EPERM` as the contract says; `EINVAL` from here for addresses of the RAM that is
/// mapped one to one, where the image, the stacks and the heap lie.
pub fn map_shared(va: u64) -> Result<(), Errno> {
    if touches_ram(va, guest_abi::PAGE_BYTES) && !crate::is_bare() {
        return Err(Errno::Inval);
    }
    call(Number::MapShared, [va, 0, 0, 0, 0]).map(drop)
}

/// Gives the caller's own frames back behind the addresses from `va`.
///
/// # Errors
/// `EINVAL` if the region is not mapped there.
pub fn unmap_shared(va: u64) -> Result<(), Errno> {
    call(Number::UnmapShared, [va, 0, 0, 0, 0]).map(drop)
}

/// Rings the member with that index in the caller's group.
///
/// # Errors
/// `ESRCH` absent or ended, `EBUSY` masked, `EAGAIN` throttled, `EPERM` in no group.
pub fn doorbell(member: u32) -> Result<(), Errno> {
    call(Number::Doorbell, [u64::from(member), 0, 0, 0, 0]).map(drop)
}

/// Rings a member if it still leads the life with that incarnation.
///
/// # Errors
/// As [`doorbell`]; `ESRCH` also if another life has begun.
pub fn doorbell_life(member: u32, incarnation: u64) -> Result<(), Errno> {
    call(Number::Doorbell, [life(member, incarnation), 0, 0, 0, 0]).map(drop)
}

/// Blocks until a doorbell or a change of the group, at most `timeout_ns` nanoseconds; 0 polls. Returns and clears the mask
/// of pending events: one bit for each member that rang, and `WAIT_GROUP_CHANGED`.
///
/// # Errors
/// `ETIMEDOUT`; `EPERM` in no group.
pub fn wait(timeout_ns: u64) -> Result<u64, Errno> {
    call(Number::Wait, [timeout_ns, 0, 0, 0, 0])
}

/// Lets others run, whoever waits for the CPU.
///
/// # Errors
/// None that this ABI has.
pub fn yield_now() -> Result<(), Errno> {
    call(Number::YieldTo, [YIELD_TO_ANY, 0, 0, 0, 0]).map(drop)
}

/// Lets another member run in this one's place, if it waits for a CPU; else whoever waits.
///
/// # Errors
/// `EPERM` in no group; `ESRCH` for a member that is not there.
pub fn yield_to(member: u32) -> Result<(), Errno> {
    call(Number::YieldTo, [u64::from(member), 0, 0, 0, 0]).map(drop)
}

/// As [`yield_to`], for the life with that incarnation.
///
/// # Errors
/// As [`yield_to`]; `ESRCH` also if another life has begun.
pub fn yield_to_life(member: u32, incarnation: u64) -> Result<(), Errno> {
    call(Number::YieldTo, [life(member, incarnation), 0, 0, 0, 0]).map(drop)
}

/// Takes back what software that ran in this VM before has left in the hypervisor: `guest_abi::hypercall::FORGET_*`.
///
/// # Errors
/// `EINVAL` for a bit that means nothing.
pub fn forget(what: u64) -> Result<(), Errno> {
    call(Number::Forget, [what, 0, 0, 0, 0]).map(drop)
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
/// `EINVAL` beyond [`guest_abi::hypercall::MAX_CONSOLE_BYTES`] or for an unknown channel.
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

/// Rings every member whose bit is set. The mask of those it was not delivered to: absent, masked or throttled.
///
/// # Errors
/// `EINVAL` for a bit beyond [`crate::abi::MAX_MEMBERS`]; `EPERM` in no group.
pub fn doorbell_mask_many(members: u64) -> Result<u64, Errno> {
    call(Number::DoorbellMaskMany, [members, 0, 0, 0, 0])
}

/// Has a HLT of vCPU 0 take the events that are pending when it ends, as [`wait`] does; [`crate::group::halt_events`] says which.
///
/// # Errors
/// None of its own.
pub fn halt_events(is_wanted: bool) -> Result<(), Errno> {
    call(Number::HaltEvents, [u64::from(is_wanted), 0, 0, 0, 0]).map(drop)
}

/// Has doorbells come as interrupts with this vector, too; 0 stops it. A handler must be set first ([`crate::traps::set_handler`]).
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

/// Makes any call with any arguments and returns RAX as it is: for tests of what the hypervisor refuses.
///
/// The calls that change memory behind an address (`map_shared`, `unmap_shared`, `group_info`, `start_vcpu`) are answered with
/// `EINVAL` from here if that address lies in the RAM that is mapped one to one, where the image, the stacks and the heap lie.
#[must_use]
pub fn raw(number: u64, arguments: [u64; 5]) -> i64 {
    let changes_memory = matches!(
        Number::from_rax(number),
        Some(Number::MapShared | Number::UnmapShared | Number::GroupInfo | Number::StartVcpu)
    );
    if changes_memory && touches_ram(arguments[0], guest_abi::PAGE_BYTES) {
        return Errno::Inval.to_rax();
    }
    // SAFETY: calls that touch Rust's memory were refused above; the others do not write to memory.
    unsafe { execute(number, arguments) }
}
