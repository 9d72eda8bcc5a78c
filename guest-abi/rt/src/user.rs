//! A few instructions in ring 3.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::segments::{USER_CODE, USER_DATA};
use crate::{heap, paging, traps};

/// Where user code lies: in a 512 GiB slot of its own, since the boot page tables allow no user accesses.
const USER_VA: u64 = 0x1000_0000_0000;

static KERNEL_RSP: AtomicU64 = AtomicU64::new(0);
static KERNEL_RIP: AtomicU64 = AtomicU64::new(0);

fn back_to_kernel(frame: &mut traps::Frame) {
    frame.rip = KERNEL_RIP.load(Ordering::Relaxed);
    frame.rsp = KERNEL_RSP.load(Ordering::Relaxed);
    frame.cs = 0x08;
    frame.ss = 0x10;
    frame.rflags = 2;
}

/// Executes VMCALL with that number in ring 3; RAX as it comes back.
///
/// # Panics
/// Without memory for the page of user code.
#[must_use]
pub fn hypercall(number: u64) -> i64 {
    const RETURN_VECTOR: u8 = 0x80;
    traps::set_handler(RETURN_VECTOR, back_to_kernel);
    traps::allow_from_user(RETURN_VECTOR);
    let Some(page) = heap::take_frames(paging::SMALL, paging::SMALL) else {
        panic!("no RAM for user code")
    };
    // vmcall; int 0x80
    for (offset, byte) in [0x0F, 0x01, 0xC1, 0xCD, RETURN_VECTOR]
        .into_iter()
        .enumerate()
    {
        // SAFETY: the page is our own, identity-mapped.
        unsafe {
            core::ptr::with_exposed_provenance_mut::<u8>(page as usize + offset)
                .write_volatile(byte)
        };
    }
    let entry = page | paging::PRESENT | paging::WRITABLE | paging::USER;
    // SAFETY: nothing of Rust's lies there.
    assert!(unsafe { paging::set_page(USER_VA, entry) });
    let result: i64;
    // SAFETY: the frame for IRET names the user page, with a stack at its end; the interrupt there comes back to label 2 with
    // this stack. RBX and RBP are kept by hand, since user code keeps all registers but RAX.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea {t}, [rip + 2f]",
            "mov [{rip_slot}], {t}",
            "mov [{rsp_slot}], rsp",
            "push {data}",
            "push {stack}",
            "push 2",
            "push {code}",
            "push {entry}",
            "iretq",
            "2:",
            "pop rbp",
            "pop rbx",
            t = out(reg) _,
            rip_slot = in(reg) KERNEL_RIP.as_ptr(),
            rsp_slot = in(reg) KERNEL_RSP.as_ptr(),
            data = in(reg) USER_DATA,
            stack = in(reg) USER_VA + 4096,
            code = in(reg) USER_CODE,
            entry = in(reg) USER_VA,
            inlateout("rax") number => result,
            in("rdi") 0x20_0000_u64,
        );
    }
    result
}
