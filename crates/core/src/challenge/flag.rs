//! The flag of a challenge: what its containers are told, and a player has to find.
//!
//! It is one text for everybody, or one of each owner's own, derived from the server's secret. What
//! is derived needs no row and is the same after every restart; a platform that knows the secret
//! can derive it, too.

use std::borrow::Cow;
use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ChallengeId, Subject};
use crate::secret::Secret;
use crate::spec::{SecretVariable, StackSpec};

/// What a template replaces by what is derived.
const HMAC: &str = "<hmac>";
/// The template of a flag that says nothing.
const TEMPLATE: &str = "flag{<hmac>}";
/// How many bytes of the HMAC a flag shows, as twice as many hexadecimal digits.
const SHOWN_BYTES: usize = 16;
/// The variables that a flag is in where it names none.
const VARIABLES: [&str; 2] = ["FLAG", "ISOLATEX_FLAG"];
/// How the fingerprint begins that stands for a flag wherever challenges are shown.
const FINGERPRINT: &str = "sha256:";
/// The most characters of a flag or its template.
const MAX_LENGTH: usize = 1024;

/// `flag` of `extra_config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Flag {
    /// One flag for everybody; one of each owner's own where absent.
    value: Option<Secret>,
    template: String,
    variables: Vec<String>,
    containers: Vec<String>,
}

/// A flag as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    value: Option<Secret>,
    template: Option<String>,
    env: Option<Vec<String>>,
    #[serde(default)]
    containers: Vec<String>,
}

fn is_line(text: &str) -> bool {
    let length = text.chars().count();
    (1..=MAX_LENGTH).contains(&length) && !text.chars().any(char::is_control)
}

fn is_variable(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The texts are never part of an error: it may end in a log.
impl TryFrom<Written> for Flag {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { value, template, env, containers } = written;
        let wrong = |text: &str| Err(format!("flag: {text}"));
        let line = format!("must be one line of 1 to {MAX_LENGTH} characters");
        match (&value, &template) {
            (Some(_), Some(_)) => {
                return wrong("value and template exclude each other");
            }
            (Some(value), None) if !is_line(value.expose()) => {
                return wrong(&format!("value {line}"));
            }
            (Some(value), None) if value.expose().starts_with(FINGERPRINT) => {
                return wrong(
                    "value is the fingerprint that stands for a flag in answers; give the flag",
                );
            }
            (None, Some(template)) if !is_line(template) => {
                return wrong(&format!("template {line}"));
            }
            (None, Some(template)) if !template.contains(HMAC) => {
                return wrong("template must contain <hmac>; a flag for everybody is a value");
            }
            _ => {}
        }
        let variables =
            env.unwrap_or_else(|| VARIABLES.iter().map(|name| (*name).to_owned()).collect());
        if variables.is_empty() || !variables.iter().all(|name| is_variable(name)) {
            return wrong("env must name variables, of letters, digits and _");
        }
        for names in [&variables, &containers] {
            if names.iter().enumerate().any(|(at, name)| names[..at].contains(name)) {
                return wrong("a name stands twice");
            }
        }
        let template = template.unwrap_or_else(|| TEMPLATE.to_owned());
        Ok(Self { value, template, variables, containers })
    }
}

impl Flag {
    /// Whether every owner has another one.
    pub fn is_derived(&self) -> bool {
        self.value.is_none()
    }

    /// Whether these containers can be told it.
    pub fn fits(&self, spec: &StackSpec) -> Result<(), String> {
        let known = |name: &String| spec.all_containers().any(|container| container.name == *name);
        if let Some(name) = self.containers.iter().find(|name| !known(name)) {
            return Err(format!("flag: there is no container {name:?}"));
        }
        let told = |name: &String| self.containers.is_empty() || self.containers.contains(name);
        for container in spec.all_containers().filter(|container| told(&container.name)) {
            if let Some(twice) = container.env.iter().find(|v| self.variables.contains(&v.name)) {
                return Err(format!("flag: env says already what {} is", twice.name));
            }
        }
        Ok(())
    }

    /// The flag of an owner; none where it is to be derived and there is no secret.
    pub fn of(
        &self,
        secret: Option<&Secret>,
        challenge: &ChallengeId,
        owner: &Subject,
    ) -> Option<Secret> {
        if let Some(value) = &self.value {
            return Some(value.clone());
        }
        // A key of any length is one.
        let mut mac = Hmac::<Sha256>::new_from_slice(secret?.expose().as_bytes()).ok()?;
        // A slug has no line break, so that no two pairs give the same text.
        mac.update(format!("{challenge}\n{owner}").as_bytes());
        let derived = hex(&mac.finalize().into_bytes()[..SHOWN_BYTES]);
        Some(self.template.replace(HMAC, &derived).into())
    }

