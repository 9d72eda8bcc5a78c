//! Segments of the guest's own, and a few instructions in ring 3.
//!
//! The hypervisor starts a guest on a minimal GDT without a task-state segment. This one keeps its two selectors and adds
//! user segments, and a TSS whose stack serves double faults and page faults, so that a stack that overflowed into its guard
//! page is reported instead of ending in a triple fault.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{heap, paging, traps};

/// Interrupt-stack-table index of the emergency stack.
pub(crate) const EMERGENCY_STACK: u64 = 1;
const USER_DATA: u64 = 0x18 | 3;
const USER_CODE: u64 = 0x20 | 3;
const TASK: u16 = 0x28;
/// Where user code lies: in a 512 GiB slot of its own, since the boot page tables allow no user accesses.
const USER_VA: u64 = 0x1000_0000_0000;

#[repr(C, align(16))]
struct Stack([AtomicU64; 1024]);

static GDT: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];
/// The TSS's 104 bytes as words; fields straddle them: RSP0 at byte 4, IST1 at byte 36.
static TSS: [AtomicU64; 13] = [const { AtomicU64::new(0) }; 13];
static EMERGENCY: Stack = Stack([const { AtomicU64::new(0) }; 1024]);
static KERNEL: Stack = Stack([const { AtomicU64::new(0) }; 1024]);

fn top(stack: &'static Stack) -> u64 {
    (&raw const *stack).expose_provenance() as u64 + size_of::<Stack>() as u64
}

/// Stores a 64-bit field at byte `offset` = 4 modulo 8 of the TSS.
fn set_tss(offset: usize, value: u64) {
    TSS[offset / 8].fetch_or(value << 32, Ordering::Relaxed);
    TSS[offset / 8 + 1].fetch_or(value >> 32, Ordering::Relaxed);
}

pub(crate) fn init() {
    set_tss(4, top(&KERNEL));
    set_tss(36, top(&EMERGENCY));
    let tss = (&raw const TSS).expose_provenance() as u64;
    let low = 103 | (tss & 0xFF_FFFF) << 16 | 0x89 << 40 | (tss >> 24 & 0xFF) << 56;
    for (slot, descriptor) in GDT.iter().zip([
        0,
        0x00AF_9B00_0000_FFFF,
        0x00CF_9300_0000_FFFF,
        0x00CF_F300_0000_FFFF,
        0x00AF_FB00_0000_FFFF,
        low,
        tss >> 32,
    ]) {
        slot.store(descriptor, Ordering::Relaxed);
    }
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: size_of_val(&GDT) as u16 - 1,
        base: (&raw const GDT).expose_provenance() as u64,
    };
    // SAFETY: the table repeats the descriptors of the two selectors in use and lives for ever; the TSS is not busy.
    unsafe {
        asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags));
        asm!("ltr {0:x}", in(reg) TASK, options(nostack, preserves_flags));
    }
}

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
