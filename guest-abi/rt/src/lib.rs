//! The runtime of Rust guests on Nagaya: everything between the ten lines of a guest and the bare vCPU it is started on.
//!
//! ```no_run
//! #![cfg_attr(target_os = "none", no_std, no_main)]
//! use nagaya_rt::{println, region::SharedRegion};
//! use core::sync::atomic::{AtomicU32, Ordering};
//!
//! nagaya_rt::entry!(main);
//!
//! fn main() -> Result<(), nagaya_rt::Errno> {
//!     let region = SharedRegion::map_at(0x40_0000_0000)?;
//!     let visits = region.cell::<AtomicU32>(0).ok_or(nagaya_rt::Errno::Inval)?.fetch_add(1, Ordering::AcqRel);
//!     println!("visitor number {visits}");
//!     Ok(())
//! }
//! ```
//!
//! A guest runs at CPL 0 in one address space; RAM is mapped one to one from address 0 (`guest_abi::boot`). The runtime
//! sets up a GDT, a TSS and an IDT, a heap in the lower part of the free RAM, and a frame allocator in the upper part. A panic
//! ends the VM with exit code [`EXIT_PANIC`], an exception nobody waits for with [`EXIT_FAULT`].
//!
//! What other VMs can write is only ever reached through atomics ([`region`]), and what they wrote is checked before it is
//! believed ([`sync`]). The crate is safe to use: guests need no `unsafe` at all.
//!
//! On a host the crate compiles, and the pure parts run ([`sync`], [`args`], [`frames`]); everything that executes a
//! privileged instruction is not to be called there.
//!
//! With the feature `linux` there is also [`linux`]: the same region and synchronisation for programs on Linux, over `/dev/nagaya`.
//!
//! Concurrency: all vCPUs of a VM share the heap, the frames and the page tables under short spin locks; what a function
//! does to the calling vCPU only (page invalidation, interrupt flag) is said at the function.

#![no_std]
// The runtime is the guest's machine layer: instructions, descriptor tables, page tables, shared memory.
#![allow(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom, feature = "linux"))]
extern crate std;

pub mod apic;
pub mod args;
mod boot;
pub mod console;
pub mod frames;
pub mod group;
pub mod heap;
pub mod hypercall;
pub mod interrupts;
mod lang;
#[cfg(all(feature = "linux", not(loom)))]
pub mod linux;
#[cfg(feature = "net")]
pub mod net;
pub mod own;
pub mod paging;
pub mod probe;
pub mod process;
#[cfg(not(loom))]
pub mod region;
mod segments;
pub mod smp;
mod start;
pub mod sync;
pub mod time;
pub mod traps;
pub mod user;
#[cfg(feature = "net")]
pub mod virtio;

pub use boot::{boot_info, is_bare, vm_name};
pub use guest_abi::{self as abi, Errno, ExitKind, MemberState};
pub use start::{Code, Termination};

#[doc(hidden)]
pub use start::{__report, __start};

/// Exit code of a guest that panicked.
pub const EXIT_PANIC: i64 = 101;
/// Exit code of a guest that took an exception nobody had asked for.
pub const EXIT_FAULT: i64 = 102;
/// Exit code of a guest that was started with a contract it was not built for.
pub const EXIT_ABI: i64 = 103;

/// Makes `$main` the guest's program: the entry point sets the runtime up, calls `$main`, and ends the VM with what it
/// returns ([`Termination`]). `$main` is to be a function called `main` in the crate's root: on a host, where the macro makes nothing,
/// it is then an ordinary `main`, so that guests can be checked by the ordinary tools (but not run).
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[cfg(target_os = "none")]
        extern "sysv64" fn __nagaya_main() -> i64 {
            $crate::__report($main())
        }

        /// Where the hypervisor enters: RDI = address of the boot information, RSP = top of the first stack.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        extern "sysv64" fn _start() -> ! {
            core::arch::naked_asm!(
                "and rsp, -16",
                "xor ebp, ebp",
                "lea rsi, [rip + {main}]",
                "call {start}",
                "ud2",
                main = sym __nagaya_main,
                start = sym $crate::__start,
            )
        }
    };
}

/// Prints to the VM's console. Text is held back until the end of its line.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print_fmt(core::format_args!($($argument)*)) };
}

/// Prints a line to the VM's console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print_fmt(core::format_args!("{}\n", core::format_args!($($argument)*))) };
}
