//! What is not allowed faults as on any CPU, and what is not there floats: none of it ends the VM.
//!
//! Source: Intel SDM Vol. 2, the instructions' own pages; Vol. 3, "Interrupt 6—Invalid Opcode Exception" and its neighbours.

use crate::cpu::{in8, in16, in32, out8, out16, out32, read, tsc, write};
use crate::interrupts::{NONE, last_error_code};
use crate::report::Report;

const DIVIDE: u32 = 0;
const BREAKPOINT: u32 = 3;
const INVALID_OPCODE: u32 = 6;
const GENERAL_PROTECTION: u32 = 13;
const PAGE_FAULT: u32 = 14;

/// Nobody's addresses: between RAM and devices, where kernels look for more RAM, and among devices.
const NOWHERE: [u64; 2] = [0x4000_0000, 0xFE20_0000];

unsafe extern "C" {
    fn probe_rdmsr(msr: u32) -> u32;
    pub(crate) fn probe_wrmsr(msr: u32, value: u64) -> u32;
    fn probe_cr0(value: u64) -> u32;
    pub(crate) fn probe_cr4(value: u64) -> u32;
    fn probe_ud2() -> u32;
    fn probe_rdpmc() -> u32;
    fn probe_divide() -> u32;
    fn probe_breakpoint() -> u32;
    fn probe_vmxon() -> u32;
    fn probe_read(address: u64) -> u32;
    fn read_cr0() -> u64;
    pub(crate) fn read_cr4() -> u64;
    static probe_value: u64;
}

/// RDMSR: the exception, or [`NONE`] and the value.
pub(crate) fn rdmsr(msr: u32) -> (u32, u64) {
    // SAFETY: a fault is caught by the probe; reading the MSRs asked for here changes nothing.
    unsafe {
        (
            probe_rdmsr(msr),
            core::ptr::addr_of!(probe_value).read_volatile(),
        )
    }
}

pub(crate) fn check(report: &mut Report) {
    const EFER: u32 = 0xC000_0080;
    const LME_LMA: u64 = 0x500;
    const APIC_BASE: u32 = 0x1B;
    let efer = rdmsr(EFER);
    report.equal(
        "efer-says-long-mode",
        (efer.0, efer.1 & LME_LMA),
        (NONE, LME_LMA),
    );
    // Enabled, the bootstrap processor, where every PC has it.
    report.equal("apic-base", rdmsr(APIC_BASE), (NONE, 0xFEE0_0900));
    report.equal("pat", rdmsr(0x277), (NONE, 0x0007_0406_0007_0406));
    report.equal("unknown-msr", rdmsr(0xC001_1234).0, GENERAL_PROTECTION);
    let before = tsc();
    let found = rdmsr(0x10);
    report.check(
        "tsc",
        found.0 == NONE && found.1 >= before && tsc() >= found.1,
        (before, found),
    );

    registers(report);

    // SAFETY: each either faults, which the probe catches, or sets what is set already.
    unsafe {
        report.equal(
            "unknown-msr-write",
            probe_wrmsr(0xC001_1234, 1),
            GENERAL_PROTECTION,
        );
        report.equal(
            "efer-reserved",
            probe_wrmsr(EFER, efer.1 | 1 << 40),
            GENERAL_PROTECTION,
        );
        report.equal("efer-as-it-is", probe_wrmsr(EFER, efer.1), NONE);
        report.equal("pat-reserved", probe_wrmsr(0x277, 2), GENERAL_PROTECTION);
        let (cr0, cr4) = (read_cr0(), read_cr4());
        report.equal("cr0-as-it-is", probe_cr0(cr0), NONE);
        // Paging off in 64-bit code; not-write-through without cache-disable.
        report.equal(
            "cr0-paging-off",
            probe_cr0(cr0 & !(1 << 31)),
            GENERAL_PROTECTION,
        );
        report.equal(
            "cr0-contradiction",
            probe_cr0(cr0 & !(1 << 30) | 1 << 29),
            GENERAL_PROTECTION,
        );
        // Numeric errors by exception: it comes and goes, though the hypervisor keeps it on.
        let toggled = probe_cr0(cr0 | 1 << 5);
        let seen = read_cr0() & 1 << 5;
        let back = probe_cr0(cr0 & !(1 << 5));
        report.equal(
            "cr0-numeric-error",
            (toggled, seen, back, read_cr0() & 1 << 5),
            (NONE, 1 << 5, NONE, 0),
        );
        report.equal("cr4-vmx", probe_cr4(cr4 | 1 << 13), GENERAL_PROTECTION);
        report.equal("cr4-reserved", probe_cr4(cr4 | 1 << 31), GENERAL_PROTECTION);
        report.equal(
            "cr4-pae-off",
            probe_cr4(cr4 & !(1 << 5)),
            GENERAL_PROTECTION,
        );
        report.equal("undefined-opcode", probe_ud2(), INVALID_OPCODE);
        report.equal("divide", probe_divide(), DIVIDE);
        report.equal("breakpoint", probe_breakpoint(), BREAKPOINT);
        report.equal("vmxon", probe_vmxon(), INVALID_OPCODE);
        report.equal(
            "page-fault",
            (probe_read(1 << 32), last_error_code()),
            (PAGE_FAULT, 0),
        );
        report.equal("not-canonical", probe_read(1 << 63), GENERAL_PROTECTION);
    }
    cpuid(report);
    nowhere(report);
}

