//! Loading what a VM boots into its fresh memory, by its kind: the state in which vCPU 0 starts follows from it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::{PAGE_BYTES, pack_name};
use nagaya_mem::{Gpa, HostMemory};
use nagaya_vmm::config::{GuestKind, VmConfig};
use nagaya_vmm::loader::pc::{self, Entry, PcIdentity};
use nagaya_vmm::loader::{self, GuestWriter, Identity};
use nagaya_vmm::shared::Backing;

use crate::arch::GuestRegisters;
use crate::host::cpu::{jobs, time};
use crate::host::memory::{self, Whose};
use crate::objects::archive;
use crate::vmx::start::Start;

/// See [`set_bare_hypercall`].
static BARE_HYPERCALL: AtomicU64 = AtomicU64::new(0);

/// The address that images that run outside VMX call in place of VMCALL. Set once at boot, before the first VM.
pub fn set_bare_hypercall(address: u64) {
    BARE_HYPERCALL.store(address, Ordering::Relaxed);
}

/// A VM's memory before anybody else knows of it.
struct Loading<'a> {
    backing: &'a Backing,
}

impl GuestWriter for Loading<'_> {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut gpa = gpa;
        while !rest.is_empty() {
            let Some(frame) = self.backing.own_frame(Gpa::new(gpa)) else {
                return false;
            };
            let (now, later) =
                rest.split_at(((PAGE_BYTES - gpa % PAGE_BYTES) as usize).min(rest.len()));
            // SAFETY: `own_frame` names frames of this VM, which nobody else knows yet.
            unsafe { memory::writer(Whose::Vm) }.write(frame, now);
            gpa += now.len() as u64;
            jobs::breathe();
            rest = later;
        }
        true
    }
}

/// Loads what `config` names into `backing`, which is zeroed.
///
/// # Errors
/// Why it cannot be: an image that is not there, is damaged, or does not fit.
pub fn load(
    id: u16,
    config: &VmConfig,
    member_index: Option<u32>,
    backing: &Backing,
) -> Result<Start, String> {
    let archive = archive::get()?;
    let image = archive.image(&config.image)?;
    let mut memory = Loading { backing };
    if config.kind == GuestKind::Native {
        let identity = Identity {
            vm_id: u32::from(id),
            name: pack_name(&config.name),
            memory_bytes: config.memory_bytes,
            vcpus: config.vcpus,
            member_index,
            tsc_khz: time::khz(),
            cmdline: &config.cmdline,
            bare_hypercall: if config.bare {
                BARE_HYPERCALL.load(Ordering::Relaxed)
            } else {
                0
            },
        };
        let loaded =
            loader::load(&image, &identity, &mut memory).map_err(|error| format!("{error}"))?;
        return Ok(Start::native(loaded.entry));
    }
    let initramfs = config
        .initramfs
        .as_deref()
        .map(|name| archive.image(name))
        .transpose()?;
    let modules = config
        .modules
        .iter()
        .map(|module| Ok((archive.image(&module.image)?, module.cmdline.as_str())))
        .collect::<Result<Vec<_>, String>>()?;
    let modules: Vec<(&[u8], &str)> = modules
        .iter()
        .map(|(bytes, cmdline)| (&**bytes, *cmdline))
        .collect();
    let identity = PcIdentity {
        layout: config.layout(),
        vcpus: config.vcpus,
        cmdline: &config.cmdline,
        in_group: member_index.is_some(),
    };
    let loaded = pc::load_pc(
        config.kind,
        &image,
        initramfs.as_deref(),
        &modules,
        &identity,
        &mut memory,
    )
    .map_err(|error| format!("{error}"))?;
    Ok(start_of(loaded.entry))
}

fn start_of(entry: Entry) -> Start {
    match entry {
        Entry::Linux64 {
            rip,
            zero_page,
            stack,
            page_table,
            gdt,
            gdt_limit,
        } => Start {
            stack,
            registers: GuestRegisters {
                rsi: zero_page,
                ..GuestRegisters::default()
            },
            gdtr: (gdt, u32::from(gdt_limit)),
            ..Start::long(
                rip,
                page_table,
                pc::LINUX_CODE_SELECTOR,
                pc::LINUX_DATA_SELECTOR,
            )
        },
        Entry::Pvh { eip, start_info } => Start::protected(
            eip,
            GuestRegisters {
                rbx: u64::from(start_info),
                ..GuestRegisters::default()
            },
        ),
        Entry::Multiboot { eip, info } => Start::protected(
            eip,
            GuestRegisters {
                rax: u64::from(pc::MULTIBOOT_EAX),
                rbx: u64::from(info),
                ..GuestRegisters::default()
            },
        ),
    }
}
