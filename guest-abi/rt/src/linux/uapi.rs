//! The ioctls of `/dev/nagaya`: the Rust side of `guest-kmod/include/uapi/nagaya.h`. `tests/uapi.rs` asks a C compiler whether
//! both say the same.

use std::os::fd::AsFd;

use guest_abi::NAME_BYTES;
use rustix::io::Result;
use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl, opcode};

/// `NAGAYA_OFFSET_GROUP_PAGE`.
pub const OFFSET_GROUP_PAGE: u64 = 0x1_0000_0000;

/// `struct nagaya_version`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Version {
    /// `major << 16 | minor`.
    pub abi_version: u32,
    /// Features of the hypervisor.
    pub features: u32,
    /// The VM's number.
    pub vm_id: u32,
    /// Of the driver, `major << 16 | minor`.
    pub driver_version: u32,
}

/// `struct nagaya_group`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Group {
    /// The group's number.
    pub group_id: u32,
    /// This VM's index in it.
    pub member_index: u32,
    /// How many indices were ever in use.
    pub member_count: u32,
    /// 1 if members may map at different addresses.
    pub address_any: u32,
    /// Bytes of the region.
    pub region_bytes: u64,
    /// The group's address, 0 if nobody has mapped.
    pub region_address: u64,
    /// Where this VM has mapped, 0 if nowhere.
    pub mapped_address: u64,
    /// Grows when members come, go or die.
    pub generation: u64,
    /// The group's name.
    pub name: [u8; NAME_BYTES],
}

/// `struct nagaya_member`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Member {
    /// Which one is asked for.
    pub index: u32,
    /// A [`guest_abi::MemberState`].
    pub state: u32,
    /// The VM's number.
    pub vm_id: u32,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// 1 while it has the region mapped.
    pub mapped: u32,
    /// Zero.
    pub reserved: u32,
    /// The code it ended with.
    pub exit_code: i64,
    /// How often the index was filled.
    pub incarnation: u64,
    /// The VM's name.
    pub name: [u8; NAME_BYTES],
}

/// `struct nagaya_map`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Map {
    /// Where; 0 for the group's address.
    pub address: u64,
    /// How much was mapped.
    pub bytes: u64,
    /// `NAGAYA_MAP_*`.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// `struct nagaya_wait`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Wait {
    /// How long; negative for ever.
    pub timeout_ns: i64,
    /// What came.
    pub events: u64,
}

/// `struct nagaya_life`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Life {
    /// The member's index.
    pub member: u32,
    /// Zero.
    pub reserved: u32,
    /// Which VM in a row it is; 0 for any.
    pub incarnation: u64,
}

const MAGIC: u8 = b'N';
/// `NAGAYA_IOC_VERSION`.
pub const VERSION: Opcode = opcode::read::<Version>(MAGIC, 0xA0);
/// `NAGAYA_IOC_GROUP`.
pub const GROUP: Opcode = opcode::read::<Group>(MAGIC, 0xA1);
/// `NAGAYA_IOC_MEMBER`.
pub const MEMBER: Opcode = opcode::read_write::<Member>(MAGIC, 0xA2);
/// `NAGAYA_IOC_MAP`.
pub const MAP: Opcode = opcode::read_write::<Map>(MAGIC, 0xA3);
/// `NAGAYA_IOC_DOORBELL`.
pub const DOORBELL: Opcode = opcode::write::<u32>(MAGIC, 0xA5);
/// `NAGAYA_IOC_DOORBELL_LIFE`.
pub const DOORBELL_LIFE: Opcode = opcode::write::<Life>(MAGIC, 0xA7);
/// `NAGAYA_IOC_WAIT`.
pub const WAIT: Opcode = opcode::read_write::<Wait>(MAGIC, 0xA6);

pub(super) fn version(fd: &impl AsFd) -> Result<Version> {
    // SAFETY: the driver fills a structure of this layout under this number; on another device the number means nothing.
    unsafe { ioctl(fd, Getter::<VERSION, Version>::new()) }
}

pub(super) fn group(fd: &impl AsFd) -> Result<Group> {
    // SAFETY: as in `version`.
    unsafe { ioctl(fd, Getter::<GROUP, Group>::new()) }
}

pub(super) fn member(fd: &impl AsFd, index: u32) -> Result<Member> {
    let mut member = Member {
        index,
        ..Member::default()
    };
    // SAFETY: the driver reads and fills a structure of this layout under this number.
    unsafe { ioctl(fd, Updater::<MEMBER, Member>::new(&mut member)) }?;
    Ok(member)
}

/// Maps the region where nothing is; gives address and bytes.
pub(super) fn map(fd: &impl AsFd, address: u64) -> Result<(usize, usize)> {
    let mut map = Map {
        address,
        ..Map::default()
    };
    // SAFETY: as in `member`. The driver maps only where nothing is mapped, so that nothing of Rust's goes away.
    unsafe { ioctl(fd, Updater::<MAP, Map>::new(&mut map)) }?;
    Ok((map.address as usize, map.bytes as usize))
}

pub(super) fn doorbell(fd: &impl AsFd, member: u32) -> Result<()> {
    // SAFETY: the driver reads 4 bytes under this number.
    unsafe { ioctl(fd, Setter::<DOORBELL, u32>::new(member)) }
}

pub(super) fn doorbell_life(fd: &impl AsFd, life: Life) -> Result<()> {
    // SAFETY: the driver reads a structure of this layout under this number.
    unsafe { ioctl(fd, Setter::<DOORBELL_LIFE, Life>::new(life)) }
}

pub(super) fn wait(fd: &impl AsFd, timeout_ns: i64) -> Result<u64> {
    let mut wait = Wait {
        timeout_ns,
        events: 0,
    };
    // SAFETY: as in `member`.
    unsafe { ioctl(fd, Updater::<WAIT, Wait>::new(&mut wait)) }?;
    Ok(wait.events)
}
