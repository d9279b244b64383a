//! The command line: what there is, and which module does it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::client::challenge::{self, ChallengeArgs};
use crate::client::stack::{self, StackArgs};
use crate::config::{
    self, AllSettings, Config, DEFAULT_FILE, Environment, ImageSettings, LocalSettings,
};
use crate::doctor::{self, DoctorArgs};
use crate::local::image::{self, ImageCommand};
use crate::local::key::{self, KeyCommand};
use crate::{exit, log, out, reference, serve};

/// Isolated containers in milliseconds, with an address, a deadline and a budget.
///
/// `stackd serve` answers the API; `stackd stack` uses it; the other commands look after the
/// server of this machine.
#[derive(Debug, Parser)]
#[command(name = "stackd", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    ///
    /// Every setting can be a flag, an environment variable or a line of the TOML file; flags come
    /// before the environment, the environment before the file.
    Serve(AllSettings),
    Doctor(DoctorArgs),
    /// Make, list and revoke the API keys of this machine's server
    Key {
        #[command(flatten)]
        settings: LocalSettings,
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Pull, load, import, list and remove the images of this machine's server
    Image {
        #[command(flatten)]
        settings: ImageSettings,
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Use the API of a server: make stacks, look at them, take them away
    Stack(StackArgs),
    /// Look after the challenges that players start stacks from
    Challenge(ChallengeArgs),
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write docs/configuration.md and docs/cli.md to a directory
    #[command(hide = true)]
    Reference {
        /// The directory
        directory: PathBuf,
    },
}

/// Runs the command that the process was started with.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli, &Environment::of_process()) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn dispatch(cli: Cli, environment: &Environment) -> anyhow::Result<ExitCode> {
    let settings = |given: &config::Given| -> anyhow::Result<Config> {
        Ok(config::load(given, environment, Path::new(DEFAULT_FILE))?)
    };
    match cli.command {
        Command::Serve(all) => {
            let config = settings(&all.0)?;
            log::start(&config.log)?;
            serve::run(config, environment)
        }
        Command::Doctor(args) => {
            let config = settings(&args.settings.0)?;
            small_executor()?.block_on(doctor::run(&config, &args))
        }
        Command::Key { settings: local, command } => {
            let config = settings(&local.0)?;
            small_executor()?.block_on(key::run(command, &config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Image { settings: local, command } => {
            let config = settings(&local.0)?;
            let executor = small_executor()?;
            let done = executor.block_on(image::run(command, &config));
            executor.shutdown_background();
            done.map(|()| ExitCode::SUCCESS)
        }
        Command::Challenge(args) => small_executor()?.block_on(challenge::run(args, environment)),
        Command::Stack(args) => {
            let executor = small_executor()?;
            let code = executor.block_on(stack::run(args, environment));
            // A thread may still wait for standard input.
            executor.shutdown_background();
            code
        }
        Command::Reference { directory } => {
            reference::write(&directory)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stackd", &mut script);
            out::write(script)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// For commands that wait for one thing at a time.
fn small_executor() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the executor cannot start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