    /// How the containers of a stack are told it.
    pub fn variables(&self, flag: &Secret) -> Vec<SecretVariable> {
        let variable = |name: &String| SecretVariable {
            name: name.clone(),
            value: flag.clone(),
            containers: self.containers.clone(),
        };
        self.variables.iter().map(variable).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn fingerprint(flag: &str) -> String {
    format!("{FINGERPRINT}{}", hex(&Sha256::digest(flag)))
}

/// The flag that stands in an `extra_config`, where one does.
fn value_in(extra: &mut Value) -> Option<&mut Value> {
    extra.get_mut("flag")?.get_mut("value").filter(|value| value.is_string())
}

/// An `extra_config` as it may be shown: a fingerprint in place of the flag. Whoever has the flag
/// can tell that it is the same.
pub fn concealed(extra: &str) -> Cow<'_, str> {
    let Ok(mut shown) = serde_json::from_str::<Value>(extra) else { return extra.into() };
    match value_in(&mut shown) {
        Some(value) => {
            let flag = value.as_str().unwrap_or_default();
            if !flag.starts_with(FINGERPRINT) {
                *value = fingerprint(flag).into();
            }
            shown.to_string().into()
        }
        None => extra.into(),
    }
}

/// An `extra_config` that was shown and comes back: the fingerprint of the flag that there is
/// stands for that flag.
pub fn revealed(extra: String, before: Option<&str>) -> String {
    let flag = before.and_then(|before| {
        let mut before = serde_json::from_str::<Value>(before).ok()?;
        value_in(&mut before).map(Value::take)
    });
    let (Some(flag), Ok(mut new)) = (flag, serde_json::from_str::<Value>(&extra)) else {
        return extra;
    };
    match value_in(&mut new) {
        Some(value) if *value == fingerprint(flag.as_str().unwrap_or_default()) => {
            *value = flag;
            new.to_string()
        }
        _ => extra,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::ExtraConfig;

    fn flag(text: &str) -> Flag {
        let extra = format!("{{\"flag\":{text}}}");
        ExtraConfig::read(&extra).unwrap().flag.unwrap()
    }

    fn of(flag: &Flag, challenge: &str, owner: Subject) -> String {
        let secret = Secret::from("a-secret-of-the-server-0123456789");
        let derived = flag.of(Some(&secret), &challenge.parse().unwrap(), &owner).unwrap();
        derived.expose().to_owned()
    }

    #[test]
    fn every_owner_has_a_flag_of_their_own() {
        let user = |name: &str| Subject::User(name.to_owned());
        let template = flag(r#"{"template":"ctf{web_<hmac>}"}"#);
        // printf 'web100\nuser:7' | openssl dgst -sha256 -hmac a-secret-of-the-server-0123456789
        let expected = "ctf{web_225312c401066bd480a30449de6e8c1f}";
        assert_eq!(of(&template, "web100", user("7")), expected);
        let others = [
            of(&template, "web100", user("8")),
            of(&template, "web101", user("7")),
            of(&template, "web100", Subject::Team("7".to_owned())),
        ];
        assert!(!others.contains(&expected.to_owned()));
        assert!(flag("{}").is_derived());
        assert_eq!(flag("{}").of(None, &"web100".parse().unwrap(), &user("7")), None);
        let fixed = flag(r#"{"value":"ctf{x}"}"#);
        assert_eq!(of(&fixed, "web100", user("7")), "ctf{x}");
        assert!(!format!("{fixed:?}").contains("ctf"));
    }

    #[test]
    fn what_cannot_be_a_flag_is_refused_and_not_repeated() {
        for (text, part) in [
            (r#"{"value":""}"#, "value must be one line"),
            (r#"{"value":"hush\n"}"#, "value must be one line"),
            (r#"{"value":"sha256:hush"}"#, "fingerprint"),
            (r#"{"template":"hush"}"#, "must contain <hmac>"),
            (r#"{"value":"hush","template":"hush<hmac>"}"#, "exclude each other"),
            (r#"{"env":[]}"#, "env must name variables"),
            (r#"{"env":["A-B"]}"#, "env must name variables"),
            (r#"{"env":["A","A"]}"#, "a name stands twice"),
            (r#"{"file":"/flag"}"#, "unknown field `file`"),
        ] {
            let error = ExtraConfig::read(&format!("{{\"flag\":{text}}}")).unwrap_err();
            assert!(error.contains(part) && !error.contains("hush"), "{text}: {error}");
        }
    }

    #[test]
    fn a_shown_flag_is_a_fingerprint_and_comes_back_as_the_flag() {
        let extra = r#"{"flag":{"value":"ctf{x}"},"version":1}"#;
        let shown = concealed(extra).into_owned();
        assert!(!shown.contains("ctf{x}") && shown.contains("sha256:"), "{shown}");
        assert_eq!(concealed(&shown), shown);
        assert_eq!(revealed(shown.clone(), Some(extra)), extra);
        assert_eq!(revealed(shown.clone(), Some("{}")), shown);
        assert_eq!(revealed(shown.clone(), None), shown);
        let derived = r#"{ "flag": {} }"#;
        assert_eq!(concealed(derived), derived);
        assert_eq!(revealed(extra.to_owned(), Some(&shown)), extra);
    }
}
