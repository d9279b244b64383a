//! What to run in a container: the image's defaults and the Pod's wishes, put together as
//! Kubernetes does. Nothing is read here: users are looked up in files read beforehand.

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use stackd_core::spec::Container;
use stackd_core::variables::Variables;

use super::images::RunConfig;
use super::images::users::{UserDatabase, UserError};
use crate::host::signals::number as signal_number;
use crate::images;

/// Where programs are looked for when neither image nor Pod says so.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process, ready to be executed inside its root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// An absolute path. It may not exist yet; then it is made.
    pub cwd: String,
    /// The user inside the container.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its further groups.
    pub groups: Vec<u32>,
    /// The number of the signal that asks it to end.
    pub stop_signal: i32,
}

/// There is no process to run. The texts are for callers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither the image nor the Pod names a program.
    #[error("{}", images::no_command(.container))]
    NoCommand {
        /// Which container.
        container: String,
    },
    /// The image's user cannot be made out.
    #[error("container \"{container}\": {source}")]
    User {
        /// Which container.
        container: String,
        /// Why.
        source: UserError,
    },
    /// The working directory is not an absolute path.
    #[error("container \"{container}\": the working directory \"{path}\" is not an absolute path")]
    WorkingDirectory {
        /// Which container.
        container: String,
        /// What was given.
        path: String,
    },
    /// The image wants to be ended by a signal that does not exist.
    #[error("container \"{container}\": the image's STOPSIGNAL \"{signal}\" is not a signal")]
    StopSignal {
        /// Which container.
        container: String,
        /// What the image says.
        signal: String,
    },
    /// Something that is handed to the kernel as a C string contains a NUL.
    #[error("container \"{container}\": {what} contains a NUL byte")]
    Nul {
        /// Which container.
        container: String,
        /// An argument, a variable or the working directory.
        what: &'static str,
    },
}

impl From<ProcessError> for stackd_core::runtime::RuntimeError {
    fn from(error: ProcessError) -> Self {
        Self::open(
            stackd_core::runtime::ErrorKind::Rejected,
            stackd_core::stack::reason::START_ERROR,
            error.to_string(),
        )
    }
}

/// Works out what to run in `container` from an image.
///
/// Kubernetes' rules: `command` replaces the image's entrypoint and drops its default arguments,
/// `args` replaces the default arguments, an empty list counts as not given. `$(NAME)` is expanded
/// from the container's own `env` alone, never from the image's.
pub fn resolve(
    image: &RunConfig,
    container: &Container,
    users: &UserDatabase,
    hostname: &str,
) -> Result<ProcessSpec, ProcessError> {
    let name = || container.name.clone();
    let user = users
        .resolve(&image.user)
        .map_err(|source| ProcessError::User { container: name(), source })?;

    let stop_signal = match image.stop_signal.as_deref().filter(|signal| !signal.is_empty()) {
        None => Signal::TERM.as_raw(),
        Some(signal) => signal_number(signal).ok_or_else(|| ProcessError::StopSignal {
            container: name(),
            signal: signal.to_owned(),
        })?,
    };

    let variables = Variables::of(&container.env);
    let expand_own = |word: &String| variables.expand(word);

    let command = container.command.as_deref().unwrap_or_default();
    let given_args = container.args.as_deref().unwrap_or_default();
    let mut args: Vec<String> = Vec::new();
    if command.is_empty() {
        // An entrypoint of one empty word is how `docker build` writes "none".
        if image.entrypoint.iter().any(|word| !word.is_empty()) {
            args.extend(image.entrypoint.iter().cloned());
        }
        if given_args.is_empty() {
            args.extend(image.cmd.iter().cloned());
        }
    } else {
        args.extend(command.iter().map(expand_own));
    }
    args.extend(given_args.iter().map(expand_own));
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoCommand { container: name() });
    }

    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("HOSTNAME", hostname);
    env.set("HOME", &user.home);
    if container.tty {
        env.set("TERM", "xterm");
    }
    for line in &image.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        if !name.is_empty() {
            env.set(name, value);
        }
    }
    for (name, value) in variables.all() {
        env.set(name, value);
    }
    let env = env.into_lines();

    let cwd = container.working_dir.as_deref().filter(|path| !path.is_empty());
    let cwd = match cwd.unwrap_or(&image.working_dir) {
        "" => "/",
        path => path,
    };
    if !cwd.starts_with('/') {
        return Err(ProcessError::WorkingDirectory { container: name(), path: cwd.to_owned() });
    }
    for (what, texts) in [
        ("an argument", &args[..]),
        ("a variable", &env[..]),
        ("the working directory", &[cwd.to_owned()][..]),
    ] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(ProcessError::Nul { container: name(), what });
        }
    }
    Ok(ProcessSpec {
        args,
        env,
        cwd: cwd.to_owned(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        stop_signal,
    })
}

