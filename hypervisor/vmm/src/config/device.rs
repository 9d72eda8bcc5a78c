//! The devices of a VM: network cards, a source of entropy, a console.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most network cards of a VM.
pub const MAX_NICS: usize = 8;
/// Least MTU (RFC 791) and most: a frame of that and its headers is no longer than a segment of segmentation offload.
pub const MTU_RANGE: core::ops::RangeInclusive<u16> = 68..=65_521;
/// Least rate of a card in bits a second.
pub const MIN_RATE: u64 = 8_000;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that card `index` of a VM has unless the scenario gives one: locally administered, by the VM's number.
    #[must_use]
    pub const fn of(vm_id: u16, index: u8) -> Mac {
        let [high, low] = vm_id.to_be_bytes();
        Mac([0x02, b'N', b'G', high, low, index])
    }

    /// Whether a card can have it: it names one station, and is not all zeros.
    #[must_use]
    pub fn is_station(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMac;

impl fmt::Display for NoMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write six bytes in hex, such as \"02:00:00:00:00:01\"")
    }
}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Mac, NoMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NoMac)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(NoMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NoMac)?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(NoMac),
        }
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// The segment it is on; `None` for that of the VM's group, which has the group's name.
    pub segment: Option<String>,
    /// Its address; `None` for [`Mac::of`].
    pub mac: Option<Mac>,
    /// The largest packet in bytes, without its Ethernet header, if the guest is to be told.
    pub mtu: Option<u16>,
    /// Offers open checksums and large TCP segments.
    pub offloads: bool,
    /// Drops frames whose source is not its own address.
    pub check_source: bool,
    /// The most it may send, in bits a second.
    pub rate: Option<u64>,
}

impl Default for NicConfig {
    fn default() -> NicConfig {
        NicConfig {
            segment: None,
            mac: None,
            mtu: None,
            offloads: true,
            check_source: false,
            rate: None,
        }
    }
}

impl NicConfig {
    /// The segment it is on in a VM of that group; `None` if there is none.
    #[must_use]
    pub fn segment<'a>(&'a self, group: Option<&'a str>) -> Option<&'a str> {
        self.segment.as_deref().or(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn addresses_are_six_bytes_in_hex() {
        let mac: Mac = "02:0a:FF:00:01:7e".parse().expect("is one");
        assert_eq!(mac, Mac([2, 10, 255, 0, 1, 0x7E]));
        assert_eq!(mac.to_string(), "02:0a:ff:00:01:7e");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02-00-00-00-00-01",
            "+2:00:00:00:00:01",
            "0g:00:00:00:00:01",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(NoMac), "{bad}");
        }
    }

    #[test]
    fn cards_of_all_vms_have_different_addresses_of_their_own() {
        assert!(Mac::of(65_535, 7).is_station());
        assert_ne!(Mac::of(1, 0), Mac::of(256, 0));
        assert_ne!(Mac::of(1, 0), Mac::of(1, 1));
        assert!(!Mac([1, 0, 0, 0, 0, 0]).is_station() && !Mac([0; 6]).is_station());
    }
}
