//! What the tiny guest kernels share: statistics for benchmarks, PASS and FAIL lines for tests.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod check;
pub mod frames;
pub mod meeting;
pub mod stats;
pub mod stream;
pub mod tree;

/// Where guests map the region unless a test says otherwise: a multiple of 2 MiB outside the identity map.
pub const REGION_VA: u64 = 0x40_0000_0000;
