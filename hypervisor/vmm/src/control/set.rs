//! A set of CPUs, as `0-3,5`.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A set of CPUs below 64; bit n is CPU n. Written as numbers and ranges, `0-3,5`; `all` and `none`, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuSet(pub u64);

impl CpuSet {
    /// Every CPU.
    pub const ALL: CpuSet = CpuSet(u64::MAX);
    /// No CPU.
    pub const NONE: CpuSet = CpuSet(0);

    /// The CPUs 0 to `count` - 1.
    #[must_use]
    pub const fn first(count: u32) -> CpuSet {
        match 1u64.checked_shl(count) {
            Some(above) => CpuSet(above - 1),
            None => CpuSet::ALL,
        }
    }

    /// Whether that CPU is in it.
    #[must_use]
    pub const fn contains(self, cpu: u32) -> bool {
        cpu < 64 && self.0 >> cpu & 1 == 1
    }

    /// The set with that CPU, too; CPUs from 64 on are left out.
    #[must_use]
    pub const fn with(self, cpu: u32) -> CpuSet {
        match 1u64.checked_shl(cpu) {
            Some(bit) => CpuSet(self.0 | bit),
            None => self,
        }
    }

    /// The CPUs that are in both.
    #[must_use]
    pub const fn and(self, other: CpuSet) -> CpuSet {
        CpuSet(self.0 & other.0)
    }

    /// Whether no CPU is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its CPUs, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |&cpu| self.contains(cpu))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            CpuSet::ALL => return f.write_str("all"),
            CpuSet::NONE => return f.write_str("none"),
            _ => {}
        }
        let mut separator = "";
        let mut cpu = 0;
        while cpu < 64 {
            if !self.contains(cpu) {
                cpu += 1;
                continue;
            }
            let first = cpu;
            while self.contains(cpu + 1) {
                cpu += 1;
            }
            write!(f, "{separator}{first}")?;
            if cpu > first {
                write!(f, "-{cpu}")?;
            }
            separator = ",";
            cpu += 1;
        }
        Ok(())
    }
}

/// Text that is no set of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseCpuSetError;

impl fmt::Display for ParseCpuSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write CPUs below 64 as numbers and ranges, such as \"0-3,5\", or \"all\"")
    }
}

impl core::error::Error for ParseCpuSetError {}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    fn from_str(text: &str) -> Result<CpuSet, ParseCpuSetError> {
        match text {
            "all" => return Ok(CpuSet::ALL),
            "none" => return Ok(CpuSet::NONE),
            _ => {}
        }
        let number = |text: &str| match text.parse::<u32>() {
            Ok(cpu) if cpu < 64 && !text.starts_with('+') => Ok(cpu),
            _ => Err(ParseCpuSetError),
        };
        let mut set = CpuSet::NONE;
        for piece in text.split(',') {
            let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(ParseCpuSetError);
            }
            set = (first..=last).fold(set, CpuSet::with);
        }
        Ok(set)
    }
}
