//! Checks of test guests: each prints one line, `PASS case` or `FAIL case: why`; the guest's exit code tells whether all passed.

use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};

use nagaya_rt::println;

static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Checks that `found` is what is promised.
pub fn equal<T: PartialEq + Debug>(case: &str, found: T, promised: T) {
    if found == promised {
        println!("PASS {case}");
    } else {
        FAILURES.fetch_add(1, Ordering::Relaxed);
        println!("FAIL {case}: found {found:?}, promised {promised:?}");
    }
}

/// Checks that something holds.
pub fn holds(case: &str, found: bool) {
    equal(case, found, true);
}

/// Ends the guest: code 0 if all checks passed, 1 if one failed.
pub fn finish() -> ! {
    nagaya_rt::console::flush();
    nagaya_rt::hypercall::exit(i64::from(FAILURES.load(Ordering::Relaxed) != 0))
}
