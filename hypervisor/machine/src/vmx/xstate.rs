//! State that stays in the CPU while one vCPU runs and is switched when another takes its place: x87, vector and other XSAVE
//! state, MSRs that no exit touches, CR2 and the debug registers.
//!
//! The hypervisor is compiled soft-float, so that vector state is not touched between an exit and the next entry; while a vCPU
//! rests with its state loaded, neither.
//! Source: Intel SDM Vol. 1, "Managing State Using the XSAVE Feature Set".

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::{AtomicBool, Ordering};

use nagaya_mem::Hpa;
use nagaya_vmm::cpu;
use x86_64::registers::model_specific::Msr;
use x86_defs::msr;

use crate::host::memory::{self, Whose};
use crate::vmx::capabilities;

/// See [`has_xsavec`].
static HAS_XSAVEC: AtomicBool = AtomicBool::new(false);

const XCR0_AVX: u64 = 0b111;
/// Where the upper halves of the YMM registers are in either format (SDM Vol. 1, "Extended Region of an XSAVE Area").
const YMM_OFFSET: u64 = 576;

/// Looks whether XSAVEC does what the manual says. Called once, before the first VM: it uses vector registers.
pub fn init() {
    const CPUID_XSAVEC: u32 = 1 << 1;
    let is_there = __cpuid_count(0xD, 1).eax & CPUID_XSAVEC != 0;
    let has_avx = capabilities::get().xcr0 & XCR0_AVX == XCR0_AVX;
    let is_right =
        is_there && (!has_avx || memory::allocate_hypervisor_frame().is_some_and(saves_ymm));
    if is_there && !is_right {
        log::warn!("this CPU's XSAVEC loses vector registers: guests are not offered it");
    }
    HAS_XSAVEC.store(is_right, Ordering::Relaxed);
}

/// Whether guests may be offered XSAVEC. That of Bochs 2.7 puts the components 160 bytes before where they belong, over the
/// header, and XRSTOR does not find them there.
#[must_use]
pub fn has_xsavec() -> bool {
    HAS_XSAVEC.load(Ordering::Relaxed)
}

/// Whether XSAVEC puts the upper half of YMM0 where it belongs. Gives the frame back.
fn saves_ymm(area: Hpa) -> bool {
    const VALUE: u64 = 0x5955_4D4D_5955_4D4D;
    let pattern = [VALUE; 4];
    // SAFETY: no guest's state is in the registers yet, and the hypervisor is compiled without them; CPUID offers AVX and XSAVEC;
    // the frame is aligned and large enough. The registers are as after a reset in the end.
    unsafe {
        xsetbv(XCR0_AVX);
        asm!(
            "vmovups ymm0, [{pattern}]",
            "xsavec64 [{area}]",
            "vzeroall",
            pattern = in(reg) &pattern,
            area = in(reg) memory::host_pointer::<u8>(area),
            in("eax") XCR0_AVX as u32,
            in("edx") 0,
            options(nostack),
        );
        xsetbv(1);
    }
    let found = memory::phys().load_u64(Hpa::new(area.get() + YMM_OFFSET));
    memory::free_hypervisor_frame(area);
    found == VALUE
}

/// DR6 without a cause.
const DR6_RESET: u64 = 0xFFFF_0FF0;

/// MSRs that the MSR bitmap passes through and the hypervisor does not use itself.
const SWITCHED: [u32; 6] = [
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
];

/// Bytes of the frame that are used at most: the standard format up to AVX-512 needs 2,696.
const AREA_BYTES: usize = 2752;

/// That state of one vCPU while it is not on a CPU.
#[derive(Debug)]
pub struct ExtendedState {
    /// One frame: the XSAVE area; all zeros is the initial configuration (standard format, empty XSTATE_BV).
    area: Hpa,
    msrs: [u64; SWITCHED.len()],
    cr2: u64,
    /// DR0 to DR3.
    debug: [u64; 4],
    dr6: u64,
    /// XCR0 as the guest has set it.
    pub xcr0: u64,
}

impl ExtendedState {
    /// The state after reset.
    #[must_use]
    pub fn new() -> Option<ExtendedState> {
        let area = memory::allocate_hypervisor_frame()?;
        // Without this the x87 control word and MXCSR would be loaded as 0: with a clear bit in XSTATE_BV XRSTOR puts x87 into
        // its initial state, but MXCSR always comes from memory (bytes 24 to 27).
        // SAFETY: the frame was just allocated here.
        let writer = unsafe { memory::writer(Whose::Hypervisor) };
        nagaya_mem::HostMemory::write(writer, Hpa::new(area.get() + 24), &0x1F80_u32.to_le_bytes());
        Some(ExtendedState {
            area,
            msrs: [0; SWITCHED.len()],
            cr2: 0,
            debug: [0; 4],
            dr6: DR6_RESET,
            xcr0: 1,
        })
    }

    /// A copy of the state of a vCPU that is on no CPU, or that has just been saved. `None` if memory runs out.
    #[must_use]
    pub fn copy(&self) -> Option<ExtendedState> {
        let area = memory::allocate_hypervisor_frame()?;
        // SAFETY: the frame was just allocated here.
        let writer = unsafe { memory::writer(Whose::Hypervisor) };
        writer.copy(self.area, area, AREA_BYTES);
        Some(ExtendedState { area, ..*self })
    }

