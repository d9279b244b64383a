//! A challenge's file, and how it differs from what a server has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use stackd_core::challenge::concealed;

use crate::exit::{Exit, Failure};

/// What a file may say.
const KNOWN: [&str; 16] = [
    "id",
    "number",
    "name",
    "runtime",
    "image",
    "port",
    "protocol",
    "cpu_count",
    "memory_mb",
    "ttl_seconds",
    "extra_config",
    "pod_spec",
    "target_port",
    "enabled",
    "stack_enabled",
    "destroy_on_solve",
];

/// A challenge as a file has it.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) path: PathBuf,
    fields: Map<String, Value>,
}

/// A field that differs: what there is and what is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    pub(super) field: &'static str,
    pub(super) from: Value,
    pub(super) to: Value,
}

fn wrong(path: &Path, why: impl std::fmt::Display) -> anyhow::Error {
    Failure::new(Exit::Config, format!("{}: {why}", path.display()))
        .hint("`stackd challenge schema` writes what a file may say, for editors too")
        .into()
}

/// The variables of a file, as they are written.
#[derive(Deserialize)]
struct Written {
    extra_config: WrittenExtra,
}

#[derive(Deserialize)]
struct WrittenExtra {
    env: BTreeMap<String, Option<String>>,
}

fn yaml<T: DeserializeOwned>(path: &Path, text: &str) -> anyhow::Result<T> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let why = match &error {
            serde_saphyr::Error::MultipleDocuments { .. } => {
                "holds several challenges: each has a file of its own".to_owned()
            }
            error => error.render_with_formatter(&serde_saphyr::UserMessageFormatter),
        };
        wrong(path, why)
    })
}

/// Reads a file.
pub(super) fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let value: Value = yaml(path, &text)?;
    let Value::Object(mut fields) = value else {
        return Err(wrong(path, "is not one challenge: it must have fields such as id and name"));
    };
    // How a JSON file names its schema; and what a server shows of a challenge, which may be kept as
    // its file.
    for field in ["$schema", "created_at", "updated_at"] {
        fields.remove(field);
    }
    if let Some(unknown) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(wrong(path, format!("there is no field {unknown:?}")));
    }
    for required in ["id", "name"] {
        if !fields.get(required).is_some_and(Value::is_string) {
            return Err(wrong(path, format!("{required} is missing, or is not a text")));
        }
    }
    // The API takes these options as a text, which nobody wants to write in YAML.
    if let Some(Value::Object(extra)) = fields.get_mut("extra_config")
        && let Some(Value::Object(env)) = extra.get_mut("env")
        && env.values().all(|value| !value.is_object() && !value.is_array())
    {
        // Variables are texts, as they are written: 0755 and 1.10 are no numbers here.
        let written: Written = yaml(path, &text)?;
        let variables = written.extra_config.env.into_iter();
        *env = variables.map(|(name, value)| (name, value.unwrap_or_default().into())).collect();
    }
    if let Some(extra @ Value::Object(_)) = fields.get("extra_config") {
        let text = extra.to_string();
        fields.insert("extra_config".to_owned(), Value::String(text));
    }
    Ok(File { path: path.to_owned(), fields })
}

/// Reads the files of a directory, by name; or one file.
pub(super) fn read_all(path: &Path) -> anyhow::Result<Vec<File>> {
    if !path.is_dir() {
        return Ok(vec![read(path)?]);
    }
    let entries =
        std::fs::read_dir(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{} cannot be read", path.display()))?.path();
        let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        let schema = path.to_string_lossy().ends_with(".schema.json");
        if known && !schema && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let files: Vec<File> = paths.iter().map(|path| read(path)).collect::<anyhow::Result<_>>()?;
    for (at, file) in files.iter().enumerate() {
        for other in &files[..at] {
            let there = other.path.display();
            if other.id() == file.id() {
                let why = format!("{:?} is described by {there} too", file.id());
                return Err(wrong(&file.path, why));
            }
            if let (Some(number), Some(same)) = (file.number(), other.number())
                && number == same
            {
                return Err(wrong(&file.path, format!("number {number} is that of {there} too")));
            }
        }
    }
    Ok(files)
}

impl File {
    pub(super) fn id(&self) -> &str {
        self.fields.get("id").and_then(Value::as_str).unwrap_or_default()
    }

    fn number(&self) -> Option<u64> {
        self.fields.get("number").and_then(Value::as_u64)
    }

    /// What is sent to write it: only what the file says.
    pub(super) fn body(&self) -> Map<String, Value> {
        let mut body = self.fields.clone();
        body.retain(|_, value| !value.is_null());
        body.entry("runtime").or_insert_with(|| json!("docker"));
        body
    }

    /// What the file wants of a field: what it does not say has its default.
    fn wanted(&self, field: &str) -> Value {
        let by_pod = self.fields.get("pod_spec").is_some_and(|pod| !pod.is_null());
        match (self.fields.get(field), field) {
            (Some(value), _) if !value.is_null() => value.clone(),
            (_, "runtime") => json!("docker"),
            // Clients that know no such field have it among the further options.
            (_, "protocol") => self.extra("protocol").unwrap_or_else(|| json!("http")),
            (_, "cpu_count") if !by_pod => json!(1),
            (_, "memory_mb") if !by_pod => json!(512),
            (_, "enabled" | "stack_enabled" | "destroy_on_solve") => json!(true),
            _ => Value::Null,
        }
    }

    /// How the server's challenge would have to change.
    pub(super) fn differences(&self, current: &Value) -> Vec<Difference> {
        let difference = |field: &'static str| {
            let from = current.get(field).cloned().unwrap_or_default();
            let to = self.wanted(field);
            // A number that the file does not say stays as it is.
            let same = same(field, &from, &to) || field == "number" && to.is_null();
            (!same).then_some(Difference { field, from, to })
        };
        KNOWN.into_iter().filter_map(difference).collect()
    }

    /// One of the further options.
    fn extra(&self, option: &str) -> Option<Value> {
        let extra = self.fields.get("extra_config").and_then(Value::as_str)?;
        serde_json::from_str::<Value>(extra).ok()?.get(option).cloned()
    }
}

