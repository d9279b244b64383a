//! `stackd challenge`: the catalogue that players start stacks from.

mod apply;
mod file;
mod show;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::stack::pod;
use super::{Api, ServerArgs};
use crate::config::Environment;
use crate::exit::{Exit, Failure};
use show::Output;

/// Look after the challenges that players start stacks from
#[derive(Debug, Args)]
pub(crate) struct ChallengeArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(subcommand)]
    command: ChallengeCommand,
}

#[derive(Debug, Subcommand)]
enum ChallengeCommand {
    /// Write a challenge, from a file or from options
    ///
    /// Examples:
    ///   stackd challenge create -f web100.yaml
    ///   stackd challenge create web100 --name "Web 100" --image myctf-web100:latest --port 80
    #[command(verbatim_doc_comment)]
    Create {
        /// The challenge's slug
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        id: Option<String>,
        /// A challenge's file (YAML or JSON)
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        fields: Box<Fields>,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// List challenges, by slug
    #[command(visible_alias = "ls")]
    List {
        /// How to show them
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show challenges
    Get {
        /// Their slugs or numbers
        #[arg(required = true)]
        id: Vec<String>,
        /// How to show them
        #[arg(short, long, value_enum, default_value = "yaml")]
        output: Output,
    },
    /// Change a challenge, for stacks that are made from now on
    Edit {
        /// Its slug or number
        id: String,
        #[command(flatten)]
        fields: Box<Fields>,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Remove challenges
    #[command(visible_alias = "rm")]
    Delete {
        /// Their slugs or numbers
        #[arg(required = true)]
        id: Vec<String>,
        /// Take their live stacks away, too; without it they end in their own time
        #[arg(long)]
        destroy: bool,
        /// Do not mind those that are not there
        #[arg(long)]
        ignore_not_found: bool,
    },
    /// Make the catalogue what a directory of files says
    ///
    /// One challenge a file (*.yaml, *.yml, *.json). Shows what changes; done twice, it changes
    /// nothing the second time. Challenges without a file stay unless --prune is given.
    ///
    /// A first line `# yaml-language-server: $schema=…` makes editors complete a file; `stackd
    /// challenge schema` writes the schema, and every server has it at /schemas/challenge.json.
    Apply(apply::ApplyArgs),
    /// Pull the images of challenges ahead of need
    Warm {
        /// Their slugs or numbers; all where none is given
        id: Vec<String>,
    },
    /// Write the schema of a challenge's file to standard output
    Schema,
}

/// What a challenge is.
#[derive(Debug, Args)]
struct Fields {
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// Its number, which players' paths name; only for a new one
    #[arg(long, value_name = "NUMBER")]
    number: Option<u64>,
    /// How strongly its stacks are isolated: docker (the server's default), kctf or
    /// kata-firecracker
    #[arg(long, value_name = "CLASS")]
    runtime: Option<String>,
    /// The image of its one container
    #[arg(long)]
    image: Option<String>,
    /// The port that it listens on
    #[arg(long)]
    port: Option<u16>,
    /// A Pod file (YAML or JSON) in place of an image; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pod_file: Option<PathBuf>,
    /// A port of the Pod to publish, as 80, 80/tcp or 53/udp; may be given several times. Of a Pod
    /// file, all ports of its containers are published where none is given
    #[arg(long, value_name = "PORT", value_parser = pod::port)]
    target_port: Vec<pod::Port>,
    /// What players speak with it: http or tcp
    #[arg(long)]
    protocol: Option<String>,
    /// CPU cores
    #[arg(long, value_name = "COUNT")]
    cpu_count: Option<u32>,
    /// Memory in MB
    #[arg(long, value_name = "MB")]
    memory_mb: Option<u32>,
    /// How long a stack of it lives, in whole seconds or as 1h30m; 0 is the server's default
    #[arg(long, value_name = "DURATION", value_parser = stackd_core::duration::parse)]
    ttl: Option<Duration>,
    /// Further options, as JSON; an empty text takes them away
    #[arg(long, value_name = "JSON")]
    extra_config: Option<String>,
    /// Whether it is there for players at all
    #[arg(long, value_name = "BOOL")]
    enabled: Option<bool>,
    /// Whether players may start stacks of it
    #[arg(long, value_name = "BOOL")]
    stack_enabled: Option<bool>,
    /// Whether solving it ends the solver's stack
    #[arg(long, value_name = "BOOL")]
    destroy_on_solve: Option<bool>,
}

impl Fields {
    fn body(&self) -> anyhow::Result<Map<String, Value>> {
        let mut body = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), value);
            }
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
        put("name", text(&self.name));
        put("number", self.number.map(Value::from));
        put("runtime", text(&self.runtime));
        put("image", text(&self.image));
        put("port", self.port.map(Value::from));
        let pod_spec = self.pod_file.as_deref().map(pod::read).transpose()?;
        let target_port = match &pod_spec {
            Some(yaml) if self.target_port.is_empty() => pod::ports_of(yaml)?,
            _ => self.target_port.clone(),
        };
        put("target_port", (!target_port.is_empty()).then(|| json!(target_port)));
        put("pod_spec", pod_spec.map(Value::from));
        put("protocol", text(&self.protocol));
        put("cpu_count", self.cpu_count.map(Value::from));
        put("memory_mb", self.memory_mb.map(Value::from));
        let ttl = |ttl: Duration| if ttl.is_zero() { Value::Null } else { json!(ttl.as_secs()) };
        put("ttl_seconds", self.ttl.map(ttl));
        let extra = |text: &String| if text.is_empty() { Value::Null } else { json!(text) };
        put("extra_config", self.extra_config.as_ref().map(extra));
        put("enabled", self.enabled.map(Value::from));
        put("stack_enabled", self.stack_enabled.map(Value::from));
        put("destroy_on_solve", self.destroy_on_solve.map(Value::from));
        Ok(body)
    }
}

