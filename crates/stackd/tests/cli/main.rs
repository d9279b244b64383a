//! The real binary, driven as an operator drives it, on the runtime that starts nothing.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod challenges;
mod keys;
mod serving;
mod stacks;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The binary, with nothing of this process's settings.
fn stackd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stackd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STACKD_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

/// What a command said, and its code.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(args: &[&str]) -> Said {
    said(stackd().args(args).output().unwrap())
}

/// Both sides of a terminal.
fn terminal() -> (std::fs::File, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = std::fs::OpenOptions::new().write(true).open(name.to_str().unwrap()).unwrap();
    (controller.into(), terminal)
}

/// What a terminal shows, once nobody holds it any more: then it ends with an error.
fn shown_on(mut controller: std::fs::File) -> String {
    let mut shown = Vec::new();
    let _ = controller.read_to_end(&mut shown);
    String::from_utf8(shown).unwrap()
}

/// A running server; it is stopped in order when this is dropped.
struct Server {
    child: Child,
    data: PathBuf,
    url: String,
    log: mpsc::Receiver<String>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args, &[])
    }

    fn start_in(dir: tempfile::TempDir, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_with(dir, args, env, Stdio::piped())
    }

    fn start_with(dir: tempfile::TempDir, args: &[&str], env: &[(&str, &str)], out: Stdio) -> Self {
        let data = dir.path().join("data");
        let mut child = stackd()
            .args(["serve", "--runtime", "simulated", "--listen", "127.0.0.1:0"])
            .args(["--log-format", "json", "--data-dir"])
            .arg(&data)
            .args(args)
            .envs(env.iter().copied())
            .stdout(out)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut before = Vec::new();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("it ended: {before:#?}") };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            before.push(line);
            if event["message"] == "listening" {
                break event["address"].as_str().unwrap().to_owned();
            }
        };
        let (sender, log) = mpsc::channel();
        for line in before {
            sender.send(line).unwrap();
        }
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|l| sender.send(l)));
        Self { child, data, url, log, _dir: dir }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it and gives its code, its standard output, its log and its directory.
    fn stop(mut self) -> (i32, String, String, tempfile::TempDir) {
        self.signal(Signal::TERM);
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let mut out = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).unwrap();
        }
        let log = self.log.iter().collect::<Vec<_>>().join("\n");
        let dir = std::mem::replace(&mut self._dir, tempfile::tempdir().unwrap());
        (code, out, log, dir)
    }

    fn key(&self) -> String {
        std::fs::read_to_string(self.data.join("api-key")).unwrap().trim().to_owned()
    }

    /// A command on this server's data.
    fn local(&self, args: &[&str]) -> Said {
        said(stackd().args(args).env("STACKD_DATA_DIR", &self.data).output().unwrap())
    }

    /// A command on this server's API; the key is found in the data directory.
    fn stack(&self, args: &[&str]) -> Said {
        let mut command = stackd();
        command.arg("stack").args(args).env("STACKD_SERVER", &self.url);
        said(command.env("STACKD_DATA_DIR", &self.data).output().unwrap())
    }

    fn challenge(&self, args: &[&str]) -> Said {
        let mut command = stackd();
        command.arg("challenge").args(args).env("STACKD_SERVER", &self.url);
        said(command.env("STACKD_DATA_DIR", &self.data).output().unwrap())
    }

    fn create(&self) -> String {
        let made = self.stack(&["create", "nginx:stable", "--port", "80", "--wait", "-o", "name"]);
        assert_eq!(made.code, 0, "{}", made.err);
        made.out.trim().to_owned()
    }

    /// The status of a call with this key.
    fn status(&self, path: &str, key: Option<&str>) -> u16 {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let key = key.map(|key| format!("X-API-KEY: {key}\r\n")).unwrap_or_default();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{key}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}
