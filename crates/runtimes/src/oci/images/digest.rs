//! Names of contents: `sha256:` and 64 lower-case hexadecimal digits.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// The SHA-256 of some content.
///
/// Other algorithms are allowed by the image format and used by nobody; an image that names one is
/// refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The text is not a digest that is understood here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a digest: sha256: and 64 lower-case hexadecimal digits are expected")]
pub struct InvalidDigest(String);

impl Digest {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(sha2::Sha256::digest(content).into())
    }

    /// The 64 digits alone, as in file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads the 64 digits alone.
    pub fn from_hex(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(shown(text));
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if !text.bytes().all(lower) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| invalid())?;
        Ok(Self(bytes))
    }

    /// `sha256:` and the first twelve digits: enough for people.
    pub fn short(&self) -> String {
        format!("sha256:{}", hex::encode(&self.0[..6]))
    }
}

/// A hostile text is shown only in part.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = text.strip_prefix("sha256:").ok_or_else(|| InvalidDigest(shown(text)))?;
        Self::from_hex(digits).map_err(|_| InvalidDigest(shown(text)))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes and counts what is read through it.
pub(super) struct HashingReader<R> {
    inner: R,
    hasher: sha2::Sha256,
    read_bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: sha2::Sha256::new(), read_bytes: 0 }
    }

    /// Reads to the end, at most `limit` bytes further, and tells the digest and the length.
    pub(super) fn finish(mut self, limit: u64) -> io::Result<(Digest, u64)> {
        let skipped = io::copy(&mut (&mut self).take(limit.saturating_add(1)), &mut io::sink())?;
        if skipped > limit {
            return Err(io::Error::other("more data than declared"));
        }
        Ok((Digest(self.hasher.finalize().into()), self.read_bytes))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.read_bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_from_what_it_prints() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn other_forms_are_refused() {
        let hex = Digest::of(b"").hex();
        let upper = hex.to_uppercase();
        for text in [
            "",
            "sha256:",
            hex.as_str(),
            &format!("sha256:{upper}"),
            &format!("sha256:{hex}0"),
            &format!("sha512:{hex}{hex}"),
            "sha256:../../../../../../../../../../../../../../../../../../../../../..",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
