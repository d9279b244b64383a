//! A way to the engine that fails as one over a network does: answers get lost, and connections die
//! without a word.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::bed::Bed;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The engine does not hear it.
    Lost,
    /// The engine does it, and its answer is lost.
    Unanswered,
}

/// A call that fails, once.
struct Failure {
    /// What its first line has in it.
    words: [String; 2],
    fate: Fate,
}

/// The way. The client speaks one call on each connection.
pub(crate) struct Proxy {
    directory: tempfile::TempDir,
    failures: Arc<Mutex<Vec<Failure>>>,
    /// How often event streams have died: those from before the last time are silent.
    dead: watch::Sender<u64>,
}

impl Proxy {
    /// A way to a bed's engine, which the bed then uses.
    pub(crate) fn before(bed: &mut Bed) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("docker.sock");
        let engine = bed.config.host.strip_prefix("unix://").expect("a socket");
        let engine = PathBuf::from(engine);
        let proxy = Self { directory, failures: Arc::default(), dead: watch::channel(0).0 };
        let listener = UnixListener::bind(&path).expect("a socket");
        let (failures, dead) = (Arc::clone(&proxy.failures), proxy.dead.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let failures = Arc::clone(&failures);
                tokio::spawn(carry(client, engine.clone(), failures, dead.subscribe()));
            }
        });
        bed.config.host = format!("unix://{}", path.display());
        proxy
    }

    /// The next call of this method whose path has this in it fails.
    pub(crate) fn fail(&self, method: &str, path: &str, fate: Fate) {
        let words = [format!("{method} "), path.to_owned()];
        self.failures.lock().push(Failure { words, fate });
    }

    /// Whether all failures have happened.
    pub(crate) fn has_failed(&self) -> bool {
        self.failures.lock().is_empty()
    }

    /// Nothing comes any more on the event streams that are open.
    pub(crate) fn silence(&self) {
        self.dead.send_modify(|times| *times += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.directory.path().join("docker.sock"));
    }
}

async fn carry(
    mut client: UnixStream,
    engine: PathBuf,
    failures: Arc<Mutex<Vec<Failure>>>,
    mut dead: watch::Receiver<u64>,
) {
    let mut begun = Vec::new();
    while !begun.windows(2).any(|pair| pair == b"\r\n") {
        if !matches!(client.read_buf(&mut begun).await, Ok(1..)) {
            return;
        }
    }
    let line = String::from_utf8_lossy(&begun).lines().next().unwrap_or_default().to_owned();
    let fate = {
        let mut failures = failures.lock();
        let is_meant = |failure: &Failure| {
            line.starts_with(&failure.words[0]) && line.contains(&failure.words[1])
        };
        let place = failures.iter().position(is_meant);
        place.map(|place| failures.remove(place).fate)
    };
    if fate == Some(Fate::Lost) {
        return;
    }
    let Ok(mut there) = UnixStream::connect(engine).await else { return };
    if there.write_all(&begun).await.is_err() {
        return;
    }
    if fate == Some(Fate::Unanswered) {
        let ((mut question, _), (mut answer, mut rest)) = (client.split(), there.split());
        let mut lost = Vec::new();
        tokio::select! {
            _ = tokio::io::copy(&mut question, &mut rest) => {}
            _ = answer.read_buf(&mut lost) => {}
        }
        return;
    }
    let is_events = line.contains("/events?");
    let copied = tokio::io::copy_bidirectional(&mut client, &mut there);
    tokio::select! {
        _ = copied => {}
        () = died(&mut dead, is_events) => std::future::pending().await,
    }
}

async fn died(dead: &mut watch::Receiver<u64>, is_events: bool) {
    match is_events {
        true => drop(dead.changed().await),
        false => std::future::pending().await,
    }
}
