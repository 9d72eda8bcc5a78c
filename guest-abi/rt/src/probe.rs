//! Instructions that may raise an exception, and things no guest should do: safe functions for test guests and benchmarks.
//!
//! Every function here either comes back with what the machine answered, or ends the VM, as its text says. None of them touches
//! memory that Rust uses.
//!
//! Concurrency: what is caught is caught for one vCPU at a time; only one vCPU of a VM may probe.

pub mod memory;
pub mod state;

use core::arch::asm;

use guest_abi::boot;

use crate::traps::{Caught, catch};

/// IA32_EFER decides how memory is addressed; it is not for probing.
const IA32_EFER: u32 = 0xC000_0080;

/// RDMSR.
///
/// # Errors
/// The exception it raised.
pub fn read_msr(number: u32) -> Result<u64, Caught> {
    let (mut low, mut high) = (0_u32, 0_u32);
    match catch!("rdmsr", in("ecx") number, inout("eax") low, inout("edx") high) {
        None => Ok((u64::from(high) << 32) | u64::from(low)),
        Some(caught) => Err(caught),
    }
}

/// RDMSR of an MSR that is known to be there, with nothing around it: for benchmarks. Else the VM ends by an exception.
#[inline]
#[must_use]
pub fn read_known_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register, or ends the VM.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    (u64::from(high) << 32) | u64::from(low)
}

/// The MSR that starts a microcode update, whose reading gives the update's revision.
pub const IA32_BIOS_SIGN_ID: u32 = 0x8B;

/// WRMSR of 0 to [`IA32_BIOS_SIGN_ID`], as everybody does before reading it, with nothing around it: for benchmarks.
#[inline]
pub fn clear_bios_sign_id() {
    // SAFETY: writing 0 there has no effect on memory (Intel SDM Vol. 3, "Microcode Update Facilities").
    unsafe {
        asm!("wrmsr", in("ecx") IA32_BIOS_SIGN_ID, in("eax") 0, in("edx") 0, options(nomem, nostack, preserves_flags));
    }
}

/// WRMSR.
///
/// # Errors
/// The exception it raised.
///
/// # Panics
/// For IA32_EFER, on which the runtime itself stands.
pub fn write_msr(number: u32, value: u64) -> Result<(), Caught> {
    assert!(number != IA32_EFER, "IA32_EFER is the runtime's");
    match catch!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32)
    {
        None => Ok(()),
        Some(caught) => Err(caught),
    }
}

/// IN of a byte.
#[must_use]
pub fn port_read_u8(port: u16) -> u8 {
    let value;
    // SAFETY: a guest's ports lead to its hypervisor only, which has no device that writes to memory by itself.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// IN of a word.
#[must_use]
pub fn port_read_u16(port: u16) -> u16 {
    let value;
    // SAFETY: as in `port_read_u8`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// IN of a double word.
#[must_use]
pub fn port_read_u32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `port_read_u8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// OUT of a byte.
pub fn port_write_u8(port: u16, value: u8) {
    // SAFETY: as in `port_read_u8`.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// OUT of a double word.
pub fn port_write_u32(port: u16, value: u32) {
    // SAFETY: as in `port_read_u8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags))
    };
}

/// REP INSD: double words from a port, as many as there is room for whole ones.
pub fn port_read_string(port: u16, target: &mut [u8]) {
    // SAFETY: it writes to `target` only.
    unsafe {
        asm!("rep insd", in("dx") port, inout("rdi") target.as_mut_ptr() => _, inout("rcx") target.len() / 4 => _,
            options(nostack, preserves_flags))
    };
}

/// REP OUTSD: double words to a port.
pub fn port_write_string(port: u16, source: &[u32]) {
    // SAFETY: it reads from `source` only.
    unsafe {
        asm!("rep outsd", in("dx") port, inout("rsi") source.as_ptr() => _, inout("rcx") source.len() => _,
            options(nostack, preserves_flags, readonly))
    };
}

/// An instruction that changes nothing the program relies on, whether the machine has it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// RDRAND.
    Rdrand,
    /// RDSEED.
    Rdseed,
    /// VMXON, with an operand that would not do.
    Vmxon,
    /// MONITOR, of the boot information's page.
    Monitor,
    /// WBINVD.
    Wbinvd,
    /// UD2.
    Undefined,
}

/// Executes it; the exception it raised, if one.
#[must_use]
pub fn execute(instruction: Instruction) -> Option<Caught> {
    match instruction {
        Instruction::Rdrand => catch!("rdrand eax", out("eax") _),
        Instruction::Rdseed => catch!("rdseed eax", out("eax") _),
        Instruction::Vmxon => catch!("vmxon [rsp]"),
        Instruction::Monitor => {
            catch!("monitor", in("rax") boot::BOOT_INFO_GPA, in("ecx") 0, in("edx") 0)
        }
        Instruction::Wbinvd => catch!("wbinvd"),
        Instruction::Undefined => catch!("ud2"),
    }
}

/// CR0.
#[must_use]
pub fn cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR4.
#[must_use]
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR0's cache bits, NW (29) and CD (30): the only ones [`set_cr0_cache_bits`] changes.
pub const CR0_CACHE_BITS: u64 = 3 << 29;

/// Sets the cache bits of CR0 to those in `bits`; the exception that raised, if one.
#[must_use]
pub fn set_cr0_cache_bits(bits: u64) -> Option<Caught> {
    let value = (cr0() & !CR0_CACHE_BITS) | (bits & CR0_CACHE_BITS);
    catch!("mov cr0, {value}", value = in(reg) value)
}

