//! A vCPU's interrupts: its local APIC, what others post for it, doorbells, and the way into the guest.
//!
//! Concurrency: the APIC belongs to the CPU that has the vCPU loaded. Others reach it through `Handle::posted` alone
//! (`objects::interrupts`).
//! Source: Intel SDM Vol. 3, "Advanced Programmable Interrupt Controller (APIC)"; "Event Injection"; "Information for VM Exits
//! That Occur During Event Delivery".

use core::ops::ControlFlow;
use core::sync::atomic::Ordering;

use guest_abi::cpuid::MSR_EOI_WORD;
use nagaya_devices::apic::{ApicEffect, BusMessage, Delivery, Route, Signal, Trigger};
use nagaya_vmm::cpu::CpuState;
use nagaya_vmm::exit::ControlRegisterAccess;
use nagaya_vmm::outcome::{Cause, Outcome};
use nagaya_vmm::posted;
use x86_defs::cr::Rflags;
use x86_defs::interrupt::{EventInjection, EventKind, Interruptibility};
use x86_defs::msr;

use super::exits::{Fault, GENERAL_PROTECTION};
use super::{Flow, Leave, Running};
use crate::arch::{LoadedVcpu, Window};
use crate::host::cpu::time;
use crate::lifecycle;
use crate::objects::devices::board::Board;
use crate::objects::interrupts;
use crate::objects::vcpu::{Source, Vcpu};
use crate::vmx::start::Start;

/// Tells the APIC of an end of an interrupt that the guest has told its word only.
#[inline]
pub(super) fn settle_eoi(vcpu: &mut Vcpu) {
    #[inline(never)]
    fn settle(vcpu: &mut Vcpu) {
        let ram = vcpu.vm.devices.ram.view();
        vcpu.eoi_word.settle(&mut vcpu.apic, &*ram);
    }
    if vcpu.eoi_word.is_offered() {
        settle(vcpu);
    }
}

impl Running<'_, '_> {
    pub(super) fn interrupts_are_on(&self) -> bool {
        self.state.rflags() & Rflags::IF.bits() != 0
    }

    /// Brings the APIC up to date: what others posted, the time, a doorbell that comes as an interrupt.
    pub(super) fn collect_interrupts(&mut self) {
        let vcpu = &mut *self.vcpu;
        if let Some(board) = vcpu.board() {
            // What comes of these is mostly posted to this very vCPU.
            if board.deadline() <= time::ticks() {
                vcpu.vm.devices.advance_board(time::ticks());
            }
            if vcpu.vm.endpoint.vector.load(Ordering::SeqCst) == 0
                && vcpu.vm.endpoint.interrupt.swap(false, Ordering::SeqCst)
            {
                vcpu.vm.devices.ring_line();
            }
        }
        settle_eoi(vcpu);
        if vcpu.handle.posted.has_outstanding() {
            let apic = &mut vcpu.apic;
            vcpu.handle
                .posted
                .collect(|vector, trigger| apic.accept_sent(vector, trigger));
        }
        let more = vcpu.handle.posted.take_nmis();
        if more != 0 {
            // One that this entry is about to deliver is in service as well.
            let blocking = self.state.blocking();
            let is_in_service = blocking.contains(Interruptibility::BLOCKED_BY_NMI);
            vcpu.waiting_nmis = posted::latched(vcpu.waiting_nmis, more, is_in_service);
        }
        if vcpu.apic.timer_deadline().is_some() {
            let _ = vcpu.apic.advance(time::ticks());
        }
        // With an APIC that software has enabled a doorbell is one interrupt among others (docs/ABI.md).
        if vcpu.index == 0
            && vcpu.apic.is_software_enabled()
            && vcpu.vm.endpoint.interrupt.swap(false, Ordering::SeqCst)
        {
            let vector = vcpu.vm.endpoint.vector.load(Ordering::SeqCst);
            if vector != 0 {
                let _ = vcpu.apic.accept(vector, Trigger::Edge);
            }
        }
        vcpu.virtual_apic.stage(&mut self.state, &mut vcpu.apic);
    }

    /// Follows an INIT that has come: a further vCPU leaves its CPU until it is started; the one that boots begins at its reset
    /// vector, where a PC has its firmware, which is a reset of the VM.
    pub(super) fn handle_init_signal(&mut self) -> Flow {
        if !self.vcpu.handle.start_up.is_to_reset() {
            return ControlFlow::Continue(());
        }
        if self.vcpu.index != 0 {
            return ControlFlow::Break(Leave::Reset);
        }
        self.end(Cause::Reset);
        ControlFlow::Break(Leave::Gone)
    }

