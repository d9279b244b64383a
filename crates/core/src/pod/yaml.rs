//! YAML text to a tree of values, within bounds: a small text must not become a large tree.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Options, UserMessageFormatter};

use super::error::PodError;

/// The largest Pod that is read.
const MAX_BYTES: usize = 64 * 1024;
/// The most bytes of text in the tree, aliases expanded.
const MAX_EXPANDED_BYTES: usize = 2 * MAX_BYTES;
/// The most values in the tree, aliases expanded.
const MAX_NODES: usize = 20_000;
/// The deepest nesting. A Pod's own fields need nine.
const MAX_DEPTH: usize = 32;
/// The most anchors, and per anchor the most aliases.
const MAX_ANCHORS: usize = 64;
/// The longest part of a parser's message that is passed on.
const MAX_MESSAGE_CHARS: usize = 300;

/// A value as YAML knows it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// In the order written; no key twice.
    Map(Vec<(String, Value)>),
}

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Value, PodError> {
    if text.len() > MAX_BYTES {
        return Err(PodError::Yaml(format!("the text is longer than {} KiB", MAX_BYTES / 1024)));
    }
    let bounds = Bounds { nodes: Cell::new(MAX_NODES), bytes: Cell::new(MAX_EXPANDED_BYTES) };
    let seed = Seed { bounds: &bounds, depth: 0 };
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |d| seed.deserialize(d))
        .map_err(|error| PodError::Yaml(message(&error)))
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(MAX_BYTES),
            flow_nesting_limit: MAX_DEPTH,
            max_events: 4 * MAX_NODES,
            max_aliases: 4 * MAX_ANCHORS,
            max_anchors: MAX_ANCHORS,
            max_depth: MAX_DEPTH,
            // One more than is accepted, so that the refusal speaks of documents and not of limits.
            max_documents: 2,
            max_nodes: MAX_NODES,
            max_total_scalar_bytes: MAX_EXPANDED_BYTES,
            max_merge_keys: MAX_ANCHORS,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 8,
            max_alias_expansions_per_anchor: MAX_ANCHORS,
        },
        // As the Kubernetes tools read it: 0755 is octal.
        legacy_octal_numbers: true,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// The parser's words on one line; they quote the caller's text, so they are cut.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.render_with_formatter(&UserMessageFormatter);
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}

/// What may still be read.
struct Bounds {
    nodes: Cell<usize>,
    bytes: Cell<usize>,
}

impl Bounds {
    fn take<E: serde::de::Error>(left: &Cell<usize>, by: usize) -> Result<(), E> {
        let rest =
            left.get().checked_sub(by).ok_or_else(|| E::custom("the document is too large"))?;
        left.set(rest);
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    bounds: &'a Bounds,
    depth: usize,
}

impl Seed<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom("the document is nested too deeply"));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Bounds::take(&self.bounds.nodes, 1)?;
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        Bounds::take(&self.bounds.bytes, value.len())?;
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(seed)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            Bounds::take(&self.bounds.bytes, key.len())?;
            map.push((key, entries.next_value_seed(seed)?));
        }
        Ok(Value::Map(map))
    }
}
