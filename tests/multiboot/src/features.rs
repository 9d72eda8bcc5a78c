//! What CPUID offers works, and what it hides is not there: instructions, bits of CR4, MSRs. Each is tried, and CPUID itself says what
//! has to come of it.
//!
//! Source: Intel SDM Vol. 2, "CPUID" and the instructions' own pages; Vol. 3, "Process-Context Identifiers (PCIDs)"; Vol. 4.

use core::arch::x86_64::__cpuid_count;

use crate::faults::{probe_cr4, probe_wrmsr, rdmsr, read_cr4};
use crate::instructions::{run, scratch};
use crate::interrupts::{NONE, last_error_code};
use crate::report::Report;
use crate::serial::line;

const INVALID_OPCODE: u32 = 6;
const GENERAL_PROTECTION: u32 = 13;
const PAGE: u64 = 4096;
const PCIDE: u64 = 1 << 17;

/// A bit of CPUID: leaf, subleaf, register from EAX on, bit.
type Place = (u32, u32, u32, u32);

/// An instruction of the table.
#[repr(C)]
struct Entry {
    code: u64,
    name: *const u8,
    bytes: u64,
    leaf: u32,
    subleaf: u32,
    register: u32,
    bit: u32,
}

unsafe extern "C" {
    fn prepare_features(xcr0: u64);
    fn code_of_invpcid();
    fn code_of_read_byte();
    fn probe_cr3(value: u64) -> u32;
    fn read_cr3() -> u64;
    static first_feature: Entry;
    static end_of_features: Entry;
}

/// MSRs, and what brings each.
const MSRS: [(u32, Place); 25] = [
    (0x3B, (7, 0, 1, 1)),                   // IA32_TSC_ADJUST
    (0x48, (7, 0, 3, 26)),                  // IA32_SPEC_CTRL
    (0xCF, (7, 0, 3, 30)),                  // IA32_CORE_CAPABILITIES
    (0xE1, (7, 0, 2, 5)),                   // IA32_UMWAIT_CONTROL
    (0xE7, (6, 0, 2, 0)),                   // IA32_MPERF
    (0x10A, (7, 0, 3, 29)),                 // IA32_ARCH_CAPABILITIES
    (0x10B, (7, 0, 3, 28)),                 // IA32_FLUSH_CMD
    (0x174, (1, 0, 3, 11)),                 // IA32_SYSENTER_CS
    (0x19C, (1, 0, 3, 22)),                 // IA32_THERM_STATUS
    (0x1A0, (1, 0, 3, 5)),                  // IA32_MISC_ENABLE, of every CPU with MSRs
    (0x277, (1, 0, 3, 16)),                 // IA32_PAT
    (0x345, (1, 0, 2, 15)),                 // IA32_PERF_CAPABILITIES
    (0x38F, (0xA, 0, 0, 1)),                // IA32_PERF_GLOBAL_CTRL
    (0x480, (1, 0, 2, 5)),                  // IA32_VMX_BASIC
    (0x570, (7, 0, 1, 25)),                 // IA32_RTIT_CTL
    (0x600, (1, 0, 3, 21)),                 // IA32_DS_AREA
    (0x6A0, (7, 0, 2, 7)),                  // IA32_U_CET
    (0x6E0, (1, 0, 2, 24)),                 // IA32_TSC_DEADLINE
    (0x770, (6, 0, 0, 7)),                  // IA32_PM_ENABLE
    (0xC8F, (7, 0, 1, 12)),                 // IA32_PQR_ASSOC
    (0xD90, (7, 0, 1, 14)),                 // IA32_BNDCFGS
    (0xDA0, (0xD, 1, 0, 3)),                // IA32_XSS
    (0xC000_0080, (0x8000_0001, 0, 3, 29)), // IA32_EFER
    (0xC000_0103, (0x8000_0001, 0, 3, 27)), // IA32_TSC_AUX
    (0xC001_0117, (0x8000_0001, 0, 2, 2)),  // VM_HSAVE_PA, of SVM
];

