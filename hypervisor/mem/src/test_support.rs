//! Doubles of the traits, stricter than the hardware.
