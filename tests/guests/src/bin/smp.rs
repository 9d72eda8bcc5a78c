//! A VM of two vCPUs: the second is started, and sees at once that the region was mapped and unmapped by the first.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

use nagaya_guests::{REGION_VA, check};
use nagaya_rt::own::OwnRange;
use nagaya_rt::{Errno, group, hypercall, smp, time};

nagaya_rt::entry!(main);

const OWN: u64 = 66;
const SHARED: u64 = 5;
/// What the second vCPU saw last.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn await_seen(value: u64) -> u64 {
    let deadline = time::Deadline::after_ms(2_000);
    while SEEN.load(Ordering::Acquire) != value && !deadline.has_passed() {
        time::pause();
    }
    SEEN.load(Ordering::Acquire)
}

fn main() -> Result<(), Errno> {
    // Shared by both vCPUs for ever.
    let own: &'static OwnRange =
        Box::leak(Box::new(OwnRange::map(REGION_VA, group::region_pages())?));
    let last = (group::region_pages() - 1) * 4096;
    own.cell(last).store(OWN, Ordering::Relaxed);
    check::equal("no-vcpu-0", smp::start_vcpu(0, || {}), Err(Errno::Inval));
    check::equal("no-vcpu-7", smp::start_vcpu(7, || {}), Err(Errno::Inval));
    let started = smp::start_vcpu(1, move || {
        loop {
            let before = SEEN.load(Ordering::Relaxed);
            if before == u64::MAX {
                return;
            }
            let now = own.cell(last).load(Ordering::Acquire);
            // Fails if the order to end came in between: then that stands.
            let _ = SEEN.compare_exchange(before, now, Ordering::Release, Ordering::Relaxed);
        }
    });
    check::equal("start", started, Ok(()));
    check::equal("second-vcpu-runs", await_seen(OWN), OWN);
    check::equal("start-twice", smp::start_vcpu(1, || {}), Err(Errno::Inval));
    for _ in 0..3 {
        check::equal("map", hypercall::map_shared(REGION_VA), Ok(()));
        own.cell(last).store(SHARED, Ordering::Release);
        check::equal("second-vcpu-sees-the-region", await_seen(SHARED), SHARED);
        check::equal("unmap", hypercall::unmap_shared(REGION_VA), Ok(()));
        check::equal("second-vcpu-sees-own-data", await_seen(OWN), OWN);
    }
    SEEN.store(u64::MAX, Ordering::Release);
    let deadline = time::Deadline::after_ms(2_000);
    while smp::finished() == 0 && !deadline.has_passed() {
        time::pause();
    }
    check::equal("second-vcpu-ends", smp::finished(), 1);
    check::finish();
}
