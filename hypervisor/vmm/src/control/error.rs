//! Why a request was refused.

use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Longest text of an error in bytes.
pub const MAX_ERROR_TEXT_BYTES: usize = 512;

/// What kind of refusal it is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// There is no such VM, or no such vCPU of it.
    NoSuchVm,
    /// There is no such group.
    NoSuchGroup,
    /// The boot archive has no such image.
    NoSuchImage,
    /// A value that is out of range or malformed.
    Invalid,
    /// The name is taken.
    Exists,
    /// Not in this state of the VM: it is paused already, has ended, and the like.
    State,
    /// Not enough memory, or no free number, or the group is full; or the image cannot be loaded or a device not be had, for
    /// reasons that the text tells.
    Exhausted,
    /// Too many requests are still being carried out; ask again.
    Busy,
    /// The body is no request.
    Malformed,
    /// Another version of the protocol.
    Version,
    /// This build or machine cannot do it.
    Unsupported,
    /// The hypervisor failed; its log says more.
    Internal,
}

impl ErrorCode {
    /// Its name in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            ErrorCode::NoSuchVm => "no-such-vm",
            ErrorCode::NoSuchGroup => "no-such-group",
            ErrorCode::NoSuchImage => "no-such-image",
            ErrorCode::Invalid => "invalid",
            ErrorCode::Exists => "exists",
            ErrorCode::State => "state",
            ErrorCode::Exhausted => "exhausted",
            ErrorCode::Busy => "busy",
            ErrorCode::Malformed => "malformed",
            ErrorCode::Version => "version",
            ErrorCode::Unsupported => "unsupported",
            ErrorCode::Internal => "internal",
        }
    }
}

/// A refusal: a code, and a text that names the offending value and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: at most [`MAX_ERROR_TEXT_BYTES`] bytes.
    pub text: String,
}

impl ControlError {
    /// The name of a new VM is another's.
    #[must_use]
    pub fn name_is_taken(name: &str, vm: u32) -> ControlError {
        ControlError::new(
            ErrorCode::Exists,
            format!("{name:?} is the name of VM {vm}: choose another, or destroy that one"),
        )
    }

    /// An error; a text that is too long is cut.
    #[must_use]
    pub fn new(code: ErrorCode, text: impl Into<String>) -> ControlError {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT_BYTES));
        ControlError { code, text }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for ControlError {}
