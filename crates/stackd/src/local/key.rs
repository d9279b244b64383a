//! `stackd key`: the API keys of this server. A key is shown once, and only to a terminal.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use stackd_core::{Clock, Timestamp};
use stackd_engine::clock::SystemClock;
use stackd_server::DIALECTS;
use stackd_store::Permission;

use super::Access;
use super::admin::{KeyRequest, KeySecret, KeyView, key_failure, key_views};
use super::data_dir::write_secret;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::{out, table};

/// The commands for API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and show it, once
    ///
    /// The key is shown only on a terminal; --file puts it elsewhere. The server keeps only its
    /// hash.
    Create(CreateKey),
    /// List all keys, revoked ones too
    #[command(visible_alias = "ls")]
    List {
        /// How to show them
        #[arg(short, long, value_enum, default_value_t)]
        output: ListOutput,
    },
    /// Revoke a key: it is wrong from the next request on
    Revoke {
        /// The key's name
        name: String,
    },
}

/// What a new key is to be.
#[derive(Debug, Args)]
pub(crate) struct CreateKey {
    /// What it is called: letters, digits, '-', '_' and '.'
    name: String,
    /// What it may do beyond the documented calls; may be given several times
    #[arg(long, value_name = "PERMISSION", value_enum)]
    allow: Vec<Allow>,
    /// The dialect it is good for; may be given several times. All where none is given
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(DIALECTS))]
    dialect: Vec<String>,
    /// Write it to this file with mode 0600 instead, in place of one that is there; `-` is standard
    /// output, whatever that is
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// What a key may do beyond the documented calls.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Allow {
    /// Run commands inside stacks
    Exec,
}

impl From<Allow> for Permission {
    fn from(allow: Allow) -> Self {
        match allow {
            Allow::Exec => Self::Exec,
        }
    }
}

/// How a list is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListOutput {
    /// A table for people
    #[default]
    Table,
    /// JSON
    Json,
    /// Only the names, one a line
    Name,
}

pub(crate) async fn run(command: KeyCommand, config: &Config) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create(create) => self::create(create, config).await,
        KeyCommand::List { output } => {
            let keys = match Access::of(config, "stackd key list").await? {
                Access::Server(server) => server.json(server.request(Method::GET, "keys")).await?,
                Access::Direct(direct) => key_views(&direct.keys(config).await?),
            };
            out::write(shown(&keys, output)?)
        }
        KeyCommand::Revoke { name } => {
            match Access::of(config, "stackd key revoke").await? {
                Access::Server(server) => {
                    // A name that is not one could be another path.
                    if !is_name(&name) {
                        let error = stackd_engine::keys::KeyError::NotFound(name);
                        return Err(key_failure(error).into());
                    }
                    let request = server.request(Method::DELETE, &format!("keys/{name}"));
                    server.send(request).await?;
                }
                Access::Direct(direct) => {
                    let keys = direct.keys(config).await?;
                    keys.revoke(&name, SystemClock.wall()).await.map_err(key_failure)?;
                }
            }
            eprintln!("revoked key {name}");
            Ok(())
        }
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.trim_matches('.').is_empty() && text.chars().all(fits)
}

async fn create(create: CreateKey, config: &Config) -> anyhow::Result<()> {
    if create.file.is_none() && !std::io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "a key is shown only on a terminal")
            .hint("`--file FILE` writes it to a file that only you can read")
            .hint("`--file -` writes it to standard output all the same")
            .into());
    }
    let request = KeyRequest {
        name: create.name.clone(),
        permissions: create.allow.into_iter().map(Into::into).collect(),
        dialects: create.dialect,
    };
    let secret = match Access::of(config, "stackd key create").await? {
        Access::Server(server) => {
            let request = server.request(Method::POST, "keys").json(&request);
            server.json::<KeySecret>(request).await?.secret
        }
        Access::Direct(direct) => {
            let keys = direct.keys(config).await?;
            keys.create(request.into(), SystemClock.wall()).await.map_err(key_failure)?
        }
    };
    match create.file {
        Some(path) if path.as_os_str() != "-" => {
            write_secret(&path, &secret).with_context(|| {
                let name = &create.name;
                format!(
                    "key {name:?} was made, but {} cannot be written; revoke it and try again",
                    path.display()
                )
            })?;
            eprintln!("key {} is in {}", create.name, path.display());
        }
        _ => {
            out::line(&secret)?;
            eprintln!("key {} is made; it is not shown again", create.name);
        }
    }
    Ok(())
}

fn shown(keys: &[KeyView], output: ListOutput) -> anyhow::Result<String> {
    let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    Ok(match output {
        ListOutput::Json => serde_json::to_string_pretty(keys)? + "\n",
        ListOutput::Name => keys.iter().map(|key| format!("{}\n", key.name)).collect(),
        ListOutput::Table => {
            let row = |key: &KeyView| {
                let exec = key.permissions.contains(&Permission::Exec);
                [
                    key.name.clone(),
                    key.revoked_at.map_or("good".to_owned(), |at| format!("revoked {}", time(at))),
                    if exec { "exec" } else { "-" }.to_owned(),
                    if key.dialects.is_empty() { "all".to_owned() } else { key.dialects.join(",") },
                    time(key.created_at),
                ]
            };
            let rows: Vec<_> = keys.iter().map(row).collect();
            table::render(["NAME", "STATUS", "ALLOWED", "DIALECTS", "CREATED"], &rows)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_another_path_is_none() {
        for name in ["ci", "a.b-c_1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a?b", "a b", "%2e"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