    /// INIT: CR2 and the debug registers are as after a reset, the rest stays.
    pub fn init(&mut self) {
        self.cr2 = 0;
        self.debug = [0; 4];
        self.dr6 = DR6_RESET;
    }

    /// Puts the state into the executing CPU.
    pub fn load(&self) {
        let all = capabilities::get().xcr0;
        // SAFETY: XCR0 gets bits that CPUID offers; the area is a 4 KiB frame, large enough for them (standard format up to
        // AVX-512 needs 2,696 bytes), in a format that XRSTOR accepts: made by `new` or by `save`. The MSRs exist in 64-bit
        // mode (TSC_AUX: see `msr_exists`), and the hypervisor uses none of them.
        unsafe {
            xsetbv(all);
            let area = memory::host_pointer::<u8>(self.area);
            asm!("xrstor64 [{area}]", area = in(reg) area, in("eax") all as u32, in("edx") (all >> 32) as u32, options(nostack));
            xsetbv(self.xcr0);
            for (number, value) in SWITCHED.into_iter().zip(self.msrs) {
                if msr_exists(number) {
                    Msr::new(number).write(value);
                }
            }
            asm!("mov cr2, {}", in(reg) self.cr2, options(nomem, nostack, preserves_flags));
            let [dr0, dr1, dr2, dr3] = self.debug;
            asm!("mov dr0, {a}", "mov dr1, {b}", "mov dr2, {c}", "mov dr3, {d}", a = in(reg) dr0, b = in(reg) dr1,
                c = in(reg) dr2, d = in(reg) dr3, options(nomem, nostack));
            asm!("mov dr6, {}", in(reg) self.dr6, options(nomem, nostack));
        }
    }

    /// DR0 to DR3 as they were saved.
    #[must_use]
    pub fn debug_addresses(&self) -> [u64; 4] {
        self.debug
    }

    /// Sets what is put into DR0 to DR3.
    pub fn set_debug_addresses(&mut self, addresses: [u64; 4]) {
        self.debug = addresses;
    }

    /// CR2 as it was saved.
    #[must_use]
    pub fn cr2(&self) -> u64 {
        self.cr2
    }

    /// Takes the state out of the executing CPU.
    pub fn save(&mut self) {
        let all = capabilities::get().xcr0;
        // SAFETY: as in `load`.
        unsafe {
            xsetbv(all);
            let area = memory::host_pointer::<u8>(self.area);
            asm!("xsave64 [{area}]", area = in(reg) area, in("eax") all as u32, in("edx") (all >> 32) as u32, options(nostack));
            for (number, value) in SWITCHED.into_iter().zip(&mut self.msrs) {
                if msr_exists(number) {
                    *value = Msr::new(number).read();
                }
            }
            asm!("mov {}, cr2", out(reg) self.cr2, options(nomem, nostack, preserves_flags));
            let [dr0, dr1, dr2, dr3] = &mut self.debug;
            asm!(
                "mov {a}, dr0",
                "mov {b}, dr1",
                "mov {c}, dr2",
                "mov {d}, dr3",
                a = out(reg) * dr0,
                b = out(reg) * dr1,
                c = out(reg) * dr2,
                d = out(reg) * dr3,
                options(nomem, nostack)
            );
            asm!("mov {}, dr6", out(reg) self.dr6, options(nomem, nostack));
        }
    }
}

impl Drop for ExtendedState {
    fn drop(&mut self) {
        memory::free_hypervisor_frame(self.area);
    }
}

/// DR6 of the vCPU that is loaded on the executing CPU.
#[must_use]
pub fn dr6() -> u64 {
    let dr6: u64;
    // SAFETY: reading DR6 changes nothing.
    unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags)) };
    dr6
}

/// Sets DR6 of the vCPU that is loaded on the executing CPU. False if the upper half is not 0, where MOV DR raises #GP.
#[must_use]
pub fn set_dr6(value: u64) -> bool {
    if value >> 32 != 0 {
        return false;
    }
    // SAFETY: the upper half is 0, or it would be #GP; DR6 only holds flags, the vCPU's own while it is loaded.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
    true
}

/// Notes the causes of a debug exception in the executing CPU's DR6.
pub fn set_debug_causes(causes: u64) {
    let dr6: u64;
    // SAFETY: DR6 only holds flags; while a vCPU is loaded they are its own.
    unsafe {
        asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack));
        asm!("mov dr6, {}", in(reg) cpu::dr6_with(dr6, causes), options(nomem, nostack));
    }
}

fn msr_exists(number: u32) -> bool {
    number != msr::IA32_TSC_AUX
        || capabilities::get().has(x86_defs::controls::Secondary::ENABLE_RDTSCP)
}

/// Sets XCR0 on the executing CPU.
///
/// # Safety
/// The value must be one that XSETBV accepts on this CPU.
pub unsafe fn xsetbv(xcr0: u64) {
    // SAFETY: passed on to the caller; CR4.OSXSAVE is set on every CPU by `operation::enable`.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") xcr0 as u32, in("edx") (xcr0 >> 32) as u32, options(nomem, nostack))
    };
}

/// Sets the CR2 of the vCPU that is loaded on the executing CPU, before a page fault is injected.
pub fn set_cr2(address: u64) {
    // SAFETY: CR2 says nothing to the CPU; the hypervisor's own page faults end it, and between exit and entry the guest's value
    // stays in the register.
    unsafe { asm!("mov cr2, {}", in(reg) address, options(nomem, nostack, preserves_flags)) };
}
