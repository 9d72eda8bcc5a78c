//! What objects ask of the scheduler, which is a layer above them: a table of functions, set once at boot.
//!
//! A doorbell, an interrupt or a frame wakes its receiver from within the sender's call, so that these are calls and no returned values.

use nagaya_sched::{Account, GroupAccount};
use spin::Once;

use crate::objects::handle::Handle;

/// What the layer above does for objects.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerPort {
    /// Lets a vCPU run that blocked. Called by the one who took its mark away ([`Handle::try_wake`]).
    pub wake: fn(&Handle),
    /// As `wake`, for a doorbell or an interrupt: the vCPU may go first for once, at its own expense.
    pub wake_boosted: fn(&Handle),
    /// Charges the VM of that number for ticks of work that the executing CPU has just done for it.
    pub charge: fn(u16, u64),
    /// What the VM of that number has had of the CPUs, over all its lives.
    pub vm_account: fn(u16) -> Account,
    /// Forgets the VM of that number, which has no vCPU any more.
    pub vm_ended: fn(u16),
    /// Forgets the group of that number, whose last member has gone; how it was scheduled.
    pub group_ended: fn(u16) -> Option<GroupAccount>,
}

static PORT: Once<SchedulerPort> = Once::new();

/// Sets the table. The first call counts.
pub fn connect(port: SchedulerPort) {
    PORT.call_once(|| port);
}

/// See [`SchedulerPort::wake`]. Before [`connect`] nothing has blocked yet.
#[inline]
pub fn wake(vcpu: &Handle) {
    if let Some(port) = PORT.get() {
        (port.wake)(vcpu);
    }
}

/// See [`SchedulerPort::wake_boosted`].
#[inline]
pub fn wake_boosted(vcpu: &Handle) {
    if let Some(port) = PORT.get() {
        (port.wake_boosted)(vcpu);
    }
}

/// See [`SchedulerPort::charge`].
pub fn charge(vm: u16, ticks: u64) {
    if let Some(port) = PORT.get() {
        (port.charge)(vm, ticks);
    }
}

/// See [`SchedulerPort::group_ended`].
#[must_use]
pub fn group_ended(id: u16) -> Option<GroupAccount> {
    (PORT.get()?.group_ended)(id)
}

/// See [`SchedulerPort::vm_account`].
#[must_use]
pub fn vm_account(id: u16) -> Account {
    PORT.get()
        .map_or_else(Account::default, |port| (port.vm_account)(id))
}

/// See [`SchedulerPort::vm_ended`].
pub fn vm_ended(id: u16) {
    if let Some(port) = PORT.get() {
        (port.vm_ended)(id);
    }
}
