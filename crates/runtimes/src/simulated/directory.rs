//! Where several servers on one machine keep the stacks that seem to run, so that one can take over
//! from another: for trying out replicas, and for their tests.
//!
//! There is no lock, since a process that was stopped would hold it: a stack and a node port are
//! files that can be made once. `calls` has a line for each request that a server made.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stackd_core::port::Protocol;
use stackd_core::runtime::{EnsureRequest, RuntimeState};
use stackd_core::{StackId, Timestamp};

/// A stack as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) request: EnsureRequest,
    pub(super) state: RuntimeState,
    pub(super) started_at: Timestamp,
}

#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        for part in ["stacks", "ports", "epochs", "new"] {
            fs::create_dir_all(path.join(part))?;
        }
        Ok(Self(path.to_owned()))
    }

    fn stack(&self, id: StackId) -> PathBuf {
        self.0.join("stacks").join(id.to_string())
    }

    fn port(&self, (protocol, port): (Protocol, u16)) -> PathBuf {
        self.0.join("ports").join(format!("{}-{port}", protocol.as_str()))
    }

    /// A file that is whole when it appears under its name.
    fn written(&self, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.0.join("new").join(format!("{name}.{}", std::process::id()));
        File::create(&path)?.write_all(content)?;
        Ok(path)
    }

    /// Makes a stack; false when it is there already.
    pub(super) fn make(&self, saved: &Saved) -> io::Result<bool> {
        let new = self.written(&saved.request.id.to_string(), &serde_json::to_vec(saved)?)?;
        let made = once(fs::hard_link(&new, self.stack(saved.request.id)));
        fs::remove_file(new)?;
        made
    }

    /// Writes down how a stack is now, if it is still there.
    pub(super) fn save(&self, saved: &Saved) -> io::Result<()> {
        let path = self.stack(saved.request.id);
        let new = self.written(&saved.request.id.to_string(), &serde_json::to_vec(saved)?)?;
        if path.exists() { fs::rename(new, path) } else { fs::remove_file(new) }
    }

    pub(super) fn get(&self, id: StackId) -> Option<Saved> {
        serde_json::from_slice(&fs::read(self.stack(id)).ok()?).ok()
    }

    pub(super) fn all(&self) -> io::Result<Vec<Saved>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.0.join("stacks"))? {
            let id = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            all.extend(id.and_then(|id| self.get(id)));
        }
        Ok(all)
    }

    pub(super) fn remove(&self, id: StackId) -> io::Result<()> {
        match fs::remove_file(self.stack(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes a node port; false when another stack has it.
    pub(super) fn take(&self, port: (Protocol, u16), id: StackId) -> io::Result<bool> {
        let path = self.port(port);
        let new = self.written(&format!("{id}-port"), id.to_string().as_bytes())?;
        let taken = once(fs::hard_link(&new, &path))
            .map(|taken| taken || fs::read_to_string(&path).is_ok_and(|by| by == id.to_string()));
        fs::remove_file(new)?;
        taken
    }

    pub(super) fn give_back(&self, port: (Protocol, u16), id: StackId) {
        let path = self.port(port);
        if fs::read_to_string(&path).is_ok_and(|by| by == id.to_string()) {
            // Where it is gone it was given back by another server.
            let _ = fs::remove_file(path);
        }
    }

    /// Notes an epoch, and gives the newest that any server has come with.
    pub(super) fn newest_epoch(&self, epoch: u64) -> io::Result<u64> {
        let epochs = self.0.join("epochs");
        fs::create_dir_all(epochs.join(epoch.to_string()))?;
        let mut newest = epoch;
        for entry in fs::read_dir(epochs)? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            newest = newest.max(number.unwrap_or(0));
        }
        Ok(newest)
    }

    /// Adds a line to the list of calls.
    pub(super) fn note(&self, line: &str) {
        let file = File::options().create(true).append(true).open(self.0.join("calls"));
        // One write, so that lines of several processes do not mix.
        let noted = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = noted {
            tracing::warn!(%error, "a call could not be noted");
        }
    }
}

fn once(made: io::Result<()>) -> io::Result<bool> {
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}
