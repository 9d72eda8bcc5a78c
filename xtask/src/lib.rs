//! What the two programs of this package share: `xtask`, and the operator's `nagayactl`.

#![forbid(unsafe_code)]

pub mod ctl;
pub mod out;
pub mod paths;
