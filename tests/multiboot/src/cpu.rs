//! The instructions that Rust has no words for, and memory by its address.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        pub(crate) fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: what a port's device does, it does to itself; no device here reaches memory on its own.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack, preserves_flags));
            }
            value
        }

        /// Writes a port.
        pub(crate) fn $write(port: u16, value: $type) {
            // SAFETY: as for reads.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack, preserves_flags));
            }
        }
    };
}

port!(in8, out8, u8, "al");
port!(in16, out16, u16, "ax");
port!(in32, out32, u32, "eax");

/// Reads memory. The first 4 GiB are mapped one to one, so nothing below faults.
pub(crate) fn read<T: Copy + From<u8>>(address: u64) -> T {
    assert!(address < 1 << 32);
    // SAFETY: it is mapped, and T is an integer: any bytes are one.
    unsafe { core::ptr::read_volatile(address as *const T) }
}

/// Writes memory that is no Rust object's: devices, and RAM outside the kernel.
pub(crate) fn write<T: Copy + From<u8>>(address: u64, value: T) {
    let kernel = crate::boot::kernel_range();
    assert!(address < 1 << 32 && !kernel.contains(&address));
    // SAFETY: it is mapped, and outside the kernel's own memory.
    unsafe { core::ptr::write_volatile(address as *mut T, value) }
}

/// Bytes that a boot loader left, which nobody changes.
pub(crate) fn bytes(address: u32, length: usize) -> &'static [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: it is mapped; it lies outside the kernel, or is what the kernel does not write.
    unsafe { core::slice::from_raw_parts(address as *const u8, length) }
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: it exists on every CPU in 64-bit mode, and reads only.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes an MSR of the APIC's, which is no Rust object's.
pub(crate) fn write_msr(msr: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: what the APIC does with it reaches this kernel by interrupts only, whose gates are set.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}

/// Waits for the next interrupt, with interrupts on meanwhile.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: the IDT has a gate for every vector; their handlers change statistics only.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Takes the interrupts that are there, one after the other.
pub(crate) fn let_interrupts_in() {
    // SAFETY: as in `wait_for_interrupt`.
    unsafe { asm!("sti", "nop", "nop", "cli", options(nostack)) };
}

/// Waits for ever.
pub(crate) fn stop() -> ! {
    loop {
        // SAFETY: nothing comes after it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}