/// CR4.VMXE.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// Sets those of VMXE and OSXSAVE that are in `bits`; the exception that raised, if one.
#[must_use]
pub fn set_cr4_bits(bits: u64) -> Option<Caught> {
    let value = cr4() | (bits & (CR4_VMXE | CR4_OSXSAVE));
    catch!("mov cr4, {value}", value = in(reg) value)
}

/// XSETBV for XCR0; the exception it raised, if one. CR4.OSXSAVE must be set.
#[must_use]
pub fn set_xcr0(value: u64) -> Option<Caught> {
    catch!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// What is left of `value` in an SSE register after a hypercall and a CPUID.
#[must_use]
pub fn sse_over_exits(value: u64) -> u64 {
    let left;
    // SAFETY: this soft-float program uses no vector register; the call (`version`) and CPUID change RAX to RDX only.
    unsafe {
        asm!(
            "movq xmm5, {value}",
            "mov eax, 0x100",
            "vmcall",
            "xor eax, eax",
            "push rbx",
            "cpuid",
            "pop rbx",
            "movq {left}, xmm5",
            value = in(reg) value,
            left = lateout(reg) left,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
        );
    }
    left
}

/// What is left of `value` in the upper half of an AVX register after a hypercall. XCR0 must have AVX enabled.
#[must_use]
pub fn avx_over_exits(value: u64) -> u64 {
    let left;
    // SAFETY: as in `sse_over_exits`; without AVX it raises an exception that ends the VM.
    unsafe {
        asm!(
            "vmovq xmm6, {value}",
            "vinsertf128 ymm6, ymm6, xmm6, 1",
            "mov eax, 0x100",
            "vmcall",
            "vextractf128 xmm7, ymm6, 1",
            "vmovq {left}, xmm7",
            value = in(reg) value,
            left = lateout(reg) left,
            out("rax") _,
            options(nostack),
        );
    }
    left
}

/// An XSAVE area, large enough for AVX-512 in either format.
#[repr(C, align(64))]
struct XsaveArea([u64; 512]);

/// How vector state is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// XSAVE, in the standard format.
    Standard,
    /// XSAVEC, in the compacted format.
    Compacted,
}

/// What ZMM3 and ZMM17 hold after they were saved, lost and restored, if both held `pattern`. XCR0 must have AVX-512 enabled.
#[must_use]
pub fn avx512_restored(pattern: &[u64; 8], save: Save) -> [[u64; 8]; 2] {
    // As if it had been used before, behind legacy area and header.
    let mut area = XsaveArea([0xA5A5_A5A5_A5A5_A5A5; 512]);
    area.0.iter_mut().take(72).for_each(|word| *word = 0);
    let mut left = [[0; 8]; 2];
    // SAFETY: as in `sse_over_exits`; area and patterns are as large as the instructions take them to be.
    unsafe {
        asm!(
            "vmovdqu64 zmm3, [{pattern}]",
            "vmovdqu64 zmm17, [{pattern}]",
            "test {compacted:e}, {compacted:e}",
            "jz 2f",
            "xsavec64 [{area}]",
            "jmp 3f",
            "2:",
            "xsave64 [{area}]",
            "3:",
            "vpxorq zmm3, zmm3, zmm3",
            "vpternlogd zmm17, zmm17, zmm17, 255",
            "xrstor64 [{area}]",
            "vmovdqu64 [{left}], zmm3",
            "vmovdqu64 [{left} + 64], zmm17",
            "vpxorq zmm17, zmm17, zmm17",
            "vzeroall",
            pattern = in(reg) pattern,
            compacted = in(reg) u32::from(save == Save::Compacted),
            area = in(reg) &raw mut area,
            left = in(reg) &raw mut left,
            in("eax") u32::MAX,
            in("edx") u32::MAX,
            options(nostack),
        );
    }
    left
}

/// Faults with no way to deliver the exception: the VM ends by a triple fault.
pub fn triple_fault() -> ! {
    let no_table = [0_u8; 10];
    // SAFETY: no instruction of this program is executed after this.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const no_table, options(noreturn)) };
}

/// Goes on executing at an address behind which there is no memory: the VM ends by a memory violation.
pub fn wild_jump() -> ! {
    // SAFETY: no instruction of this program is executed after this. The one-to-one mapping covers 4 GiB, RAM ends at 3 GiB.
    unsafe { asm!("jmp {}", in(reg) boot::MAX_MEMORY_BYTES + (64 << 20), options(noreturn)) };
}

/// Reads from address 0, which is not mapped: a page fault.
#[must_use]
pub fn read_null() -> Option<Caught> {
    catch!("mov rax, [rax]", inout("rax") 0_u64 => _)
}

/// A page that the hypervisor lets its guests read only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ReadOnlyPage {
    /// The group page.
    Group = boot::GROUP_PAGE_GPA,
    /// vCPU 0's info page.
    Info = boot::INFO_PAGE_GPA,
}

/// Writes to it: the VM ends by a memory violation.
pub fn write_read_only(page: ReadOnlyPage) {
    // SAFETY: the page is no memory of Rust's; the write is to fail.
    unsafe {
        asm!("mov qword ptr [{}], 1", in(reg) page as u64, options(nostack, preserves_flags))
    };
}

/// Recurses until the stack meets its guard page: the VM ends with [`crate::EXIT_FAULT`], reported on another stack.
#[must_use]
#[allow(
    unconditional_recursion,
    reason = "that is the point: the stack's guard page"
)]
pub fn overflow_stack(depth: u64) -> u64 {
    let mut room = [depth; 64];
    core::hint::black_box(&mut room);
    overflow_stack(depth + 1) + room[3]
}
