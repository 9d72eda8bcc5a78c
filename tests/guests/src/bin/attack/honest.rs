//! A program that works on and on: the share of a CPU that it had, and the longest time it was away.

use nagaya_rt::{args, println, time};

/// Two looks at the clock that are further apart than this, in ticks: it was away.
const AWAY_TICKS: u64 = 2_000;

/// Works for `ms` and says what it had.
pub(crate) fn work() {
    let start = time::ticks();
    let end = start + time::ms_to_ticks(args::number("ms", 1000));
    let (mut last, mut away, mut longest) = (start, 0_u64, 0_u64);
    while last < end {
        let now = time::ticks();
        let gap = now.saturating_sub(last);
        if gap > AWAY_TICKS {
            away += gap;
        }
        longest = longest.max(gap);
        last = now;
    }
    let had = (last - start).saturating_sub(away);
    println!(
        "share {} longest {longest}",
        had * 1000 / (last - start).max(1)
    );
}
