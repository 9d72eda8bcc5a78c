//! One window of time for each attack: attacker and honest members go by the same clock, so that what a member has in a window is what
//! that attack leaves it.

use nagaya_rt::own::OwnRange;
use nagaya_rt::{args, hypercall, println, probe, time};

use crate::list::{ATTACKS, HOLED, SCATTERED};

/// Pages of the region, as the scenario has it by default.
const REGION_PAGES: u64 = 1025;
/// Two looks at the clock that are further apart than this, in ticks: it was away.
const AWAY_TICKS: u64 = 2_000;

/// The window of that number: where it begins and ends. Multiples of its length, so that every VM means the same.
struct Windows {
    first: u64,
    ticks: u64,
}

impl Windows {
    fn new() -> Windows {
        let ticks = time::ms_to_ticks(args::number("window", 200));
        Windows {
            first: time::ms_to_ticks(args::number("start", 13_000)),
            ticks,
        }
    }

    /// Windows of attacks alternate with such in which nobody attacks: what one is owed from the last is given back there.
    fn begin(&self, index: usize) -> u64 {
        self.first + 2 * index as u64 * self.ticks
    }

    fn end(&self, index: usize) -> u64 {
        self.begin(index) + self.ticks
    }
}

fn wait_until(tsc: u64) {
    while time::ticks() < tsc {
        let left = tsc.saturating_sub(time::ticks());
        let _ = hypercall::wait(time::ticks_to_ns(left).max(1));
    }
}

fn spin_until(tsc: u64) {
    while time::ticks() < tsc {
        core::hint::spin_loop();
    }
}

/// Attacks in each window, and says what it did.
pub(crate) fn attack() {
    let windows = Windows::new();
    let holed = OwnRange::map_scattered(HOLED, REGION_PAGES);
    if let Ok(range) = &holed {
        let _ = range.unmap_page(REGION_PAGES - 1);
    }
    let scattered = OwnRange::map_scattered(SCATTERED, REGION_PAGES);
    if holed.is_err() || scattered.is_err() {
        println!("FAIL attack: it has too little memory");
    }
    wait_until(windows.begin(0) - windows.ticks);
    for (index, attack) in ATTACKS.iter().enumerate() {
        spin_until(windows.begin(index));
        let end = windows.end(index);
        let (mut step, mut longest, mut last) = (0_u64, 0_u64, time::ticks());
        while last < end {
            (attack.step)(step);
            step += 1;
            let now = time::ticks();
            longest = longest.max(now - last);
            last = now;
        }
        let _ = probe::set_cr0_cache_bits(0);
        println!("did {} {step} longest {longest}", attack.name);
    }
    println!("PASS attacks");
}

/// Works in each window, and says at the end what share of its CPU it had.
pub(crate) fn honest() {
    let windows = Windows::new();
    wait_until(windows.begin(0) - windows.ticks);
    let mut shares = [0_u64; 128];
    for (index, share) in shares.iter_mut().enumerate().take(ATTACKS.len()) {
        let (begin, end) = (windows.begin(index), windows.end(index));
        spin_until(begin);
        let (mut last, mut had) = (begin.max(time::ticks()), 0_u64);
        while last < end {
            let now = time::ticks();
            let gap = now - last;
            if gap <= AWAY_TICKS {
                had += gap;
            }
            last = now;
        }
        *share = had * 1000 / (end - begin);
    }
    for (attack, share) in ATTACKS.iter().zip(shares) {
        println!("had {} {share}", attack.name);
    }
    println!("PASS honest");
}
