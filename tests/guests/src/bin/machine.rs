//! What a guest finds in its machine, one case for each `case=` on the command line (or several with commas).
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::check;
use nagaya_rt::abi::{ABI_VERSION, cpuid};
use nagaya_rt::probe::{self, Instruction, ReadOnlyPage, state};
use nagaya_rt::traps::{self, Caught};
use nagaya_rt::{Errno, args, group, hypercall, println, time};

nagaya_rt::entry!(main);

fn main() {
    for case in args::get("case").unwrap_or("").split(',') {
        match case {
            "cpuid" => leaves(),
            "unknown-hypercall" => unknown_hypercall(),
            "unknown-msr" => unknown_msr(),
            "ports" => ports(),
            "console" => console(),
            "flood" => flood(),
            "heap" => heap(),
            "deterministic" => deterministic(),
            "deadline" => deadline(),
            "vectors" => vectors(),
            "absent-instructions" => absent_instructions(),
            "control-registers" => control_registers(),
            "user-mode" => user_mode(),
            "debug" => debug(),
            "registers" => registers(),
            "exit-code" => hypercall::exit(args::number("code", 0) as i64),
            "panic" => panic!("as the test wants"),
            "triple-fault" => {
                println!("about to fault three times");
                probe::triple_fault()
            }
            "wild-jump" => {
                println!("about to jump out of memory");
                probe::wild_jump()
            }
            "null" => check::equal(
                "null",
                probe::read_null().map(|caught| caught.vector),
                Some(14),
            ),
            "write-group-page" => write(ReadOnlyPage::Group),
            "write-info-page" => write(ReadOnlyPage::Info),
            "stack-overflow" => println!("{}", probe::overflow_stack(1)),
            "halt-for-ever" => halt_for_ever(),
            "spin" => spin(),
            other => panic!("case={other} on the command line is none of this guest's"),
        }
    }
    check::finish();
}

const GENERAL_PROTECTION: Option<Caught> = Some(Caught {
    vector: 13,
    error_code: 0,
});
const INVALID_OPCODE: Option<Caught> = Some(Caught {
    vector: 6,
    error_code: 0,
});

fn leaves() {
    let leaf = __cpuid(cpuid::LEAF_SIGNATURE);
    let words = [leaf.ebx, leaf.ecx, leaf.edx];
    let mut name = [0; 12];
    for (slot, byte) in name
        .iter_mut()
        .zip(words.iter().flat_map(|word| word.to_le_bytes()))
    {
        *slot = byte;
    }
    check::equal("cpuid-signature", name, cpuid::SIGNATURE);
    check::equal(
        "cpuid-version",
        __cpuid(cpuid::LEAF_VERSION).eax,
        ABI_VERSION,
    );
    check::equal(
        "cpuid-tsc",
        u64::from(__cpuid(cpuid::LEAF_TIME).eax),
        time::khz(),
    );
    check::equal("cpuid-no-vmx", __cpuid(1).ecx & 1 << 5, 0);
    check::holds("cpuid-hypervisor-bit", __cpuid(1).ecx & 1 << 31 != 0);
    check::equal(
        "version-call",
        hypercall::version(),
        Ok(u64::from(ABI_VERSION)),
    );
}

fn unknown_hypercall() {
    for number in [0, 38, 40, 0xFF, 0x1FF, u64::MAX] {
        check::equal(
            "unknown-hypercall",
            hypercall::raw(number, [0; 5]),
            Errno::NoSys.to_rax(),
        );
    }
}

fn unknown_msr() {
    for number in [0x2, 0x480, 0x1234_5678, 0xC000_1FFF, 0xC001_0000] {
        check::equal(
            "unknown-msr-read",
            probe::read_msr(number).err(),
            GENERAL_PROTECTION,
        );
        check::equal(
            "unknown-msr-write",
            probe::write_msr(number, 0).err(),
            GENERAL_PROTECTION,
        );
    }
    check::equal("known-msr-read", probe::read_msr(0x1B).err(), None);
}

fn ports() {
    check::equal("port-8", probe::port_read_u8(0x5658), 0xFF);
    check::equal("port-16", probe::port_read_u16(0x5658), 0xFFFF);
    check::equal("port-32", probe::port_read_u32(0x5658), u32::MAX);
    probe::port_write_u32(0x5658, 5);
    // The ports by which an emulator is switched off must not reach it from a guest.
    for byte in *b"Shutdown" {
        probe::port_write_u8(0x8900, byte);
    }
    check::holds("shutdown-port-is-out-of-reach", true);
}

