//! A token as it is written: the compact form of RFC 7515, its signature verified by `ring`, which TLS
//! uses too. Nothing is ever signed here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKeyKind};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::{Map, Value};

use super::keys::Key;

/// What a token says of its signature: it chooses among the keys, and never what a key is good for.
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    /// The key's name.
    pub(super) id: Option<String>,
    /// There is something that must be understood (RFC 7515, 4.1.11).
    pub(super) is_critical: bool,
}

impl Header {
    fn of(fields: &Map<String, Value>) -> Option<Self> {
        let id = match fields.get("kid") {
            None | Some(Value::Null) => None,
            Some(id) => Some(id.as_str()?.to_owned()),
        };
        let algorithm = fields.get("alg")?.as_str()?.parse().ok()?;
        Some(Self { algorithm, id, is_critical: fields.contains_key("crit") })
    }
}

/// A token of which only the header is read.
pub(super) struct Jws<'a> {
    pub(super) header: Header,
    /// What the signature is for: the header and the claims.
    signed: &'a str,
    claims: &'a str,
    signature: &'a str,
}

impl<'a> Jws<'a> {
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = Header::of(&object(header)?)?;
        Some(Self { header, signed, claims, signature })
    }

    pub(super) fn is_signed_by(&self, key: &Key) -> bool {
        let message = self.signed.as_bytes();
        let Some(signature) = decoded(self.signature) else { return false };
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, &signature).is_ok()
        };
        // One algorithm, the key's: what the token says of itself chooses nothing.
        match (key.algorithm, key.key.kind()) {
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::verify(&key, message, &signature).is_ok()
            }
            (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
                by(&RSA_PKCS1_2048_8192_SHA256, der)
            }
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, &signature).is_ok()
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                by(&ECDSA_P256_SHA256_FIXED, point)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => by(&ED25519, point),
            _ => false,
        }
    }

    /// What it says. Only a signature makes that true.
    pub(super) fn claims(&self) -> Option<Map<String, Value>> {
        object(self.claims)
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&decoded(part)?).ok()
}

fn decoded(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}