/// Runs one of the commands.
pub(crate) async fn run(
    args: ChallengeArgs,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    if let ChallengeCommand::Schema = args.command {
        crate::out::write(stackd_server::CHALLENGE_SCHEMA)?;
        return Ok(ExitCode::SUCCESS);
    }
    let api = Api::new(&args.server, environment)?;
    match args.command {
        ChallengeCommand::Create { id, file, fields, output } => {
            let mut body = match &file {
                Some(path) => file::read(path)?.body(),
                None => Map::from_iter([("id".to_owned(), json!(id))]),
            };
            body.extend(fields.body()?);
            body.entry("runtime").or_insert_with(|| json!("docker"));
            if let (None, Some(id)) = (body.get("name"), body.get("id").cloned()) {
                body.insert("name".to_owned(), id);
            }
            let request = api.request(Method::POST, &["challenges"]).json(&body);
            crate::out::write(show::all(&[api.json(request).await?], output)?)?;
        }
        ChallengeCommand::List { output } => {
            let all = list(&api).await?;
            crate::out::write(show::all(&all, output)?)?;
        }
        ChallengeCommand::Get { id, output } => {
            let mut all = Vec::new();
            for id in &id {
                all.push(api.json(api.request(Method::GET, &["challenges", id])).await?);
            }
            crate::out::write(show::all(&all, output)?)?;
        }
        ChallengeCommand::Edit { id, fields, output } => {
            let body = fields.body()?;
            if body.is_empty() {
                return Err(Failure::new(Exit::Usage, "nothing to change is given")
                    .hint("for example --ttl 1h or --enabled false; `stackd challenge edit --help` lists all")
                    .into());
            }
            let request = api.request(Method::PATCH, &["challenges", &id]).json(&body);
            crate::out::write(show::all(&[api.json(request).await?], output)?)?;
        }
        ChallengeCommand::Delete { id, destroy, ignore_not_found } => {
            delete(&api, &id, destroy, ignore_not_found).await?;
        }
        ChallengeCommand::Apply(apply) => apply::run(&apply, &api).await?,
        ChallengeCommand::Warm { id } => warm::run(&api, id).await?,
        ChallengeCommand::Schema => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// All challenges, as the server shows them.
async fn list(api: &Api) -> anyhow::Result<Vec<Value>> {
    match api.json(api.request(Method::GET, &["challenges"])).await? {
        Value::Array(all) => Ok(all),
        _ => anyhow::bail!("the server's answer is not a list of challenges"),
    }
}

async fn remove(api: &Api, id: &str, destroy: bool) -> anyhow::Result<()> {
    let mut request = api.request(Method::DELETE, &["challenges", id]);
    if destroy {
        request = request.query(&[("destroy", "true")]);
    }
    api.send(request).await.map(drop)
}

async fn delete(
    api: &Api,
    ids: &[String],
    destroy: bool,
    ignore_not_found: bool,
) -> anyhow::Result<()> {
    let mut missing = None;
    for id in ids {
        match remove(api, id, destroy).await {
            Ok(()) => crate::out::line(id)?,
            // The others go all the same.
            Err(error) if super::stack::is_not_found(&error) => {
                if !ignore_not_found {
                    missing = Some(error.context(format!("{id} was not removed")));
                }
            }
            Err(error) => return Err(error.context(format!("{id} was not removed"))),
        }
    }
    missing.map_or(Ok(()), Err)
}

/// A text of a challenge as the server shows it.
fn text<'a>(challenge: &'a Value, field: &str) -> &'a str {
    challenge.get(field).and_then(Value::as_str).unwrap_or_default()
}
