//! Starting the other CPUs: INIT, start-up IPI, and a page of real-mode code that brings a CPU to 64-bit mode.
//!
//! CPUs are started one after the other, so that one block of parameters behind the code serves all. The page is mapped
//! executable and read-only at its own address while CPUs start, written through the physical map, and unmapped (with a TLB
//! shootdown) afterwards. Source: Intel SDM Vol. 3, "Multiple-Processor Initialization".

use alloc::string::String;
use core::sync::atomic::Ordering;

use nagaya_mem::{HostMemory, Hpa};

use crate::host::cpu::apic::Apic;
use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::host::cpu::protect::{self, HostSegments};
use crate::host::cpu::{jobs, time, traps};
use crate::host::memory::{self, Whose};
use crate::host::paging;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".section .rodata.trampoline, \"a\"",
    ".balign 16",
    ".global nagaya_trampoline_start",
    ".global nagaya_trampoline_end",
    ".global nagaya_trampoline_parameters",
    "nagaya_trampoline_start:",
    ".code16",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "lgdtl nagaya_trampoline_gdtr - nagaya_trampoline_start",
    "movl %cr4, %eax",
    "orl $0x20, %eax", // PAE
    "movl %eax, %cr4",
    "movl nagaya_trampoline_parameters - nagaya_trampoline_start, %eax",
    "movl %eax, %cr3",
    "movl $0xC0000080, %ecx", // IA32_EFER: LME, NXE
    "rdmsr",
    "orl $0x900, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "andl $0x9FFFFFFF, %eax", // CD, NW off: INIT leaves the caches disabled
    "orl $0x80010001, %eax",  // PG, WP, PE
    "movl %eax, %cr0",
    "ljmpl *(nagaya_trampoline_far - nagaya_trampoline_start)",
    ".code64",
    "nagaya_trampoline_long:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "xorl %eax, %eax",
    "movw %ax, %fs",
    "movw %ax, %gs",
    "movq nagaya_trampoline_parameters + 8(%rip), %rsp",
    "movq nagaya_trampoline_parameters + 16(%rip), %rdi",
    "movq nagaya_trampoline_parameters + 24(%rip), %rax",
    "callq *%rax",
    "ud2",
    ".balign 8",
    "nagaya_trampoline_gdt:",
    ".quad 0",
    // Both marked accessed: the page is read-only, so that the CPU could not set the bit itself.
    ".quad 0x00AF9B000000FFFF",
    ".quad 0x00CF93000000FFFF",
    "nagaya_trampoline_gdtr:",
    ".word 23",
    ".long 0", // patched: address of the GDT
    ".balign 4",
    "nagaya_trampoline_far:",
    ".long 0", // patched: address of the 64-bit part
    ".word 8",
    ".balign 8",
    "nagaya_trampoline_parameters:",
    ".quad 0, 0, 0, 0", // root of the page tables, stack, argument, entry
    "nagaya_trampoline_end:",
    ".text",
    options(att_syntax),
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    static nagaya_trampoline_start: u8;
    static nagaya_trampoline_end: u8;
    static nagaya_trampoline_parameters: u8;
    static nagaya_trampoline_gdt: u8;
    static nagaya_trampoline_gdtr: u8;
    static nagaya_trampoline_far: u8;
    static nagaya_trampoline_long: u8;
}

/// Offsets into the trampoline, and its bytes.
struct Trampoline {
    code: &'static [u8],
    parameters: u64,
    gdt: u64,
    gdtr: u64,
    far: u64,
    long: u64,
}

#[cfg(target_os = "none")]
fn trampoline() -> Trampoline {
    let start = &raw const nagaya_trampoline_start;
    let offset = |symbol: *const u8| (symbol.addr() - start.addr()) as u64;
    Trampoline {
        // SAFETY: both symbols bound the same read-only section part, which nothing changes.
        code: unsafe {
            core::slice::from_raw_parts(start, offset(&raw const nagaya_trampoline_end) as usize)
        },
        parameters: offset(&raw const nagaya_trampoline_parameters),
        gdt: offset(&raw const nagaya_trampoline_gdt),
        gdtr: offset(&raw const nagaya_trampoline_gdtr),
        far: offset(&raw const nagaya_trampoline_far),
        long: offset(&raw const nagaya_trampoline_long),
    }
}