    /// A doorbell that is to become an interrupt.
    fn has_doorbell(&self) -> bool {
        self.vcpu.index == 0 && self.vcpu.vm.endpoint.interrupt.load(Ordering::SeqCst)
    }

    /// One that is injected past the APIC. Those that come by the board's line are not: they go on to that first.
    fn has_bare_doorbell(&self) -> bool {
        self.has_doorbell()
            && (self.vcpu.board().is_none()
                || self.vcpu.vm.endpoint.vector.load(Ordering::SeqCst) != 0)
    }

    /// An interrupt of the PIC's, which comes past the APIC ("virtual wire").
    fn has_pic_interrupt(&self) -> bool {
        self.vcpu.pic_vector.is_some()
            || self.vcpu.board().is_some_and(Board::is_pic_asserting)
                && self.vcpu.apic.accepts_pic()
    }

    /// Whether an interrupt is there that ends a HLT. After [`Running::collect_interrupts`].
    fn has_interrupt(&self) -> bool {
        let in_software = self.vcpu.apic.pending();
        let pending = in_software.or_else(|| self.vcpu.virtual_apic.pending(&self.state));
        pending.is_some() || self.has_pic_interrupt() || self.has_bare_doorbell()
    }

    /// Whether an interrupt is there that has to be injected: what is in the CPU's own page it delivers by itself.
    fn has_interrupt_to_inject(&self) -> bool {
        let is_by_cpu = self.vcpu.virtual_apic.is_on();
        !is_by_cpu && self.vcpu.apic.pending().is_some()
            || self.has_pic_interrupt()
            || self.has_bare_doorbell()
    }

    /// Whether an interrupt that the guest can take waits.
    pub(super) fn collect_and_look(&mut self) -> bool {
        self.collect_interrupts();
        self.has_interrupt() && self.interrupts_are_on() || self.has_nmi()
    }

    /// An NMI that the guest can take, whatever its flags.
    fn has_nmi(&self) -> bool {
        self.vcpu.waiting_nmis != 0 && self.state.blocking().allows_nmi()
    }

    /// Whether the next entry delivers something already: an event, or a debug trap, which comes before any interrupt.
    fn event_is_set(&self) -> bool {
        self.state.has_event() || self.state.pending_debug() != 0
    }

    /// Injects a waiting NMI if the guest can take it now, else asks for an exit when it can.
    fn offer_nmi(&mut self) {
        if self.has_nmi() && !self.event_is_set() {
            self.vcpu.waiting_nmis -= 1;
            self.inject(EventInjection::NMI);
        }
        let is_wanted = self.vcpu.waiting_nmis != 0;
        if is_wanted
            && self
                .state
                .blocking()
                .contains(Interruptibility::BLOCKED_BY_STI)
        {
            // After STI some CPUs hold the window's exit back and some exit at once, for ever. After MOV SS all hold it back
            // until the next instruction is done ("Other Causes of VM Exits").
            let rest = self.state.blocking() - Interruptibility::BLOCKED_BY_STI;
            self.state
                .set_blocking(rest | Interruptibility::BLOCKED_BY_MOV_SS);
        }
        if self.vcpu.nmi_window_is_open != is_wanted {
            self.vcpu.nmi_window_is_open = is_wanted;
            self.state.set_window(Window::Nmi, is_wanted);
        }
    }

    /// Whether something came since that look. Changes nothing.
    pub(super) fn may_have_interrupt(&self) -> bool {
        self.vcpu.handle.posted.has_outstanding()
            || (self.has_doorbell() && self.interrupts_are_on())
    }

    /// Injects a waiting interrupt if the guest can take it now, else asks for an exit when it can.
    pub(super) fn offer_interrupt(&mut self) {
        if self.vcpu.waiting.is_some() {
            // What comes is first of all a reason to wait no longer: whoever ends the wait offers it.
            return;
        }
        self.looks_for_interrupts = false;
        self.collect_interrupts();
        // Before any interrupt, which then waits until it has been delivered.
        self.offer_nmi();
        self.offer_next();
        let vcpu = &mut *self.vcpu;
        if vcpu.eoi_word.is_stale(&vcpu.apic) {
            let ram = vcpu.vm.devices.ram.view();
            vcpu.eoi_word.offer(&vcpu.apic, &*ram);
        }
    }

