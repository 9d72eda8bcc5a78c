//! PCI configuration space through the ports 0xCF8 and 0xCFC.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 (configuration mechanism #1).

use core::arch::asm;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;

/// The two ports. One vCPU at a time uses them.
#[derive(Clone, Copy, Debug)]
pub struct ConfigPorts;

/// What goes to the address port for a register of a function.
pub(super) fn address(function: DeviceFunction, register: u8) -> u32 {
    1 << 31
        | u32::from(function.bus) << 16
        | u32::from(function.device) << 11
        | u32::from(function.function) << 8
        | u32::from(register & 0xFC)
}

fn select(function: DeviceFunction, register: u8) {
    // SAFETY: only chooses a register of configuration space.
    unsafe {
        asm!("out dx, eax", in("dx") ADDRESS, in("eax") address(function, register), options(nomem, nostack, preserves_flags));
    };
}

impl ConfigurationAccess for ConfigPorts {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        select(function, register);
        let value: u32;
        // SAFETY: reads of configuration space change nothing.
        unsafe {
            asm!("in eax, dx", in("dx") DATA, out("eax") value, options(nomem, nostack, preserves_flags));
        };
        value
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        select(function, register);
        // SAFETY: configuration space decides where a device answers and whether it may access RAM; devices access only what
        // their drivers hand them.
        unsafe {
            asm!("out dx, eax", in("dx") DATA, in("eax") value, options(nostack, preserves_flags));
        };
    }

    unsafe fn unsafe_clone(&self) -> ConfigPorts {
        ConfigPorts
    }
}

/// Writes a notification register among the ports.
#[inline]
pub(super) fn notify(port: u16, queue: u16) {
    // SAFETY: makes a device look at a queue, no more. Not `nomem`: what was published before is seen by it.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") queue, options(nostack, preserves_flags));
    };
}
