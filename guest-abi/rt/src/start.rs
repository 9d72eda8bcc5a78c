//! From the entry point to the guest's program, and from its return to the end of the VM.
//!
//! Concurrency: runs once, on vCPU 0, before any other vCPU is started.

use core::fmt::Display;

use guest_abi::{ABI_MAJOR, BootInfo};

use crate::{EXIT_ABI, apic, boot, console, frames, group, heap, hypercall, traps};

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
    if boot::try_boot_info().is_some() {
        // A second call would give the same RAM out twice.
        hypercall::exit(EXIT_ABI);
    }
    // SAFETY: the contract (`guest_abi::boot`) puts a `BootInfo` at the address in RDI, in this VM's own mapped RAM, and
    // nobody writes it any more. It is plain old data, so any bytes are a valid value, and it is page-aligned.
    let info = unsafe { (boot_info_gpa as *const BootInfo).read() };
    if info.magic != guest_abi::boot::BOOT_MAGIC || (info.abi_version >> 16) as u16 != ABI_MAJOR {
        hypercall::exit(EXIT_ABI);
    }
    let info = boot::set(info);

    group::init(info);
    let ram = frames::plan(info);
    heap::init(&ram.heap);
    frames::init(ram.frames);
    if info.bare_hypercall == 0 {
        traps::init();
        apic::init();
    }
    let code = main();
    console::flush();
    hypercall::exit(code)
}
