//! A snapshot for tests: a PC with two vCPUs, one of each device, in a group.

use alloc::vec;
use alloc::vec::Vec;

use guest_abi::ABI_VERSION;
use nagaya_devices::apic::{ApicConfig, EoiWord, LocalApic, Trigger};
use nagaya_devices::blk::{Block as Disk, BlockConfig};
use nagaya_devices::console::Console;
use nagaya_devices::entropy::Entropy;
use nagaya_devices::function::Function;
use nagaya_devices::net::{Net, NetConfig, Offloads};
use nagaya_devices::pc::{Pc, PcConfig};
use nagaya_devices::pci::{PciBus, Width};
use nagaya_devices::switch::MacAddress;

use super::{
    Activity, CpuFeatures, DebugRegisters, EndpointState, Header, InterruptSource, MemberState,
    PendingEvent, RegionState, Snapshot, SwitchedMsrs, TimeState, VcpuState, VmState,
};
use crate::config::{GroupConfig, GuestKind, VmConfig};
use crate::control::{DoorbellCounts, Registers};
use crate::cpuid::CpuidPolicy;
use crate::doorbell::Mailbox;
use crate::msr::MsrState;
use crate::outcome::Block;
use crate::posted::Posted;
use crate::restarts::Restarts;
use crate::start_up::StartUpState;

/// When it was saved.
pub const SAVED_AT: u64 = 5_000_000_000;
const KHZ: u32 = 1_000_000;

/// The snapshot.
#[must_use]
pub fn snapshot() -> Snapshot {
    let mut config = VmConfig::new("web", "kernel.elf");
    config.vcpus = 2;
    config.kind = GuestKind::Multiboot;
    config.group = Some("pair".into());
    Snapshot {
        header: Header {
            abi: ABI_VERSION,
            features: CpuFeatures {
                words: [1 << 26 | 1 << 28, 1 << 25, 1 << 5, 0, 0, 0, 1, 1 << 29],
                xcr0: 7,
            },
        },
        vm: VmState {
            number: 3,
            config,
            restarts: Restarts::new(10),
            time: TimeState {
                saved_at: SAVED_AT,
                tsc_khz: KHZ,
                clock_start: 1_000,
                seconds: 1_800_000_000,
            },
        },
        vcpus: vec![vcpu(0), vcpu(1)],
        board: Some(board()),
        bus: bus(),
        endpoint: endpoint(),
    }
}

fn vcpu(index: u32) -> VcpuState {
    let mut apic = LocalApic::new(ApicConfig {
        id: index,
        is_bootstrap: index == 0,
        physical_bits: 39,
        ticks_per_count: 2,
        least_period_ticks: 1_000,
    });
    apic.set_virtual_wire();
    // One-shot, at vector 0x40.
    let _ = apic.memory_write(0x320, Width::Dword, 0x40, SAVED_AT);
    let _ = apic.memory_write(0x380, Width::Dword, 1_000, SAVED_AT);
    let posted = Posted::new();
    let _ = posted.post(0x51, Trigger::Edge);
    let mut xsave = vec![0; 576];
    if let Some(mxcsr) = xsave.get_mut(24..28) {
        mxcsr.copy_from_slice(&0x1F80_u32.to_le_bytes());
    }
    let efer = 0x500;
    let mut general = [0; 16];
    general.fill(u64::from(index) + 7);
    VcpuState {
        index,
        registers: Registers {
            general,
            rip: 0x10_0000,
            rflags: 0x202,
            cr0: 0x8000_0011,
            efer,
            ..Registers::default()
        },
        pdptes: [0; 4],
        debug: DebugRegisters {
            dr6: 0xFFFF_0FF0,
            dr7: 0x400,
            ..DebugRegisters::default()
        },
        switched: SwitchedMsrs {
            lstar: 0xFFFF_8000_0000_1000,
            ..SwitchedMsrs::default()
        },
        emulated: MsrState {
            efer,
            tsc_offset: 99,
            ..MsrState::new(true)
        },
        xcr0: 7,
        xsave,
        activity: Activity::Halted,
        blocking: 0,
        event: Some(PendingEvent {
            information: 0x8000_0020,
            error_code: 0,
            instruction_bytes: 0,
        }),
        cpuid: CpuidPolicy {
            vm_id: 3,
            vcpu: index,
            vcpus: 2,
            tsc_khz: KHZ,
            in_group: true,
            deterministic: false,
            xcr0: 7,
            xcr0_now: 7,
            has_xsavec: true,
            is_pc: true,
            has_eoi_word: true,
            has_rdtscp: true,
            has_invpcid: false,
            apic_is_on: true,
            last_leaf: 0x16,
        },
        apic: apic.save(),
        eoi_word: EoiWord::default().save(),
        posted: posted.save(),
        start_up: StartUpState::Runs,
        waiting: Some(Block::Wait {
            deadline: SAVED_AT + 5,
        }),
        deadline: Some(SAVED_AT + 9),
        injected: Some((0x20, InterruptSource::Apic)),
        pic_vector: None,
        waiting_nmis: 1,
        clock_version: 4,
        stolen_ticks: 12,
    }
}

fn board() -> nagaya_devices::pc::PcState {
    let mut pc = Pc::new(PcConfig {
        tsc_khz: KHZ,
        start_tsc: 1_000,
        start_seconds: 1_799_999_995,
        memory_bytes: 64 << 20,
        memory_above_bytes: 0,
        least_period_ticks: 1_000,
        debug_exit: true,
        debug_console: false,
    });
    // The 8254's channel 0, mode 2.
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
        let _ = pc.port_write(port, Width::Byte, value, SAVED_AT);
    }
    pc.save()
}

fn bus() -> nagaya_devices::pci::BusState<nagaya_devices::function::FunctionState> {
    let net = Net::new(NetConfig {
        address: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: Some(1500),
        offloads: Offloads::ChecksumAndSegmentation,
    });
    let disk = Disk::new(BlockConfig {
        sectors: 2048,
        read_only: false,
        id: [b'd'; 20],
    });
    let functions = [
        Function::Net(net),
        Function::Entropy(Entropy::new()),
        Function::Console(Console::new()),
        Function::Block(disk),
    ];
    let mut bus = PciBus::new();
    for (slot, function) in (1..).zip(functions) {
        // The slots are free.
        let _ = bus.insert(slot, function);
    }
    let _ = bus.place_bars(0xE000_0000..0xE010_0000, 0xC000..0xD000);
    bus.save(Function::save)
}

fn endpoint() -> EndpointState {
    let mailbox = Mailbox::new(1_000);
    let _ = mailbox.ring(4, SAVED_AT);
    EndpointState {
        mailbox: mailbox.save(),
        vector: 0x61,
        halt_takes_events: true,
        is_interrupt_due: false,
        counts: DoorbellCounts {
            sent: 5,
            delivered: 4,
            throttled: 1,
        },
        member: Some(MemberState {
            group: GroupConfig::new("pair"),
            index: 1,
            incarnation: 6,
            region: Some(RegionState {
                va: 0x40_0000_0000,
                runs: Vec::from([(0x20_0000, 0, 16), (0x40_0000, 16, 8)]),
            }),
        }),
    }
}