fn console() {
    let number = nagaya_rt::abi::Number::Console as u64;
    check::equal(
        "console-too-long",
        hypercall::raw(number, [0x20_0000, 4097, 0, 0, 0]),
        Errno::Inval.to_rax(),
    );
    check::equal(
        "console-unmapped",
        hypercall::raw(number, [0x70_0000_0000, 8, 0, 0, 0]),
        Errno::Fault.to_rax(),
    );
    check::equal(
        "console-across-the-end",
        hypercall::raw(number, [0xFFFF_FFFF_FFFF_FFF8, 64, 0, 0, 0]),
        Errno::Fault.to_rax(),
    );
    check::equal(
        "console-bad-channel",
        hypercall::raw(number, [0x20_0000, 8, 9, 0, 0]),
        Errno::Inval.to_rax(),
    );
    check::equal(
        "console-nothing",
        hypercall::raw(number, [0x20_0000, 0, 0, 0, 0]),
        0,
    );
    let _ = hypercall::console(
        b"[   0.000001] ERROR not the hypervisor\r\n\x1B[31mred\x07\n",
        0,
    );
    check::equal(
        "event",
        nagaya_rt::console::event("\"},\n{\"event\":\"end\",\"ok\":false}"),
        Ok(()),
    );
}

/// Says far more than a serial line carries, then waits until it may speak again.
fn flood() {
    let line = [b"flood ", &[b'.'; 93][..], b"\n"].concat();
    let text = line.repeat(40);
    let all = (0..50).all(|_| hypercall::console(&text, 0) == Ok(text.len() as u64));
    check::holds("taken", all);
    for _ in 0..200 {
        let _ = nagaya_rt::console::event("flood");
    }
    nagaya_rt::time::spin_ms(3_000);
    check::holds("flooded", true);
}

fn heap() {
    let mut numbers = alloc::vec::Vec::new();
    for number in 0..10_000_u64 {
        numbers.push(number);
    }
    check::equal("heap", numbers.iter().sum::<u64>(), 49_995_000);
}

fn deterministic() {
    check::equal("no-rdrand-bit", __cpuid(1).ecx & 1 << 30, 0);
    check::equal("no-rdseed-bit", __cpuid_count(7, 0).ebx & 1 << 18, 0);
    check::equal(
        "rdrand",
        probe::execute(Instruction::Rdrand),
        INVALID_OPCODE,
    );
    check::equal(
        "rdseed",
        probe::execute(Instruction::Rdseed),
        INVALID_OPCODE,
    );
}

fn deadline() {
    let start = time::ticks();
    let wanted = time::micros_to_ticks(2_000);
    let _ = hypercall::set_deadline(start + wanted);
    traps::halt();
    let passed = time::ticks() - start;
    check::holds("deadline-not-early", passed >= wanted);
    check::holds("deadline-not-late", passed < wanted * 3 / 2);
}

/// x87, SSE and AVX registers keep their values over exits.
fn vectors() {
    let has_xsave = __cpuid(1).ecx & 1 << 26 != 0;
    check::holds("xsave-offered", has_xsave);
    check::equal(
        "sse-survives-exits",
        probe::sse_over_exits(0x1234_5678_9ABC_DEF0),
        0x1234_5678_9ABC_DEF0,
    );
    if !has_xsave {
        return;
    }
    check::equal("osxsave", probe::set_cr4_bits(probe::CR4_OSXSAVE), None);
    check::holds("osxsave-shows", __cpuid(1).ecx & 1 << 27 != 0);
    check::equal("xsetbv-x87-off", probe::set_xcr0(2), GENERAL_PROTECTION);
    check::equal(
        "xsetbv-unknown",
        probe::set_xcr0(3 | 1 << 63),
        GENERAL_PROTECTION,
    );
    let mask = u64::from(__cpuid_count(0xD, 0).eax) & 7;
    check::equal("xsetbv", probe::set_xcr0(mask), None);
    if mask & 4 != 0 {
        check::equal(
            "avx-survives-exits",
            probe::avx_over_exits(0x0F0E_0D0C_0B0A_0908),
            0x0F0E_0D0C_0B0A_0908,
        );
    }
    const AVX512: u64 = 0xE7;
    if u64::from(__cpuid_count(0xD, 0).eax) & AVX512 == AVX512 {
        check::equal("xsetbv-avx512", probe::set_xcr0(AVX512), None);
        avx512();
    }
}

/// Vector state as kernels switch it, wherever in the registers it is, by every instruction that is offered.
fn avx512() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    const XSAVEC: u32 = 1 << 1;
    let survives = |save| {
        (0..8).all(|word| {
            let mut pattern = [0; 8];
            pattern[word] = VALUE;
            probe::avx512_restored(&pattern, save) == [pattern; 2]
        })
    };
    check::holds("avx512-survives-xsave", survives(probe::Save::Standard));
    if __cpuid_count(0xD, 1).eax & XSAVEC != 0 {
        check::holds("avx512-survives-xsavec", survives(probe::Save::Compacted));
    }
}

