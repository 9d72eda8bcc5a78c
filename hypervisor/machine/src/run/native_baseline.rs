//! The floor: a guest's image run as a bare loop, outside VMX, on the CPU its vCPU is pinned to.
//!
//! Benchmarks of shared memory are told against this: the same binary, the same CPUs, the same region, with one level of
//! translation and no hypervisor in between. The image runs with the hypervisor's own rights, so that this is for trusted
//! images only; a scenario must allow it (`machine.allow_bare`) and ask for it (`vm.bare`).
//!
//! The image sees what a guest sees: RAM from address 0, group page, info page and boot information at their addresses. Its
//! hypercalls are calls of [`hypercall`]. Interrupts stay off; the upper half of the address space is the hypervisor's.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;

use guest_abi::{ABI_VERSION, Errno, PAGE_BYTES, boot};
use nagaya_mem::{Gpa, Hpa, PageSize};
use nagaya_vmm::hypercall::{Call, Channel, Registers, decode};
use nagaya_vmm::outcome::Cause;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;
use x86_64::{PhysAddr, structures::paging::PageTableFlags};

use crate::host::cpu::percpu::{MAX_CPUS, PerCpu};
use crate::host::memory::{self, Whose};
use crate::lifecycle;
use crate::objects::vcpu::Vcpu;

/// One address space for a bare loop: tables of its own below, the hypervisor's above.
struct Space {
    root: Hpa,
    tables: Vec<Hpa>,
}

impl Space {
    fn new() -> Option<Space> {
        let mut space = Space {
            root: Hpa::new(0),
            tables: Vec::new(),
        };
        space.root = space.table()?;
        // SAFETY: what is written are tables of this space, allocated by `table`.
        let phys = unsafe { memory::writer(Whose::Hypervisor) };
        let host = Cr3::read().0.start_address().as_u64();
        for slot in 256..512 {
            phys.store_u64(
                Hpa::new(space.root.get() + slot * 8),
                phys.load_u64(Hpa::new(host + slot * 8)),
            );
        }
        Some(space)
    }

    fn table(&mut self) -> Option<Hpa> {
        let table = memory::allocate_hypervisor_frame()?;
        self.tables.push(table);
        Some(table)
    }

    /// Maps one page of 4 KiB or 2 MiB at an address of the lower half.
    fn map(&mut self, va: u64, pa: Hpa, size: PageSize, flags: PageTableFlags) -> Option<()> {
        let leaf = if size == PageSize::Size4K { 1 } else { 2 };
        // SAFETY: what is written are tables of this space, allocated by `table`.
        let phys = unsafe { memory::writer(Whose::Hypervisor) };
        let mut table = self.root;
        for level in (leaf..=4_u32).rev() {
            let entry = Hpa::new(table.get() + (va >> (12 + 9 * (level - 1)) & 511) * 8);
            if level == leaf {
                let large = if leaf == 2 {
                    PageTableFlags::HUGE_PAGE
                } else {
                    PageTableFlags::empty()
                };
                phys.store_u64(entry, pa.get() | (flags | large).bits());
                return Some(());
            }
            let value = phys.load_u64(entry);
            table = if value & 1 == 0 {
                let fresh = self.table()?;
                let links = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
                phys.store_u64(entry, fresh.get() | links.bits());
                fresh
            } else {
                Hpa::new(value & 0x000F_FFFF_FFFF_F000)
            };
        }
        None
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for table in self.tables.drain(..) {
            memory::free_hypervisor_frame(table);
        }
    }
}

/// A bare loop on its CPU.
struct Run<'a> {
    vcpu: &'a mut Vcpu,
    space: Space,
    host_rsp: u64,
    host_cr3: u64,
    cause: Cause,
}

struct Slot(UnsafeCell<*mut ()>);

// SAFETY: each CPU uses the slot of its own index only.
unsafe impl Sync for Slot {}

