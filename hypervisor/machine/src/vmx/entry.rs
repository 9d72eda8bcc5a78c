//! The few instructions around a VM entry and exit.
//!
//! Source: Intel SDM Vol. 3, "VM Entries", "VM Exits"; the general registers and CR2 are software's business.

use core::ffi::c_void;

#[cfg(target_os = "none")]
use x86_defs::vmcs as field;

use crate::arch::GuestRegisters;

/// Flag of [`enter`]: the VMCS has been launched, use VMRESUME.
pub const LAUNCHED: u64 = 1;
/// Flag of [`enter`]: overwrite the microarchitectural buffers (VERW with MD_CLEAR) before the entry.
pub const CLEAR_BUFFERS: u64 = 2;

/// Answer of `quick` ([`Quick::bits`](crate::arch::Quick::bits)): enter again at once.
pub const AGAIN: u64 = 1;
/// The same with [`CLEAR_BUFFERS`].
pub const AGAIN_CLEARED: u64 = AGAIN | 2;
/// Answer of [`enter`]: the entry instruction itself failed (a failed check of guest state is an exit).
pub const FAILED: u64 = 8;

/// What is called between an exit and the next entry: says by a constant of above what is to be done.
pub type QuickExit = unsafe extern "sysv64" fn(runner: *mut c_void) -> u64;

/// Enters the guest of the current VMCS, calls `quick` after each exit, enters again as long as that says so, and returns what
/// it says when it does not, or [`FAILED`].
///
/// While `quick` runs, the guest's RBP and R12 to R15 are where they were, in the CPU: they are what a called function
/// preserves. So `registers` has not got them, and what is written there is lost; the others it has, and they are loaded from there. This
/// is what makes such an exit cheap: a third of all registers is neither stored nor loaded, nor are the caller's own.
///
/// # Safety
/// A VMCS is current on this CPU and fully set up, its host area names this CPU's state and `HOST_RIP` is [`exit_address`];
/// `registers` is valid, and for this function alone but while `quick` runs, which is called with `runner` and leaves that VMCS current.
#[cfg(target_os = "none")]
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(
    registers: *mut GuestRegisters,
    flags: u64,
    runner: *mut c_void,
    quick: QuickExit,
) -> u64 {
    core::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        // With these three RSP is a multiple of 16, as calls want it.
        "push rdi",
        "push rdx",
        "push rcx",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "jbe 5f",
        "test sil, 2",
        "jz 1f",
        "verw word ptr [rip + {selector}]",
        "1:",
        "test sil, 1", // MOV below leaves the flags alone
        "mov rbp, [rdi + 48]",
        "mov r12, [rdi + 88]",
        "mov r13, [rdi + 96]",
        "mov r14, [rdi + 104]",
        "mov r15, [rdi + 112]",
        "jnz 4f",
        "mov rax, [rdi]",
        "mov rbx, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov r8, [rdi + 56]",
        "mov r9, [rdi + 64]",
        "mov r10, [rdi + 72]",
        "mov r11, [rdi + 80]",
        "mov rdi, [rdi + 40]",
        "vmlaunch",
        "jmp 5f",
        ".global nagaya_vm_exit",
        "nagaya_vm_exit:", // HOST_RIP; RSP is as at the VMWRITE above
        "push rdi",
        "mov rdi, [rsp + 24]",
        "mov [rdi], rax",
        "mov [rdi + 8], rbx",
        "mov [rdi + 16], rcx",
        "mov [rdi + 24], rdx",
        "mov [rdi + 32], rsi",
        "pop qword ptr [rdi + 40]",
        "mov [rdi + 56], r8",
        "mov [rdi + 64], r9",
        "mov [rdi + 72], r10",
        "mov [rdi + 80], r11",
        "mov rdi, [rsp + 8]",
        "call [rsp]",
        "mov rdi, [rsp + 16]",
        "cmp al, {again}",
        "jne 2f",
        "4:",
        "mov rax, [rdi]",
        "mov rbx, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "mov rdx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov r8, [rdi + 56]",
        "mov r9, [rdi + 64]",
        "mov r10, [rdi + 72]",
        "mov r11, [rdi + 80]",
        "mov rdi, [rdi + 40]",
        "vmresume",
        "5:", // The instruction failed: the VM ends.
        "mov eax, {failed}",
        "jmp 3f",
        "2:",
        "test al, {again}",
        "jz 6f",
        "verw word ptr [rip + {selector}]",
        "jmp 4b",
        "6:",
        "mov [rdi + 48], rbp",
        "mov [rdi + 88], r12",
        "mov [rdi + 96], r13",
        "mov [rdi + 104], r14",
        "mov [rdi + 112], r15",
        "3:",
        "add rsp, 24",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const field::HOST_RSP.encoding(),
        selector = sym VERW_SELECTOR,
        again = const AGAIN,
        failed = const FAILED,
    )
}

/// The selector whose check by VERW clears the buffers: any valid writable data segment.
#[cfg(target_os = "none")]
static VERW_SELECTOR: u16 = 0x10;

/// Not callable on a host.
///
/// # Safety
/// Never call it.
#[cfg(not(target_os = "none"))]
pub unsafe extern "sysv64" fn enter(
    _registers: *mut GuestRegisters,
    _flags: u64,
    _runner: *mut c_void,
    _quick: QuickExit,
) -> u64 {
    FAILED
}

#[cfg(target_os = "none")]
unsafe extern "C" {
    static nagaya_vm_exit: u8;
}

/// What `HOST_RIP` must hold.
#[must_use]
pub fn exit_address() -> u64 {
    #[cfg(target_os = "none")]
    return (&raw const nagaya_vm_exit).expose_provenance() as u64;
    #[cfg(not(target_os = "none"))]
    return 0;
}
