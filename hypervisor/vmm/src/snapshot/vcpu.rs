//! A vCPU as a value: what its owner gathers from the CPU vendor's structures and from the parts that are kept in software.
//!
//! What the hypervisor loads with instructions that fault (XRSTOR, WRMSR, XSETBV, MOV to a debug register) is checked here as the CPU would;
//! what a VM entry loads is checked by the entry, whose refusal ends that VM alone.
//!
//! Source: Intel SDM Vol. 1, "XSAVE Area", "Operation of XRSTOR"; Vol. 3, "Extended Control Registers", "Debug Registers",
//! "Guest-State Area".

use alloc::vec::Vec;

use guest_abi::boot::MAX_VCPUS;
use nagaya_devices::apic::{ApicState, EoiWord, EoiWordState, LocalApic};
use nagaya_devices::state::{StateError, TscShift, check};
use nagaya_mem::Gva;
use serde::{Deserialize, Serialize};

use crate::control::Registers;
use crate::cpuid::CpuidPolicy;
use crate::msr::MsrState;
use crate::outcome::Block;
use crate::posted::{MAX_NMIS, Posted, PostedState};
use crate::start_up::StartUpState;

/// Bytes of an XSAVE area without extended components, and of the frame that one has.
const XSAVE_BYTES: core::ops::RangeInclusive<usize> = 576..=4096;
/// Where MXCSR and the header are in it.
const MXCSR: usize = 24;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;
const HEADER_END: usize = 576;
/// Bits of MXCSR that exist.
const MXCSR_BITS: u32 = 0xFFFF;
/// Components of XCR0: x87, SSE, AVX; the three of AVX-512; and those that are loaded together.
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const AVX512: u64 = 7 << 5;
const XCR0_BITS: u64 = X87 | SSE | AVX | AVX512;

/// Where an interrupt that is being delivered came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptSource {
    /// The local APIC.
    Apic,
    /// The PIC, past the APIC.
    Pic,
    /// A doorbell, past the APIC.
    Doorbell,
}

/// Whether a vCPU executes instructions ("Guest Non-Register State").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It does.
    Active,
    /// It has executed HLT.
    Halted,
    /// It has met a triple fault.
    ShutDown,
    /// It waits for a start-up message.
    WaitsForStartUp,
}

/// An event that the next entry delivers, in the format of "VM-Entry Controls for Event Injection".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    /// Vector, type, whether there is an error code.
    pub information: u32,
    /// The error code.
    pub error_code: u32,
    /// Bytes of the instruction of a software event.
    pub instruction_bytes: u32,
}

/// Debug registers but DR7's partner IA32_DEBUGCTL, which is in [`MsrState`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Exceptions that the next entry delivers, in DR6's format.
    pub pending: u64,
}

/// MSRs that guests use without an exit, but for FS's and GS's base, which are the segments'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the registers they hold")]
pub struct SwitchedMsrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
}

/// All that a vCPU is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Its index.
    pub index: u32,
    /// General and control registers (as the guest sees them), segments and descriptor tables.
    pub registers: Registers,
    /// The page-directory pointers that PAE paging has loaded.
    pub pdptes: [u64; 4],
    /// Debug registers.
    pub debug: DebugRegisters,
    /// MSRs that are switched.
    pub switched: SwitchedMsrs,
    /// MSRs that are emulated, and how far its TSC is from the machine's.
    pub emulated: MsrState,
    /// XCR0.
    pub xcr0: u64,
    /// The XSAVE area, in the standard format.
    pub xsave: Vec<u8>,
    /// Whether it executes instructions.
    pub activity: Activity,
    /// What blocks interrupts and NMIs ("Interruptibility State").
    pub blocking: u32,
    /// The event that its next entry delivers.
    pub event: Option<PendingEvent>,
    /// Answers of CPUID.
    pub cpuid: CpuidPolicy,
    /// Its local APIC, with what the CPU kept of it.
    pub apic: ApicState,
    /// The word by which it ends interrupts.
    pub eoi_word: EoiWordState,
    /// Interrupts on their way to it.
    pub posted: PostedState,
    /// Whether it waits for its start.
    pub start_up: StartUpState,
    /// What it waits for.
    pub waiting: Option<Block>,
    /// TSC value at which its HLT ends.
    pub deadline: Option<u64>,
    /// The interrupt that was injected last.
    pub injected: Option<(u8, InterruptSource)>,
    /// An interrupt of the PIC's that has been acknowledged and not delivered.
    pub pic_vector: Option<u8>,
    /// NMIs that have not been delivered.
    pub waiting_nmis: u8,
    /// Version of the clock that it reads, always even.
    pub clock_version: u32,
    /// Ticks in which it could have run and was not let.
    pub stolen_ticks: u64,
}

