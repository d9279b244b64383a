//! A platform of the tests' own: its keys, and the tokens it gives out.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

/// The secret that the platform shares with the server.
pub(crate) const SECRET: &str = "a-secret-of-the-platform-0123456789abcdef";

/// One of the platform's keys.
pub(crate) enum Signer {
    Hs256(Vec<u8>),
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

impl Signer {
    pub(crate) fn shared() -> Self {
        Self::Hs256(SECRET.as_bytes().to_vec())
    }

    /// A new key pair, and the public part as PEM.
    pub(crate) fn new(directory: &Path, kind: &str) -> (Self, PathBuf) {
        let (private, der) =
            (directory.join(format!("{kind}.key")), directory.join(format!("{kind}.der")));
        let public = directory.join(format!("{kind}.pem"));
        let options: &[&str] = match kind {
            "rsa" => &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            "ec" => &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            _ => &["-algorithm", "ED25519"],
        };
        let openssl = |args: &[&str]| {
            let output = Command::new("openssl").args(args).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        openssl(&[&["genpkey"], options, &["-out", &path(&private)]].concat());
        openssl(&["pkey", "-in", &path(&private), "-pubout", "-out", &path(&public)]);
        let form = [
            "pkcs8",
            "-topk8",
            "-nocrypt",
            "-outform",
            "DER",
            "-in",
            &path(&private),
            "-out",
            &path(&der),
        ];
        openssl(&form);
        let der = std::fs::read(der).unwrap();
        let rng = SystemRandom::new();
        let signer = match kind {
            "rsa" => Self::Rs256(RsaKeyPair::from_pkcs8(&der).unwrap()),
            "ec" => Self::Es256(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &rng).unwrap(),
            ),
            _ => Self::EdDsa(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).unwrap()),
        };
        (signer, public)
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    /// The public part as it is published.
    pub(crate) fn jwk(&self, id: &str) -> Value {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        match self {
            Self::Hs256(secret) => json!({"kty": "oct", "kid": id, "k": text(secret)}),
            Self::Rs256(key) => {
                let public: ring::rsa::PublicKeyComponents<Vec<u8>> = key.public().into();
                json!({"kty": "RSA", "kid": id, "use": "sig", "n": text(&public.n), "e": text(&public.e)})
            }
            Self::Es256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": id, "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Self::EdDsa(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": text(key.public_key().as_ref())})
            }
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        match self {
            Self::Hs256(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, message, &mut signature).unwrap();
                signature
            }
            Self::Es256(key) => key.sign(&rng, message).unwrap().as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims, whatever they say.
    pub(crate) fn raw(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = BASE64.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// A good token with these claims besides.
    pub(crate) fn token(&self, more: &Value) -> String {
        self.raw(&json!({"alg": self.algorithm(), "typ": "JWT"}), &claims(more))
    }
}

/// Good for an hour, for nobody yet.
pub(crate) fn claims(more: &Value) -> Value {
    let mut claims = json!({ "exp": now() + 3600 });
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub(crate) fn now() -> i64 {
    stackd_core::Timestamp::now().as_second()
}
