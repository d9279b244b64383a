//! Log lines, on standard error: text for people, JSON for collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSection};
use crate::exit::{Exit, Failure};

/// Begins to write what the filter lets through.
pub(crate) fn start(section: &LogSection) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&section.level).map_err(|error| {
        Failure::new(Exit::Config, format!("log.level: {:?}: {error}", section.level))
            .hint("a level (error, warn, info, debug, trace) or target=level, separated by commas")
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match section.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(Exit::Failed, format!("logging cannot start: {error}")))
}
