//! Names of things, and sets of CPUs.

/// A time, or a length of time, in ticks of the TSC.
pub type Ticks = u64;

/// A vCPU. The caller chooses the number; it may be used again once the vCPU has been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

/// A VM, as [`VcpuId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// A group, as [`VcpuId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// A gang: a group, or a VM without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GangId {
    Group(GroupId),
    Vm(VmId),
}

/// A CPU, numbered from 0, below 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u32);

/// A set of CPUs below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(u64);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: CpuSet = CpuSet(0);

    /// One CPU; none if its number is 64 or more.
    #[must_use]
    pub const fn single(cpu: CpuId) -> CpuSet {
        match 1_u64.checked_shl(cpu.0) {
            Some(bit) => CpuSet(bit),
            None => CpuSet(0),
        }
    }

    /// The CPUs 0 to `count` - 1.
    #[must_use]
    pub const fn first(count: u32) -> CpuSet {
        match 1_u64.checked_shl(count) {
            Some(above) => CpuSet(above - 1),
            None => CpuSet(u64::MAX),
        }
    }

    /// A bit for each CPU, the lowest for CPU 0.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The CPUs of these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> CpuSet {
        CpuSet(bits)
    }

    /// Whether that CPU is in it.
    #[must_use]
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & CpuSet::single(cpu).0 != 0
    }

    /// Puts a CPU in.
    pub const fn insert(&mut self, cpu: CpuId) {
        self.0 |= CpuSet::single(cpu).0;
    }

    /// Takes a CPU out.
    pub const fn remove(&mut self, cpu: CpuId) {
        self.0 &= !CpuSet::single(cpu).0;
    }

    /// The CPUs in both.
    #[must_use]
    pub const fn intersection(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 & other.0)
    }

    /// The CPUs in either.
    #[must_use]
    pub const fn union(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 | other.0)
    }

    /// The CPUs that are not in `other`.
    #[must_use]
    pub const fn without(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 & !other.0)
    }

    /// Whether no CPU is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many CPUs are in it.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Its CPUs, in order.
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            let cpu = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (cpu < 64).then_some(CpuId(cpu))
        })
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> CpuSet {
        let mut set = CpuSet::EMPTY;
        for cpu in cpus {
            set.insert(cpu);
        }
        set
    }
}

/// CPUs that are to call [`crate::Scheduler::schedule`] soon. The caller sends each an IPI; forgetting to loses wake-ups.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kicks(pub(crate) CpuSet);

impl Kicks {
    /// Nobody.
    pub const NONE: Kicks = Kicks(CpuSet::EMPTY);

    /// The CPUs.
    #[must_use]
    pub const fn cpus(self) -> CpuSet {
        self.0
    }

    /// Both.
    pub const fn and(self, other: Kicks) -> Kicks {
        Kicks(self.0.union(other.0))
    }

    pub(crate) const fn add(&mut self, cpu: CpuId) {
        self.0.insert(cpu);
    }
}
