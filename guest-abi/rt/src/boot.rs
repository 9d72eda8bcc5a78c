//! What the hypervisor told this guest at its start, for everybody who asks.
//!
//! Concurrency: set once, on vCPU 0, before any other vCPU is started; read by all.

use guest_abi::BootInfo;
use spin::Once;

static BOOT: Once<BootInfo> = Once::new();

/// Keeps what the entry point was given. Once.
pub(crate) fn set(info: BootInfo) -> &'static BootInfo {
    BOOT.call_once(|| info)
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
    BOOT.get()
}

/// This VM's name; empty on a host.
#[must_use]
pub fn vm_name() -> &'static str {
    BOOT.get()
        .map_or("", |info| guest_abi::unpack_name(&info.name))
}

/// Whether this image runs outside VMX, as a bare loop that measures the floor. Then page tables, descriptor tables and interrupts
/// belong to the hypervisor and are left alone, and only `map_shared`, `console` and `exit` can be counted on.
#[inline]
#[must_use]
pub fn is_bare() -> bool {
    BOOT.get().is_some_and(|info| info.bare_hypercall != 0)
}
