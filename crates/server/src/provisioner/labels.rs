//! Labels in the syntax of Kubernetes, and selectors over them.

use std::collections::BTreeMap;

use crate::fault::Fault;

/// The most labels of a stack.
pub(super) const MAX_LABELS: usize = 32;

/// Checks the labels of a request.
pub(super) fn check(labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    if labels.len() > MAX_LABELS {
        return Err(Fault::input(format_args!("labels exceeds limit (max {MAX_LABELS})")));
    }
    for (key, value) in labels {
        if !is_key(key) {
            return Err(Fault::input(format_args!("labels: {} is not a label's key", shown(key))));
        }
        if !is_value(value) {
            return Err(Fault::input(format_args!(
                "labels: {} is not a label's value",
                shown(value)
            )));
        }
    }
    Ok(())
}

/// A text of the caller, quoted and cut.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

fn is_name(text: &str) -> bool {
    let middle = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| middle(*b))
}

fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_key(text: &str) -> bool {
    let Some((prefix, name)) = text.split_once('/') else { return is_name(text) };
    let label = |part: &str| {
        is_name(part)
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    prefix.len() <= 253 && prefix.split('.').all(label) && is_name(name)
}

/// Conditions over labels that must all hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Condition>);

#[derive(Debug, PartialEq, Eq)]
enum Condition {
    Is(String, String),
    IsNot(String, String),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Reads conditions `a=b`, `a==b`, `a!=b`, `a` and `!a`, several in one text separated by
    /// commas.
    pub(super) fn read<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Self, Fault> {
        let parts = texts.flat_map(|text| text.split(',')).map(str::trim);
        parts
            .filter(|part| !part.is_empty())
            .map(Condition::read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Is(key, value) => labels.get(key) == Some(value),
            Condition::IsNot(key, value) => labels.get(key) != Some(value),
            Condition::Exists(key) => labels.contains_key(key),
            Condition::Absent(key) => !labels.contains_key(key),
        })
    }
}

impl Condition {
    fn read(text: &str) -> Result<Self, Fault> {
        let pair = |operator: &str| {
            text.split_once(operator)
                .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        };
        let condition = if let Some((key, value)) = pair("!=") {
            Self::IsNot(key, value)
        } else if let Some((key, value)) = pair("==").or_else(|| pair("=")) {
            Self::Is(key, value)
        } else if let Some(key) = text.strip_prefix('!') {
            Self::Absent(key.trim().to_owned())
        } else {
            Self::Exists(text.to_owned())
        };
        let good = match &condition {
            Self::Is(key, value) | Self::IsNot(key, value) => is_key(key) && is_value(value),
            Self::Exists(key) | Self::Absent(key) => is_key(key),
        };
        if good {
            return Ok(condition);
        }
        let text = shown(text);
        Err(Fault::input(format_args!("label: {text} is not a condition such as key=value")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn labels_follow_the_syntax_of_kubernetes() {
        let long = "a".repeat(63);
        let good = labels(&[("a", ""), ("example.org/A_b.c-d", "1.0_x"), (&long, &long)]);
        assert_eq!(check(&good), Ok(()));
        for (key, value) in [
            ("", "x"),
            ("-a", "x"),
            ("a-", "x"),
            ("a b", "x"),
            ("/a", "x"),
            ("a/", "x"),
            ("A.b/c", "x"),
            ("a/b/c", "x"),
            ("ü", "x"),
            (&format!("{long}a"), "x"),
            ("a", "-"),
            ("a", "x y"),
            ("a", &format!("{long}a")),
        ] {
            assert!(check(&labels(&[(key, value)])).is_err(), "{key:?}: {value:?}");
        }
        let many: BTreeMap<_, _> = (0..33).map(|n| (format!("l{n}"), String::new())).collect();
        assert_eq!(check(&many), Err(Fault::input("labels exceeds limit (max 32)")));
    }

    #[test]
    fn a_selector_holds_when_all_its_conditions_do() {
        let all = labels(&[("team", "red"), ("round", "2")]);
        let matches = |text: &[&str]| Selector::read(text.iter().copied()).unwrap().matches(&all);
        assert!(matches(&[]));
        assert!(matches(&["team=red", "round == 2"]));
        assert!(matches(&["team=red,round!=3,team,!old"]));
        assert!(!matches(&["team=red,round=3"]));
        assert!(!matches(&["team!=red"]));
        assert!(!matches(&["old"]));
        assert!(!matches(&["!team"]));
        for wrong in ["=x", "a=b=c", "a b", "!", "a in (b)"] {
            assert!(Selector::read([wrong].into_iter()).is_err(), "{wrong:?}");
        }
    }
}
