//! Tests of the devices through what they offer to the rest of the hypervisor.

mod apic;
mod apic_access;
mod apic_page;
mod blk;
mod eoi_word;
mod ioapic;
mod lan;
mod net;
mod net_hostile;
mod pc;
mod pci;
mod plain_devices;
mod queue;
mod queue_hostile;
mod switch;
mod threads;
mod uart;
mod virtio_pci;
