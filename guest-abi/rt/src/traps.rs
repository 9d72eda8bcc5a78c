//! Panics and exceptions: reported and the VM ended, unless the guest expects one ([`crate::probe`]) or handles it ([`set_handler`]).
//!
//! Exit codes: 101 panic, 102 unexpected exception, 103 a hypervisor with another ABI.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{console, hypercall, segments};

/// What the CPU and the stubs push, lowest address first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11 as they were.
    pub scratch: [u64; 9],
    /// Vector.
    pub vector: u64,
    /// Error code, 0 if the exception has none.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".balign 16",
    "nagaya_guest_traps:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp nagaya_guest_trap",
    ".set vector, vector + 1",
    ".endr",
    "nagaya_guest_trap:",
    "push r11", "push r10", "push r9", "push r8", "push rdi", "push rsi", "push rdx", "push rcx", "push rax",
    "cld",
    "mov rdi, rsp",
    "push rbp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {handler}",
    "mov rsp, rbp",
    "pop rbp",
    "pop rax", "pop rcx", "pop rdx", "pop rsi", "pop rdi", "pop r8", "pop r9", "pop r10", "pop r11",
    "add rsp, 16",
    "iretq",
    ".global nagaya_guest_traps",
    handler = sym handle,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    static nagaya_guest_traps: u8;
}

#[repr(C, align(16))]
struct Idt([[AtomicU64; 2]; 256]);

static IDT: Idt = Idt([const { [const { AtomicU64::new(0) }; 2] }; 256]);

pub(crate) fn init() {
    segments::init();
    #[cfg(target_os = "none")]
    let stubs = (&raw const nagaya_guest_traps).expose_provenance() as u64;
    #[cfg(not(target_os = "none"))]
    let stubs = 0_u64;
    for (vector, gate) in IDT.0.iter().enumerate() {
        let address = stubs + vector as u64 * 16;
        // Interrupt gate, present, DPL 0, on the boot code segment.
        // Where the stack itself may be at fault: page faults and double faults get the emergency stack.
        let stack = if vector == 8 || vector == 14 {
            segments::EMERGENCY_STACK << 32
        } else {
            0
        };
        let low = stack
            | address & 0xFFFF
            | u64::from(guest_abi::boot::BOOT_CODE_SELECTOR) << 16
            | 0x8E00 << 32
            | (address & 0xFFFF_0000) << 32;
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(address >> 32, Ordering::Relaxed);
    }
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: 4095,
        base: (&raw const IDT).expose_provenance() as u64,
    };
    // SAFETY: the table has 256 valid gates and lives for ever.
    unsafe {
        asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags))
    };
}

/// Lets user mode raise this vector by INT.
pub(crate) fn allow_from_user(vector: u8) {
    IDT.0[usize::from(vector)][0].fetch_or(3 << 45, Ordering::Relaxed);
}

static EXPECTED: AtomicBool = AtomicBool::new(false);
static CAUGHT: AtomicU64 = AtomicU64::new(0);
static RESUME: AtomicU64 = AtomicU64::new(0);
static HANDLER: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Has `handler` called for interrupts and exceptions with that vector; execution then goes on where it was interrupted.
pub fn set_handler(vector: u8, handler: fn(&mut Frame)) {
    HANDLER[usize::from(vector)].store(
        (handler as *const ()).expose_provenance() as u64,
        Ordering::Release,
    );
}

/// An exception that [`crate::probe`] caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Vector.
    pub vector: u8,
    /// Error code.
    pub error_code: u32,
}

/// Arms the catcher: the next exception goes on at `resume` instead of ending the VM.
fn arm(resume: u64) {
    CAUGHT.store(0, Ordering::SeqCst);
    RESUME.store(resume, Ordering::SeqCst);
    EXPECTED.store(true, Ordering::SeqCst);
}

/// Disarms the catcher; what it caught.
pub(crate) fn disarm() -> Option<Caught> {
    EXPECTED.store(false, Ordering::SeqCst);
    let raw = CAUGHT.load(Ordering::SeqCst);
    (raw != 0).then_some(Caught {
        vector: raw as u8,
        error_code: (raw >> 32) as u32,
    })
}

/// Executes assembler instructions that may raise an exception, for `probe`: `catch!("rdmsr", in("ecx") 1, ...)`. They are followed by the
/// point at which execution goes on after an exception. R10 and R11
/// are taken. The value is `Option<Caught>`.
macro_rules! catch {
    ($instructions:literal $(, $($operand:tt)+)?) => {{
        // SAFETY: the caller names instructions that may fault; the handler goes on at label 77, with the stack as it was.
        unsafe {
            core::arch::asm!(
                "lea r10, [rip + 77f]",
                "mov [r11], r10",
                $instructions,
                "77:",
                $($($operand)+,)?
                inout("r11") $crate::traps::arm_slot() => _,
                out("r10") _,
            );
        }
        $crate::traps::disarm()
    }};
}

pub(crate) use catch;

/// Arms the catcher and gives the place for the address to go on at. For `catch!`.
pub(crate) fn arm_slot() -> *mut u64 {
    arm(0);
    RESUME.as_ptr()
}

#[cfg_attr(
    not(target_os = "none"),
    expect(
        dead_code,
        reason = "called by the stubs, which exist on bare metal only"
    )
)]
extern "sysv64" fn handle(frame: &mut Frame) {
    let handler = HANDLER[frame.vector as usize & 255].load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: `set_handler` stored a function with this signature.
        let handler: fn(&mut Frame) =
            unsafe { core::mem::transmute(handler as usize as *const ()) };
        handler(frame);
        return;
    }
    if frame.vector < 32 && EXPECTED.swap(false, Ordering::SeqCst) {
        // Bit 8 marks "caught", so that vector 0 counts, too.
        CAUGHT.store(
            frame.vector | 1 << 8 | frame.error_code << 32,
            Ordering::SeqCst,
        );
        frame.rip = RESUME.load(Ordering::SeqCst);
        return;
    }
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    console::print_urgently(format_args!(
        "exception {} error {:#x} at rip {:#x} cr2 {:#x} rsp {:#x}\n",
        frame.vector, frame.error_code, frame.rip, cr2, frame.rsp
    ));
    hypercall::exit(102);
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: only postpones interrupts.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Lets interrupts in and halts, with nothing in between (Intel SDM, STI: interrupts stay out until the end of the next
/// instruction): one that came since they were kept out ends the halt. They are let in afterwards.
#[inline]
pub fn halt_for_interrupt() {
    // SAFETY: every vector has a handler, and execution goes on behind it.
    unsafe { asm!("sti", "hlt", options(nomem, nostack)) };
}

/// Halts until an interrupt, a doorbell or the deadline.
#[inline]
pub fn halt() {
    // SAFETY: execution goes on behind it.
    unsafe { asm!("hlt", options(nomem, nostack)) };
}
