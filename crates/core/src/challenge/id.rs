//! How a challenge is named: by a slug that people read, and by a number that never changes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A challenge's slug: a DNS label with at least one letter, so that it is never taken for a
/// number, and can be a part of a host's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChallengeId(String);

/// The text cannot be a challenge's slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChallengeId {
    /// Not a DNS label with a letter.
    #[error(
        "must be at most 63 of a-z, 0-9 and -, with a letter or digit at both ends and at least \
         one letter"
    )]
    Syntax,
    /// A name that means something else where challenges are named.
    #[error("is reserved")]
    Reserved,
}

/// Paths beside `/challenges/{id}` that a slug must not hide.
const RESERVED: &[&str] = &["detect-protocol"];

impl ChallengeId {
    /// The slug.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChallengeId {
    type Err = InvalidChallengeId;

    fn from_str(text: &str) -> Result<Self, InvalidChallengeId> {
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let label = bytes.len() <= 63
            && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric);
        if !label || !bytes.iter().any(u8::is_ascii_lowercase) {
            return Err(InvalidChallengeId::Syntax);
        }
        if RESERVED.contains(&text) {
            return Err(InvalidChallengeId::Reserved);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ChallengeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ChallengeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A challenge's number, above 0. It fits a JSON number of any client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChallengeNumber(u64);

impl ChallengeNumber {
    /// The greatest number: 2^53 − 1, which JavaScript still tells from its neighbours.
    pub const MAX: u64 = (1 << 53) - 1;

    /// A number above 0, if it is one.
    pub const fn new(number: u64) -> Option<Self> {
        if number > 0 && number <= Self::MAX { Some(Self(number)) } else { None }
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ChallengeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ChallengeNumber {
    type Err = ();

    /// Decimal digits only: no sign, no spaces.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok().and_then(Self::new)).flatten().ok_or(())
    }
}

impl Serialize for ChallengeNumber {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

/// A challenge as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChallengeRef {
    /// By its slug.
    Id(ChallengeId),
    /// By its number: all digits.
    Number(ChallengeNumber),
}

impl FromStr for ChallengeRef {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Number);
        }
        text.parse().map(Self::Id).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_a_dns_label_with_a_letter() {
        for text in ["web100", "a", "1a", "no-sql-injection-2", &"x".repeat(63)] {
            assert_eq!(text.parse::<ChallengeId>().map(|id| id.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "12", "1-2", "Web", "a_b", "-a", "a-", "a.b", "ä", &"x".repeat(64)] {
            assert_eq!(text.parse::<ChallengeId>(), Err(InvalidChallengeId::Syntax), "{text:?}");
        }
        assert_eq!("detect-protocol".parse::<ChallengeId>(), Err(InvalidChallengeId::Reserved));
    }

    #[test]
    fn a_path_of_digits_is_a_number() {
        assert_eq!("12".parse(), Ok(ChallengeRef::Number(ChallengeNumber(12))));
        assert_eq!("web".parse(), Ok(ChallengeRef::Id(ChallengeId("web".to_owned()))));
        for text in ["", "0", "-1", "+1", "1.0", "9007199254740992", "99999999999999999999"] {
            assert_eq!(text.parse::<ChallengeRef>(), Err(()), "{text:?}");
            assert_eq!(text.parse::<ChallengeNumber>(), Err(()), "{text:?}");
        }
    }
}
