//! VMCS residency and access.
//!
//! A [`Vmcs`] is clear: its data is in its own memory and no CPU caches any of it, so it may move between CPUs. [`Vmcs::load`]
//! turns it into a [`LoadedVmcs`], current on the executing CPU, which alone can be read, written and entered;
//! [`LoadedVmcs::clear`] turns it back. Source: Intel SDM Vol. 3, "Virtual-Machine Control Structures", "Software Use".

use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_mem::Hpa;
use nagaya_vmm::control::Registers;
use nagaya_vmm::exit::vmx::ReadExit;
use x86_defs::exit::InstructionError;
use x86_defs::vmcs::{self as field, Access, Field, ReadWrite, Width};

use crate::arch::GuestRegisters;
use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::host::memory;
use crate::vmx::operation::{VmxCpu, new_region};
use crate::vmx::{capabilities, dump, entry};

/// The region of the VMCS that is current on each CPU; 0 for none. Written by the CPU itself: set after VMPTRLD and taken away before VMCLEAR, so
/// that where it is not 0 a VMCS is current, in an NMI's handler, too.
static CURRENT: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn current(cpu: &PerCpu) -> &'static AtomicU64 {
    // `PerCpu::create` makes none beyond.
    &CURRENT[cpu.index as usize]
}

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
        unsafe { vmclear(region) };
        Some(Vmcs { region })
    }

    /// Makes it current on the executing CPU.
    ///
    /// # Panics
    /// If VMPTRLD fails: the region is ours and has the right revision, so that would be a bug.
    #[must_use]
    pub fn load(self, _cpu: &mut VmxCpu) -> LoadedVmcs<'_> {
        // SAFETY: the CPU is in VMX operation (`_cpu` proves it); the region is a clear VMCS that no other CPU has loaded, since
        // `self` is consumed.
        unsafe { vmptrld(self.region) };
        current(PerCpu::current()).store(self.region.get(), Ordering::Relaxed);
        let region = self.region;
        core::mem::forget(self);
        LoadedVmcs {
            region,
            flags: if capabilities::get().needs_md_clear {
                entry::CLEAR_BUFFERS
            } else {
                0
            },
            cpu: PhantomData,
        }
    }
}

impl Vmcs {
    /// The registers of its vCPU, for dumps. In VMX operation only.
    #[must_use]
    pub fn registers(&self, general: &GuestRegisters, cr2: u64) -> Registers {
        self.inspect(|read| dump::registers(general, cr2, read))
    }

    /// Calls `action` with how its fields are read: 0 for those that the CPU does not have. In VMX operation only.
    ///
    /// Meanwhile whatever VMCS is current on this CPU is not, and is again afterwards: this one is not entered, and an NMI that
    /// comes leaves both alone (`CURRENT` says that none is): no entry is near, and before the next one the run loop sees the NMI's mark.
    pub fn inspect<R>(&self, action: impl FnOnce(&dyn Fn(u32) -> u64) -> R) -> R {
        self.while_current(|vmcs| action(&|encoding| vmcs.try_read(encoding).unwrap_or(0)))
    }

    /// Sets registers of its vCPU, for a debugger. In VMX operation only; as [`Vmcs::inspect`].
    pub fn set_registers(&mut self, rip: u64, rsp: u64, rflags: u64) {
        self.while_current(|vmcs| {
            vmcs.write(field::GUEST_RIP, rip);
            vmcs.write(field::GUEST_RSP, rsp);
            vmcs.write(field::GUEST_RFLAGS, rflags);
        });
    }

