//! What a guest finds in its RAM beside its image: page tables, GDT, `BootInfo`, command line, as `guest_abi::boot` promises.

use alloc::vec::Vec;

use guest_abi::boot;
use guest_abi::{ABI_VERSION, BootInfo, PAGE_BYTES};

use super::{GuestWriter, Identity, LoadError, Loaded};

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, large.
const LARGE: u64 = 0b1000_0011;

pub(super) fn write_boot_structures(
    identity: &Identity<'_>,
    loaded: &Loaded,
    memory: &mut impl GuestWriter,
) -> Result<(), LoadError> {
    if identity.cmdline.len() > boot::MAX_CMDLINE_BYTES {
        return Err(LoadError::CmdlineTooLong {
            bytes: identity.cmdline.len(),
        });
    }
    let mut ok = memory.write(
        boot::BOOT_PML4_GPA,
        &(boot::BOOT_PDPT_GPA | TABLE).to_le_bytes(),
    );
    for gib in 0..4 {
        let directory = boot::BOOT_PD_GPA + gib * PAGE_BYTES;
        ok &= memory.write(
            boot::BOOT_PDPT_GPA + gib * 8,
            &(directory | TABLE).to_le_bytes(),
        );
        let entries: Vec<u8> = (0..512)
            .flat_map(|index| {
                let address = gib << 30 | index << 21;
                let entry = if address == 0 {
                    boot::BOOT_PT_GPA | TABLE
                } else {
                    address | LARGE
                };
                entry.to_le_bytes()
            })
            .collect();
        ok &= memory.write(directory, &entries);
    }
    let pages: Vec<u8> = (0..512_u64)
        .map(|index| index * PAGE_BYTES)
        // Page 0 and the page below the stack are left out, so that null pointers and overflows fault.
        .flat_map(|page| {
            if page == 0 || page == boot::BOOT_STACK_GUARD_GPA {
                [0; 8]
            } else {
                (page | TABLE).to_le_bytes()
            }
        })
        .collect();
    ok &= memory.write(boot::BOOT_PT_GPA, &pages);
    let gdt = [0_u64, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];
    for (index, descriptor) in gdt.into_iter().enumerate() {
        ok &= memory.write(
            boot::BOOT_GDT_GPA + index as u64 * 8,
            &descriptor.to_le_bytes(),
        );
    }
    ok &= memory.write(boot::BOOT_CMDLINE_GPA, identity.cmdline.as_bytes());
    ok &= memory.write(boot::BOOT_INFO_GPA, &encode(&boot_info(identity, loaded)));
    if ok {
        Ok(())
    } else {
        Err(LoadError::OutOfMemory {
            start: 0,
            end: boot::IMAGE_BASE_GPA,
            memory_bytes: identity.memory_bytes,
        })
    }
}

fn boot_info(identity: &Identity<'_>, loaded: &Loaded) -> BootInfo {
    BootInfo {
        magic: boot::BOOT_MAGIC,
        abi_version: ABI_VERSION,
        vm_id: identity.vm_id,
        memory_bytes: identity.memory_bytes,
        image_start_gpa: loaded.start,
        image_end_gpa: loaded.end,
        tsc_khz: identity.tsc_khz,
        group_page_gpa: if identity.member_index.is_some() {
            boot::GROUP_PAGE_GPA
        } else {
            0
        },
        info_page_gpa: boot::INFO_PAGE_GPA,
        cmdline_gpa: boot::BOOT_CMDLINE_GPA,
        cmdline_bytes: identity.cmdline.len() as u64,
        vcpus: identity.vcpus,
        member_index: identity.member_index.unwrap_or(u32::MAX),
        bare_hypercall: identity.bare_hypercall,
        name: identity.name,
    }
}

/// The structure's bytes in its C layout, field by field.
fn encode(info: &BootInfo) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<BootInfo>());
    bytes.extend(info.magic.to_le_bytes());
    bytes.extend(info.abi_version.to_le_bytes());
    bytes.extend(info.vm_id.to_le_bytes());
    for word in [
        info.memory_bytes,
        info.image_start_gpa,
        info.image_end_gpa,
        info.tsc_khz,
        info.group_page_gpa,
        info.info_page_gpa,
        info.cmdline_gpa,
        info.cmdline_bytes,
    ] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(info.vcpus.to_le_bytes());
    bytes.extend(info.member_index.to_le_bytes());
    bytes.extend(info.bare_hypercall.to_le_bytes());
    bytes.extend(info.name);
    debug_assert_eq!(bytes.len(), size_of::<BootInfo>());
    bytes
}
