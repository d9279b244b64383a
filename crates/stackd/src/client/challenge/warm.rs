//! `stackd challenge warm`: images pulled ahead of need, with progress.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::Value;

use super::{list, text};
use crate::client::Api;
use crate::exit::{Exit, Failure};

pub(super) async fn run(api: &Api, ids: Vec<String>) -> anyhow::Result<()> {
    let ids = match ids.is_empty() {
        false => ids,
        true => list(api).await?.iter().map(|one| text(one, "id").to_owned()).collect(),
    };
    let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(ids.len() as u64));
    if let (Some(bar), Ok(style)) =
        (&bar, ProgressStyle::with_template("{spinner} {pos}/{len} challenges {bar:30} {msg}"))
    {
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    let mut failed = Vec::new();
    for id in &ids {
        failed.extend(one(api, id, bar.as_ref()).await?);
        if let Some(bar) = &bar {
            bar.inc(1);
        }
    }
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    if failed.is_empty() {
        return Ok(());
    }
    let images = if failed.len() == 1 { "image" } else { "images" };
    let text = format!("{} {images} could not be had: {}", failed.len(), failed.join(", "));
    Err(Failure::new(Exit::Failed, text)
        .hint("check their names; private ones want --docker-config on the server")
        .into())
}

/// Pulls the images of one challenge; gives those that could not be had.
async fn one(api: &Api, id: &str, bar: Option<&ProgressBar>) -> anyhow::Result<Vec<String>> {
    let request = api.request(Method::POST, &["challenges", id, "warm"]);
    let mut answer = api.send(request).await?;
    let mut rest = Vec::new();
    let mut failed = Vec::new();
    while let Some(part) = answer.chunk().await.context("the server broke off")? {
        rest.extend_from_slice(&part);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Value =
                serde_json::from_slice(&line).context("the server said something else")?;
            let (image, state) = (text(&line, "image"), text(&line, "state"));
            if let Some(bar) = bar {
                let long = line["seconds"].as_u64().map(|seconds| format!(", {seconds} s"));
                bar.set_message(format!("{state} {image}{}", long.unwrap_or_default()));
            }
            match state {
                "ready" => say(bar, &format!("{id}: {image} is ready"))?,
                "failed" => {
                    say(bar, &format!("{id}: {image}: {}", text(&line, "message")))?;
                    failed.push(image.to_owned());
                }
                _ => {}
            }
        }
    }
    Ok(failed)
}

fn say(bar: Option<&ProgressBar>, line: &str) -> anyhow::Result<()> {
    match bar {
        Some(bar) => bar.suspend(|| crate::out::line(line)),
        None => crate::out::line(line),
    }
}
