//! VMs as processes, in the shape of `std::process`.
//!
//! A [`fork`] is a whole VM with all its vCPUs: both go on behind the call, with the same memory, which is copied as it is written.
//! The region of the group stays shared and at its address; [`crate::group::my_index`] is the child's own in the child. Locks in the
//! region that the parent holds stay the parent's.
//!
//! ```no_run
//! use nagaya_rt::process::{self, Fork};
//!
//! fn serve() -> Result<(), nagaya_rt::Errno> {
//!     match process::fork()? {
//!         Fork::Child => process::exit(42),
//!         Fork::Parent(child) => assert_eq!(child.wait()?.code(), Some(42)),
//!     }
//!     Ok(())
//! }
//! ```
//!
//! The VM needs `may = ["fork"]` in its scenario.

use alloc::vec;
use alloc::vec::Vec;

use guest_abi::hypercall::MAX_TIMEOUT_NS;
use guest_abi::process::{CHILD_ANY, KILL_NOW};
use guest_abi::{ChildEnd, ChildStatus, Errno, Number};

use crate::{boot, hypercall};

/// Which of both this is.
#[derive(Debug)]
pub enum Fork {
    /// The one that was there, with its child.
    Parent(Child),
    /// The child.
    Child,
}

/// A child of this VM. Dropping it leaves the child alone; its end can be asked for by [`wait_any`] still.
#[derive(Debug)]
pub struct Child {
    vm: u32,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    end: ChildEnd,
    code: i64,
}

impl ExitStatus {
    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.code() == Some(0)
    }

    /// Its exit code, if it exited by itself.
    #[must_use]
    pub fn code(self) -> Option<i64> {
        (self.end == ChildEnd::Exited).then_some(self.code)
    }

    /// Why it ended.
    #[must_use]
    pub fn end(self) -> ChildEnd {
        self.end
    }
}

/// Makes a VM that is as this one is.
///
/// # Errors
/// `EPERM` without the right, `EAGAIN` if as many live as may or the group is full, `ENOMEM`.
pub fn fork() -> Result<Fork, Errno> {
    match hypercall::call(Number::Fork, [1, 0, 0, 0, 0])? {
        0 => {
            let index = hypercall::group_info().map_or(u32::MAX, |info| info.member_index);
            boot::set_child(number()?, index);
            Ok(Fork::Child)
        }
        vm => Ok(Fork::Parent(Child { vm: vm as u32 })),
    }
}

fn number() -> Result<u32, Errno> {
    hypercall::call(Number::VmSelf, [0; 5]).map(|number| number as u32)
}

/// This VM's number.
#[must_use]
pub fn id() -> u32 {
    boot::boot_info().vm_id
}

/// The number of the VM that this one is a child of, if it is one and that has not ended.
#[must_use]
pub fn parent_id() -> Option<u32> {
    let parent = hypercall::call(Number::Parent, [0; 5]);
    parent.ok().map(|parent| parent as u32)
}

/// Numbers of the children that live or have not been waited for.
///
/// # Errors
/// `ENOMEM`: memory is shared, and there is none for a copy of the page that they are written to.
pub fn children() -> Result<Vec<u32>, Errno> {
    let mut numbers = Vec::new();
    loop {
        let buffer: &mut [u32] = &mut numbers;
        let bytes = size_of_val(buffer) as u64;
        let arguments = [
            buffer.as_mut_ptr().expose_provenance() as u64,
            bytes,
            0,
            0,
            0,
        ];
        let count = hypercall::call(Number::Children, arguments)? as usize;
        if count <= numbers.len() {
            numbers.truncate(count);
            return Ok(numbers);
        }
        numbers = vec![0; count];
    }
}

/// Ends this VM with that code.
pub fn exit(code: i64) -> ! {
    crate::console::flush();
    hypercall::exit(code)
}

fn wait_child(child: u64, timeout_ns: u64) -> Result<(u32, ExitStatus), Errno> {
    let mut status = ChildStatus::default();
    let buffer = (&raw mut status).expose_provenance() as u64;
    hypercall::call(Number::WaitChild, [child, timeout_ns, buffer, 0, 0])?;
    // An end that is newer than this runtime.
    let end = ChildEnd::from_raw(status.end).unwrap_or(ChildEnd::Fault);
    let code = status.code;
    Ok((status.vm, ExitStatus { end, code }))
}

/// Waits until a child has ended: its number, and how.
///
/// # Errors
/// `ESRCH` without children.
pub fn wait_any() -> Result<(u32, ExitStatus), Errno> {
    wait_child(CHILD_ANY, MAX_TIMEOUT_NS)
}

impl Child {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.vm
    }

    /// Waits until it has ended. The vCPU takes no CPU time meanwhile.
    ///
    /// # Errors
    /// `ESRCH` if that has been told already.
    pub fn wait(&self) -> Result<ExitStatus, Errno> {
        self.wait_ns(MAX_TIMEOUT_NS)
    }

    /// The same for so long at most.
    ///
    /// # Errors
    /// `ETIMEDOUT`, `ESRCH`.
    pub fn wait_ms(&self, ms: u64) -> Result<ExitStatus, Errno> {
        self.wait_ns(ms.saturating_mul(1_000_000))
    }

    fn wait_ns(&self, timeout_ns: u64) -> Result<ExitStatus, Errno> {
        wait_child(self.vm.into(), timeout_ns).map(|(_, status)| status)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Errno> {
        match self.wait_ns(0) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::TimedOut) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// `EPERM` without the right, `ESRCH` if it has ended.
    pub fn kill(&self) -> Result<(), Errno> {
        hypercall::call(Number::Kill, [self.vm.into(), KILL_NOW, 0, 0, 0]).map(drop)
    }
}
