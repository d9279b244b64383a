//! `stackd doctor`: whether `stackd serve` with the same settings will work here, and what to do
//! where it will not. It changes nothing; with `--probe` it starts stacks of its own for a moment.

mod docker;
mod kubernetes;
mod machine;
pub(crate) mod probe;
mod settings;

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use stackd_core::quantity::Quantity;
use stackd_core::spec::Requested;

use crate::config::{AllSettings, Config, Driver};
use crate::exit::Exit;
use crate::{out, table};

/// Check whether `stackd serve` will work here, and say what to do where it will not
///
/// Takes the settings of `stackd serve`. Ends with 0 when serve will work, with 12 when it will
/// not, or when a probe finds a hole. Warnings do not keep it from working.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) settings: AllSettings,
    /// Also start real stacks for a moment, and try from inside what a stack must not be able to do
    #[arg(long)]
    probe: bool,
    /// The size of a stack, to tell how many more a cluster or a Docker engine has room for
    #[arg(long, value_name = "cpu=N,memory=N,disk=N", value_parser = size,
          default_value = "cpu=100m,memory=128Mi,disk=256Mi")]
    stack_size: Requested,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Reads the size of a stack.
fn size(text: &str) -> Result<Requested, String> {
    let mut size = Requested::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, amount) = part.split_once('=').ok_or("write it as cpu=100m,memory=128Mi")?;
        let amount: Quantity =
            amount.trim().parse().map_err(|_| format!("{amount:?} is not an amount"))?;
        match name.trim() {
            "cpu" => size.cpu_milli = amount.milli(),
            "memory" => size.memory_bytes = amount.units(),
            "disk" => size.disk_bytes = amount.units(),
            other => return Err(format!("{other:?} is none of cpu, memory and disk")),
        }
    }
    Ok(size)
}

/// How the result is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For scripts
    Json,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// It works, with less than there could be.
    Warning,
    /// `serve` will not work.
    Failed,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) status: Status,
    /// What was found.
    pub(crate) detail: String,
    /// What to do about it, where there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

impl Check {
    pub(crate) fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status: Status::Ok, detail: detail.into(), fix: None }
    }

    pub(crate) fn warning(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Warning, fix: Some(fix.into()), ..Self::ok(name, detail) }
    }

    pub(crate) fn failed(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Failed, ..Self::warning(name, detail, fix) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    /// Whether `serve` will work.
    ok: bool,
    checks: &'a [Check],
}

/// Looks at everything, tells, and gives the exit code.
pub(crate) async fn run(config: &Config, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut checks = settings::checks(config).await;
    checks.extend(machine::checks(config));
    match config.runtime.driver {
        Driver::Oci => checks.extend(machine::of_runtime(config)),
        Driver::Docker => checks.extend(docker::checks(config, &args.stack_size).await),
        Driver::Kubernetes => {
            checks.extend(kubernetes::checks(config, &args.stack_size, args.probe).await);
        }
        Driver::Simulated => {}
    }
    let all_ok = |checks: &[Check]| checks.iter().all(|check| check.status != Status::Failed);
    let probed = match args.probe {
        true if all_ok(&checks) => probe::checks(config).await,
        _ => Vec::new(),
    };
    let ok = all_ok(&checks) && all_ok(&probed);
    match args.output {
        Output::Json => {
            checks.extend(probed);
            out::line(serde_json::to_string_pretty(&Report { ok, checks: &checks })?)?;
        }
        Output::Table => out::write(shown(&checks, &probed))?,
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(Exit::Unfit.code()) })
}

fn shown(checks: &[Check], probed: &[Check]) -> String {
    let row = |check: &Check| {
        [check.status.as_str().to_owned(), check.name.clone(), check.detail.clone()]
    };
    let all = || checks.iter().chain(probed);
    let rows: Vec<_> = all().map(row).collect();
    let mut text = table::render(["STATUS", "CHECK", "FOUND"], &rows);
    for check in all() {
        if let Some(fix) = &check.fix {
            text.push_str(&format!("\n{}: {}\nhint: {fix}\n", check.name, check.detail));
        }
    }
    let failed =
        |checks: &[Check]| checks.iter().filter(|check| check.status == Status::Failed).count();
    text.push_str(&match failed(checks) {
        0 => "\n`stackd serve` will work here\n".to_owned(),
        1 => "\n`stackd serve` will not work here: 1 check failed\n".to_owned(),
        n => format!("\n`stackd serve` will not work here: {n} checks failed\n"),
    });
    if !probed.is_empty() {
        text.push_str(&match failed(probed) {
            1 if probed.len() == 1 => "whether a stack is isolated here is not known\n".to_owned(),
            0 => format!("a stack is isolated here: {} attempts failed\n", probed.len()),
            n => format!("a stack is NOT isolated here: {n} of {} checks\n", probed.len()),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_stack_is_read() {
        let read = size("cpu=0.5, memory=1Gi").unwrap();
        assert_eq!((read.cpu_milli, read.memory_bytes, read.disk_bytes), (500, 1 << 30, 0));
        for wrong in ["cpu", "gpu=1", "cpu=much"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_fix_stands_below_the_table() {
        let checks = [
            Check::ok("user", "root"),
            Check::warning("ports", "overlap", "reserve them"),
            Check::failed("kernel", "4.4", "take a newer one"),
        ];
        let text = shown(&checks, &[]);
        assert!(text.starts_with("STATUS    CHECK    FOUND\nok        user     root\n"), "{text}");
        assert!(text.contains("\nports: overlap\nhint: reserve them\n"), "{text}");
        assert!(text.ends_with("will not work here: 1 check failed\n"), "{text}");
        assert!(shown(&checks[..2], &[]).ends_with("will work here\n"));
        let probed =
            [Check::ok("isolation: mounts", "denied"), Check::ok("isolation: keys", "denied")];
        let isolated = shown(&checks[..1], &probed);
        assert!(isolated.ends_with("a stack is isolated here: 2 attempts failed\n"), "{isolated}");
        assert!(shown(&checks[..1], &checks[1..]).ends_with("NOT isolated here: 1 of 2 checks\n"));
        assert!(shown(&checks[..1], &checks[2..]).ends_with("is not known\n"));
    }
}
