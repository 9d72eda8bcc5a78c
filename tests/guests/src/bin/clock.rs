//! Watches its clock for ever: ends with an error if it goes back, or if what it keeps in memory changes.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use nagaya_rt::{Errno, time};

nagaya_rt::entry!(main);

/// Words of memory that are looked at.
const WORDS: usize = 1024;

fn main() -> Result<(), Errno> {
    let kept: alloc::vec::Vec<u64> = (0..WORDS as u64).map(|word| word * word + 7).collect();
    let mut last = time::ticks();
    loop {
        for (word, value) in kept.iter().enumerate() {
            let now = time::ticks();
            if now < last {
                nagaya_rt::println!("the clock went back from {last} to {now}");
                return Err(Errno::Inval);
            }
            last = now;
            if core::hint::black_box(*value) != (word * word + 7) as u64 {
                nagaya_rt::println!("word {word} changed to {value}");
                return Err(Errno::Fault);
            }
        }
    }
}