/// Leaves that a kernel looks at first.
fn cpuid(report: &mut Report) {
    let leaf = |leaf: u32| core::arch::x86_64::__cpuid_count(leaf, 0);
    report.check("cpuid-leaves", leaf(0).eax >= 0xB, leaf(0).eax);
    let features = leaf(1);
    // FPU, PSE, TSC, MSR, PAE, APIC; x2APIC and a hypervisor, but no VMX.
    let wanted = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9;
    report.equal("cpuid-features", features.edx & wanted, wanted);
    report.equal(
        "cpuid-hypervisor",
        features.ecx & (1 << 31 | 1 << 5),
        1 << 31,
    );
    report.equal(
        "cpuid-apic-id",
        features.ebx >> 24,
        read::<u32>(0xFEE0_0020) >> 24,
    );
    let signature = leaf(0x4000_0000);
    report.check(
        "cpuid-signature",
        signature.eax >= 0x4000_0001 && signature.ebx != 0,
        signature.ebx,
    );
    report.equal("cpuid-long-mode", leaf(0x8000_0001).edx >> 29 & 1, 1);
}

/// Ports and memory that are nobody's.
fn nowhere(report: &mut Report) {
    const PORT: u16 = 0x1234;
    out8(PORT, 1);
    out16(PORT, 2);
    out32(PORT, 3);
    report.equal(
        "absent-ports-float",
        (in8(PORT), in16(PORT), in32(PORT)),
        (0xFF, 0xFFFF, 0xFFFF_FFFF),
    );
    for (address, name) in NOWHERE
        .into_iter()
        .zip(["more-memory-floats", "absent-memory-floats"])
    {
        write(address, 0x1234_5678_u32);
        let found = (read::<u8>(address + 1), read::<u32>(address));
        report.equal(name, found, (0xFF, 0xFFFF_FFFF));
    }
}

