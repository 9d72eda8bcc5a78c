//! VMCS residency and access.
//!
//! A [`Vmcs`] is clear: its data is in its own memory and no CPU caches any of it, so it may move between CPUs. [`Vmcs::load`]
//! turns it into a [`LoadedVmcs`], current on the executing CPU, which alone can be read, written and entered;
//! [`LoadedVmcs::clear`] turns it back. Source: Intel SDM Vol. 3, "Virtual-Machine Control Structures", "Software Use".

use core::arch::asm;
use core::marker::PhantomData;

use nagaya_mem::Hpa;
use nagaya_vmm::exit::vmx::ReadExit;
use x86_defs::exit::InstructionError;
use x86_defs::vmcs::{self as field, Access, Field, ReadWrite, Width};

use crate::host::cpu::percpu::PerCpu;
use crate::host::memory;
use crate::vmx::capabilities;
use crate::vmx::operation::{VmxCpu, new_region};

/// A clear VMCS that no CPU caches.
#[derive(Debug)]
pub struct Vmcs {
    region: Hpa,
}

impl Vmcs {
    /// Makes a new one.
    #[must_use]
    pub fn new() -> Option<Vmcs> {
        let region = new_region(*capabilities::get())?;
        // SAFETY: the frame was just made for this; VMCLEAR initialises it.
        let ok = unsafe { vmclear(region) };
        debug_assert!(ok, "VMCLEAR of a fresh frame");
        Some(Vmcs { region })
    }

    /// Makes it current on the executing CPU.
    ///
    /// # Panics
    /// If VMPTRLD fails: the region is ours and has the right revision, so that would be a bug.
    #[must_use]
    pub fn load(self, _cpu: &mut VmxCpu) -> LoadedVmcs<'_> {
        let ok: u8;
        let address = self.region.get();
        // SAFETY: the CPU is in VMX operation (`_cpu` proves it); the region is a clear VMCS that no other CPU has loaded, since
        // `self` is consumed.
        unsafe {
            asm!("vmptrld [{address}]", "seta {ok}", address = in(reg) &raw const address, ok = out(reg_byte) ok,
                options(nostack));
        }
        assert!(ok != 0, "VMPTRLD of {:#x} failed", self.region);
        let region = self.region;
        core::mem::forget(self);
        LoadedVmcs {
            region,
            cpu: PhantomData,
        }
    }
}

impl Vmcs {
    /// Reads fields by their encodings, 0 for what the CPU has not, while another VMCS may be current: that one is afterwards.
    /// In VMX operation only.
    pub fn peek<R>(&self, action: impl FnOnce(&dyn Fn(u32) -> u64) -> R) -> R {
        let mut current = 0_u64;
        let address = self.region.get();
        // SAFETY: `self` is clear and nobody else can load it meanwhile; VMPTRST and VMPTRLD change nothing but which VMCS is
        // current, and that is undone below. An NMI in between may store a preemption-timer value into this one, which is
        // written anew before its next entry.
        unsafe {
            asm!("vmptrst [{current}]", "vmptrld [{address}]", current = in(reg) &raw mut current,
                address = in(reg) &raw const address, options(nostack));
        }
        let loaded = LoadedVmcs {
            region: self.region,
            cpu: PhantomData,
        };
        let result = action(&|encoding| loaded.try_read(encoding).unwrap_or(0));
        // SAFETY: as above. All ones stand for no current VMCS.
        unsafe {
            vmclear(self.region);
            if current != u64::MAX {
                asm!("vmptrld [{current}]", current = in(reg) &raw const current, options(nostack));
            }
        }
        result
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        memory::free_hypervisor_frame(self.region);
    }
}

/// # Safety
/// VMX operation; `region` is a VMCS frame that is not the VMXON region.
unsafe fn vmclear(region: Hpa) -> bool {
    let ok: u8;
    let address = region.get();
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("vmclear [{address}]", "seta {ok}", address = in(reg) &raw const address, ok = out(reg_byte) ok, options(nostack));
    }
    ok != 0
}