fn word(area: &[u8], at: usize) -> u64 {
    let bytes = area.get(at..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(0, u64::from_le_bytes)
}

impl VcpuState {
    /// Moves its times. What it reads as its TSC goes on from where it was.
    pub fn shift(&mut self, by: TscShift) {
        self.apic.shift(by);
        self.deadline = self.deadline.map(|deadline| by.moved(deadline));
        match &mut self.waiting {
            Some(Block::Wait { deadline } | Block::Child { deadline, .. }) => {
                *deadline = by.moved(*deadline);
            }
            Some(Block::Halt) | None => {}
        }
        let offset = &mut self.emulated.tsc_offset;
        *offset = offset.wrapping_sub(by.ticks().cast_unsigned());
    }

    /// Whether a vCPU can go on from there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn check(&self) -> Result<(), StateError> {
        check(
            self.index < MAX_VCPUS,
            "index",
            self.index,
            "the index of a vCPU",
        )?;
        self.check_registers()?;
        self.check_extended()?;
        let nmis = self.waiting_nmis;
        check(nmis <= MAX_NMIS, "waiting_nmis", nmis, "at most 2")?;
        let version = self.clock_version;
        check(
            version.is_multiple_of(2),
            "clock_version",
            version,
            "an even number",
        )?;
        let within = |name: &'static str| move |error: StateError| error.within(name);
        LocalApic::restore(&self.apic).map_err(within("apic"))?;
        EoiWord::restore(&self.eoi_word).map_err(within("eoi_word"))?;
        Posted::restore(&self.posted).map_err(within("posted"))?;
        check(
            self.apic.config.id == self.index,
            "apic.config.id",
            self.apic.config.id,
            "the vCPU's index",
        )
    }

    fn check_registers(&self) -> Result<(), StateError> {
        let efer = self.registers.efer;
        check(
            efer == self.emulated.efer,
            "registers.efer",
            efer,
            "that of the emulated MSRs",
        )?;
        let DebugRegisters { dr6, dr7, .. } = self.debug;
        for (name, value) in [("debug.dr6", dr6), ("debug.dr7", dr7)] {
            check(value >> 32 == 0, name, value, "of 32 bits")?;
        }
        let SwitchedMsrs {
            star: _,
            lstar,
            cstar,
            fmask,
            kernel_gs_base,
            tsc_aux,
            sysenter_cs: _,
            sysenter_esp,
            sysenter_eip,
        } = self.switched;
        for (name, value) in [
            ("switched.lstar", lstar),
            ("switched.cstar", cstar),
            ("switched.kernel_gs_base", kernel_gs_base),
            ("switched.sysenter_esp", sysenter_esp),
            ("switched.sysenter_eip", sysenter_eip),
        ] {
            let is_address = Gva::new(value).is_canonical();
            check(is_address, name, value, "a canonical address")?;
        }
        for (name, value) in [("switched.fmask", fmask), ("switched.tsc_aux", tsc_aux)] {
            check(value >> 32 == 0, name, value, "of 32 bits")?;
        }
        Ok(())
    }

    fn check_extended(&self) -> Result<(), StateError> {
        let (xcr0, area) = (self.xcr0, self.xsave.as_slice());
        let has = |bits: u64| xcr0 & bits == bits;
        // What XSETBV takes.
        let is_valid = has(X87)
            && xcr0 & !XCR0_BITS == 0
            && (has(SSE) || !has(AVX))
            && (xcr0 & AVX512 == 0 || has(AVX512 | AVX));
        check(
            is_valid,
            "xcr0",
            xcr0,
            "a set of components that go together",
        )?;
        check(
            xcr0 & !self.cpuid.xcr0 == 0,
            "xcr0",
            xcr0,
            "of what the guest has been shown",
        )?;
        check(
            XSAVE_BYTES.contains(&area.len()),
            "xsave",
            area.len() as u64,
            "576 to 4096 bytes",
        )?;
        let mxcsr = word(area, MXCSR) as u32;
        check(
            mxcsr & !MXCSR_BITS == 0,
            "xsave.mxcsr",
            mxcsr,
            "without reserved bits",
        )?;
        let components = word(area, XSTATE_BV);
        check(
            components & !self.cpuid.xcr0 == 0,
            "xsave.xstate_bv",
            components,
            "of what the guest has been shown",
        )?;
        let reserved = area.get(XCOMP_BV..HEADER_END).unwrap_or_default();
        let first = reserved.iter().position(|byte| *byte != 0);
        check(
            first.is_none(),
            "xsave.header",
            first.unwrap_or(0) as u64,
            "of the standard format, zeros behind xstate_bv",
        )
    }
}