fn absent_instructions() {
    check::equal("vmxon", probe::execute(Instruction::Vmxon), INVALID_OPCODE);
    check::equal(
        "monitor",
        probe::execute(Instruction::Monitor),
        INVALID_OPCODE,
    );
    check::equal("wbinvd", probe::execute(Instruction::Wbinvd), None);
}

fn control_registers() {
    const NW: u64 = 1 << 29;
    const CD: u64 = 1 << 30;
    check::equal("vmxe-is-hidden", probe::cr4() & probe::CR4_VMXE, 0);
    check::equal(
        "vmxe-cannot-be-set",
        probe::set_cr4_bits(probe::CR4_VMXE),
        GENERAL_PROTECTION,
    );
    check::equal("caches-off", probe::set_cr0_cache_bits(CD), None);
    check::equal("caches-off-shows", probe::cr0() & CD, CD);
    check::equal("caches-on", probe::set_cr0_cache_bits(0), None);
    check::equal(
        "nw-without-cd",
        probe::set_cr0_cache_bits(NW),
        GENERAL_PROTECTION,
    );
}

/// Debug exceptions since the last look, and the union of their causes.
static DEBUGGED: AtomicU64 = AtomicU64::new(0);
static CAUSES: AtomicU64 = AtomicU64::new(0);

const DR6_SINGLE_STEP: u64 = 1 << 14;

fn debugged(frame: &mut traps::Frame) {
    const TRAP_FLAG: u64 = 1 << 8;
    frame.rflags &= !TRAP_FLAG;
    DEBUGGED.fetch_add(1, Ordering::Relaxed);
    CAUSES.fetch_or(state::debug_status(), Ordering::Relaxed);
    state::clear_debug_status();
}

/// Debug exceptions reach the guest's handler, with their cause, and the guest goes on behind them.
fn debug() {
    traps::set_handler(1, debugged);
    state::clear_debug_status();
    let seen = |action: fn()| {
        DEBUGGED.store(0, Ordering::Relaxed);
        CAUSES.store(0, Ordering::Relaxed);
        action();
        let steps = CAUSES.load(Ordering::Relaxed) & DR6_SINGLE_STEP;
        (DEBUGGED.load(Ordering::Relaxed), steps)
    };
    check::equal(
        "single-step",
        seen(state::single_step),
        (1, DR6_SINGLE_STEP),
    );
    check::equal("int1", seen(state::int1), (1, 0));
    check::holds(
        "int1-behind-stack-load",
        seen(state::int1_behind_stack_load).0 >= 1,
    );
}

/// Registers that no VMCS holds stay as they are while another VM, which uses its own, has the CPU in between.
fn registers() {
    let seed = args::number("seed", 1);
    let addresses = [seed << 12, seed << 13, seed << 14, seed << 15];
    state::set_task_priority(seed & 15);
    check::equal("task-priority", state::task_priority(), seed & 15);
    state::set_debug_addresses(addresses);
    state::set_vectors(seed << 32);
    let stolen = group::stolen_ticks();
    let end = time::ticks() + time::ms_to_ticks(args::number("ms", 100));
    let mut kept = true;
    while time::ticks() < end {
        kept &= state::vectors_hold(seed << 32);
        kept &= state::debug_addresses() == addresses;
        kept &= state::task_priority() == seed & 15;
    }
    check::holds("registers-are-kept", kept);
    check::holds("another-ran", group::stolen_ticks() > stolen);
}

fn user_mode() {
    check::equal(
        "user-mode-hypercall",
        nagaya_rt::user::hypercall(0x100),
        Errno::Perm.to_rax(),
    );
    check::equal(
        "user-mode-map",
        nagaya_rt::user::hypercall(39),
        Errno::Perm.to_rax(),
    );
    check::equal(
        "user-mode-unknown",
        nagaya_rt::user::hypercall(77),
        Errno::Perm.to_rax(),
    );
}

fn write(page: ReadOnlyPage) {
    println!("about to write to the read-only {page:?} page");
    probe::write_read_only(page);
}

fn halt_for_ever() {
    println!("about to halt for ever");
    traps::disable_interrupts();
    loop {
        traps::halt();
    }
}

/// Spins with interrupts off for a while, then ends well: meanwhile others must run.
fn spin() {
    traps::disable_interrupts();
    let end = time::ticks() + time::micros_to_ticks(args::number("ms", 100) * 1000);
    while time::ticks() < end {}
    println!(
        "spun; {} exits by timer",
        group::exits()[nagaya_rt::ExitKind::PreemptionTimer as usize]
    );
}