    /// The same, after all that waits has been collected.
    fn offer_next(&mut self) {
        if !self.has_interrupt_to_inject() {
            self.set_window(false);
            return;
        }
        if !self.interrupts_are_on()
            || !self.state.blocking().allows_interrupt()
            || self.event_is_set()
        {
            self.set_window(true);
            return;
        }
        let (vector, source) = self.acknowledge();
        if vector != 0 {
            self.inject(EventInjection::external_interrupt(vector));
            self.vcpu.injected = Some((vector, source));
        }
        // What is left comes when the guest lets it in.
        let more = self.has_interrupt_to_inject();
        self.set_window(more);
    }

    /// Takes the interrupt that comes first, of those that [`Running::has_interrupt`] found.
    fn acknowledge(&mut self) -> (u8, Source) {
        if let Some(vector) = self.vcpu.apic.acknowledge() {
            return (vector, Source::Apic);
        }
        if self.has_pic_interrupt() {
            let taken_back = self.vcpu.pic_vector.take();
            let vector = taken_back.or_else(|| self.vcpu.vm.devices.acknowledge_pic());
            return (vector.unwrap_or(0), Source::Pic);
        }
        let endpoint = &self.vcpu.vm.endpoint;
        endpoint.interrupt.store(false, Ordering::SeqCst);
        (endpoint.vector.load(Ordering::SeqCst), Source::Doorbell)
    }

    fn set_window(&mut self, wanted: bool) {
        if self.vcpu.window_is_open != wanted {
            self.vcpu.window_is_open = wanted;
            self.state.set_window(Window::Interrupt, wanted);
        }
    }

    /// An exit cut the delivery of an interrupt short: it comes again. Called by exits that can occur during a delivery.
    pub(super) fn take_back_interrupt(&mut self) {
        let Some(interrupted) = self.state.interrupted_delivery() else {
            return;
        };
        if interrupted.kind == EventKind::Nmi {
            // Its delivery blocked further ones ("Information for VM Exits That Occur During Event Delivery").
            self.state
                .set_blocking(self.state.blocking() - Interruptibility::BLOCKED_BY_NMI);
            self.vcpu.waiting_nmis = posted::latched(self.vcpu.waiting_nmis, 1, false);
            self.looks_for_interrupts = true;
            return;
        }
        if interrupted.kind != EventKind::ExternalInterrupt {
            return;
        }
        let vcpu = &mut *self.vcpu;
        let vector = interrupted.vector;
        if vcpu.virtual_apic.undo_delivery(&mut self.state, vector) {
            return;
        }
        self.looks_for_interrupts = true;
        match self.vcpu.injected.take() {
            Some((vector, Source::Apic)) => self.vcpu.apic.undo_acknowledge(vector),
            Some((vector, Source::Pic)) => self.vcpu.pic_vector = Some(vector),
            Some((_, Source::Doorbell)) => {
                let endpoint = &self.vcpu.vm.endpoint;
                endpoint.interrupt.store(true, Ordering::SeqCst);
            }
            None => {}
        }
    }

    /// After the guest did something to its APIC: others learn of it, and what it lets in is looked for before the next entry.
    pub(super) fn apic_changed(&mut self) {
        self.looks_for_interrupts = true;
        let route = self.vcpu.apic.route().to_bits();
        let posted = &self.vcpu.handle.posted;
        if posted.route() != route {
            posted.publish_route(route);
            self.vcpu.vm.devices.routes_changed();
        }
        if self.vcpu.own_deadline() != self.vcpu.armed_for {
            self.arm();
        }
    }

    /// After an access to the board: the same.
    pub(super) fn board_changed(&mut self) {
        if self.vcpu.board().is_some() {
            self.looks_for_interrupts = true;
            if self.vcpu.own_deadline() != self.vcpu.armed_for {
                self.arm();
            }
        }
    }

    /// What follows from an access to the APIC.
    pub(super) fn apply_effect(&mut self, effect: ApicEffect) {
        match effect {
            ApicEffect::None
            | ApicEffect::EndOfInterrupt {
                trigger: Trigger::Edge,
                ..
            } => {}
            ApicEffect::EndOfInterrupt {
                vector,
                trigger: Trigger::Level,
            } => self.vcpu.vm.devices.end_of_interrupt(vector),
            ApicEffect::Send(message) => match message.delivery {
                Delivery::StartUp { page } if self.vcpu.vm.config.kind.is_pc() => {
                    self.start_up(&message, page);
                }
                // Nobody tells the sender whether somebody took it.
                _ => {
                    let _ = interrupts::send(&self.vcpu.vm.vcpus, &message);
                }
            },
        }
        self.apic_changed();
    }

