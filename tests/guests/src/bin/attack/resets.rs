//! A guest that resets itself over and over.

use nagaya_rt::apic::Apic;
use nagaya_rt::{args, console, hypercall, println, probe, time};

/// x2APIC's interrupt command: INIT, level asserted, to the APIC with number 0.
const ICR: u32 = 0x830;
const INIT: u64 = 0x4500;

/// Works for `work` ms, says `lines` lines, and resets itself, until the clock says `until` ms: then it ends well.
pub(crate) fn reset_until() {
    if time::ticks() / time::khz().max(1) > args::number("until", 1000) {
        return;
    }
    time::spin_ms(args::number("work", 0));
    for _ in 0..args::number("lines", 0) {
        println!("{:x>200}", 0);
    }
    console::flush();
    match args::get("by") {
        Some("fault") => probe::triple_fault(),
        _ => init_itself(),
    }
    println!("FAIL reset: it went on");
    hypercall::exit(1);
}

fn init_itself() {
    let _ = Apic::enable();
    let _ = probe::write_msr(ICR, INIT);
    // It comes at once, or never.
    time::spin_ms(10);
}