    fn while_current<R>(&self, action: impl FnOnce(&mut LoadedVmcs<'_>) -> R) -> R {
        let current = current(PerCpu::current());
        let suspended = current.swap(0, Ordering::Relaxed);
        // SAFETY: `self` is clear, and nobody else can load it meanwhile: that takes it by value.
        unsafe { vmptrld(self.region) };
        let result = action(&mut LoadedVmcs {
            region: self.region,
            flags: 0,
            cpu: PhantomData,
        });
        // SAFETY: its data goes back to the region, as it was. The one that was suspended is still this CPU's: its `LoadedVmcs` has not been
        // cleared, since that ends in `CURRENT`, too.
        unsafe {
            vmclear(self.region);
            if suspended != 0 {
                vmptrld(Hpa::new(suspended));
            }
        }
        current.store(suspended, Ordering::Relaxed);
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
unsafe fn vmclear(region: Hpa) {
    let address = region.get();
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("vmclear [{address}]", "jbe {failed}", address = in(reg) &raw const address,
            failed = label { instruction_failed("VMCLEAR", address) }, options(nostack));
    }
}

/// # Safety
/// VMX operation; `region` is a VMCS that is current on no other CPU, with the revision of this CPU's capabilities.
unsafe fn vmptrld(region: Hpa) {
    let address = region.get();
    // SAFETY: passed on to the caller.
    unsafe {
        asm!("vmptrld [{address}]", "jbe {failed}", address = in(reg) &raw const address,
            failed = label { instruction_failed("VMPTRLD", address) }, options(nostack));
    }
}

/// # Safety
/// A VMCS is current.
unsafe fn try_read(encoding: u32) -> Option<u64> {
    let value: u64;
    let ok: u8;
    // SAFETY: passed on to the caller; a failure is reported.
    unsafe {
        asm!("xor {value:e}, {value:e}", "vmread {value}, {field}", "seta {ok}", value = out(reg) value,
            field = in(reg) u64::from(encoding), ok = out(reg_byte) ok, options(nomem, nostack));
    }
    (ok != 0).then_some(value)
}

#[cold]
fn instruction_failed(instruction: &str, operand: u64) -> ! {
    panic!(
        "{instruction} of {operand:#x} failed: the region is not a VMCS of this CPU's, or VMX operation has ended"
    );
}

/// The VMCS that is current on the executing CPU. Neither `Send` nor duplicable.
#[derive(Debug)]
pub struct LoadedVmcs<'cpu> {
    region: Hpa,
    /// For [`entry::enter`].
    pub(super) flags: u64,
    cpu: PhantomData<&'cpu mut VmxCpu>,
}

#[cold]
fn write_failed(encoding: u32) -> ! {
    panic!(
        "VMWRITE of field {encoding:#x} failed: this CPU does not have it, or no VMCS is current"
    );
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
        current(PerCpu::current()).store(0, Ordering::Relaxed);
        // SAFETY: the region is this VMCS's; being current it is no VMXON region.
        unsafe { vmclear(self.region) };
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
        if field.is_everywhere() {
            // SAFETY: `self` proves a current VMCS, and every CPU has the field: there is nothing by which this could fail.
            unsafe {
                asm!("vmread {value}, {field}", value = out(reg) value,
                    field = in(reg) u64::from(field.encoding()), options(nomem, nostack));
            }
            return W::from_u64(value);
        }
        // SAFETY: `self` proves a current VMCS. A failure sets CF or ZF and traps: the handler of #UD does not come back, and its dump
        // names the place. (A jump out of the block into Rust would be a `label`, which does not go with outputs in stable Rust.)
        unsafe {
            asm!("vmread {value}, {field}", "ja 2f", "ud2", "2:", value = out(reg) value,
                field = in(reg) u64::from(field.encoding()), options(nomem, nostack));
        }
        W::from_u64(value)
    }

    /// Writes a field.
    ///
    /// # Panics
    /// As [`LoadedVmcs::read`].
    #[inline]
    pub fn write<W: Width>(&mut self, field: Field<W, ReadWrite>, value: W::Value) {
        if field.is_everywhere() {
            // SAFETY: as in `read`; the field is writable by its type. What the value means is checked by the CPU at the next entry.
            unsafe {
                asm!("vmwrite {field}, {value}", value = in(reg) W::to_u64(value),
                    field = in(reg) u64::from(field.encoding()), options(nomem, nostack));
            }
            return;
        }
        // SAFETY: as in `read`. What the value means is checked by the CPU at the next entry, which fails cleanly.
        unsafe {
            asm!("vmwrite {field}, {value}", "jbe {failed}", value = in(reg) W::to_u64(value),
                field = in(reg) u64::from(field.encoding()), failed = label { write_failed(field.encoding()) },
                options(nomem, nostack));
        }
    }

    /// Reads a field by its encoding, for dumps: `None` if the CPU has none such.
    #[must_use]
    pub fn try_read(&self, encoding: u32) -> Option<u64> {
        // SAFETY: `self` proves a current VMCS.
        unsafe { try_read(encoding) }
    }

    /// Why the last VMX instruction failed.
    #[must_use]
    pub fn instruction_error(&self) -> InstructionError {
        InstructionError(self.read(field::VM_INSTRUCTION_ERROR))
    }
}

/// Makes the next VM entry on `cpu`, the executing one, exit at once, before a guest instruction, by a preemption timer of 0; the run
/// loop arms it anew. For the NMI handler. Does nothing where no VMCS is current: no entry is near.
pub fn expire_preemption_timer(cpu: &PerCpu) {
    if current(cpu).load(Ordering::Relaxed) == 0 {
        return;
    }
    let encoding = u64::from(field::PREEMPTION_TIMER_VALUE.encoding());
    // SAFETY: a VMCS is current (above), so that the CPU is in VMX operation. Every CPU that takes part has the field (a required control).
    unsafe {
        asm!("vmwrite {encoding}, {zero}", encoding = in(reg) encoding, zero = in(reg) 0_u64, options(nomem, nostack))
    };
}
