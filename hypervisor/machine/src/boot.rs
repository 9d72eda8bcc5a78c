//! From the loader's hand-over to the first guest.

pub mod scarce;
pub mod selftest;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use bootloader_api::BootInfo;
use bootloader_api::config::{BootloaderConfig, Mapping};
use nagaya_clock::Source;
use nagaya_mem::Hpa;
use nagaya_vmm::config::{self, Limits, Scenario, SelfTest};

use crate::host::cpu::percpu::{self, PerCpu};
use crate::host::cpu::traps::{self, NmiWork};
use crate::host::cpu::{acpi, apic, smp, time, wall_clock, watch};
use crate::host::{console, event, memory, paging, scarcity, stop};
use crate::lifecycle::create;
use crate::objects::archive::{self, Archive};
use crate::objects::group::Group;
use crate::objects::vm::Vm;
use crate::objects::{code, image, registry};
use crate::vmx::operation::{self, VmxCpu};
use crate::vmx::{self, capabilities};
use crate::{control, dispatch, lifecycle, run};

/// What the loader is asked for: everything in the upper half (the lower half is emptied), all physical memory mapped.
pub const LOADER_CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 128 << 10;
    config.mappings.physical_memory = Some(Mapping::FixedAddress(memory::PHYSICAL_MAP));
    config.mappings.dynamic_range_start = Some(0xFFFF_A000_0000_0000);
    config
};

/// The hypervisor's entry point.
pub fn start(boot_info: &'static mut BootInfo) -> ! {
    x86_64::instructions::interrupts::disable();
    time::mark_boot();
    console::init();
    let calibrated = time::calibrate();
    log::info!("Nagaya {} at your service", env!("CARGO_PKG_VERSION"));
    match calibrated {
        Ok(found) => log::info!(
            "TSC: {}.{:03} MHz, {}",
            found.khz / 1000,
            found.khz % 1000,
            match found.source {
                Source::Cpuid => "as CPUID says",
                Source::Measured => "measured",
            }
        ),
        Err(stuck) => stop::fail_run(stuck.reason()),
    }
    wall_clock::read();
    if let Err(reason) = capabilities::check_vt_x() {
        stop::fail_run(reason);
    }
    let found = match memory::init(&boot_info.memory_regions) {
        Ok(found) => found,
        Err(reason) => stop::fail_run(reason),
    };
    code::prepare();
    image::set_bare_hypercall(run::native_baseline::hypercall_address());
    watch::init(boot_info.kernel_image_offset, boot_info.kernel_len);
    match prepare(boot_info, found) {
        Ok(vmx) => run::cpu_loop(PerCpu::current(), vmx),
        Err(reason) => {
            log::error!("{reason}");
            stop::end_run(false, &reason)
        }
    }
}

fn prepare(boot_info: &'static BootInfo, found: memory::Found) -> Result<VmxCpu, String> {
    log::info!("memory: {} MiB usable", found.usable_bytes >> 20);
    event::boot_phase("memory");

    let ids = match boot_info.rsdp_addr.into_option() {
        Some(rsdp) => acpi::enabled_apic_ids(Hpa::new(rsdp))?,
        None => return Err("the loader found no ACPI tables".into()),
    };
    let archive = open_archive(boot_info)?;
    paging::enable_protections();
    paging::harden();
    let audit = paging::audit();
    log::info!(
        "page tables: {} leaves, {} executable, {} writable and executable",
        audit.leaves,
        audit.executable,
        audit.writable_executable
    );
    if audit.writable_executable != 0 {
        return Err("the hypervisor's own page tables allow writing to code".into());
    }
    event::boot_phase("page-tables");

    let boot_id = core::arch::x86_64::__cpuid(1).ebx >> 24;
    let cpu = PerCpu::create(boot_id).ok_or("no memory for the boot CPU's state")?;
    // SAFETY: first use of the GS base on this CPU, with its own structure.
    unsafe { cpu.install() };
    apic::mask_legacy_controllers();
    let vmx = operation::enable(smp::set_up(cpu)?)?;
    traps::set_nmi_work(NmiWork {
        note_device: run::service::note_interrupt,
        end_next_entry: vmx::vmcs::expire_preemption_timer,
    });
    cpu.with_apic(apic::Apic::calibrate_timer);
    cpu.online.store(true, Ordering::SeqCst);
    event::boot_phase("vmx");
    let scenario = archive.scenario()?;
    let mut ids = ids;
    if scenario.machine.selftest == Some(SelfTest::AbsentCpu) {
        // Behind all others, which are to start all the same.
        ids.extend((0..u32::from(u8::MAX)).rev().find(|id| !ids.contains(id)));
    }
    start_others(&ids, boot_id, found.trampoline)?;
    event::boot_phase("cpus");

    stop::set_poweroff_method(scenario.machine.debug_exit);
    dispatch::init(&scenario.machine);
    lifecycle::init();
    vmx::virtual_apic::init(&scenario.machine);
    vmx::xstate::init();
    if let Some(test) = scenario.machine.selftest {
        selftest::run(test)?;
    }
    archive::publish(archive);
    control::init(&scenario.machine);
    console::hand_to_run_loops();
    start_vms(&scenario);
    Ok(vmx)
}

