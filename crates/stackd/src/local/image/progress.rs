//! How far a pull is, a line for each layer; only on a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stackd_runtimes::oci::images::{Digest, LayerStep, Progress};

/// The lines of one pull.
#[derive(Debug)]
pub(super) struct Bars {
    all: Option<MultiProgress>,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    pub(super) fn new() -> Self {
        let all = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { all, layers: Mutex::default() }
    }

    pub(super) fn show(&self, progress: &Progress) {
        let Some(all) = &self.all else { return };
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &progress.layers {
            let bar = layers.entry(layer.digest).or_insert_with(|| {
                let bar = all.add(ProgressBar::new(layer.total_bytes));
                let template = "{prefix} {msg:<12} {bar:30} {bytes}/{total_bytes}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_prefix(layer.digest.short());
                bar
            });
            bar.set_length(layer.total_bytes);
            bar.set_position(layer.downloaded_bytes);
            bar.set_message(match layer.step {
                LayerStep::Waiting => "waiting",
                LayerStep::Downloading => "downloading",
                LayerStep::Unpacking => "unpacking",
                LayerStep::Done => "done",
            });
            if layer.step == LayerStep::Done && !bar.is_finished() {
                bar.finish();
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            // The result is told by itself; what led to it would only be in the way.
            let _ = all.clear();
        }
    }
}