static RUNS: [Slot; MAX_CPUS] = [const { Slot(UnsafeCell::new(core::ptr::null_mut())) }; MAX_CPUS];

fn slot() -> *mut *mut () {
    RUNS[PerCpu::current().index as usize].0.get()
}

/// Runs the vCPU's image until it calls `exit`, and ends its VM.
pub fn run(mut vcpu: Box<Vcpu>) {
    let cause = match prepare(&vcpu) {
        None => {
            log::error!("VM {}: no memory for its page tables", vcpu.vm.name);
            Cause::Killed
        }
        Some(space) => execute(&mut vcpu, space),
    };
    lifecycle::end(&vcpu.vm, cause);
    lifecycle::leave(vcpu);
}

fn prepare(vcpu: &Vcpu) -> Option<Space> {
    let mut space = Space::new()?;
    let ram = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    let read_only = PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE;
    let large = PageSize::Size2M.bytes();
    for at in (0..vcpu.vm.memory_bytes).step_by(large as usize) {
        let frame = vcpu.vm.memory.lock().backing.own_frame(Gpa::new(at))?;
        space.map(at, frame, PageSize::Size2M, ram)?;
    }
    if let Some(membership) = &vcpu.vm.membership {
        space.map(
            boot::GROUP_PAGE_GPA,
            membership.group.page,
            PageSize::Size4K,
            read_only,
        )?;
    }
    space.map(
        boot::INFO_PAGE_GPA,
        vcpu.info_page,
        PageSize::Size4K,
        read_only,
    )?;
    Some(space)
}

fn execute(vcpu: &mut Vcpu, space: Space) -> Cause {
    let Some(start) = vcpu.start.take() else {
        return Cause::Killed;
    };
    let root = space.root;
    let host_cr3 = Cr3::read().0.start_address().as_u64();
    let mut run = Run {
        vcpu,
        space,
        host_rsp: 0,
        host_cr3,
        cause: Cause::Killed,
    };
    // SAFETY: the slot is this CPU's; `run` outlives the loop, which only `leave` ends.
    unsafe { *slot() = (&raw mut run).cast() };
    // SAFETY: the new root has the hypervisor's upper half, where this code, its stack and its data lie; the image is trusted
    // (see the module's head) and comes back by `leave` with the stack as it was.
    unsafe {
        enter(
            start.entry,
            start.stack,
            boot::BOOT_INFO_GPA,
            root.get(),
            &raw mut run.host_rsp,
        )
    };
    // SAFETY: the slot is this CPU's.
    unsafe { *slot() = core::ptr::null_mut() };
    run.cause
}

/// Switches to the image's address space and stack and jumps to its entry. Returns when [`leave`] is called.
///
/// # Safety
/// See `execute`.
#[cfg(target_os = "none")]
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(entry: u64, stack: u64, info: u64, root: u64, host_rsp: *mut u64) {
    core::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [r8], rsp",
        "mov cr3, rcx",
        "mov rsp, rsi",
        "mov rax, rdi",
        "mov rdi, rdx",
        "jmp rax",
    )
}

