//! The region for programs on Linux: the device `/dev/nagaya` of the module in `guest-kmod`, as safe types.
//!
//! ```no_run
//! use nagaya_rt::linux::Device;
//! use core::sync::atomic::{AtomicU64, Ordering};
//!
//! let device = Device::open()?;
//! let region = device.map_at(0x40_0000_0000)?;
//! let visits = region.u64(0).map(|cell| cell.fetch_add(1, Ordering::AcqRel));
//! println!("visits before: {visits:?}");
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Cells, locks, barriers and rings are those of unikernels ([`crate::region`], [`crate::sync`]); a [`Device`] says who is alive,
//! by a plain load from the group page that is mapped with it. Errors are the kernel's.
//!
//! Concurrency: a member is a VM, not a process. Processes of one VM exclude each other from a lock, but the lock of a process
//! that dies in a VM that lives on is not inherited.

pub mod uapi;

use core::ops::Deref;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

use guest_abi::group::MEMBERS_OFFSET;
use guest_abi::hypercall::WAIT_GROUP_CHANGED;
use guest_abi::{ABI_MAJOR, MAX_MEMBERS, MemberEntry, MemberState, PAGE_BYTES};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::region::View;
use crate::sync::{Life, Peers};

/// The device, opened, with the group page.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    group_page: Mapping,
    me: u32,
}

/// What waiting has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u64);

impl Events {
    /// Whether that member has rung.
    #[must_use]
    pub fn rung_by(self, member: u32) -> bool {
        (member as usize) < MAX_MEMBERS && self.0 >> member & 1 == 1
    }

    /// Whether a member has come, gone or died.
    #[must_use]
    pub fn group_changed(self) -> bool {
        self.0 & WAIT_GROUP_CHANGED != 0
    }
}

/// A member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its index.
    pub index: u32,
    /// Its state.
    pub state: MemberState,
    /// The VM's number.
    pub vm_id: u32,
    /// Whether it has the region mapped.
    pub mapped: bool,
    /// Its exit code, in state `Exited`.
    pub exit_code: i64,
    /// How often the index was filled.
    pub incarnation: u64,
    /// The VM's name.
    pub name: String,
}

impl Device {
    /// Opens `/dev/nagaya`.
    ///
    /// # Errors
    /// `ENOENT` without the module, `EACCES` without the right to, `EPERM` in no group; `Unsupported` for a driver of another ABI.
    pub fn open() -> io::Result<Device> {
        Device::open_at(Path::new("/dev/nagaya"))
    }

