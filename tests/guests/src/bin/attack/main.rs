//! Attacks on other guests' time, and the honest program beside them that says what it keeps. `attack=` picks one.

#![cfg_attr(target_os = "none", no_std, no_main)]

mod honest;
mod list;
mod resets;
mod windows;

use nagaya_rt::{args, hypercall, println};

nagaya_rt::entry!(main);

fn main() {
    let attack = args::get("attack").unwrap_or("none");
    match attack {
        "none" => honest::work(),
        "all" => windows::attack(),
        "beside-all" => windows::honest(),
        "reset" => resets::reset_until(),
        other => {
            println!("FAIL {other}: there is no such attack");
            hypercall::exit(1);
        }
    }
    hypercall::exit(0);
}