/// Bits of CR4 that not every CPU has, and what brings each. That of 5-level paging cannot be changed in long mode anyway.
const CR4_BITS: [(u32, Place); 16] = [
    (0, (1, 0, 3, 1)),   // VME
    (1, (1, 0, 3, 1)),   // PVI
    (3, (1, 0, 3, 2)),   // DE
    (7, (1, 0, 3, 13)),  // PGE
    (9, (1, 0, 3, 24)),  // OSFXSR
    (11, (7, 0, 2, 2)),  // UMIP
    (13, (1, 0, 2, 5)),  // VMXE
    (14, (1, 0, 2, 6)),  // SMXE
    (16, (7, 0, 1, 0)),  // FSGSBASE
    (18, (1, 0, 2, 26)), // OSXSAVE
    (19, (7, 0, 2, 23)), // KL
    (20, (7, 0, 1, 7)),  // SMEP
    (21, (7, 0, 1, 20)), // SMAP
    (22, (7, 0, 2, 3)),  // PKE
    (23, (7, 0, 2, 7)),  // CET
    (24, (7, 0, 2, 31)), // PKS
];

fn is_offered((leaf, subleaf, register, bit): Place) -> bool {
    let range = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    let found = __cpuid_count(leaf, subleaf);
    let word = match register {
        0 => found.eax,
        1 => found.ebx,
        2 => found.ecx,
        _ => found.edx,
    };
    // Above the last leaf are another's data.
    leaf <= range && word >> bit & 1 != 0
}

pub(crate) fn check(report: &mut Report) {
    let state = __cpuid_count(0xD, 0);
    // SAFETY: sets what CPUID offers of XCR0, and bits of CR4 that it offers and nothing here depends on.
    unsafe { prepare_features(u64::from(state.edx) << 32 | u64::from(state.eax)) };
    instructions(report);
    registers(report);
    identifiers(report);
}

fn instructions(report: &mut Report) {
    // SAFETY: the table lies between its two labels.
    let table = unsafe {
        let (first, end) = (&raw const first_feature, &raw const end_of_features);
        core::slice::from_raw_parts(first, end.offset_from(first) as usize)
    };
    let (mut offered, mut hidden, mut wrong) = (0, 0, 0);
    for entry in table {
        // SAFETY: the table's names are constants.
        let name = unsafe { core::slice::from_raw_parts(entry.name, entry.bytes as usize) };
        let name = str::from_utf8(name).unwrap_or("?");
        let is_there = is_offered((entry.leaf, entry.subleaf, entry.register, entry.bit));
        scratch(0, PAGE as usize).fill(0);
        let (state, _) = run(entry.code, scratch(0, 1).as_ptr() as u64);
        let wanted = if is_there { NONE } else { INVALID_OPCODE };
        if is_there {
            offered += 1;
        } else {
            hidden += 1;
        }
        if state.fault != u64::from(wanted) {
            wrong += 1;
            let fault = state.fault;
            line(format_args!(
                "{name}: offered {is_there}, exception {fault:#x}"
            ));
        }
    }
    let counts = (offered, hidden, wrong);
    report.check(
        "what-is-offered-executes-and-what-is-hidden-does-not",
        offered > 20 && hidden > 10 && wrong == 0,
        counts,
    );
}

fn registers(report: &mut Report) {
    let mut wrong = 0;
    for (number, place) in MSRS {
        let (fault, value) = rdmsr(number);
        let wanted = if is_offered(place) {
            NONE
        } else {
            GENERAL_PROTECTION
        };
        // What can be read can be written back; what is not there takes nothing.
        let value = if fault == NONE { value } else { 0 };
        // SAFETY: either the MSR gets what it had, or there is none and the fault is caught.
        let back = unsafe { probe_wrmsr(number, value) };
        if (fault, back) != (wanted, wanted) {
            wrong += 1;
            line(format_args!(
                "MSR {number:#x}: read {fault:#x}, write {back:#x}, not {wanted:#x}"
            ));
        }
    }
    report.equal("msrs-are-those-that-cpuid-offers", wrong, 0);
    // SAFETY: CR4 is only read.
    let before = unsafe { read_cr4() };
    let mut wrong = 0;
    for (bit, place) in CR4_BITS {
        let wanted = if is_offered(place) {
            NONE
        } else {
            GENERAL_PROTECTION
        };
        // SAFETY: the kernel's pages are a supervisor's, so that no bit of the table takes them away; it is set back at once.
        let found = unsafe {
            let found = probe_cr4(before | 1 << bit);
            let _ = probe_cr4(before);
            found
        };
        if found != wanted {
            wrong += 1;
            line(format_args!(
                "CR4 bit {bit}: {found:#x} and not {wanted:#x}"
            ));
        }
    }
    report.equal("bits-of-cr4-are-those-that-cpuid-offers", wrong, 0);
}

