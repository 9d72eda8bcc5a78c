#![cfg_attr(target_os = "none", no_std, no_main)]
nagaya_rt::entry!(main);

fn main() {
    nagaya_rt::println!("hello from {}", nagaya_rt::vm_name());
}
