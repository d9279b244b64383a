//! A server of our own to measure: fresh data directory, free ports, the sample image.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::http::Client;

/// The API key of the measured server; it lives only as long as the measurement.
pub(crate) const KEY: &str = "bench-0123456789abcdef0123456789abcdef";

pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

/// A program that was built beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built; run bench/run", path.display());
    Ok(path)
}

impl Server {
    pub(crate) fn start(runtime: &str) -> Result<Self> {
        Self::with(runtime, &[])
    }

    /// A server with these options.
    pub(crate) fn with(runtime: &str, options: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let data = directory.path().join("data");
        let log = std::fs::File::create(directory.path().join("log"))?;
        let child = Command::new(beside("stackd")?)
            .args(["serve", "--log-format", "json", "--log-level", "info,stackd_runtimes=debug"])
            .args(["--runtime", runtime, "--listen", &address.to_string(), "--data-dir"])
            .arg(&data)
            .args(options)
            .env("STACKD_API_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut server = Self { child, address, directory };
        server.wait_ready()?;
        if runtime == "oci" {
            server.import(&data)?;
        }
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(20) {
            let ready = TcpStream::connect(self.address).is_ok()
                && self.client()?.send("GET", "/readyz", "").is_ok_and(|a| a.status == 200);
            if ready {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server has ended ({status}): {}", self.log()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the server does not become ready: {}", self.log()?)
    }

    /// Makes the sample image from the program alone: it is static.
    fn import(&self, data: &Path) -> Result<()> {
        let root = self.directory.path().join("root");
        std::fs::create_dir(&root)?;
        std::fs::copy(beside("stackd-sample")?, root.join("sample"))?;
        let output = Command::new(beside("stackd")?)
            .args(["image", "import", "--data-dir"])
            .arg(data)
            .args(["--entrypoint", "/sample"])
            .arg(&root)
            .arg("stackd-sample:bench")
            .output()?;
        ensure!(
            output.status.success(),
            "the image was not imported: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The header that carries the API key, with its line's end.
    pub(crate) fn key_header() -> String {
        format!("x-api-key: {KEY}\r\n")
    }

    /// A connection that sends these headers, each with its line's end.
    pub(crate) fn client_with(&self, headers: &str) -> Result<Client<TcpStream>> {
        Client::tcp(self.address, headers)
    }

    pub(crate) fn client(&self) -> Result<Client<TcpStream>> {
        Client::tcp(self.address, &format!("x-api-key: {KEY}\r\n"))
    }

    /// Takes away what runs: stacks outlive their server, and must not outlive a measurement.
    fn empty(&self) -> Result<()> {
        let mut client = self.client()?;
        let listed: serde_json::Value =
            serde_json::from_slice(&client.send("GET", "/stacks", "")?.body)?;
        for stack in listed["stacks"].as_array().into_iter().flatten() {
            let id = stack["stack_id"].as_str().context("an id")?;
            client.send("DELETE", &format!("/stacks/{id}"), "")?;
        }
        let data = self.directory.path().join("data");
        let left = |stacks: &str| {
            std::fs::read_dir(data.join(stacks)).is_ok_and(|mut left| left.next().is_some())
        };
        let since = Instant::now();
        while left("stacks") || left("docker/stacks") {
            ensure!(since.elapsed() < Duration::from_secs(60), "stacks are left over");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.directory.path().join("log")).context("the server's log")
    }

    /// Memory of the server's process, resident.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A measurement that failed leaves nothing behind either.
        if let Err(error) = self.empty() {
            eprintln!("stacks may be left over: {error}");
        }
        // It ends gracefully on SIGTERM; there is no safe call for that in the standard library.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