/// Goes back behind the [`enter`] that left that stack pointer.
///
/// # Safety
/// Both values are those of this CPU's current run.
#[cfg(target_os = "none")]
#[unsafe(naked)]
unsafe extern "sysv64" fn leave(host_rsp: u64, host_cr3: u64) -> ! {
    core::arch::naked_asm!(
        "mov cr3, rsi",
        "mov rsp, rdi",
        "cld",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

#[cfg(not(target_os = "none"))]
unsafe extern "sysv64" fn enter(
    _entry: u64,
    _stack: u64,
    _info: u64,
    _root: u64,
    _host_rsp: *mut u64,
) {
}

#[cfg(not(target_os = "none"))]
unsafe extern "sysv64" fn leave(_host_rsp: u64, _host_cr3: u64) -> ! {
    crate::host::stop::halt_for_ever()
}

/// What `BootInfo::bare_hypercall` names: the image calls it instead of executing VMCALL.
pub extern "sysv64" fn hypercall(number: u64, a1: u64, a2: u64, a3: u64, a4: u64, a5: u64) -> i64 {
    // SAFETY: only an image that `execute` runs on this CPU gets here, so that the slot names its `Run`, which nobody else
    // borrows: `execute` is suspended in `enter`.
    let run = unsafe { &mut *(*slot()).cast::<Run<'_>>() };
    match decode(
        Registers {
            number,
            arguments: [a1, a2, a3, a4, a5],
        },
        0,
    ) {
        Ok(Call::Exit { code }) => {
            run.cause = Cause::Exit(code);
            // SAFETY: the values `execute` and `enter` stored for this run.
            unsafe { leave(run.host_rsp, run.host_cr3) }
        }
        Ok(call) => run.call(call).unwrap_or_else(Errno::to_rax),
        Err(errno) => errno.to_rax(),
    }
}

impl Run<'_> {
    fn call(&mut self, call: Call) -> Result<i64, Errno> {
        match call {
            Call::Version => Ok(i64::from(ABI_VERSION)),
            Call::MapShared { va } => self.map_shared(va.get()),
            Call::Console {
                buffer,
                bytes,
                channel,
            } => {
                let mut text = alloc::vec![0; bytes];
                self.read(buffer.get(), &mut text)?;
                match channel {
                    Channel::Text => self.vcpu.vm.console.text(&text),
                    Channel::Event => self.vcpu.vm.console.event(&text),
                }
                Ok(bytes as i64)
            }
            _ => Err(Errno::NoSys),
        }
    }

    /// Copies out of the image's RAM, where virtual and guest-physical addresses are the same.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let memory = self.vcpu.vm.memory.lock();
        let mut done = 0;
        while done < buffer.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::Fault)?;
            let frame = memory.backing.own_frame(Gpa::new(at)).ok_or(Errno::Fault)?;
            let length = ((PAGE_BYTES - at % PAGE_BYTES) as usize).min(buffer.len() - done);
            let piece = buffer.get_mut(done..done + length).ok_or(Errno::Fault)?;
            memory::phys().read(frame, piece);
            done += length;
        }
        Ok(())
    }

    fn map_shared(&mut self, va: u64) -> Result<i64, Errno> {
        let group = self
            .vcpu
            .vm
            .membership
            .as_ref()
            .map(|membership| alloc::sync::Arc::clone(&membership.group));
        let group = group.ok_or(Errno::Perm)?;
        let bytes = group.update(|state, _| state.region_pages()) * PAGE_BYTES;
        let large = PageSize::Size2M.bytes();
        let end = va
            .checked_add(bytes)
            .filter(|end| *end < 1 << 47)
            .ok_or(Errno::Inval)?;
        if !va.is_multiple_of(PAGE_BYTES)
            || va < self.vcpu.vm.memory_bytes
            || end > boot::GROUP_PAGE_GPA && va < 1 << 32
        {
            return Err(Errno::Inval);
        }
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::NO_EXECUTE;
        let mut done = 0;
        while done < bytes {
            let fits = (va + done).is_multiple_of(large) && bytes - done >= large;
            let size = if fits {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            };
            let target = Hpa::new(group.region.get() + done);
            self.space
                .map(va + done, target, size, flags)
                .ok_or(Errno::NoMem)?;
            done += size.bytes();
        }
        let root = PhysFrame::containing_address(PhysAddr::new(self.space.root.get()));
        // SAFETY: the root that is active already; reloading it empties the TLB of the entries that were just added.
        unsafe { Cr3::write(root, Cr3Flags::empty()) };
        Ok(0)
    }
}

/// The address for `BootInfo::bare_hypercall`.
#[must_use]
pub fn hypercall_address() -> u64 {
    (hypercall as *const ()).expose_provenance() as u64
}