fn open_archive(boot_info: &'static BootInfo) -> Result<Archive<'static>, String> {
    let bytes: &'static [u8] = match boot_info.ramdisk_addr.into_option() {
        // SAFETY: the loader mapped the ramdisk there, in frames that its memory map does not call usable, for good.
        Some(address) => unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance(address as usize),
                boot_info.ramdisk_len as usize,
            )
        },
        None => &[],
    };
    Archive::open(bytes)
}

fn start_others(ids: &[u32], boot_id: u32, trampoline: Option<Hpa>) -> Result<(), String> {
    let others: Vec<u32> = ids.iter().copied().filter(|id| *id != boot_id).collect();
    if !others.is_empty() {
        let page = trampoline.ok_or("no free page below 1 MiB to start other CPUs on")?;
        smp::start(&others, page, enter_cpu)?;
    }
    let capabilities = capabilities::get();
    log::info!(
        "CPUs: {} of {} in VMX operation; {:?}",
        percpu::all()
            .filter(|cpu| cpu.online.load(Ordering::SeqCst))
            .count(),
        ids.len(),
        capabilities.secondary
    );
    Ok(())
}

/// Where the other CPUs begin: what every CPU needs, VMX operation, then the run loop.
extern "sysv64" fn enter_cpu(cpu: &'static PerCpu) -> ! {
    // SAFETY: first thing on this CPU, with the structure that the boot CPU made for it.
    unsafe { smp::begin(cpu) };
    match smp::set_up(cpu).and_then(operation::enable) {
        Ok(vmx) => {
            paging::flush_if_stale(cpu);
            cpu.online.store(true, Ordering::SeqCst);
            run::cpu_loop(cpu, vmx)
        }
        Err(reason) => {
            log::error!("{cpu:?} cannot take part: {reason}");
            stop::halt_for_ever();
        }
    }
}

fn start_vms(scenario: &Scenario) {
    let limits = Limits {
        cpus: percpu::count(),
        memory_bytes: memory::frames().counts().free * 4096,
    };
    // Before the groups, too: a group and its region go with its last member.
    lifecycle::report_frames("before-first-vm");
    let mut groups: Vec<Arc<Group>> = Vec::new();
    for (index, config) in scenario.groups.iter().enumerate() {
        let made = match config::check_group(scenario, index).first() {
            Some(error) => Err(format!("{error}")),
            None => make(scenario, &config.name, || create::group(config)),
        };
        match made {
            Ok(group) => {
                log::info!(
                    "group {}: {} pages at {}",
                    group.name,
                    config.pages,
                    group.region
                );
                groups.push(group);
            }
            Err(reason) => log::error!("group {} is refused: {reason}", config.name),
        }
    }
    lifecycle::take_run_reference();
    let mut ready = Vec::new();
    for (index, config) in scenario.vms.iter().enumerate() {
        let made = match config::check_vm(scenario, index, &limits).first() {
            Some(error) => Err(format!("{error}")),
            None => make(scenario, &config.name, || {
                create_vm(index, scenario, &groups)
            }),
        };
        match made {
            Ok(vm) => ready.push(vm),
            Err(reason) => lifecycle::refused(&config.name, &reason),
        }
    }
    event::boot_phase("vms");
    if scenario.machine.selftest == Some(SelfTest::EntryFailure)
        && let Some(vm) = ready.first()
    {
        lifecycle::unstarted::spoil_start(vm.id);
    }
    for vm in ready {
        lifecycle::start(&vm);
    }
    if scenario.machine.selftest == Some(SelfTest::OutOfMemory) {
        scarcity::refuse_in_turn();
    }
    lifecycle::drop_run_reference();
}

/// Makes a VM or a group: at once, but for a self-test.
fn make<T>(
    scenario: &Scenario,
    name: &str,
    make: impl Fn() -> Result<T, String>,
) -> Result<T, String> {
    if scenario.machine.selftest == Some(SelfTest::OutOfMemory) {
        scarce::make(name, make)
    } else {
        make()
    }
}

fn create_vm(index: usize, scenario: &Scenario, groups: &[Arc<Group>]) -> Result<Arc<Vm>, String> {
    let Some(config) = scenario.vms.get(index) else {
        return Err("no such VM".into());
    };
    let group = match &config.group {
        None => None,
        Some(name) => Some(
            groups
                .iter()
                .find(|group| group.name == *name)
                .ok_or_else(|| format!("its group {name:?} was refused"))?,
        ),
    };
    let number = registry::number_for_vm().ok_or("there are too many VMs")?;
    create::vm(
        number.get(),
        config,
        group,
        scenario.machine.deterministic,
        false,
    )
}
