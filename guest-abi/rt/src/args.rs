//! The command line: words separated by blanks, each `key=value` or `key`.

use core::str::FromStr;

/// A command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args<'a> {
    text: &'a str,
}

impl<'a> Args<'a> {
    /// Reads a command line from its text.
    #[must_use]
    pub fn new(text: &'a str) -> Args<'a> {
        Args { text }
    }

    /// The value of the last `key=value` with this key; the empty string for a bare `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        let mut found = None;
        for word in self.text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some((name, value)) if name == key => found = Some(value),
                None if word == key => found = Some(""),
                _ => {}
            }
        }
        found
    }

    /// Whether the key is there, with or without a value.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of `key` as a number or any other type, `default` if the key is not there.
    ///
    /// # Panics
    /// If the value does not parse: a scenario with a typing error must not pass for another one.
    #[must_use]
    pub fn parse<T: FromStr>(&self, key: &str, default: T) -> T {
        match self.get(key) {
            None => default,
            Some(value) => value
                .parse()
                .unwrap_or_else(|_| panic!("command line: {key}={value} is not a valid value")),
        }
    }

    /// The values of `key=a,b,c`, `default` if the key is not there.
    pub fn list(&self, key: &str, default: &'a str) -> impl Iterator<Item = &'a str> {
        let value = self.get(key).unwrap_or(default);
        value.split(',').filter(|item| !item.is_empty())
    }
}

/// The command line of this VM; empty on a host.
#[must_use]
pub fn args() -> Args<'static> {
    let Some(info) = crate::boot::try_boot_info() else {
        return Args::new("");
    };
    let bytes = info
        .cmdline_bytes
        .min(guest_abi::boot::MAX_CMDLINE_BYTES as u64) as usize;
    // SAFETY: the contract puts `cmdline_bytes` bytes at `cmdline_gpa`, in this VM's RAM below the image, mapped one to
    // one; nothing writes there (`frames::plan` starts above the image).
    let bytes = unsafe { core::slice::from_raw_parts(info.cmdline_gpa as *const u8, bytes) };
    Args::new(core::str::from_utf8(bytes).unwrap_or(""))
}

/// The value of `key` on this VM's command line, as [`Args::get`].
#[must_use]
pub fn get(key: &str) -> Option<&'static str> {
    args().get(key)
}

/// The number given for `key` on this VM's command line, as [`Args::parse`].
#[must_use]
pub fn number(key: &str, default: u64) -> u64 {
    args().parse(key, default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key_and_the_last_one_counts() {
        let args = Args::new(" role=ping  rounds=10 xrole=no role=pong verbose ");
        assert_eq!(args.get("role"), Some("pong"));
        assert_eq!(args.get("verbose"), Some(""));
        assert_eq!(args.get("verb"), None);
        assert_eq!(args.parse("rounds", 5_u32), 10);
        assert_eq!(args.parse("warm", 5_u32), 5);
    }

    #[test]
    fn lists_fall_back_to_their_default() {
        let args = Args::new("sizes=8,64");
        assert!(args.list("sizes", "1").eq(["8", "64"]));
        assert!(args.list("other", "1,2").eq(["1", "2"]));
    }

    #[test]
    #[should_panic(expected = "rounds=ten is not a valid value")]
    fn a_value_that_does_not_parse_is_not_ignored() {
        let _ = Args::new("rounds=ten").parse("rounds", 5_u32);
    }
}
