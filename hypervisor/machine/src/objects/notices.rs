//! What has happened to VMs, kept for the control port's client if it wants to know.
//!
//! Concurrency: one leaf lock.

use alloc::collections::VecDeque;
use alloc::string::String;

use nagaya_vmm::control::Event;
use spin::Mutex;

use crate::host::cpu::time;

/// Most notices that are kept; of those that find no room only the number is.
const MAX_KEPT: usize = 64;

struct Notices {
    wanted: bool,
    kept: VecDeque<Event>,
    lost: u64,
}

static NOTICES: Mutex<Notices> = Mutex::new(Notices {
    wanted: false,
    kept: VecDeque::new(),
    lost: 0,
});

/// Begins or ends keeping notices. Those that are there are dropped.
pub fn want(wanted: bool) {
    let mut notices = NOTICES.lock();
    notices.wanted = wanted;
    notices.kept.clear();
    notices.lost = 0;
}

/// The oldest that has not been taken.
#[must_use]
pub fn take() -> Option<Event> {
    NOTICES.lock().kept.pop_front()
}

/// Keeps a notice, if they are wanted.
pub fn note(name: &str, vm: Option<u16>, text: &str) {
    let mut notices = NOTICES.lock();
    if !notices.wanted {
        return;
    }
    if notices.kept.len() >= MAX_KEPT {
        notices.lost += 1;
        return;
    }
    let lost = core::mem::take(&mut notices.lost);
    notices.kept.push_back(Event {
        ticks: time::ticks(),
        name: String::from(name),
        vm: vm.map(u32::from),
        text: String::from(text),
        lost,
    });
}
