//! Names of images: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;

use oci_spec::distribution::Reference;

use super::digest::Digest;
use super::error::ImageError;

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    reference: Reference,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Reads a reference as people write it.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let invalid = |reason: String| ImageError::InvalidReference {
            reference: text.chars().take(300).collect(),
            reason,
        };
        let reference: Reference =
            text.parse().map_err(|error: oci_spec::distribution::ParseError| {
                // The library has only one word for what people get wrong most.
                if text.bytes().any(|b| b.is_ascii_uppercase()) && !text.contains('@') {
                    invalid(format!("{error} (the repository must be in lower case)"))
                } else {
                    invalid(error.to_string())
                }
            })?;
        let digest = reference
            .digest()
            .map(|digest| digest.parse::<Digest>().map_err(|error| invalid(error.to_string())))
            .transpose()?;
        Ok(Self { reference, digest })
    }

    /// The registry, for example `docker.io` or `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// The tag, where it has one.
    pub fn tag(&self) -> Option<&str> {
        self.reference.tag()
    }

    /// The digest that it is pinned to, where it is.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The key under which the store knows it: a digest outweighs a tag.
    pub fn key(&self) -> String {
        match self.digest {
            Some(digest) => {
                format!("{}/{}@{digest}", self.reference.registry(), self.reference.repository())
            }
            None => self.reference.whole(),
        }
    }

    /// As short as people write it: without the default registry.
    pub fn familiar(&self) -> String {
        familiar(&self.reference.whole())
    }

    pub(super) fn oci(&self) -> &Reference {
        &self.reference
    }
}

/// Leaves out the default registry of a normalised reference.
pub(super) fn familiar(whole: &str) -> String {
    whole
        .strip_prefix("docker.io/library/")
        .or_else(|| whole.strip_prefix("docker.io/"))
        .unwrap_or(whole)
        .to_owned()
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.reference, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised() {
        let digest = Digest::of(b"").to_string();
        for (text, key, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:stable", "docker.io/library/nginx:stable", "nginx:stable"),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
        ] {
            let reference = ImageRef::parse(text).unwrap();
            assert_eq!(reference.key(), key);
            assert_eq!(reference.familiar(), familiar);
        }
        for text in [format!("nginx@{digest}"), format!("nginx:1.2@{digest}")] {
            let reference = ImageRef::parse(&text).unwrap();
            assert_eq!(reference.key(), format!("docker.io/library/nginx@{digest}"));
            assert_eq!(reference.digest(), Some(Digest::of(b"")));
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let short = format!("nginx@sha256:{}", "a".repeat(32));
        let long = format!("nginx@sha512:{}", "a".repeat(128));
        for text in ["", " ", "Nginx", "nginx:", "nginx:a b", "../x", "/x", "x//y", &short, &long] {
            assert!(ImageRef::parse(text).is_err(), "{text:?}");
        }
    }
}
