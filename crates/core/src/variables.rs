//! References to variables, `$(NAME)`, as Kubernetes defines them.

use std::collections::HashMap;

use crate::spec::EnvVar;

/// The environment that a container names for itself, expanded.
#[derive(Debug, Clone, Default)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Expands each value from the variables before it; those of the image do not count.
    pub fn of(env: &[EnvVar]) -> Self {
        let mut seen: HashMap<&str, String> = HashMap::new();
        let mut expanded = Vec::with_capacity(env.len());
        for variable in env {
            let value = expand(&variable.value, |name| seen.get(name).map(String::as_str));
            seen.insert(&variable.name, value.clone());
            expanded.push((variable.name.clone(), value));
        }
        Self(expanded)
    }

    /// Names and values, in the order in which they were given.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Expands a word of a command.
    pub fn expand(&self, word: &str) -> String {
        expand(word, |wanted| self.all().filter(|(name, _)| *name == wanted).last().map(|v| v.1))
    }
}

/// Replaces `$(NAME)`; `$$` stands for one `$`, a name that is not known stays as it is written.
fn expand<'a>(text: &str, value_of: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match value_of(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_kubernetes_defines() {
        let values = HashMap::from([("A", "1"), ("B", "$(A)"), ("EMPTY", "")]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$(B)", "$(A)"),
            ("$(MISSING)", "$(MISSING)"),
            ("$(EMPTY)", ""),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("a$", "a$"),
            ("$()", "$()"),
            ("$(A$(A))", "$(A$(A))"),
        ] {
            assert_eq!(expand(text, |name| values.get(name).copied()), expected, "{text}");
        }
    }

    #[test]
    fn a_word_sees_the_last_value_of_a_name() {
        let variable = |value: &str| EnvVar { name: "A".to_owned(), value: value.to_owned() };
        let variables = Variables::of(&[variable("1"), variable("$(A)2")]);
        assert_eq!(variables.expand("$(A)"), "12");
    }
}
