//! Typed identifiers. Each prints as its documents show it and parses only from that exact form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is not an identifier of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} id")]
pub struct InvalidId {
    kind: &'static str,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u64);

        impl $name {
            /// Makes an id from 64 bits, which must come from a random source.
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The 64 bits behind the id.
            pub const fn bits(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:016x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { kind: $kind };
                let digits = text.strip_prefix($prefix).ok_or(invalid.clone())?;
                let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if digits.len() != 16 || !digits.bytes().all(lower_hex) {
                    return Err(invalid);
                }
                u64::from_str_radix(digits, 16).map(Self).map_err(|_| invalid)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// A stack: `stack-` and 16 hexadecimal digits. The provisioner shows it as `pod_id` too.
    StackId,
    "stack",
    "stack-"
);

hex_id!(
    /// A batch-delete job: `job-` and 16 hexadecimal digits.
    JobId,
    "job",
    "job-"
);

impl StackId {
    /// The name of the stack's service in the provisioner's documents.
    pub fn service_name(self) -> String {
        format!("svc-{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_from_what_it_prints() {
        let id = StackId::from_bits(0x716b_6384_dd47_7b0b);
        assert_eq!(id.to_string(), "stack-716b6384dd477b0b");
        assert_eq!("stack-716b6384dd477b0b".parse(), Ok(id));
        assert_eq!(id.service_name(), "svc-stack-716b6384dd477b0b");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "stack-",
            "stack-1",
            "stack-716B6384DD477B0B",
            "stack-716b6384dd477b0b0",
            "stack-+16b6384dd477b0b",
            "job-716b6384dd477b0b",
            "716b6384dd477b0b",
        ] {
            assert!(text.parse::<StackId>().is_err(), "{text:?}");
        }
    }
}
