//! Fields of the tree with the path that leads to them, so that every refusal says where.

use super::error::PodError;
use super::yaml::Value;
use crate::quantity::Quantity;

/// The longest part of a caller's key that is shown in a path.
const MAX_KEY_CHARS: usize = 80;

/// A value that is there (not null), and where.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    value: &'a Value,
}

/// A mapping, and where.
#[derive(Debug, Clone)]
pub(super) struct Object<'a> {
    path: String,
    entries: &'a [(String, Value)],
}

impl<'a> Field<'a> {
    /// The field is known, and its value cannot be used.
    pub(super) fn refused(&self, why: impl Into<String>) -> PodError {
        PodError::Unsupported { path: self.path.clone(), why: Some(why.into()) }
    }

    fn wrong_type(&self, expected: &str) -> PodError {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        };
        PodError::Yaml(format!("{} must be {expected}, not {found}", self.path))
    }

    pub(super) fn text(&self) -> Result<&'a str, PodError> {
        match self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, PodError> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.wrong_type("a boolean")),
        }
    }

    pub(super) fn int(&self) -> Result<i128, PodError> {
        match self.value {
            Value::Int(value) => Ok(*value),
            // JSON does not tell 80 from 80.0 either.
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => Ok(*value as i128),
            _ => Err(self.wrong_type("an integer")),
        }
    }

    /// An integer or a text, as a probe's port is.
    pub(super) fn int_or_text(&self) -> Result<Result<i128, &'a str>, PodError> {
        match self.value {
            Value::Text(text) => Ok(Err(text)),
            Value::Int(value) => Ok(Ok(*value)),
            _ => Err(self.wrong_type("an integer or a string")),
        }
    }

    pub(super) fn quantity(&self) -> Result<Quantity, PodError> {
        let text = match self.value {
            Value::Text(text) => text.clone(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            _ => return Err(self.wrong_type("a quantity")),
        };
        text.parse().map_err(|error| {
            let text: String = text.chars().take(MAX_KEY_CHARS).collect();
            PodError::Yaml(format!("{}: {text:?} {error}", self.path))
        })
    }

    pub(super) fn object(&self) -> Result<Object<'a>, PodError> {
        match self.value {
            Value::Map(entries) => Ok(Object { path: self.path.clone(), entries }),
            _ => Err(self.wrong_type("a mapping")),
        }
    }

    /// The items of a list; none of them may be null.
    pub(super) fn list(&self) -> Result<Vec<Field<'a>>, PodError> {
        let Value::List(items) = self.value else { return Err(self.wrong_type("a list")) };
        let field = |(index, value)| Field { path: format!("{}[{index}]", self.path), value };
        Ok(items.iter().enumerate().map(field).collect())
    }

    /// A list of texts that a program can be given.
    pub(super) fn argument_list(&self) -> Result<Vec<String>, PodError> {
        self.list()?.iter().map(|item| item.argument().map(str::to_owned)).collect()
    }

    /// A text that a program can be given: the kernel ends each at its first NUL.
    pub(super) fn argument(&self) -> Result<&'a str, PodError> {
        let text = self.text()?;
        if text.contains('\0') {
            return Err(self.refused("must not contain a NUL character"));
        }
        Ok(text)
    }
}

impl<'a> Object<'a> {
    /// The whole document.
    pub(super) fn root(value: &'a Value) -> Result<Self, PodError> {
        match value {
            Value::Map(entries) => Ok(Self { path: String::new(), entries }),
            Value::Null => Err(PodError::Yaml("the document is empty".to_owned())),
            _ => Err(PodError::Yaml("the document must be a mapping".to_owned())),
        }
    }

    fn path_of(&self, key: &str) -> String {
        let shown: String = key.chars().take(MAX_KEY_CHARS).collect();
        let simple = |c: char| c.is_ascii_alphanumeric() || c == '-';
        match (self.path.is_empty(), !key.is_empty() && key.chars().all(simple)) {
            (true, true) => shown,
            (false, true) => format!("{}.{shown}", self.path),
            (_, false) => format!("{}[{shown:?}]", self.path),
        }
    }

    /// Refuses the first key that is not one of `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), PodError> {
        match self.entries.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(PodError::Unsupported { path: self.path_of(key), why: None }),
            None => Ok(()),
        }
    }

    /// A field that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let (key, value) = self.entries.iter().find(|(k, _)| k == key)?;
        match value {
            Value::Null => None,
            value => Some(Field { path: self.path_of(key), value }),
        }
    }

    /// Every key with its field, null included.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Field<'a>)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), Field { path: self.path_of(key), value }))
    }

    /// A text that is neither absent nor empty.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, PodError> {
        let text = self.get(key).map(|field| field.text()).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A text for a program, neither absent nor empty.
    pub(super) fn argument(&self, key: &str) -> Result<Option<(Field<'a>, &'a str)>, PodError> {
        let Some(field) = self.get(key) else { return Ok(None) };
        let text = field.argument()?;
        Ok((!text.is_empty()).then_some((field, text)))
    }

    /// `false` where absent.
    pub(super) fn bool(&self, key: &str) -> Result<bool, PodError> {
        self.get(key).map_or(Ok(false), |field| field.bool())
    }

    /// The items of a list; none where absent.
    pub(super) fn list(&self, key: &str) -> Result<Vec<Field<'a>>, PodError> {
        self.get(key).map_or(Ok(Vec::new()), |field| field.list())
    }

    /// A list of texts for a program; an empty one counts as absent.
    pub(super) fn argument_list(&self, key: &str) -> Result<Option<Vec<String>>, PodError> {
        let list = self.get(key).map(|field| field.argument_list()).transpose()?;
        Ok(list.filter(|list| !list.is_empty()))
    }

    /// One of a few words; an empty text counts as absent.
    pub(super) fn word<T>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, PodError>
    where
        T: Copy,
    {
        let Some(text) = self.text(key)? else { return Ok(None) };
        if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(Some(value));
        }
        let words: Vec<_> = words.iter().map(|&(word, _)| word).collect();
        let why = format!("must be one of {}", words.join(", "));
        Err(PodError::Unsupported { path: self.path_of(key), why: Some(why) })
    }

    /// This object, as a value that cannot be used.
    pub(super) fn refused(&self, why: impl Into<String>) -> PodError {
        PodError::Unsupported { path: self.path.clone(), why: Some(why.into()) }
    }
}