/// Process-context identifiers and INVPCID, where the CPU has both.
fn identifiers(report: &mut Report) {
    const PCID: Place = (1, 0, 2, 17);
    const INVPCID: Place = (7, 0, 1, 10);
    if !is_offered(PCID) || !is_offered(INVPCID) {
        return report.fail("pcid-is-offered", "the CPU has it");
    }
    report.pass("pcid-is-offered");
    // SAFETY: roots are what they were but for bits that do not say where they are; faults are caught.
    unsafe {
        let (cr3, cr4) = (read_cr3(), read_cr4());
        report.equal(
            "pcid-needs-to-be-enabled",
            (probe_cr3(cr3 | 1 << 63), invalidate(0, 1, 0)),
            (GENERAL_PROTECTION, GENERAL_PROTECTION),
        );
        // The bit that says that the root is not to be cached stands where a PCID would.
        let _ = probe_cr3(cr3 | 1 << 4);
        let refused = probe_cr4(cr4 | PCIDE);
        let _ = probe_cr3(cr3);
        let taken = probe_cr4(cr4 | PCIDE);
        report.equal(
            "pcid-begins-at-0",
            (refused, taken, read_cr4() & PCIDE),
            (GENERAL_PROTECTION, NONE, PCIDE),
        );
        let (plain, kept) = (probe_cr3(cr3 | 5), probe_cr3(cr3 | 1 << 63 | 5));
        report.equal(
            "pcid-in-cr3",
            (plain, kept, read_cr3()),
            (NONE, NONE, cr3 | 5),
        );
        translations(report, cr3 + 8);
        let _ = probe_cr3(cr3);
        let off = probe_cr4(cr4);
        report.equal(
            "pcid-ends",
            (off, probe_cr3(cr3 | 1 << 63), read_cr4()),
            (NONE, GENERAL_PROTECTION, cr4),
        );
        let _ = probe_cr3(cr3);
    }
}

/// INVPCID of that type: its exception.
fn invalidate(kind: u64, pcid: u64, address: u64) -> u32 {
    let operand = scratch(4, 32);
    operand.fill(0);
    operand[..8].copy_from_slice(&kind.to_le_bytes());
    operand[16..24].copy_from_slice(&pcid.to_le_bytes());
    operand[24..].copy_from_slice(&address.to_le_bytes());
    let operand = operand.as_ptr() as u64;
    run(code_of_invpcid as *const () as u64, operand).0.fault as u32
}

/// What the tables say is seen after each kind of INVPCID. The entry of the root is nobody else's.
fn translations(report: &mut Report, entry: u64) {
    const ADDRESS: u64 = 1 << 39;
    const PCID: u64 = 5;
    let page = |index: usize| scratch(index, 1).as_ptr() as u64;
    // Three tables in one page: each uses another entry, and all lead through the first.
    let set = |at: u64, value: u64| {
        // SAFETY: a scratch page, or the entry of the root that nothing uses.
        unsafe { core::ptr::write_volatile(at as *mut u64, value) }
    };
    let table = page(0);
    scratch(0, PAGE as usize).fill(0);
    // One table for all levels: an address whose indices are 1, 0, 1 and 2 walks through it three times.
    let address = ADDRESS | 1 << 21 | 2 << 12;
    set(entry, table | 3);
    set(table, table | 3);
    set(table + 8, table | 3);
    let look = || {
        // SAFETY: where no page is, the fault is caught.
        let (state, _) = run(code_of_read_byte as *const () as u64, address);
        (state.rax as u8, state.fault as u32)
    };
    // What is looked at: the first bytes of two pages. `run` fills the third one, whose first byte is 0x5A, and the fourth.
    let (first, second) = (page(2), page(1));
    scratch(1, 1)[0] = 0x22;
    let mut wrong = 0;
    for kind in 0..4 {
        set(table + 16, first | 3);
        let _ = invalidate(2, 0, 0);
        let before = look();
        set(table + 16, second | 3);
        let done = invalidate(kind, PCID, address);
        let after = look();
        if (before, done, after) != ((0x5A, NONE), NONE, (0x22, NONE)) {
            wrong += 1;
            line(format_args!(
                "INVPCID {kind}: {before:x?}, {done:#x}, {after:x?}"
            ));
        }
    }
    report.equal("invpcid-forgets", wrong, 0);
    report.equal(
        "invpcid-of-what-is-not",
        (
            invalidate(4, 0, 0),
            invalidate(0, 1 << 12, 0),
            invalidate(0, PCID, 1 << 63),
            last_error_code(),
        ),
        (
            GENERAL_PROTECTION,
            GENERAL_PROTECTION,
            GENERAL_PROTECTION,
            0,
        ),
    );
    set(entry, 0);
    let _ = invalidate(2, 0, 0);
}

