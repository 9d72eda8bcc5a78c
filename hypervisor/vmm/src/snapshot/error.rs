//! Why a snapshot is refused.

use alloc::string::String;
use core::fmt;

use nagaya_devices::state::StateError;

use super::features::MissingFeature;
use super::fields::{FieldError, Problem};

/// Why a snapshot is refused. Offsets are in bytes from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// It begins with something else.
    NoSnapshot,
    /// It ends too early.
    Truncated {
        /// Where it ends.
        at: u64,
        /// What is cut off.
        what: &'static str,
    },
    /// The header's checksum is another.
    HeaderChecksum,
    /// It has another format.
    Format {
        /// Its number.
        found: u16,
        /// The one that is known.
        known: u16,
    },
    /// The guest was made for another major version of the contract, or has seen a minor one that is not known here.
    Abi {
        /// The version that it was saved with.
        found: u32,
        /// That of who reads it.
        known: u32,
    },
    /// A field of the header or of a record's head that is 0 in this format is not.
    Reserved {
        /// Where.
        at: u64,
    },
    /// A record claims more than a record can have.
    TooLong {
        /// Where it begins.
        at: u64,
        /// What it claims.
        bytes: u32,
    },
    /// A record's checksum is another.
    Checksum {
        /// Where it begins.
        at: u64,
        /// Its number.
        kind: u16,
    },
    /// A record that is needed is not known.
    Unknown {
        /// Where it begins.
        at: u64,
        /// Its number.
        kind: u16,
    },
    /// A record has another version than is known.
    Version {
        /// Its name.
        record: &'static str,
        /// Its version.
        found: u16,
        /// The version that is known.
        known: u16,
    },
    /// A record's body cannot be read.
    Body {
        /// Its name.
        record: &'static str,
        /// Where in it, and why.
        error: FieldError,
    },
    /// A record says what cannot be.
    State {
        /// Its name.
        record: &'static str,
        /// Where in it, and why.
        error: StateError,
    },
    /// A record that has to be there is not, or too few are.
    Missing {
        /// Its name.
        record: &'static str,
    },
    /// A record is there more often than it can be.
    Again {
        /// Its name.
        record: &'static str,
    },
    /// The end says that there were other records than there were.
    End,
    /// It goes on behind its end.
    Rest {
        /// Bytes that are too many.
        bytes: u64,
    },
    /// The CPU lacks a feature that the guest has been shown.
    Feature(MissingFeature),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Truncated => f.write_str("the record ends in it"),
            Problem::Value => f.write_str("it is none of its values"),
            Problem::Rest { bytes } => write!(f, "{bytes} bytes follow it"),
        }
    }
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::NoSnapshot => f.write_str("this is no snapshot of a VM"),
            SnapshotError::Truncated { at, what } => {
                write!(f, "it ends at byte {at}, in {what}: it was cut off")
            }
            SnapshotError::HeaderChecksum => f.write_str("the header is damaged"),
            SnapshotError::Format { found, known } => write!(
                f,
                "it has format {found}, and {known} is known here: use the version that wrote it"
            ),
            SnapshotError::Abi { found, known } => {
                let parts = |version: &u32| (version >> 16, version & 0xFFFF);
                let ((major, minor), (our_major, our_minor)) = (parts(found), parts(known));
                write!(
                    f,
                    "its guest knows version {major}.{minor} of the contract, and {our_major}.{our_minor} is kept here"
                )
            }
            SnapshotError::Reserved { at } => {
                write!(f, "the bytes at {at} have to be 0")
            }
            SnapshotError::TooLong { at, bytes } => {
                write!(f, "the record at byte {at} claims {bytes} bytes")
            }
            SnapshotError::Checksum { at, kind } => {
                write!(f, "the record at byte {at} (number {kind}) is damaged")
            }
            SnapshotError::Unknown { at, kind } => write!(
                f,
                "the record at byte {at} has number {kind}, which is needed and not known here"
            ),
            SnapshotError::Version {
                record,
                found,
                known,
            } => write!(
                f,
                "record {record} has version {found}, and {known} is known here"
            ),
            SnapshotError::Body {
                record,
                error: FieldError { field, problem },
            } => {
                let field = if field.is_empty() { "the whole" } else { field };
                write!(f, "record {record}: {field}: {problem}")
            }
            SnapshotError::State { record, error } => write!(f, "record {record}: {error}"),
            SnapshotError::Missing { record } => write!(f, "record {record} is missing"),
            SnapshotError::Again { record } => {
                write!(f, "record {record} is there more often than it can be")
            }
            SnapshotError::End => {
                f.write_str("the end counts other records than there are: some are lost")
            }
            SnapshotError::Rest { bytes } => write!(f, "{bytes} bytes follow its end"),
            SnapshotError::Feature(missing) => write!(
                f,
                "its guest has been shown the CPU feature {missing}, which this CPU lacks"
            ),
        }
    }
}

impl core::error::Error for SnapshotError {}

impl SnapshotError {
    /// An error in a record's state.
    pub(super) fn state(record: &'static str) -> impl Fn(StateError) -> SnapshotError {
        move |error| SnapshotError::State { record, error }
    }
}

/// A name for the field of a state.
pub(super) fn field(name: &str, index: usize) -> String {
    alloc::format!("{name}[{index}]")
}