/// Variables in the order in which they were first named; a later value replaces an earlier one.
#[derive(Default)]
struct Environment {
    lines: Vec<(String, String)>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.lines.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.lines.push((name.to_owned(), value.to_owned())),
        }
    }

    fn into_lines(self) -> Vec<String> {
        self.lines.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stackd_core::spec::{EnvVar, Resources};

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn container() -> Container {
        Container {
            name: "app".to_owned(),
            image: "x".to_owned(),
            image_pull_policy: None,
            command: None,
            args: None,
            working_dir: None,
            env: Vec::new(),
            ports: Vec::new(),
            resources: Resources::default(),
            volume_mounts: Vec::new(),
            readiness_probe: None,
            liveness_probe: None,
            startup_probe: None,
            stdin: false,
            tty: false,
        }
    }

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["default"]),
            ..RunConfig::default()
        }
    }

    fn run(image: &RunConfig, container: &Container) -> Result<ProcessSpec, ProcessError> {
        resolve(image, container, &UserDatabase::default(), "host")
    }

    #[test]
    fn command_and_args_follow_kubernetes() {
        type Words = &'static [&'static str];
        let cases: &[(Option<Words>, Option<Words>, Words)] = &[
            (None, None, &["/entry", "default"]),
            (None, Some(&["a"]), &["/entry", "a"]),
            (Some(&["c"]), None, &["c"]),
            (Some(&["c"]), Some(&["a", "b"]), &["c", "a", "b"]),
            (Some(&[]), Some(&[]), &["/entry", "default"]),
        ];
        for (command, args, expected) in cases {
            let container =
                Container { command: command.map(strings), args: args.map(strings), ..container() };
            let process = run(&image(), &container).unwrap();
            assert_eq!(process.args, strings(expected), "{command:?} {args:?}");
        }
    }

    #[test]
    fn an_image_without_a_command_is_refused_with_the_way_out() {
        let image = RunConfig { entrypoint: strings(&[""]), ..RunConfig::default() };
        let error = run(&image, &container()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "container \"app\": the image names no command; set command or args in the container"
        );
        let with_args = Container { args: Some(strings(&["x"])), ..container() };
        assert_eq!(run(&image, &with_args).unwrap().args, strings(&["x"]));
    }

    #[test]
    fn the_environment_is_merged_and_expanded_from_earlier_variables_only() {
        let variable =
            |name: &str, value: &str| EnvVar { name: name.to_owned(), value: value.to_owned() };
        let image = RunConfig { env: strings(&["PATH=/image", "MODE=image", "KEEP=1"]), ..image() };
        let container = Container {
            command: Some(strings(&["run", "$(MODE)", "$(KEEP)", "$(LATE)"])),
            env: vec![
                variable("EARLY", "$(LATE)"),
                variable("LATE", "l"),
                variable("MODE", "pod-$(LATE)"),
            ],
            ..container()
        };
        let process = run(&image, &container).unwrap();
        assert_eq!(process.args, strings(&["run", "pod-l", "$(KEEP)", "l"]));
        assert_eq!(
            process.env,
            strings(&[
                "PATH=/image",
                "HOSTNAME=host",
                "HOME=/",
                "MODE=pod-l",
                "KEEP=1",
                "EARLY=$(LATE)",
                "LATE=l",
            ])
        );
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let image = RunConfig { working_dir: "/srv".to_owned(), ..image() };
        assert_eq!(run(&image, &container()).unwrap().cwd, "/srv");
        let other = Container { working_dir: Some("/tmp".to_owned()), ..container() };
        assert_eq!(run(&image, &other).unwrap().cwd, "/tmp");
        let relative = Container { working_dir: Some("tmp".to_owned()), ..container() };
        assert!(run(&image, &relative).is_err());
    }

    #[test]
    fn a_nul_never_reaches_the_kernel() {
        let container = Container { args: Some(strings(&["a\0b"])), ..container() };
        assert!(matches!(run(&image(), &container), Err(ProcessError::Nul { .. })));
    }

    #[test]
    fn an_image_says_by_which_signal_it_ends() {
        assert_eq!(run(&image(), &container()).unwrap().stop_signal, 15);
        let image = RunConfig { stop_signal: Some("nonsense".to_owned()), ..image() };
        let error = run(&image, &container()).unwrap_err().to_string();
        assert_eq!(error, "container \"app\": the image's STOPSIGNAL \"nonsense\" is not a signal");
    }
}