core::arch::global_asm!(
    r#"
    .pushsection .text.features, "ax"
    .code64
    // What an operating system switches on for what is offered: SSE; XCR0 as the argument says; FSGSBASE.
    .globl prepare_features
prepare_features:
    pushq %rbx
    movq %cr4, %r8
    orq $0x600, %r8
    movl $1, %eax
    cpuid
    btl $26, %ecx
    jnc 1f
    btsq $18, %r8
1:  movl $7, %eax
    xorl %ecx, %ecx
    cpuid
    btl $0, %ebx
    jnc 2f
    btsq $16, %r8
2:  movq %r8, %cr4
    btq $18, %r8
    jnc 3f
    movl %edi, %eax
    movq %rdi, %rdx
    shrq $32, %rdx
    xorl %ecx, %ecx
    xsetbv
3:  popq %rbx
    retq

    // Its type is at the operand, the descriptor 16 bytes behind.
    .globl code_of_invpcid
code_of_invpcid:
    movq (%rsi), %rax
    invpcid 16(%rsi), %rax
    retq
    .globl code_of_read_byte
code_of_read_byte:
    movzbl (%rsi), %eax
    retq

    .globl read_cr3
read_cr3:
    movq %cr3, %rax
    retq

    .globl probe_cr3
probe_cr3:
    leaq 9f(%rip), %rax
    movq %rax, fixup_64(%rip)
    movl $0xFF, fault_vector(%rip)
    movq %rdi, %cr3
9:  movq $0, fixup_64(%rip)
    movl fault_vector(%rip), %eax
    retq

    // An instruction with the bit of CPUID that offers it. Those that a CPU has although they are hidden, with no control to take them
    // away, are not among them: XSAVEC, TSX, and what is a no-operation where it is not known.
    .macro FEATURE name, leaf, subleaf, register, bit, code
    .pushsection .rodata.features, "a"
    .balign 8
    .quad 7f
    .quad 8f
    .quad 9f - 8f
    .long \leaf, \subleaf, \register, \bit
    .popsection
    .pushsection .rodata.feature_names, "a"
8:  .ascii "\name"
9:
    .popsection
7:  \code
    retq
    .endm

    .pushsection .rodata.features, "a"
    .balign 8
    .globl first_feature
first_feature:
    .popsection
    FEATURE "SSE3", 1, 0, 2, 0, "addsubps %xmm0, %xmm0"
    FEATURE "PCLMULQDQ", 1, 0, 2, 1, "pclmulqdq $0, %xmm0, %xmm0"
    FEATURE "MONITOR", 1, 0, 2, 3, "movq %rsi, %rax; xorl %ecx, %ecx; xorl %edx, %edx; monitor"
    FEATURE "MWAIT", 1, 0, 2, 3, "xorl %eax, %eax; xorl %ecx, %ecx; mwait"
    FEATURE "VMXOFF", 1, 0, 2, 5, "vmxoff"
    FEATURE "VMCLEAR", 1, 0, 2, 5, "vmclear (%rsi)"
    FEATURE "VMPTRST", 1, 0, 2, 5, "vmptrst (%rsi)"
    FEATURE "VMREAD", 1, 0, 2, 5, "vmread %rax, (%rsi)"
    FEATURE "VMLAUNCH", 1, 0, 2, 5, "vmlaunch"
    FEATURE "VMFUNC", 1, 0, 2, 5, "xorl %eax, %eax; xorl %ecx, %ecx; vmfunc"
    FEATURE "INVEPT", 1, 0, 2, 5, "movl $2, %eax; invept (%rsi), %rax"
    FEATURE "INVVPID", 1, 0, 2, 5, "movl $2, %eax; invvpid (%rsi), %rax"
    FEATURE "GETSEC", 1, 0, 2, 6, "xorl %eax, %eax; getsec"
    FEATURE "SSSE3", 1, 0, 2, 9, "pabsb %xmm0, %xmm0"
    FEATURE "FMA", 1, 0, 2, 12, "vfmadd132ps %xmm0, %xmm0, %xmm0"
    FEATURE "CMPXCHG16B", 1, 0, 2, 13, "cmpxchg16b (%rsi)"
    FEATURE "SSE4.1", 1, 0, 2, 19, "ptest %xmm0, %xmm0"
    FEATURE "SSE4.2", 1, 0, 2, 20, "pcmpgtq %xmm0, %xmm0"
    FEATURE "MOVBE", 1, 0, 2, 22, "movbe (%rsi), %rax"
    FEATURE "POPCNT", 1, 0, 2, 23, "popcnt %rax, %rax"
    FEATURE "AES", 1, 0, 2, 25, "aesenc %xmm0, %xmm0"
    FEATURE "XGETBV", 1, 0, 2, 26, "xorl %ecx, %ecx; xgetbv"
    FEATURE "XSAVE", 1, 0, 2, 26, "movl $3, %eax; xorl %edx, %edx; xsave (%rsi)"
    FEATURE "AVX", 1, 0, 2, 28, "vaddps %ymm0, %ymm0, %ymm0"
    FEATURE "F16C", 1, 0, 2, 29, "vcvtph2ps %xmm0, %xmm0"
    FEATURE "RDRAND", 1, 0, 2, 30, "rdrand %rax"
    FEATURE "RDTSC", 1, 0, 3, 4, "rdtsc"
    FEATURE "CMPXCHG8B", 1, 0, 3, 8, "cmpxchg8b (%rsi)"
    FEATURE "CMOV", 1, 0, 3, 15, "cmovz %rax, %rax"
    FEATURE "CLFLUSH", 1, 0, 3, 19, "clflush (%rsi)"
    FEATURE "MMX", 1, 0, 3, 23, "paddb %mm0, %mm0; emms"
    FEATURE "FXSAVE", 1, 0, 3, 24, "fxsave (%rsi)"
    FEATURE "SSE", 1, 0, 3, 25, "addps %xmm0, %xmm0"
    FEATURE "SSE2", 1, 0, 3, 26, "addpd %xmm0, %xmm0"
    FEATURE "RDFSBASE", 7, 0, 1, 0, "rdfsbase %rax"
    FEATURE "ENCLS", 7, 0, 1, 2, "xorl %eax, %eax; encls"
    FEATURE "BMI1", 7, 0, 1, 3, "andnl %eax, %eax, %eax"
    FEATURE "AVX2", 7, 0, 1, 5, "vpaddb %ymm0, %ymm0, %ymm0"
    FEATURE "BMI2", 7, 0, 1, 8, "shlxq %rcx, %rax, %rax"
    FEATURE "INVPCID", 7, 0, 1, 10, "movl $2, %eax; invpcid (%rsi), %rax"
    FEATURE "AVX512F", 7, 0, 1, 16, "vpaddd %zmm0, %zmm0, %zmm0"
    FEATURE "AVX512DQ", 7, 0, 1, 17, "vpmullq %zmm0, %zmm0, %zmm0"
    FEATURE "RDSEED", 7, 0, 1, 18, "rdseed %rax"
    FEATURE "ADX", 7, 0, 1, 19, "adcx %rax, %rax"
    FEATURE "CLAC", 7, 0, 1, 20, "clac"
    FEATURE "CLFLUSHOPT", 7, 0, 1, 23, "clflushopt (%rsi)"
    FEATURE "CLWB", 7, 0, 1, 24, "clwb (%rsi)"
    FEATURE "AVX512CD", 7, 0, 1, 28, "vplzcntd %zmm0, %zmm0"
    FEATURE "SHA", 7, 0, 1, 29, "sha1msg1 %xmm0, %xmm0"
    FEATURE "AVX512BW", 7, 0, 1, 30, "vpaddb %zmm0, %zmm0, %zmm0"
    FEATURE "AVX512VL", 7, 0, 1, 31, "vpaddd %xmm16, %xmm16, %xmm16"
    FEATURE "AVX512VBMI", 7, 0, 2, 1, "vpermb %zmm0, %zmm0, %zmm0"
    FEATURE "RDPKRU", 7, 0, 2, 4, "xorl %ecx, %ecx; rdpkru"
    FEATURE "TPAUSE", 7, 0, 2, 5, "xorl %eax, %eax; xorl %edx, %edx; tpause %ecx"
    FEATURE "UMONITOR", 7, 0, 2, 5, "umonitor %rsi"
    FEATURE "AVX512VBMI2", 7, 0, 2, 6, "vpshldd $1, %zmm0, %zmm0, %zmm0"
    FEATURE "INCSSP", 7, 0, 2, 7, "xorl %eax, %eax; incsspq %rax"
    FEATURE "GFNI", 7, 0, 2, 8, "gf2p8mulb %xmm0, %xmm0"
    FEATURE "VAES", 7, 0, 2, 9, "vaesenc %ymm0, %ymm0, %ymm0"
    FEATURE "VPCLMULQDQ", 7, 0, 2, 10, "vpclmulqdq $0, %ymm0, %ymm0, %ymm0"
    FEATURE "AVX512VNNI", 7, 0, 2, 11, "vpdpbusd %zmm0, %zmm0, %zmm0"
    FEATURE "AVX512BITALG", 7, 0, 2, 12, "vpopcntb %zmm0, %zmm0"
    FEATURE "AVX512VPOPCNTDQ", 7, 0, 2, 14, "vpopcntd %zmm0, %zmm0"
    FEATURE "RDPID", 7, 0, 2, 22, "rdpid %rax"
    FEATURE "LOADIWKEY", 7, 0, 2, 23, "xorl %eax, %eax; loadiwkey %xmm0, %xmm1"
    FEATURE "MOVDIRI", 7, 0, 2, 27, "movdiri %eax, (%rsi)"
    FEATURE "MOVDIR64B", 7, 0, 2, 28, "movdir64b 64(%rsi), %rsi"
    FEATURE "VP2INTERSECT", 7, 0, 3, 8, "vp2intersectd %zmm0, %zmm0, %k0"
    FEATURE "SERIALIZE", 7, 0, 3, 14, "serialize"
    FEATURE "PCONFIG", 7, 0, 3, 18, "xorl %eax, %eax; pconfig"
    FEATURE "LDTILECFG", 7, 0, 3, 24, "ldtilecfg (%rsi)"
    FEATURE "XSAVEOPT", 0xD, 1, 0, 0, "movl $3, %eax; xorl %edx, %edx; xsaveopt (%rsi)"
    FEATURE "XSAVES", 0xD, 1, 0, 3, "movl $3, %eax; xorl %edx, %edx; xsaves (%rsi)"
    FEATURE "XRSTORS", 0xD, 1, 0, 3, "movl $3, %eax; xorl %edx, %edx; xrstors (%rsi)"
    FEATURE "LAHF", 0x80000001, 0, 2, 0, "lahf"
    FEATURE "VMMCALL of SVM", 0x80000001, 0, 2, 2, "movq %rsi, %rax; vmload"
    FEATURE "EXTRQ", 0x80000001, 0, 2, 6, "extrq %xmm0, %xmm0"
    FEATURE "FMA4", 0x80000001, 0, 2, 16, "vfmaddps %xmm0, %xmm0, %xmm0, %xmm0"
    FEATURE "RDTSCP", 0x80000001, 0, 3, 27, "rdtscp"
    FEATURE "PFADD", 0x80000001, 0, 3, 31, "pfadd %mm0, %mm0"
    .pushsection .rodata.features, "a"
    .globl end_of_features
end_of_features:
    .quad 0
    .popsection
    .popsection
"#,
    options(att_syntax)
);
