//! From the entry point to the guest's program, and from its return to the end of the VM.
//!
//! Concurrency: runs once, on vCPU 0, before any other vCPU is started.

use core::fmt::Display;

use guest_abi::{ABI_MAJOR, BootInfo, boot};
use spin::Once;

use crate::{EXIT_ABI, console, frames, heap, hypercall, traps};

static BOOT: Once<BootInfo> = Once::new();

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

/// What a guest's program may return: it decides the exit code.
pub trait Termination {
    /// The exit code, after anything worth saying has been printed.
    fn report(self) -> i64;
}

impl Termination for () {
    fn report(self) -> i64 {
        0
    }
}

/// An exit code chosen by the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i64);

impl Termination for Code {
    fn report(self) -> i64 {
        self.0
    }
}

/// An error is printed and gives exit code 1.
impl<T: Termination, E: Display> Termination for Result<T, E> {
    fn report(self) -> i64 {
        match self {
            Ok(value) => value.report(),
            Err(error) => {
                crate::println!("error: {error}");
                1
            }
        }
    }
}

/// The part of [`entry!`](crate::entry) that turns the program's result into a code.
#[doc(hidden)]
pub fn __report(result: impl Termination) -> i64 {
    result.report()
}

/// The part of [`entry!`](crate::entry) behind the first instructions.
///
/// Not to be called by anything else: it believes `boot_info_gpa` and takes all free RAM.
#[doc(hidden)]
pub extern "sysv64" fn __start(boot_info_gpa: u64, main: extern "sysv64" fn() -> i64) -> ! {
    if BOOT.is_completed() {
        // A second call would give the same RAM out twice.
        hypercall::exit(EXIT_ABI);
    }
    // SAFETY: the contract (`guest_abi::boot`) puts a `BootInfo` at the address in RDI, in this VM's own mapped RAM, and
    // nobody writes it any more. It is plain old data, so any bytes are a valid value, and it is page-aligned.
    let info = unsafe { (boot_info_gpa as *const BootInfo).read() };
    if info.magic != boot::BOOT_MAGIC || (info.abi_version >> 16) as u16 != ABI_MAJOR {
        hypercall::exit(EXIT_ABI);
    }
    let info = BOOT.call_once(|| info);

    let ram = frames::plan(info);
    heap::init(&ram.heap);
    frames::init(ram.frames);
    if info.bare_hypercall == 0 {
        traps::init();
        crate::apic::init();
    }
    let code = main();
    console::flush();
    hypercall::exit(code)
}