    /// Starts the vCPUs that a start-up message is for and that wait for one.
    #[cold]
    fn start_up(&self, message: &BusMessage, page: u8) {
        let vm = &self.vcpu.vm;
        for (index, vcpu) in (0..).zip(&vm.vcpus) {
            let route = Route::from_bits(vcpu.posted.route());
            if route.is_recipient(&message.recipients) && vcpu.start_up.start_at(page) {
                lifecycle::start_vcpu(vm, index, Some(Start::real(page)));
            }
        }
    }

    /// The guest has ended an interrupt that is told to an I/O APIC; the CPU has taken it out of the page.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) -> Outcome {
        let trigger = self.vcpu.apic.trigger(vector);
        self.apply_effect(ApicEffect::EndOfInterrupt { vector, trigger });
        Outcome::Resume
    }

    /// RDMSR of the APIC's registers and of the deadline.
    ///
    /// # Errors
    /// #GP.
    pub(super) fn apic_msr_read(&mut self, number: u32) -> Result<u64, Fault> {
        settle_eoi(self.vcpu);
        // Reading lets the timer go on.
        self.looks_for_interrupts = true;
        let apic = &mut self.vcpu.apic;
        if number == msr::IA32_TSC_DEADLINE {
            return Ok(match apic.tsc_deadline(time::ticks()) {
                0 => 0,
                deadline => self.vcpu.msrs.tsc(deadline),
            });
        }
        apic.msr_read(number, time::ticks()).map_err(|_| Fault)
    }

    /// WRMSR of the deadline. It is of the guest's TSC; 0 stops the timer.
    pub(super) fn write_deadline(&mut self, value: u64) {
        settle_eoi(self.vcpu);
        let deadline = match value {
            0 => 0,
            value => self.vcpu.msrs.host_tsc(value).max(1),
        };
        if self.vcpu.apic.set_tsc_deadline(deadline, time::ticks()) != Signal::None {
            self.apic_changed();
        } else if self.vcpu.own_deadline() != self.vcpu.armed_for {
            // The commonest: nothing else has changed than when the timer is due.
            self.arm();
        }
    }

    /// WRMSR of the APIC's registers, its base and its word.
    ///
    /// # Errors
    /// #GP.
    pub(super) fn apic_msr_write(&mut self, number: u32, value: u64) -> Result<(), Fault> {
        settle_eoi(self.vcpu);
        let apic = &mut self.vcpu.apic;
        let effect = match number {
            MSR_EOI_WORD => {
                let ram = self.vcpu.vm.devices.ram.view();
                let word = &mut self.vcpu.eoi_word;
                word.set(value, apic, &*ram).map(|()| ApicEffect::None)
            }
            msr::IA32_APIC_BASE => apic.set_base_msr(value).map(|()| {
                let bitmaps = &self.vcpu.vm.bitmaps;
                self.vcpu
                    .virtual_apic
                    .sync_mode(&mut self.state, bitmaps, &mut self.vcpu.apic);
                let is_on = self.vcpu.virtual_apic.is_on();
                self.cpu.delivers_interrupts.store(is_on, Ordering::SeqCst);
                self.vcpu.cpuid.apic_is_on = value & msr::APIC_BASE_ENABLE != 0;
                ApicEffect::None
            }),
            number => apic.msr_write(number, value, time::ticks()),
        };
        match effect {
            Ok(effect) => {
                self.apply_effect(effect);
                Ok(())
            }
            Err(_) => {
                // Its timer may have gone on meanwhile.
                self.apic_changed();
                Err(Fault)
            }
        }
    }

    /// MOV to or from CR8: the APIC's task priority.
    pub(super) fn task_priority(&mut self, access: ControlRegisterAccess) -> Outcome {
        settle_eoi(self.vcpu);
        match access {
            ControlRegisterAccess::Write { from, .. } => match self.general(from) {
                Some(value @ ..=0xF) => {
                    self.vcpu.apic.set_cr8(value as u8);
                    self.apic_changed();
                }
                _ => return GENERAL_PROTECTION,
            },
            ControlRegisterAccess::Read { to, .. } => {
                let value = u64::from(self.vcpu.apic.cr8());
                self.set_general(to, value);
            }
            ControlRegisterAccess::Clts | ControlRegisterAccess::Lmsw { .. } => {
                return GENERAL_PROTECTION;
            }
        }
        Outcome::Next
    }
}
