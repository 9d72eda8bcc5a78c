//! The boot image: entry point and panic handler of the `nagaya` hypervisor.
//!
//! Everything else is the library beside it, so that it is checked by the host's compiler and clippy, too. On a host
//! (`target_os` other than `none`) this program does nothing.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    bootloader_api::entry_point!(
        nagaya_machine::boot::start,
        config = &nagaya_machine::boot::LOADER_CONFIG
    );

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        nagaya_machine::host::stop::panicked(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("nagaya runs on bare metal only: use `cargo xtask run`");
    std::process::exit(2);
}
