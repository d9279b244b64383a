//! Lengths of time as people write them: whole seconds (`60`) or Go's form (`1m30s`, `500ms`).
//!
//! Every setting and every parameter that is a length of time is read here, so that all of them
//! understand the same words. A setting uses it by `#[serde(with = "stackd_core::duration")]`.

use std::fmt;
use std::time::Duration;

use serde::{Deserializer, Serializer, de};

/// The text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time: write whole seconds (60) or a form such as 1m30s or 500ms")]
pub struct InvalidDuration(String);

/// Units from the greatest, in nanoseconds.
const UNITS: [(&str, u128); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

/// Reads whole seconds or a Go-style length of time. Never negative.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    read(text.trim()).ok_or_else(|| InvalidDuration(text.chars().take(64).collect()))
}

fn read(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    let mut nanos: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let (_, unit_nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        nanos = nanos.checked_add(scaled(number, *unit_nanos)?)?;
        rest = tail;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
}

/// `number` units in nanoseconds, exactly; digits below a nanosecond are dropped.
fn scaled(number: &str, unit_nanos: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Fifteen digits are finer than a nanosecond of an hour.
    let fraction = fraction.get(..15).unwrap_or(fraction);
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()? * unit_nanos / 10u128.pow(fraction.len() as u32)
    };
    whole.checked_mul(unit_nanos)?.checked_add(part)
}

/// Shows a length of time in the form that [`parse`] reads, without parts that are zero.
pub fn show(duration: Duration) -> String {
    let mut left = duration.as_nanos();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (name, unit) in UNITS.iter().filter(|(name, _)| *name != "µs") {
        let count = left / unit;
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            left %= unit;
        }
    }
    text
}

/// Writes a setting in the form of [`show`].
pub fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&show(*duration))
}

/// Reads a setting: a whole number of seconds, or a text that [`parse`] understands.
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("whole seconds, or a length of time such as \"1m30s\"")
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
            Ok(Duration::from_secs(seconds))
        }

        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
            u64::try_from(seconds)
                .map(Duration::from_secs)
                .map_err(|_| E::custom("a length of time is not negative"))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text).map_err(E::custom)
        }
    }

    d.deserialize_any(Visitor)
}

/// A setting that may be absent: `#[serde(with = "stackd_core::duration::option")]`.
pub mod option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Given(#[serde(with = "super")] Duration);

    /// Writes the form of [`super::show`], or nothing.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        duration.map(Given).serialize(s)
    }

    /// Reads what [`super::deserialize`] reads, or nothing.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Given>::deserialize(d)?.map(|given| given.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_go_forms_are_read() {
        let cases = [
            ("60", Duration::from_secs(60)),
            ("0", Duration::ZERO),
            ("1m", Duration::from_secs(60)),
            (" 1m30s ", Duration::from_secs(90)),
            ("1.5h", Duration::from_secs(5400)),
            (".5s", Duration::from_millis(500)),
            ("2h0m0.25s", Duration::from_millis(7_200_250)),
            ("100ms", Duration::from_millis(100)),
            ("3µs", Duration::from_micros(3)),
            ("3us7ns", Duration::from_nanos(3007)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let far = "99999999999999999999999999999999999999999h";
        for text in ["", " ", "-1", "-1s", "1 m", "1d", "s", ".", ".s", "1..5s", "1.5", "5m3", far]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        let cases = [(0, "0s"), (90_000, "1m30s"), (7_200_250, "2h250ms"), (1, "1ms")];
        for (millis, text) in cases {
            let duration = Duration::from_millis(millis);
            assert_eq!(show(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }
}
