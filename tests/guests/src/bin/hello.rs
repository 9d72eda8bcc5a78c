//! The smallest guest: says hello.
#![cfg_attr(target_os = "none", no_std, no_main)]
nagaya_rt::entry!(main);

fn main() {
    nagaya_rt::println!(
        "hello from {} with {} MiB",
        nagaya_rt::vm_name(),
        nagaya_rt::boot_info().memory_bytes >> 20
    );
}
