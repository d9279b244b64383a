//! The reference pages, made from what the program itself knows: settings, commands, exit codes.
//! A test holds `docs/` against them.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgAction, Command, CommandFactory};
use serde_json::Value;

use crate::cli::Cli;
use crate::config::default_of;
use crate::config::settings::{Kind, SETTINGS};
use crate::exit::Exit;

/// Writes both pages to a directory.
pub(crate) fn write(directory: &Path) -> anyhow::Result<()> {
    for (name, text) in [("configuration.md", configuration()?), ("cli.md", commands())] {
        let path = directory.join(name);
        std::fs::write(&path, text)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

const CONFIGURATION: &str = "\
# Configuration

<!-- Made by `stackd reference docs`; a test checks that it is current. -->

Every setting of `stackd serve` can be given in three ways. A flag comes before an environment
variable, that before the configuration file, and that before the default. The file is
`/etc/stackd/stackd.toml` where it exists, or the one that `--config` or `STACKD_CONFIG` names;
`contrib/stackd.toml` is an example. A key of the
file or a flag that does not exist is an error; the server warns about a variable that is none.

A duration is a whole number of seconds (`60`) or Go's form (`90s`, `1m30s`, `2h`). An amount is a
Kubernetes quantity (`500m`, `128Mi`). A list is a flag given several times, or a variable with
commas; given anew, it is replaced as a whole. A table is `cpu=2,memory=1Gi` in a flag or variable.

Beyond the settings, `STACKD_API_KEY` sets the key named `default` instead of having one made at the
first start (for `stackd stack`, it is the key to use), `STACKD_SERVER` is the server that
`stackd stack` asks, `STACKD_CACERT` the authorities that it trusts, and `NOTIFY_SOCKET` is systemd's.
";

/// The page of all settings.
pub(crate) fn configuration() -> anyhow::Result<String> {
    let mut text = CONFIGURATION.to_owned();
    let mut section = None;
    for setting in SETTINGS {
        if section != Some(setting.section()) {
            section = Some(setting.section());
            let title = match setting.section() {
                "" => "## At the top".to_owned(),
                name => format!("## `[{name}]`"),
            };
            write!(text, "\n{title}\n")?;
        }
        let key = setting.key.rsplit('.').next().unwrap_or_default();
        let flag = match setting.kind {
            Kind::Switch | Kind::Off => format!("--{}", setting.flag),
            _ => format!("--{} {}", setting.flag, setting.value),
        };
        write!(text, "\n### `{key}`\n\n{}\n\n", wrapped(&setting.doc()))?;
        writeln!(text, "- flag: `{flag}`")?;
        writeln!(text, "- environment: `{}`", setting.env())?;
        writeln!(text, "- default: {}", shown(default_of(setting.key)))?;
    }
    Ok(text)
}

fn shown(default: Option<Value>) -> String {
    match default {
        None => "not set".to_owned(),
        Some(Value::String(text)) => format!("`\"{text}\"`"),
        Some(value) => format!("`{value}`"),
    }
}

/// Lines of at most 100 characters, as the other pages have.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().map_or(0, |line| line.chars().count());
        if last > 0 && last + 1 + word.chars().count() > 100 {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

const COMMANDS: &str = "\
# Commands

<!-- Made by `stackd reference docs`; a test checks that it is current. -->

Tables are for people and may change; `-o json`, `-o yaml` and `-o name` are for scripts. An error is
told on standard error in a line that begins with `error:`, and what to do about it in lines that
begin with `hint:`.

## Exit codes

| code | meaning |
|---|---|
| 0 | It worked. |
";

/// The page of all commands and exit codes.
pub(crate) fn commands() -> String {
    let mut text = COMMANDS.to_owned();
    for (exit, meaning) in Exit::ALL {
        text.push_str(&format!("| {} | {meaning} |\n", exit.code()));
    }
    text.push_str("| 130 | `stackd serve`: stopped at once, by a second signal. |\n");
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands() {
        describe(command, "stackd", &mut text);
    }
    text
}

fn describe(command: &Command, parent: &str, text: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string);
    text.push_str(&format!("\n## `{name}`\n\n{}\n", paragraphs(&about.unwrap_or_default())));
    let own: Vec<&Arg> =
        command.get_arguments().filter(|arg| !arg.is_hide_set() && is_told(arg)).collect();
    let is_serve = own.iter().any(|arg| arg.get_id().as_str() == "data_dir")
        && own.iter().any(|arg| arg.get_id().as_str() == "server.listen");
    let told =
        own.iter().filter_map(|arg| SETTINGS.iter().find(|s| s.key == arg.get_id().as_str()));
    let flags: Vec<_> = told.map(|setting| format!("`--{}`", setting.flag)).collect();
    if is_serve {
        text.push_str("\nIts settings are those of [the configuration](configuration.md).\n");
    } else if !flags.is_empty() {
        let list = wrapped(&format!(
            "It takes these settings of [the configuration](configuration.md): {}.",
            flags.join(", ")
        ));
        text.push_str(&format!("\n{list}\n"));
    }
    let own: Vec<_> = own
        .into_iter()
        // Settings have a page of their own, and what is global is told where it was made.
        .filter(|arg| !SETTINGS.iter().any(|setting| setting.key == arg.get_id().as_str()))
        .filter(|arg| !arg.is_global_set() || command.get_subcommands().next().is_some())
        .collect();
    if !own.is_empty() {
        text.push_str("\n| argument | meaning |\n|---|---|\n");
    }
    for arg in own {
        text.push_str(&format!("| `{}` | {} |\n", usage(arg), meaning(arg)));
    }
    for inner in command.get_subcommands() {
        describe(inner, &name, text);
    }
}

fn is_told(arg: &Arg) -> bool {
    !matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::Version)
}

/// Paragraphs in one line each; lines that are indented stay as they are.
fn paragraphs(text: &str) -> String {
    let blocks = text.trim().split("\n\n").map(|block| {
        if block.contains("\n  ") {
            let mut lines = block.lines();
            let head = lines.next().unwrap_or_default();
            let rest: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
            format!("{head}\n\n```\n{}\n```", rest.join("\n"))
        } else {
            wrapped(block)
        }
    });
    blocks.collect::<Vec<_>>().join("\n\n")
}

fn usage(arg: &Arg) -> String {
    let value = match arg.get_value_names() {
        Some(names) if !names.is_empty() => names.join(" "),
        _ => arg.get_id().as_str().to_uppercase(),
    };
    let takes_value = arg.get_action().takes_values();
    let names = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, None) => return format!("<{value}>"),
    };
    if takes_value { format!("{names} {value}") } else { names }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let values: Vec<_> = if arg.get_action().takes_values() {
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect()
    } else {
        Vec::new()
    };
    // A shell is known by name; their list is the library's.
    if !values.is_empty() {
        text.push_str(&format!(" ({})", values.join(", ")));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    let default = defaults.join(" ");
    if arg.get_action().takes_values() && !default.is_empty() {
        text.push_str(&format!("; `{default}` by default"));
    }
    if let Some(env) = arg.get_env() {
        text.push_str(&format!("; environment `{}`", env.to_string_lossy()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docs() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
    }

    #[test]
    fn the_pages_are_current() {
        for (name, text) in [("configuration.md", configuration().unwrap()), ("cli.md", commands())]
        {
            let there = std::fs::read_to_string(docs().join(name)).unwrap_or_default();
            assert!(
                there == text,
                "docs/{name} is out of date: run `cargo run -p stackd -- reference docs`"
            );
        }
    }

    #[test]
    fn the_example_file_is_taken_and_says_the_defaults() {
        use crate::config::{Environment, Given, load};
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib/stackd.toml");
        let given = Given { config: Some(path.clone()), ..Given::default() };
        assert!(load(&given, &Environment::default(), Path::new("/nowhere")).is_ok());
        // What is commented out must be right too when somebody uncomments it.
        let text = std::fs::read_to_string(&path).unwrap();
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("#") {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let all = dir.path().join("stackd.toml");
        std::fs::write(&all, uncommented).unwrap();
        let given = Given { config: Some(all), ..Given::default() };
        let loaded = load(&given, &Environment::default(), Path::new("/nowhere"));
        assert!(loaded.is_ok(), "{}", loaded.err().map(|e| e.to_string()).unwrap_or_default());
    }
}
