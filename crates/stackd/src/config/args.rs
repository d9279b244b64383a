//! The settings as flags of a command.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use serde_json::Value;

use super::settings::{Kind, SETTINGS, Setting};

/// What was given on the command line, by TOML key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// The values of each flag that was given.
    pub(crate) flags: BTreeMap<&'static str, Vec<String>>,
}

/// Every setting, for the commands that serve or check whether serving will work.
#[derive(Debug, Clone, Default)]
pub(crate) struct AllSettings(pub(crate) Given);

/// Only the settings that say which data is meant, for local commands.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalSettings(pub(crate) Given);

/// The same, and where images come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageSettings(pub(crate) Given);

fn is_about_images(setting: &Setting) -> bool {
    // Whose images they are: with an engine, its own.
    let engine = ["runtime.driver", "runtime.docker.host"];
    let of_engine = engine.contains(&setting.key) || setting.key.starts_with("runtime.docker.tls_");
    is_local(setting) || of_engine || setting.section() == "images"
}

fn is_local(setting: &Setting) -> bool {
    matches!(setting.key, "data_dir" | "store.database_url" | "replicas.enabled")
}

fn heading(section: &str) -> String {
    let mut text = section.replace('.', " ");
    match text.get_mut(..1) {
        Some(first) => {
            first.make_ascii_uppercase();
            format!("{text} settings")
        }
        None => "Settings".to_owned(),
    }
}

fn arg(setting: &'static Setting) -> Arg {
    let doc = setting.doc();
    let short = doc.split_once(". ").map_or(doc.as_str(), |(first, _)| first);
    let default = match super::default_of(setting.key) {
        Some(Value::String(text)) => format!(" [default: {text}]"),
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
            let texts: Vec<_> = list.iter().map(text).collect();
            format!(" [default: {}]", texts.join(","))
        }
        // A switch is off unless it is given.
        None | Some(Value::Bool(_)) => String::new(),
        Some(value) => format!(" [default: {value}]"),
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag)
        .global(true)
        .help(format!("{}{default}", short.trim_end_matches('.')))
        .long_help(format!("{doc}\n\n[env: {}] [file: {}]{default}", setting.env(), setting.key))
        .help_heading(heading(setting.section()));
    match setting.kind {
        Kind::Switch | Kind::Off => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name(setting.value),
        Kind::List | Kind::Numbers | Kind::Map | Kind::Table => {
            arg.value_name(setting.value).action(ArgAction::Append)
        }
        Kind::Text | Kind::Number => arg.value_name(setting.value),
    }
}

/// The flags are good on either side of a subcommand: `image --data-dir D list` and
/// `image list --data-dir D` mean the same.
fn augment(command: Command, keep: fn(&Setting) -> bool) -> Command {
    let config = Arg::new("config")
        .long("config")
        .global(true)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("The TOML file with settings [default: /etc/stackd/stackd.toml where it exists]")
        .long_help(
            "The TOML file with settings. Flags come before the environment, the environment \
             before the file.\n\n[env: STACKD_CONFIG] [default: /etc/stackd/stackd.toml where it \
             exists]",
        );
    command.arg(config).args(SETTINGS.iter().filter(|s| keep(s)).map(arg))
}

fn collect(matches: &ArgMatches, keep: fn(&Setting) -> bool) -> Given {
    let mut given = Given { config: matches.get_one("config").cloned(), ..Given::default() };
    for setting in SETTINGS.iter().filter(|s| keep(s)) {
        if let Some(values) = matches.get_many::<String>(setting.key) {
            given.flags.insert(setting.key, values.cloned().collect());
        }
    }
    given
}

macro_rules! settings_args {
    ($name:ident, $keep:expr) => {
        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                augment(command, $keep)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $keep)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(collect(matches, $keep)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = collect(matches, $keep);
                Ok(())
            }
        }
    };
}

settings_args!(AllSettings, |_| true);
settings_args!(LocalSettings, is_local);
settings_args!(ImageSettings, is_about_images);
