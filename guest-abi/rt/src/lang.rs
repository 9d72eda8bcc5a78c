//! What the language needs on bare metal: the panic handler. (The allocator is in `heap`.)

/// Says where and why, then ends the VM with [`crate::EXIT_PANIC`].
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::sync::atomic::{AtomicBool, Ordering};

    static PANICKING: AtomicBool = AtomicBool::new(false);
    // A panic while formatting a panic must still end the VM.
    if !PANICKING.swap(true, Ordering::Relaxed) {
        crate::console::print_urgently(format_args!("{info}\n"));
    }
    crate::hypercall::exit(crate::EXIT_PANIC)
}
