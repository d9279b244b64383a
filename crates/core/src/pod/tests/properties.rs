//! What holds for any text and any Pod.

use proptest::prelude::*;

use super::{DOCUMENT, EVERYTHING, read};
use crate::pod::emit::{self, Node};
use crate::pod::render;
use crate::pod::yaml::{self, Value};
use crate::port::TargetPorts;

/// Texts that tempt a writer to leave out quotes, and a reader to see something else.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[-+]?[0-9_]{1,4}([.:eExob][-+]?[0-9_]{0,4}){0,2}",
        "[yYnNtTfFoO~.<=][a-zA-Z]{0,4}",
        "[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([tT ][0-9:.,Z+]{0,14})?",
        "[ab #:,?&*!|>'\"%@`{}\\[\\]\\\\\t\n-]{0,40}",
        "([a-z'\": ]{1,12}[ \n]){0,30}",
        "\\PC{0,20}",
        any::<String>(),
    ]
}

fn nodes() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Node::Bool),
        any::<i64>().prop_map(Node::Int),
        texts().prop_filter("read alike", |text| !readers_differ(text)).prop_map(Node::Text),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let keys = prop_oneof!["[a-zA-Z0-9._/-]{1,8}", "[a-z0-9]{120,140}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Node::List),
            prop::collection::btree_map(keys, inner, 0..5)
                .prop_map(|map| Node::Map(map.into_iter().collect())),
        ]
    })
}

/// Texts that the Go libraries, and so we, leave unquoted, while the reader here takes them for
/// more than they do: `oN` for a boolean, `1e999` for a number.
fn readers_differ(text: &str) -> bool {
    let words = ["y", "yes", "true", "on", "n", "no", "false", "off", "null"];
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
        || text.replace('_', "").parse::<f64>().is_ok_and(f64::is_infinite)
}

/// What a reader should see.
fn seen(node: &Node) -> Value {
    match node {
        Node::Bool(value) => Value::Bool(*value),
        Node::Int(value) => Value::Int((*value).into()),
        Node::Text(text) => Value::Text(text.clone()),
        Node::List(items) => Value::List(items.iter().map(seen).collect()),
        Node::Map(entries) => {
            let mut entries: Vec<_> =
                entries.iter().map(|(key, value)| (key.clone(), seen(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Map(entries)
        }
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::List(items) => Value::List(items.into_iter().map(sorted).collect()),
        Value::Map(entries) => {
            let mut entries: Vec<_> =
                entries.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Map(entries)
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_as_the_same(node in nodes()) {
        let written = emit::document(vec![("a".to_owned(), node.clone())]);
        let read = yaml::read(&written).map(sorted);
        let expected = Value::Map(vec![("a".to_owned(), seen(&node))]);
        prop_assert_eq!(read, Ok(expected), "{}", written);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}", raw in any::<String>()) {
        let _ = read(&text, &TargetPorts::Any(80));
        let _ = read(&raw, &TargetPorts::Any(80));
    }

    #[test]
    fn a_damaged_pod_is_read_or_refused(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..12usize, texts()), 1..6),
        document in any::<bool>(),
    ) {
        let mut yaml: Vec<char> =
            (if document { DOCUMENT } else { EVERYTHING }).chars().collect();
        for (at, removed, inserted) in cuts {
            let start = at.index(yaml.len() + 1);
            let end = (start + removed).min(yaml.len());
            yaml.splice(start..end, inserted.chars());
        }
        let yaml: String = yaml.into_iter().collect();
        if let Ok(spec) = read(&yaml, &TargetPorts::Any(80)) {
            let shown = render(&spec);
            prop_assert_eq!(&render(&spec), &shown);
            let ends = shown.ends_with("\nstatus: {}\n");
            prop_assert!(ends, "{}", shown);
            prop_assert!(yaml::read(&shown).is_ok(), "{}", shown);
        }
    }
}
