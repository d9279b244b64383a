//! `stackd challenge apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value};

use super::file::{self, Difference, File};
use super::{list, remove, text};
use crate::client::Api;
use crate::exit::{Exit, Failure};

/// What to apply.
#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// A directory of challenges' files, or one file
    #[arg(short, long, value_name = "DIR")]
    file: PathBuf,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Remove challenges that no file describes; their live stacks end in their own time
    #[arg(long)]
    prune: bool,
}

/// What is done with one challenge.
enum Step<'a> {
    Create(&'a File),
    Edit(&'a File, Vec<Difference>),
    Remove(String),
}

pub(super) async fn run(args: &ApplyArgs, api: &Api) -> anyhow::Result<()> {
    let files = file::read_all(&args.file)?;
    // With --prune it would remove every challenge: whoever means that says so by `delete`.
    if files.is_empty() {
        let text = format!("{} holds no *.yaml, *.yml or *.json", args.file.display());
        return Err(Failure::new(Exit::Usage, text).into());
    }
    let current = list(api).await?;
    let mut steps = Vec::new();
    let mut unchanged = 0;
    for file in &files {
        match current.iter().find(|challenge| text(challenge, "id") == file.id()) {
            None => steps.push(Step::Create(file)),
            Some(challenge) => match file.differences(challenge) {
                differences if differences.is_empty() => unchanged += 1,
                differences => steps.push(Step::Edit(file, differences)),
            },
        }
    }
    if args.prune {
        let described: BTreeSet<_> = files.iter().map(File::id).collect();
        let ids = current.iter().map(|challenge| text(challenge, "id"));
        let gone = ids.filter(|id| !described.contains(id));
        steps.extend(gone.map(|id| Step::Remove(id.to_owned())));
    }
    for step in &steps {
        crate::out::write(shown(step))?;
    }
    let counts = [
        ("created", steps.iter().filter(|s| matches!(s, Step::Create(_))).count()),
        ("changed", steps.iter().filter(|s| matches!(s, Step::Edit(..))).count()),
        ("removed", steps.iter().filter(|s| matches!(s, Step::Remove(_))).count()),
        ("unchanged", unchanged),
    ];
    // Nothing is applied where not all of it could be.
    let refused = carry_out(&steps, api, true).await?;
    if refused > 0 {
        let text =
            format!("{refused} of {} changes would be refused; nothing was done", steps.len());
        return Err(Failure::new(Exit::Rejected, text).into());
    }
    if !args.dry_run {
        let refused = carry_out(&steps, api, false).await?;
        if refused > 0 {
            let text = format!("{refused} of {} changes were not applied", steps.len());
            return Err(Failure::new(Exit::Rejected, text)
                .hint("the others were; the same command goes on with what is left")
                .into());
        }
    }
    let counts: Vec<_> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let would = if args.dry_run { " (nothing was done)" } else { "" };
    crate::out::line(format!("{}{would}", counts.join(", ")))
}

fn shown(step: &Step<'_>) -> String {
    match step {
        Step::Create(file) => format!("+ {} ({})\n", file.id(), file.path.display()),
        Step::Remove(id) => format!("- {id}\n"),
        Step::Edit(file, differences) => {
            let mut lines = format!("~ {} ({})\n", file.id(), file.path.display());
            for Difference { field, from, to } in differences {
                match (from, to) {
                    _ if *field == "extra_config" => {
                        let [from, to] = [from, to].map(|value| options(&file::hidden(value)));
                        let all: BTreeSet<_> = from.keys().chain(to.keys()).collect();
                        for option in all {
                            let [from, to] = [&from, &to].map(|options| options.get(option));
                            if from != to {
                                let [from, to] =
                                    [from, to].map(|v| line(v.unwrap_or(&Value::Null)));
                                lines.push_str(&format!("    {field}{option}: {from} -> {to}\n"));
                            }
                        }
                    }
                    (Value::String(from), Value::String(to))
                        if from.contains('\n') || to.contains('\n') =>
                    {
                        lines.push_str(&format!("    {field}:\n"));
                        push_hunk(&mut lines, from, to);
                    }
                    _ => {
                        lines.push_str(&format!("    {field}: {} -> {}\n", line(from), line(to)));
                    }
                }
            }
            lines
        }
    }
}

/// Further options by where they are: `.env.A`.
fn options(extra: &Value) -> BTreeMap<String, Value> {
    fn flatten(value: Value, path: String, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    flatten(value, format!("{path}.{name}"), into);
                }
            }
            value => drop(into.insert(path, value)),
        }
    }
    let mut all = BTreeMap::new();
    if let Some(extra) = extra.as_str() {
        // What cannot be read is told as it is; the server refuses it.
        let read = serde_json::from_str(extra).unwrap_or_else(|_| extra.into());
        flatten(read, String::new(), &mut all);
    }
    all
}

