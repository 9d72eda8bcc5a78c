//! Sizes and times as people write them.

use std::time::Duration;

/// Bytes from `512M`: a number and K, M or G, powers of 1024. The error says what would be right.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last() {
        Some(b'K' | b'k') => 10,
        Some(b'M' | b'm') => 20,
        Some(b'G' | b'g') => 30,
        _ => return Err(wrong_size(text)),
    };
    let digits = &text[..text.len() - 1];
    let number: u64 = digits.trim_end().parse().map_err(|_| wrong_size(text))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is more memory than any machine can address; write a size such as \"128M\" or \"1G\""))
}

fn wrong_size(text: &str) -> String {
    format!("{text:?} is no size; write a whole number with K, M or G, such as \"128M\" or \"1G\"")
}

/// A time from `60s` or `5m`. The error says what would be right.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is no time; write whole seconds or minutes, at least one, such as \"60s\" or \"5m\""
        )
    };
    let (digits, seconds_each) = match text.bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        _ => return Err(wrong()),
    };
    let number: u64 = digits.trim_end().parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds_each) {
        None | Some(0) => Err(wrong()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// Bits a second from `100M`: a number and K, M or G, powers of 1000. The error says what would be right.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is no rate; write whole bits a second with K, M or G (thousands), such as \"100M\""
        )
    };
    let factor = match text.bytes().last() {
        Some(b'K' | b'k') => 1_000,
        Some(b'M' | b'm') => 1_000_000,
        Some(b'G' | b'g') => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1]
        .trim_end()
        .parse()
        .map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Microseconds from `10ms` or `500us`. The error says what would be right.
pub(crate) fn parse_micros(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!("{text:?} is no time slice; write whole ms or us, such as \"10ms\" or \"500us\"")
    };
    let (digits, micros_each) = match (text.strip_suffix("ms"), text.strip_suffix("us")) {
        (Some(digits), _) => (digits, 1000),
        (_, Some(digits)) => (digits, 1),
        _ => return Err(wrong()),
    };
    let number: u32 = digits.trim_end().parse().map_err(|_| wrong())?;
    number.checked_mul(micros_each).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slices_are_told_in_milliseconds_or_microseconds() {
        assert_eq!(parse_micros("10ms"), Ok(10_000));
        assert_eq!(parse_micros("500 us"), Ok(500));
        for bad in ["", "10", "1.5ms", "-1us", "3s", "5000000ms"] {
            assert!(
                parse_micros(bad).is_err_and(|error| error.contains("10ms")),
                "{bad}"
            );
        }
    }

    #[test]
    fn rates_are_in_thousands_of_bits() {
        assert_eq!(parse_rate("100M"), Ok(100_000_000));
        assert_eq!(parse_rate("9 k"), Ok(9_000));
        for bad in ["", "M", "100", "1.5G", "-1M", "10Mbit", "99999999999G", "é"] {
            assert!(
                parse_rate(bad).is_err_and(|error| error.contains("100M")),
                "{bad}"
            );
        }
    }

    #[test]
    fn sizes_need_a_unit_and_are_powers_of_1024() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("4 g"), Ok(4 << 30));
        assert_eq!(parse_bytes("64K"), Ok(64 << 10));
        for bad in [
            "",
            "M",
            "512",
            "1.5G",
            "-1M",
            "128MB",
            "1T",
            "99999999999G",
            "é",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_need_a_unit_and_are_not_zero() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "60", "0s", "1h", "-5s", "s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_stops_us(text in ".{0,20}") {
            let _ = parse_bytes(&text);
            let _ = parse_duration(&text);
            let _ = parse_rate(&text);
        }
    }
}