/// Further options as a server shows them, without the flag itself.
pub(super) fn hidden(extra: &Value) -> Value {
    extra.as_str().map_or(Value::Null, |text| concealed(text).into())
}

/// Whether two values of a field mean the same.
fn same(field: &str, a: &Value, b: &Value) -> bool {
    let parsed =
        |value: &Value| value.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match field {
        "extra_config" => parsed(&hidden(a)) == parsed(&hidden(b)),
        "target_port" => a.to_string().to_uppercase() == b.to_string().to_uppercase(),
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() < f64::EPSILON,
            _ => a == b,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(yaml: &str) -> anyhow::Result<File> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.yaml");
        std::fs::write(&path, yaml).unwrap();
        read(&path)
    }

    #[test]
    fn what_a_file_does_not_say_has_its_default() {
        let yaml = "# yaml-language-server: $schema=x\nid: web\nname: Web\nimage: web:1\nport: 80\n\
                    extra_config:\n  env: {A: b}\n";
        let file = file(yaml).unwrap();
        assert_eq!(file.body()["extra_config"], r#"{"env":{"A":"b"}}"#);
        let mut current = json!({
            "id": "web", "number": 4, "name": "Web", "runtime": "docker", "image": "web:1",
            "port": 80, "protocol": "http", "cpu_count": 1, "memory_mb": 512, "ttl_seconds": null,
            "extra_config": "{ \"env\": {\"A\":\"b\"} }", "pod_spec": null, "target_port": null,
            "enabled": true, "stack_enabled": true, "destroy_on_solve": true,
        });
        assert_eq!(file.differences(&current), []);
        current["cpu_count"] = json!(2);
        current["ttl_seconds"] = json!(60);
        let told: Vec<_> = file.differences(&current);
        let expected = [
            Difference { field: "cpu_count", from: json!(2), to: json!(1) },
            Difference { field: "ttl_seconds", from: json!(60), to: Value::Null },
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn variables_are_texts_as_they_are_written() {
        let yaml = "id: web\nname: n\nimage: web:1\nport: 80\nextra_config:\n  env:\n    A: 0755\n    \
                    B: 1.10\n    C: no\n    D: 1e3\n    E: true\n    F:\n    G: '0x1'\n    H: 7\n";
        let body = file(yaml).unwrap().body();
        assert_eq!(body["name"], "n");
        let env =
            r#"{"A":"0755","B":"1.10","C":"no","D":"1e3","E":"true","F":"","G":"0x1","H":"7"}"#;
        assert_eq!(body["extra_config"], format!("{{\"env\":{env}}}"));
    }

    #[test]
    fn what_a_server_shows_is_a_file() {
        let yaml = "id: web\nname: Web\nimage: web:1\nport: 80\ncreated_at: 2026-01-02T03:04:05Z\n\
                    updated_at: 2026-01-02T03:04:05Z\nextra_config: '{\"env\":{\"A\":\"b\"}}'\n";
        assert_eq!(file(yaml).unwrap().body()["extra_config"], r#"{"env":{"A":"b"}}"#);
    }

    #[test]
    fn a_flag_is_compared_by_its_fingerprint() {
        let yaml = "id: web\nname: Web\nimage: web:1\nport: 80\n\
                    extra_config: {flag: {value: \"ctf{x}\"}}\n";
        let wanted = file(yaml).unwrap().body()["extra_config"].clone();
        assert!(same("extra_config", &hidden(&wanted), &wanted));
        let other = json!(r#"{"flag":{"value":"ctf{y}"}}"#);
        assert!(!same("extra_config", &hidden(&wanted), &other));
        assert!(!same("extra_config", &Value::Null, &other));
        assert!(same("extra_config", &Value::Null, &Value::Null));
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_name() {
        for (yaml, part) in [
            ("- a\n", "is not one challenge"),
            ("id: web\n", "name is missing"),
            ("id: web\nname: Web\nimagee: x\n", "there is no field \"imagee\""),
            ("id: [\n", "web.yaml"),
            ("id: web\nname: Web\n---\nid: two\n", "each has a file of its own"),
        ] {
            let error = file(yaml).unwrap_err().to_string();
            assert!(error.contains("web.yaml") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn two_files_of_one_challenge_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, id: &str, number: u32| {
            let yaml = format!("id: {id}\nname: {id}\nimage: web:1\nport: 80\nnumber: {number}\n");
            std::fs::write(directory.path().join(name), yaml).unwrap();
        };
        write("a.yaml", "a", 1);
        write("b.yaml", "b", 2);
        assert_eq!(read_all(directory.path()).unwrap().len(), 2);
        for (id, number, part) in
            [("a", 3, "\"a\" is described by"), ("b", 1, "number 1 is that of")]
        {
            write("b.yaml", id, number);
            let error = read_all(directory.path()).unwrap_err().to_string();
            assert!(error.contains("b.yaml") && error.contains(part), "{error}");
            assert!(error.contains("a.yaml too"), "{error}");
        }
    }
}
