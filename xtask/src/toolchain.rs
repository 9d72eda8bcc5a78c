//! The bare-metal toolchain: to come.