/// The lines that a longer text loses and gets: what is the same before and after them is left out.
fn push_hunk(lines: &mut String, from: &str, to: &str) {
    let (from, to): (Vec<_>, Vec<_>) = (from.lines().collect(), to.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let before = from.iter().zip(&to).take_while(same).count();
    let (from, to) = (&from[before..], &to[before..]);
    let after = from.iter().rev().zip(to.iter().rev()).take_while(same).count();
    for (mark, part) in [('-', &from[..from.len() - after]), ('+', &to[..to.len() - after])] {
        for line in part {
            lines.push_str(&format!("      {mark} {line}\n"));
        }
    }
}

/// A value on one line.
fn line(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) => text.lines().collect::<Vec<_>>().join("\\n"),
        other => other.to_string(),
    }
}

/// Takes all steps, or only tries them, and tells of each that the server refuses: so many.
async fn carry_out(steps: &[Step<'_>], api: &Api, dry_run: bool) -> anyhow::Result<usize> {
    let mut refused = 0;
    for step in steps {
        let (what, result) = carry_out_one(step, api, dry_run).await;
        match result {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => {
                refused += 1;
                eprintln!("error: {what}: {error:#}");
            }
            Err(error) => return Err(error.context(format!("{what} was not applied"))),
        }
    }
    Ok(refused)
}

/// Whether the server has understood and does not want it; then the others may still go.
fn is_refusal(error: &anyhow::Error) -> bool {
    let exit = error.downcast_ref::<Failure>().map(Failure::exit);
    matches!(exit, Some(Exit::Rejected | Exit::NotFound))
}

async fn carry_out_one(step: &Step<'_>, api: &Api, dry_run: bool) -> (String, anyhow::Result<()>) {
    let trial: &[_] = if dry_run { &[("dry_run", "true")] } else { &[] };
    match step {
        Step::Create(file) => {
            let request = api.request(Method::POST, &["challenges"]).query(trial);
            let answer = api.json(request.json(&file.body())).await;
            (file.path.display().to_string(), answer.map(drop))
        }
        Step::Edit(file, differences) => {
            let body: Map<String, Value> =
                differences.iter().map(|d| (d.field.to_owned(), d.to.clone())).collect();
            let request = api.request(Method::PATCH, &["challenges", file.id()]).query(trial);
            let answer = api.json(request.json(&body)).await;
            (file.path.display().to_string(), answer.map(drop))
        }
        Step::Remove(id) if dry_run => (id.clone(), Ok(())),
        Step::Remove(id) => (id.clone(), remove(api, id, false).await),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_of_a_long_text_is_shown() {
        let mut lines = String::new();
        push_hunk(
            &mut lines,
            "kind: Pod\nspec:\n  a: 1\n  b: 2\n",
            "kind: Pod\nspec:\n  a: 3\n  b: 2\n",
        );
        assert_eq!(lines, "      -   a: 1\n      +   a: 3\n");
        lines.clear();
        push_hunk(&mut lines, "a\nb\n", "a\na\nb\n");
        assert_eq!(lines, "      + a\n");
        lines.clear();
        push_hunk(&mut lines, "a\nb", "a");
        assert_eq!(lines, "      - b\n");
    }

    #[test]
    fn options_are_named_by_where_they_are() {
        let extra = json!(r#"{"env":{"A":"1","B":"2"},"ports":[{"port":1}]}"#);
        let all = options(&extra);
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(names, [".env.A", ".env.B", ".ports"]);
        assert_eq!(options(&Value::Null), BTreeMap::new());
        assert_eq!(options(&json!("x")), BTreeMap::from([(String::new(), json!("x"))]));
    }
}