/// Registers that every CPU of this kind has, and the clock of KVM's.
fn registers(report: &mut Report) {
    const TSC: u32 = 0x10;
    const TSC_ADJUST: u32 = 0x3B;
    const DEBUGCTL: u32 = 0x1D9;
    const SYSTEM_TIME: u32 = 0x12;
    const CLOCK: u64 = 0x7A00;
    const AHEAD: u64 = 1 << 40;
    // SAFETY: faults are caught; what is set is set back, and the clock's page is nobody else's.
    unsafe {
        report.equal("debugctl-btf", probe_wrmsr(DEBUGCTL, 2), NONE);
        report.equal("debugctl-reads", rdmsr(DEBUGCTL), (NONE, 2));
        let _ = probe_wrmsr(DEBUGCTL, 0);
        let before = tsc();
        let set = probe_wrmsr(TSC, before + AHEAD);
        let moved = tsc() - before;
        let adjust = rdmsr(TSC_ADJUST);
        report.check(
            "tsc-is-written",
            set == NONE && (AHEAD..AHEAD + (1 << 30)).contains(&moved),
            (set, moved),
        );
        report.check(
            "tsc-adjust-follows",
            adjust.0 == NONE && adjust.1 <= AHEAD && adjust.1 > AHEAD - (1 << 30),
            adjust,
        );
        let back = probe_wrmsr(TSC_ADJUST, 0);
        let now = tsc();
        report.check("tsc-adjust-is-written", back == NONE && now < AHEAD, now);
        report.equal(
            "counter-that-is-not-there",
            probe_rdpmc(),
            GENERAL_PROTECTION,
        );

        let features = core::arch::x86_64::__cpuid(0x4000_0001).eax;
        report.equal("kvm-clock-is-not-announced", features & 9, 0);
        report.equal("kvm-clock", probe_wrmsr(SYSTEM_TIME, CLOCK | 1), NONE);
        let (version, start, multiplier): (u32, u64, u32) =
            (read(CLOCK), read(CLOCK + 8), read(CLOCK + 24));
        report.check(
            "kvm-clock-is-written",
            version != 0 && version % 2 == 0 && start < tsc() && multiplier != 0,
            (version, start, multiplier),
        );
        let _ = probe_wrmsr(SYSTEM_TIME, 0);
    }
    let last = core::arch::x86_64::__cpuid(0).eax;
    let (found, beyond) = (
        core::arch::x86_64::__cpuid(last),
        core::arch::x86_64::__cpuid(last + 0x50),
    );
    report.equal("leaf-above-the-last", beyond, found);
}

core::arch::global_asm!(
    r#"
    .pushsection .boot, "ax"
    .code64
    // Returns the exception that the instruction raised, or 0xFF.
    .macro PROBE name, instruction:vararg
    .globl \name
\name:
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    \instruction
9:  movq $0, fixup_64(%rip)
    movl fault_vector(%rip), %eax
    retq
    .endm

    PROBE probe_cr0, movq %rdi, %cr0
    PROBE probe_cr4, movq %rdi, %cr4
    PROBE probe_ud2, ud2

    .globl probe_rdpmc
probe_rdpmc:
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    movl $0x7FFF, %ecx
    rdpmc
9:  movq $0, fixup_64(%rip)
    movl fault_vector(%rip), %eax
    retq

    PROBE probe_breakpoint, int3
    PROBE probe_read, movb (%rdi), %al
    PROBE probe_vmxon, vmxon probe_value(%rip)

    .globl probe_wrmsr
probe_wrmsr:
    movl %edi, %ecx
    movq %rsi, %rdx
    shrq $32, %rdx
    movl %esi, %r8d
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    movl %r8d, %eax
    wrmsr
9:  movq $0, fixup_64(%rip)
    movl fault_vector(%rip), %eax
    retq

    .globl probe_rdmsr
probe_rdmsr:
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    movl %edi, %ecx
    rdmsr
    shlq $32, %rdx
    movl %eax, %eax
    orq %rdx, %rax
    movq %rax, probe_value(%rip)
9:  movq $0, fixup_64(%rip)
    movl fault_vector(%rip), %eax
    retq

    .globl probe_divide
probe_divide:
    xorl %ecx, %ecx
    xorl %edx, %edx
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    divl %ecx
9:  movl fault_vector(%rip), %eax
    retq

    .globl read_cr0
read_cr0:
    movq %cr0, %rax
    retq
    .globl read_cr4
read_cr4:
    movq %cr4, %rax
    retq
    .popsection

    .pushsection .bss.faults, "aw", @nobits
    .balign 16
    .globl probe_value
probe_value:    .skip 8
    .popsection
"#,
    options(att_syntax)
);
