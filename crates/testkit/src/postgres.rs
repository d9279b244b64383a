//! A private PostgreSQL for tests: its own data directory, user and port on loopback; it can be
//! stopped, killed and frozen, and nothing of it outlives the process that started it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "without it the test has failed")]

use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// What tests connect with; it must not show up in any error.
pub const PASSWORD: &str = "pass-word-of-the-tests";

/// Waits for the end of the process that started it, in whatever way it ends, and clears up.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
read -r _
dir=$1; shift
pid=$(head -n 1 "$dir/data/postmaster.pid" 2>/dev/null)
segment=$(sed -n 's/^ *[0-9]* *\([0-9][0-9]*\)$/\1/p' "$dir/data/postmaster.pid" 2>/dev/null | tail -n 1)
if [ -n "$pid" ] && [ -d "/proc/$pid" ]; then
    children=$(cat "/proc/$pid/task/$pid/children")
    kill -CONT $pid $children
    kill -QUIT "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.02; done
elif [ -n "$segment" ]; then
    ipcrm -m "$segment"
fi
rm -rf "$dir"
"#;

/// A cluster of its own.
pub struct Postgres {
    directory: PathBuf,
    programs: PathBuf,
    port: u16,
    /// Of the system's user `postgres`; PostgreSQL refuses to run as root.
    user: Option<(u32, u32)>,
    databases: AtomicU32,
    supervisor: Child,
    /// Its end is what the supervisor waits for.
    life_line: Option<ChildStdin>,
}

impl Postgres {
    /// The one that the tests of this process share.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
        &SHARED
    }

    /// Makes and starts a cluster: for tests that stop it.
    pub fn start() -> Self {
        let programs = programs();
        let user = rustix::process::getuid().is_root().then(|| (id_of("-u"), id_of("-g")));
        let directory = tempfile::Builder::new().prefix("stackd-pg-").tempdir().unwrap().keep();
        chown(&directory, user.map(|u| u.0), user.map(|u| u.1)).unwrap();
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let life_line = supervisor.stdin.take();
        let mut cluster = Self {
            directory,
            programs,
            port: 0,
            user,
            databases: AtomicU32::new(0),
            supervisor,
            life_line,
        };
        let password_file = cluster.directory.join("password");
        std::fs::write(&password_file, PASSWORD).unwrap();
        chown(&password_file, user.map(|u| u.0), user.map(|u| u.1)).unwrap();
        let mut initdb = cluster.program("initdb");
        initdb.args(["--username=stackd", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8"]);
        initdb.arg("--locale=C").arg("--pwfile").arg(&password_file);
        run(initdb.arg("-D").arg(cluster.data()));
        cluster.choose_port();
        cluster.start_again();
        cluster
    }

    /// A new, empty database; its URL.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut psql = self.program("psql");
        psql.env("PGPASSWORD", PASSWORD).args([
            "-h",
            "127.0.0.1",
            "-U",
            "stackd",
            "-d",
            "postgres",
        ]);
        psql.arg("-p").arg(self.port.to_string());
        run(psql.arg("-c").arg(format!("CREATE DATABASE {name}")));
        format!("postgres://stackd:{PASSWORD}@127.0.0.1:{}/{name}", self.port)
    }

    /// Starts it after [`Postgres::stop`] or [`Postgres::kill`], and waits until it answers.
    pub fn start_again(&self) {
        // Tests do not pull the plug: what is in the page cache is safe.
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off \
             -c max_connections=50 -c shared_buffers=16MB",
            self.port
        );
        let mut start = self.program("pg_ctl");
        start.args(["start", "-w", "-t", "60", "-o", &options, "-D"]).arg(self.data());
        run(start.arg("-l").arg(self.directory.join("log")));
    }

    /// Stops it in order, without waiting for its clients.
    pub fn stop(&self) {
        run(self.program("pg_ctl").args(["stop", "-w", "-m", "fast", "-D"]).arg(self.data()));
    }

    /// Kills the server and all its processes at once.
    pub fn kill(&self) {
        let all = self.processes();
        signal("-KILL", &all);
        // Its shared memory is in use until the last is gone.
        while all.iter().any(|pid| Path::new("/proc").join(pid).exists()) {
            std::thread::yield_now();
        }
    }

    /// Stops the world: connections stay open and nobody answers.
    pub fn freeze(&self) {
        signal("-STOP", &self.processes());
    }

    /// Goes on after [`Postgres::freeze`].
    pub fn thaw(&self) {
        signal("-CONT", &self.processes());
    }

    fn processes(&self) -> Vec<String> {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let server = file.lines().next().expect("the server's pid").to_owned();
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
        let mut all = vec![server];
        all.extend(children.unwrap().split_whitespace().map(str::to_owned));
        all
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn choose_port(&mut self) {
        self.port = crate::ports::free();
    }

    fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = match self.user {
            Some((user, group)) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={user}")).arg(format!("--regid={group}"));
                command.args(["--clear-groups", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        // A group of its own, so that Ctrl-C reaches the tests and not the server.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.life_line.take());
        let _ = self.supervisor.wait();
    }
}

/// The newest version that Debian has installed, else what is on the path.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| number(path));
    newest.map(|path| path.join("bin")).unwrap_or_default()
}

fn id_of(option: &str) -> u32 {
    let output = Command::new("id").args([option, "postgres"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().expect("a user `postgres`; run ci/install-test-deps.sh")
}

fn signal(signal: &str, pids: &[String]) {
    // One of them may have ended since.
    let _ = Command::new("kill").arg(signal).args(pids).stderr(Stdio::null()).status();
}

/// Runs it to its end. Its output goes to files: a daemon that it leaves behind would hold a pipe.
fn run(command: &mut Command) {
    let output = tempfile::tempfile().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
    let status = match command.status() {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            panic!("PostgreSQL is not installed; run ci/install-test-deps.sh")
        }
        Err(error) => panic!("{error}"),
    };
    if !status.success() {
        let mut output = output;
        let mut text = String::new();
        io::Seek::rewind(&mut output).unwrap();
        io::Read::read_to_string(&mut output, &mut text).unwrap();
        panic!("{command:?}: {status}\n{text}");
    }
}
