//! A guest's PC: the devices that kernels for PCs expect besides PCI, under one lock.
//!
//! Concurrency: the lock is a leaf. What follows from an access (messages, a new deadline, the PIC's output) is published before
//! it is released, and told afterwards. Timers and the PIC's output belong to vCPU 0, which looks at what is published before each
//! entry that somebody poked it for.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_abi::PAGE_BYTES;
use nagaya_devices::ioapic;
use nagaya_devices::pc::{Pc, PcConfig, PcEffect};
use nagaya_devices::pci::Width;
use nagaya_vmm::config::VmConfig;
use spin::Mutex;

use super::Devices;
use crate::host::cpu::{time, wall_clock};
use crate::objects::interrupts;

/// Interrupts of a periodic source come at most so often in a millisecond.
const LEAST_PERIODS_PER_MS: u64 = 10;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// A PC and what of it is looked at without its lock.
#[derive(Debug)]
pub struct Board {
    pc: Mutex<Pc>,
    deadline: AtomicU64,
    pic: AtomicBool,
}

impl Board {
    /// The board of a VM, if its kind of guest has one: the one from before its reset, which is reset with it, or a new one.
    #[must_use]
    pub fn of(config: &VmConfig, before: Option<&Arc<Board>>) -> Option<Arc<Board>> {
        if let Some(board) = before {
            board.reset();
            return Some(Arc::clone(board));
        }
        let tsc_khz = u32::try_from(time::khz()).unwrap_or(u32::MAX);
        let now = time::ticks();
        config.kind.is_pc().then(|| {
            Arc::new(Board {
                pc: Mutex::new(Pc::new(PcConfig {
                    tsc_khz,
                    start_tsc: now.cast_signed(),
                    start_seconds: wall_clock::seconds(now),
                    memory_bytes: config.layout().below(),
                    memory_above_bytes: config.layout().above(),
                    least_period_ticks: time::khz() / LEAST_PERIODS_PER_MS,
                    debug_exit: config.debug_exit,
                    debug_console: config.debug_console,
                })),
                deadline: AtomicU64::new(NEVER),
                pic: AtomicBool::new(false),
            })
        })
    }

    /// The PC is reset; its clock goes on. The VM that had it has ended, so nobody looks on.
    fn reset(&self) {
        let mut pc = self.pc.lock();
        pc.reset(time::ticks());
        let deadline = pc.next_deadline().unwrap_or(NEVER);
        self.deadline.store(deadline, Ordering::SeqCst);
        self.pic.store(pc.is_pic_asserting(), Ordering::SeqCst);
    }

    /// The TSC at which a timer is due, `u64::MAX` if none runs.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::SeqCst)
    }

    /// Whether the PIC asks for an interrupt.
    #[inline]
    #[must_use]
    pub fn is_pic_asserting(&self) -> bool {
        self.pic.load(Ordering::SeqCst)
    }

    /// The offset in the I/O APIC's page, if that is where the address is.
    fn ioapic_offset(gpa: u64) -> Option<u16> {
        let offset = gpa.checked_sub(ioapic::DEFAULT_BASE)?;
        u16::try_from(offset)
            .ok()
            .filter(|offset| u64::from(*offset) < PAGE_BYTES)
    }
}

impl Devices {
    /// Does something with the board's devices, then what follows from it.
    fn on_board<R>(&self, board: &Board, work: impl FnOnce(&mut Pc) -> R) -> R {
        let mut pc = board.pc.lock();
        let result = work(&mut pc);
        let deadline = pc.next_deadline().unwrap_or(NEVER);
        let pic = pc.is_pic_asserting();
        let before = board.deadline.swap(deadline, Ordering::SeqCst);
        let was_asserting = board.pic.swap(pic, Ordering::SeqCst);
        if pc.has_messages() {
            // Sent under the lock, so that two CPUs' messages keep their order. Sending takes no lock but to wake a vCPU.
            pc.deliver(|message| interrupts::send(&self.vcpus, message));
        }
        drop(pc);
        if deadline < before || (pic && !was_asserting) {
            self.vcpus
                .iter()
                .take(1)
                .for_each(|vcpu| interrupts::request_recheck(vcpu));
        }
        result
    }

    /// Reads a port of the board's; `None` if it is none.
    pub fn board_port_read(&self, port: u16, width: Width) -> Option<u32> {
        let board = self.board()?;
        self.on_board(board, |pc| pc.port_read(port, width, time::ticks()))
    }

    /// Writes a port of the board's; `None` if it is none. Output has been sent; what is left is about the VM.
    pub fn board_port_write(&self, port: u16, width: Width, value: u32) -> Option<PcEffect> {
        let board = self.board()?;
        let effect = self.on_board(board, |pc| pc.port_write(port, width, value, time::ticks()))?;
        if let PcEffect::Output(byte) | PcEffect::DebugOutput(byte) = effect {
            self.console.text(&[byte]);
            return Some(PcEffect::None);
        }
        Some(effect)
    }

    /// Whether the board has registers in a page of memory.
    pub fn has_board_registers_in(&self, page: u64) -> bool {
        self.board().is_some() && Board::ioapic_offset(page).is_some()
    }

    /// Reads the board's memory; `None` if the address is not its.
    pub fn board_memory_read(&self, gpa: u64, width: Width) -> Option<u64> {
        let board = self.board()?;
        let offset = Board::ioapic_offset(gpa)?;
        Some(self.on_board(board, |pc| pc.memory_read(offset, width)))
    }

    /// Writes the board's memory. `false` if the address is not its.
    pub fn board_memory_write(&self, gpa: u64, width: Width, value: u64) -> bool {
        let (Some(board), Some(offset)) = (self.board(), Board::ioapic_offset(gpa)) else {
            return false;
        };
        self.on_board(board, |pc| {
            pc.memory_write(offset, width, value, time::ticks())
        });
        true
    }

    /// A local APIC has ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Some(board) = self.board() {
            self.on_board(board, |pc| pc.end_of_interrupt(vector));
        }
    }

    /// A local APIC has changed in what it takes: what nobody took before is sent again.
    #[cold]
    pub fn routes_changed(&self) {
        if let Some(board) = self.board() {
            // The lock orders it with who asked for a route meanwhile: that sees the new one, or is seen to have been refused.
            self.on_board(board, |_| ());
        }
    }

    /// Lets the board's timers go on.
    pub fn advance_board(&self, now: u64) {
        if let Some(board) = self.board() {
            self.on_board(board, |pc| pc.advance(now));
        }
    }

    /// Pulses the line of the doorbells.
    pub fn ring_line(&self) {
        if let Some(board) = &self.board {
            self.on_board(board, Pc::ring);
        }
    }

    /// vCPU 0 takes the PIC's interrupt.
    pub fn acknowledge_pic(&self) -> Option<u8> {
        let board = self.board()?;
        Some(self.on_board(board, Pc::acknowledge_pic))
    }

    /// Gives the serial port input; how many bytes it had room for. `None` if there is none.
    pub fn serial_input(&self, bytes: &[u8]) -> Option<usize> {
        let board = self.board()?;
        Some(self.on_board(board, |pc| {
            let room = pc.input_room().min(bytes.len());
            bytes.iter().take(room).for_each(|byte| pc.receive(*byte));
            room
        }))
    }
}
