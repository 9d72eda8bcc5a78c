//! What a VM may do with VMs of its own.

use serde::{Deserialize, Serialize};

/// VMs that descend from one and live at a time, unless the scenario says otherwise.
pub const DEFAULT_CHILDREN: u32 = 16;
/// Most VMs that descend from one and live at a time.
pub const MAX_CHILDREN: u32 = 1024;

/// Something that a VM may be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Make a VM that is as it is.
    Fork,
    /// End VMs that descend from it.
    Kill,
}

impl Right {
    /// Every right.
    pub const ALL: [Right; 2] = [Right::Fork, Right::Kill];

    /// Its name in scenario files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Right::Fork => "fork",
            Right::Kill => "kill",
        }
    }

    /// The one with that name in scenario files.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Right> {
        Right::ALL.into_iter().find(|right| right.name() == name)
    }
}

/// What a VM may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Rights = Rights(0);

    /// These, and one more.
    #[must_use]
    pub const fn with(self, right: Right) -> Rights {
        Rights(self.0 | 1 << right as u8)
    }

    /// Whether that is among them.
    #[must_use]
    pub const fn has(self, right: Right) -> bool {
        self.0 >> right as u8 & 1 != 0
    }

    /// Whether there is any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.0 != 0
    }
}
