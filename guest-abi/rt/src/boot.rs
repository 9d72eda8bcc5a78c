//! What the hypervisor told this guest at its start, for everybody who asks.
//!
//! Concurrency: set once, on vCPU 0, before any other vCPU is started, and in a child of a fork once more; read by all.

use core::sync::atomic::{AtomicPtr, Ordering};

use alloc::boxed::Box;
use guest_abi::BootInfo;
use spin::Once;

static FIRST: Once<BootInfo> = Once::new();
/// What holds now: null before the first.
static NOW: AtomicPtr<BootInfo> = AtomicPtr::new(core::ptr::null_mut());

/// Keeps what the entry point was given. Once.
pub(crate) fn set(info: BootInfo) -> &'static BootInfo {
    let info = FIRST.call_once(|| info);
    NOW.store(core::ptr::from_ref(info).cast_mut(), Ordering::Release);
    info
}

/// This VM is a child of the one that it was, and has this number and this place in its group. What others have read of the parent stays.
pub(crate) fn set_child(vm_id: u32, member_index: u32) {
    let before = boot_info();
    let first = guest_abi::unpack_name(&before.name);
    let first = first.split('.').next().unwrap_or(first);
    let info = BootInfo {
        vm_id,
        member_index,
        name: guest_abi::process::child_name(first, vm_id),
        ..*before
    };
    NOW.store(Box::leak(Box::new(info)), Ordering::Release);
}

/// What the hypervisor told this guest at its start.
///
/// # Panics
/// On a host, where no hypervisor did.
#[must_use]
pub fn boot_info() -> &'static BootInfo {
    try_boot_info().expect("only a guest on Nagaya has boot information")
}

/// As [`boot_info`]; `None` on a host.
#[inline]
pub(crate) fn try_boot_info() -> Option<&'static BootInfo> {
    // SAFETY: null, or what is never taken back: the first, or one that was leaked.
    unsafe { NOW.load(Ordering::Acquire).as_ref() }
}

/// This VM's name; empty on a host.
#[must_use]
pub fn vm_name() -> &'static str {
    try_boot_info().map_or("", |info| guest_abi::unpack_name(&info.name))
}

/// Whether this image runs outside VMX, as a bare loop that measures the floor. Then page tables, descriptor tables and interrupts
/// belong to the hypervisor and are left alone, and only `map_shared`, `console` and `exit` can be counted on.
#[inline]
#[must_use]
pub fn is_bare() -> bool {
    try_boot_info().is_some_and(|info| info.bare_hypercall != 0)
}
