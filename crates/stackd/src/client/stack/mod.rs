//! `stackd stack`: a client of the API, on this machine or another one.

mod create;
mod exec;
mod logs;
pub(crate) mod pod;
mod show;
mod terminal;
mod wait;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::{Api, ServerArgs};
use crate::config::Environment;
use crate::exit::{Exit, Failure};
use crate::out;
use show::{Output, Stack};

/// Use the API of a server
#[derive(Debug, Args)]
pub(crate) struct StackArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: StackCommand,
}

#[derive(Debug, Subcommand)]
enum StackCommand {
    /// Make a stack from a Pod file, or from an image and its ports
    ///
    /// Examples:
    ///   stackd stack create -f pod.yaml --wait
    ///   stackd stack create nginx:stable --port 80 --ttl 1h --wait
    ///   stackd stack create my-dns --port 53 --port 53/udp -- serve --verbose
    #[command(verbatim_doc_comment)]
    Create(Box<create::CreateArgs>),
    /// List stacks, oldest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show stacks
    Get {
        /// The stacks' ids
        #[arg(required = true)]
        id: Vec<String>,
        /// How to show them
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Wait until a stack runs or has ended
    Wait(wait::WaitArgs),
    /// Show what a container of a stack has written
    Logs(logs::LogsArgs),
    /// Run a command in a container of a stack
    ///
    /// Ends with the command's exit code, or with 125 where it could not be run. Needs a key that
    /// may do so (`stackd key create NAME --allow exec`).
    Exec(exec::ExecArgs),
    /// Show where the ports of a stack are reached
    Port {
        /// The stack's id
        id: String,
        /// Only this port, as 80 or 53/udp
        #[arg(value_parser = pod::port)]
        port: Option<pod::Port>,
    },
    /// Take stacks away
    #[command(visible_alias = "rm")]
    Delete {
        /// The stacks' ids
        #[arg(required = true)]
        id: Vec<String>,
        /// Do not mind those that are not there
        #[arg(long)]
        ignore_not_found: bool,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only stacks with one of these states; may be given several times
    #[arg(long, value_name = "STATUS")]
    status: Vec<String>,
    /// Only stacks with this label; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// How to show them
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs one of the commands.
pub(crate) async fn run(args: StackArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let api = Api::new(&args.server, environment)?;
    match args.command {
        StackCommand::Create(create) => create::run(*create, &api).await?,
        StackCommand::List(list) => self::list(list, &api).await?,
        StackCommand::Get { id, output } => {
            let mut stacks = Vec::new();
            for id in &id {
                stacks.push(get(&api, id).await?);
            }
            out::write(show::details(stacks, output)?)?;
        }
        StackCommand::Wait(wait) => wait::run(wait, &api).await?,
        StackCommand::Logs(logs) => logs::run(logs, &api).await?,
        StackCommand::Exec(exec) => return exec::run(exec, &api).await,
        StackCommand::Port { id, port } => {
            let stack = Stack::read(&get(&api, &id).await?)?;
            out::write(show::ports(&stack, port)?)?;
        }
        StackCommand::Delete { id, ignore_not_found } => {
            delete(&api, &id, ignore_not_found).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One stack, as the server shows it.
async fn get(api: &Api, id: &str) -> anyhow::Result<Value> {
    api.json(api.request(Method::GET, &["stacks", id])).await
}

async fn list(args: ListArgs, api: &Api) -> anyhow::Result<()> {
    let mut request = api.request(Method::GET, &["stacks"]);
    for (name, values) in [("status", &args.status), ("label", &args.label)] {
        for value in values {
            request = request.query(&[(name, value)]);
        }
    }
    let answer = api.json(request).await?;
    out::write(show::list(answer, args.output)?)?;
    Ok(())
}

async fn delete(api: &Api, ids: &[String], ignore_not_found: bool) -> anyhow::Result<()> {
    let mut missing: Option<anyhow::Error> = None;
    for id in ids {
        match api.json(api.request(Method::DELETE, &["stacks", id])).await {
            Ok(_) => out::line(id)?,
            // The others go all the same.
            Err(error) if is_not_found(&error) => {
                let error = error.context(format!("{id} was not deleted"));
                // The last one is told by how the command ends.
                if let Some(earlier) = missing.replace(error).filter(|_| !ignore_not_found) {
                    eprintln!("error: {earlier:#}");
                }
            }
            Err(error) => return Err(error.context(format!("{id} was not deleted"))),
        }
    }
    missing.filter(|_| !ignore_not_found).map_or(Ok(()), Err)
}

pub(super) fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit() == Exit::NotFound)
}
