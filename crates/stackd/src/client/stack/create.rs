//! `stackd stack create`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::pod::{self, FromImage, Port};
use super::show::{self, Output};
use super::wait;
use crate::client::Api;
use crate::exit::{Exit, Failure};
use crate::out;

/// What the stack is to be.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The image to start, where no Pod file is given
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    image: Option<String>,
    /// A Pod file (YAML or JSON); `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A port to publish, as 80, 80/tcp or 53/udp; may be given several times. Of a Pod file, all
    /// ports of its containers are published where none is given
    #[arg(short, long, value_name = "PORT", value_parser = pod::port)]
    port: Vec<Port>,
    /// CPU of an image's container
    #[arg(long, value_name = "AMOUNT", default_value = "100m", conflicts_with = "file")]
    cpu: String,
    /// Memory of an image's container
    #[arg(long, value_name = "AMOUNT", default_value = "128Mi", conflicts_with = "file")]
    memory: String,
    /// Disk of an image's container; the server's default where not given
    #[arg(long, value_name = "AMOUNT", conflicts_with = "file")]
    disk: Option<String>,
    /// A variable of an image's container; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pod::pair, conflicts_with = "file")]
    env: Vec<(String, String)>,
    /// A label to select the stack by; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pod::pair)]
    label: Vec<(String, String)>,
    /// How long it lives, in whole seconds or as 90s, 1h30m; the server's default where not given
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    ttl: Option<Duration>,
    /// Whose stack it is: starts are shared out fairly between owners
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Which handler of the runtime starts it
    #[arg(long, value_name = "CLASS")]
    runtime_class: Option<String>,
    /// Sent again with the same key and the same request, this command gives the same stack
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Wait until it runs
    #[arg(short, long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "5m",
          value_parser = stackd_core::duration::parse)]
    timeout: Duration,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Arguments for the image's program
    #[arg(last = true, conflicts_with = "file")]
    args: Vec<String>,
}

pub(super) async fn run(args: CreateArgs, api: &Api) -> anyhow::Result<()> {
    let body = body(&args)?;
    let mut request = api.request(Method::POST, &["stacks"]).json(&body);
    if let Some(key) = &args.idempotency_key {
        request = request.header("Idempotency-Key", key);
    }
    let mut stack = api.json(request).await?;
    let id = stack.get("stack_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    if args.output == Output::Name {
        // At once, so that a script can remove it also when the wait comes to nothing.
        out::line(&id)?;
    }
    if args.wait {
        // The id is of use also when the wait comes to nothing.
        let waited = wait::until(api, &id, wait::For::Running, args.timeout).await;
        stack = waited.with_context(|| format!("{id} was created, but does not run"))?;
    }
    if args.output == Output::Name {
        return Ok(());
    }
    out::write(show::details(vec![stack], args.output)?)
}

/// A length of time that the API can carry.
fn whole_seconds(text: &str) -> Result<Duration, String> {
    let duration = stackd_core::duration::parse(text).map_err(|error| error.to_string())?;
    match duration.subsec_nanos() {
        0 => Ok(duration),
        _ => Err("a stack lives for whole seconds".to_owned()),
    }
}

fn body(args: &CreateArgs) -> anyhow::Result<Value> {
    let (pod_spec, ports) = match (&args.file, &args.image) {
        (Some(path), _) => {
            let yaml = pod::read(path)?;
            let ports =
                if args.port.is_empty() { pod::ports_of(&yaml)? } else { args.port.clone() };
            (yaml, ports)
        }
        (None, image) => {
            if args.port.is_empty() {
                return Err(Failure::new(Exit::Usage, "no port to publish is given")
                    .hint(
                        "add --port with the port that the image listens on, for example --port 80",
                    )
                    .into());
            }
            let pod = pod::from_image(&FromImage {
                image: image.as_deref().unwrap_or_default(),
                ports: &args.port,
                cpu: &args.cpu,
                memory: &args.memory,
                disk: args.disk.as_deref(),
                env: &args.env,
                args: &args.args,
            });
            (pod.to_string(), args.port.clone())
        }
    };
    let mut body = Map::new();
    body.insert("target_port".to_owned(), json!(ports));
    body.insert("pod_spec".to_owned(), json!(pod_spec));
    if let Some(ttl) = args.ttl {
        body.insert("ttl_seconds".to_owned(), json!(ttl.as_secs()));
    }
    if !args.label.is_empty() {
        let labels: Map<_, _> =
            args.label.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        body.insert("labels".to_owned(), labels.into());
    }
    for (name, value) in [("owner", &args.owner), ("runtime_class", &args.runtime_class)] {
        if let Some(value) = value {
            body.insert(name.to_owned(), json!(value));
        }
    }
    Ok(body.into())
}