#[cfg(not(target_os = "none"))]
fn trampoline() -> Trampoline {
    Trampoline {
        code: &[],
        parameters: 0,
        gdt: 0,
        gdtr: 0,
        far: 0,
        long: 0,
    }
}

/// How long a CPU may take from its start-up IPI to being online.
const START_TIMEOUT_MS: u64 = 1000;

/// Where a started CPU goes on, on a stack of its own, with interrupts off: it calls [`begin`] first of all, and says that it is
/// there by `online`.
pub type Entry = extern "sysv64" fn(&'static PerCpu) -> !;

/// Starts the CPUs with these APIC IDs, one after the other, at `entry`, and waits for each. Those that do not come are reported and
/// left out.
///
/// # Errors
/// Why no CPU can be started at all.
pub fn start(apic_ids: &[u32], page: Hpa, entry: Entry) -> Result<u32, &'static str> {
    let root = paging::root_address();
    if root.get() >= 1 << 32 {
        return Err(
            "the page tables' root lies above 4 GiB, where a CPU that starts cannot reach it",
        );
    }
    paging::map_identity_executable(page).map_err(|_| "the start-up page cannot be mapped")?;
    let code = trampoline();
    // SAFETY: `memory::init` found the page free below 1 MiB, which is given to nobody else.
    let phys = unsafe { memory::writer(Whose::Hypervisor) };
    phys.write(page, code.code);
    let at = |offset: u64| Hpa::new(page.get() + offset);
    let word = |offset: u64| ((page.get() + offset) as u32).to_le_bytes();
    phys.write(at(code.gdtr + 2), &word(code.gdt));
    phys.write(at(code.far), &word(code.long));

    let mut started = 0;
    for &apic_id in apic_ids {
        let Some(cpu) = PerCpu::create(apic_id) else {
            log::warn!(
                "CPU with APIC ID {apic_id} stays off: there are more than {} CPUs",
                MAX_CPUS
            );
            continue;
        };
        let Some(stack) = paging::new_stack() else {
            return Err("no memory for a CPU's stack");
        };
        let parameters = [
            root.get(),
            stack.as_u64(),
            cpu.address(),
            (entry as *const ()).expose_provenance() as u64,
        ];
        for (index, value) in parameters.into_iter().enumerate() {
            phys.write(at(code.parameters + index as u64 * 8), &value.to_le_bytes());
        }
        if bring_up(cpu, (page.get() >> 12) as u8) {
            started += 1;
        } else {
            log::error!(
                "CPU with APIC ID {apic_id} did not come within {START_TIMEOUT_MS} ms of its start-up IPI"
            );
        }
    }
    paging::unmap_identity(page);
    Ok(started)
}

fn bring_up(cpu: &'static PerCpu, page: u8) -> bool {
    let boot = PerCpu::current();
    boot.with_apic(|apic| apic.send_init(cpu.apic_id));
    time::spin_micros(10_000);
    for _ in 0..2 {
        boot.with_apic(|apic| apic.send_startup(page, cpu.apic_id));
        time::spin_micros(200);
        if cpu.online.load(Ordering::SeqCst) {
            return true;
        }
    }
    let deadline = time::ticks() + START_TIMEOUT_MS * time::khz();
    while !cpu.online.load(Ordering::SeqCst) && time::ticks() < deadline {
        core::hint::spin_loop();
    }
    cpu.online.load(Ordering::SeqCst)
}

/// The first thing that a started CPU does: makes [`PerCpu::current`] and the protections what they are on every CPU.
///
/// # Safety
/// Once on each CPU, with the structure that was made for it.
pub unsafe fn begin(cpu: &'static PerCpu) {
    // SAFETY: passed on to the caller.
    unsafe { cpu.install() };
    paging::enable_protections();
}

/// What every CPU does for itself: segments, IDT, APIC. `PerCpu` is installed.
///
/// # Errors
/// What is missing.
pub fn set_up(cpu: &'static PerCpu) -> Result<HostSegments, String> {
    let segments = protect::load().ok_or("no memory for the special stacks")?;
    traps::load();
    cpu.set_apic(Apic::enable()?);
    jobs::set_up(
        cpu,
        paging::new_stack().ok_or("no memory for the worker's stack")?,
    );
    Ok(segments)
}
