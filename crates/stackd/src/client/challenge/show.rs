//! Challenges as people and scripts read them. JSON is the server's own, unchanged.

use anyhow::Context;
use clap::ValueEnum;
use serde_json::Value;

use super::text;
use crate::table;

/// How challenges are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Table,
    /// The server's JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Only the slugs, one a line
    Name,
}

fn or_dash(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn all(challenges: &[Value], output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string_pretty(challenges)? + "\n",
        Output::Yaml => {
            let one = |challenge| serde_saphyr::to_string(challenge).context("it cannot be shown");
            let all: Vec<String> = challenges.iter().map(one).collect::<anyhow::Result<_>>()?;
            all.join("---\n")
        }
        Output::Name => challenges.iter().map(|one| format!("{}\n", text(one, "id"))).collect(),
        Output::Table => {
            let row = |one: &Value| {
                let state = match (one["enabled"] == true, one["stack_enabled"] == true) {
                    (false, _) => "disabled",
                    (true, false) => "no stacks",
                    (true, true) => "enabled",
                };
                let image = if one["image"].is_null() {
                    "(pod)".to_owned()
                } else {
                    or_dash(&one["image"])
                };
                [
                    text(one, "id").to_owned(),
                    or_dash(&one["number"]),
                    text(one, "name").to_owned(),
                    image,
                    or_dash(&one["port"]),
                    or_dash(&one["cpu_count"]),
                    or_dash(&one["memory_mb"]),
                    or_dash(&one["ttl_seconds"]),
                    text(one, "runtime").to_owned(),
                    state.to_owned(),
                ]
            };
            let rows: Vec<_> = challenges.iter().map(row).collect();
            let headings =
                ["ID", "NUMBER", "NAME", "IMAGE", "PORT", "CPU", "MB", "TTL", "RUNTIME", "STATE"];
            table::render(headings, &rows)
        }
    })
}