/// The VMCS that is current on the executing CPU. Neither `Send` nor duplicable.
#[derive(Debug)]
pub struct LoadedVmcs<'cpu> {
    region: Hpa,
    cpu: PhantomData<&'cpu mut VmxCpu>,
}

extern "sysv64" fn access_failed() -> ! {
    panic!("VMREAD or VMWRITE failed: a field that this CPU does not have, or no current VMCS");
}

impl ReadExit for LoadedVmcs<'_> {
    #[inline]
    fn qualification(&self) -> u64 {
        self.read(field::EXIT_QUALIFICATION)
    }

    #[inline]
    fn interruption_info(&self) -> u32 {
        self.read(field::EXIT_INTERRUPTION_INFO)
    }

    #[inline]
    fn interruption_error(&self) -> u32 {
        self.read(field::EXIT_INTERRUPTION_ERROR_CODE)
    }

    #[inline]
    fn guest_physical(&self) -> u64 {
        self.read(field::GUEST_PHYSICAL_ADDRESS)
    }
}

impl LoadedVmcs<'_> {
    /// Writes all cached data back and makes it clear.
    #[must_use]
    pub fn clear(self) -> Vmcs {
        // SAFETY: the region is this VMCS's; being current it is no VMXON region.
        let ok = unsafe { vmclear(self.region) };
        assert!(ok, "VMCLEAR of the current VMCS failed");
        Vmcs {
            region: self.region,
        }
    }

    /// Reads a field.
    ///
    /// # Panics
    /// If the CPU has no such field: callers read only fields of controls that they found there.
    #[inline]
    #[must_use]
    pub fn read<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value {
        let value: u64;
        // SAFETY: `self` proves a current VMCS. A failure sets CF or ZF and goes to a function that does not return.
        unsafe {
            asm!("vmread {value}, {field}", "jbe {failed}", value = out(reg) value,
                field = in(reg) u64::from(field.encoding()), failed = sym access_failed, options(nomem));
        }
        W::from_u64(value)
    }

    /// Writes a field.
    ///
    /// # Panics
    /// As [`LoadedVmcs::read`].
    #[inline]
    pub fn write<W: Width>(&mut self, field: Field<W, ReadWrite>, value: W::Value) {
        // SAFETY: as in `read`. What the value means is checked by the CPU at the next entry, which fails cleanly.
        unsafe {
            asm!("vmwrite {field}, {value}", "jbe {failed}", value = in(reg) W::to_u64(value),
                field = in(reg) u64::from(field.encoding()), failed = sym access_failed, options(nomem));
        }
    }

    /// Reads a field by its encoding, for dumps: `None` if the CPU has none such.
    #[must_use]
    pub fn try_read(&self, encoding: u32) -> Option<u64> {
        let value: u64;
        let ok: u8;
        // SAFETY: as in `read`; a failure is reported.
        unsafe {
            asm!("xor {value:e}, {value:e}", "vmread {value}, {field}", "seta {ok}", value = out(reg) value,
                field = in(reg) u64::from(encoding), ok = out(reg_byte) ok, options(nomem, nostack));
        }
        (ok != 0).then_some(value)
    }

    /// Why the last VMX instruction failed.
    #[must_use]
    pub fn instruction_error(&self) -> InstructionError {
        InstructionError(self.read(field::VM_INSTRUCTION_ERROR))
    }
}

/// Makes the next VM entry on this CPU exit at once, before a guest instruction, by a preemption timer of 0; the run loop arms it anew.
/// For the NMI handler: harmless where no VMCS is current (VMWRITE then fails, which is ignored on purpose).
pub fn expire_preemption_timer(_cpu: &PerCpu) {
    let encoding = u64::from(field::PREEMPTION_TIMER_VALUE.encoding());
    // SAFETY: outside VMX operation VMWRITE would raise #UD, but NMIs are sent to CPUs only after they are in VMX operation
    // (`stop` excepted, which does not come here). The field is written anew by the run loop after each expiry.
    unsafe {
        asm!("vmwrite {encoding}, {zero}", encoding = in(reg) encoding, zero = in(reg) 0_u64, options(nomem, nostack))
    };
}
