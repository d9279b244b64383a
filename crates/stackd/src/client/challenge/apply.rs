//! `stackd challenge apply`.

use std::collections::BTreeSet;
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
                let show = |value| match *field {
                    "extra_config" => short(&file::hidden(value)),
                    _ => short(value),
                };
                lines.push_str(&format!("    {field}: {} -> {}\n", show(from), show(to)));
            }
            lines
        }
    }
}

/// A value on one line.
fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line = text.lines().collect::<Vec<_>>().join("\\n");
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
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