    /// Opens the device by another name.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn open_at(path: &Path) -> io::Result<Device> {
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let version = uapi::version(&fd)?;
        if version.abi_version >> 16 != u32::from(ABI_MAJOR) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let me = uapi::group(&fd)?.member_index;
        if me as usize >= MAX_MEMBERS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let group_page = Mapping::of_page(&fd, uapi::OFFSET_GROUP_PAGE)?;
        Ok(Device { fd, group_page, me })
    }

    /// This VM's index in the group: in whose name locks are taken and barriers met.
    #[must_use]
    pub fn my_index(&self) -> u32 {
        self.me
    }

    /// Maps the region at `va`; at 0 where the group has it.
    ///
    /// # Errors
    /// `EADDRINUSE` if the group has it elsewhere, `EEXIST` if this process has something else there.
    pub fn map_at(&self, va: u64) -> io::Result<Region> {
        let (address, bytes) = uapi::map(&self.fd, va)?;
        let mapping = Mapping { address, bytes };
        // SAFETY: the driver has mapped `bytes` bytes there for reading and writing where nothing was, and `mapping` keeps them so.
        let view = unsafe { View::new(address as u64, bytes as u64) };
        Ok(Region {
            view,
            _mapping: mapping,
        })
    }

    /// Rings a member.
    ///
    /// # Errors
    /// `ESRCH` it is not there, `EBUSY` it refuses doorbells, `EAGAIN` it was rung too often: later.
    pub fn doorbell(&self, member: u32) -> io::Result<()> {
        Ok(uapi::doorbell(&self.fd, member)?)
    }

    /// Rings a member if it still leads that life.
    ///
    /// # Errors
    /// As [`Device::doorbell`]; `ESRCH` also if another life has begun.
    pub fn doorbell_life(&self, life: Life) -> io::Result<()> {
        let life = uapi::Life {
            member: life.member,
            incarnation: life.incarnation,
            ..uapi::Life::default()
        };
        Ok(uapi::doorbell_life(&self.fd, life)?)
    }

    /// Waits for doorbells and changes of the group, for ever without a timeout; `None` if it has passed.
    ///
    /// # Errors
    /// `EINTR` if a signal came.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Option<Events>> {
        let timeout_ns = timeout.map_or(-1, |timeout| {
            i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX)
        });
        match uapi::wait(&self.fd, timeout_ns) {
            Ok(events) => Ok(Some(Events(events))),
            Err(rustix::io::Errno::TIMEDOUT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// All members that are, or were, there.
    ///
    /// # Errors
    /// None of its own.
    pub fn members(&self) -> io::Result<Vec<Member>> {
        let mut members = Vec::new();
        for index in 0..uapi::group(&self.fd)?.member_count {
            let found = uapi::member(&self.fd, index)?;
            members.push(Member {
                index,
                state: MemberState::from_raw(found.state).unwrap_or(MemberState::Absent),
                vm_id: found.vm_id,
                mapped: found.mapped != 0,
                exit_code: found.exit_code,
                incarnation: found.incarnation,
                name: guest_abi::unpack_name(&found.name).to_string(),
            });
        }
        Ok(members)
    }

    /// A member's entry in the group page.
    fn entry(&self, member: u32) -> Option<*const MemberEntry> {
        let index = member as usize;
        (index < MAX_MEMBERS).then(|| {
            let offset = MEMBERS_OFFSET + index * size_of::<MemberEntry>();
            core::ptr::with_exposed_provenance(self.group_page.address + offset)
        })
    }
}

impl AsFd for Device {
    /// For `poll`: readable when there are events, priority data when the group has changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Peers for Device {
    fn is_alive(&self, member: u32) -> bool {
        let alive = self.entry(member).is_some_and(|entry| {
            // SAFETY: an aligned field inside the page (checked by `entry`), which is mapped while `self` lives; the hypervisor
            // writes it meanwhile, hence volatile.
            let state = unsafe { (&raw const (*entry).state).read_volatile() };
            MemberState::from_raw(state).is_some_and(MemberState::is_alive)
        });
        fence(Ordering::Acquire);
        alive
    }

    fn incarnation(&self, member: u32) -> u64 {
        // What the caller has looked at before was looked at before.
        fence(Ordering::Acquire);
        self.entry(member).map_or(0, |entry| {
            // SAFETY: as above.
            unsafe { (&raw const (*entry).incarnation).read_volatile() }
        })
    }
}

/// The region in this process. Dropping it unmaps it.
#[derive(Debug)]
pub struct Region {
    view: View,
    _mapping: Mapping,
}

impl Deref for Region {
    type Target = View;

    #[inline]
    fn deref(&self) -> &View {
        &self.view
    }
}

/// Something mapped, until it is dropped.
#[derive(Debug)]
struct Mapping {
    address: usize,
    bytes: usize,
}

impl Mapping {
    /// One of the hypervisor's pages, for reading.
    fn of_page(fd: &OwnedFd, offset: u64) -> io::Result<Mapping> {
        let bytes = PAGE_BYTES as usize;
        // SAFETY: without an address the kernel chooses one where nothing is.
        let address = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                offset,
            )?
        };
        Ok(Mapping {
            address: address.expose_provenance(),
            bytes,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let address = core::ptr::with_exposed_provenance_mut::<c_void>(self.address);
        // SAFETY: we have mapped it, and whoever refers to it borrows the owner of this.
        // It cannot fail for a range that is mapped; and if it did it would stay mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(address, self.bytes) };
    }
}
