//! Downloads one blob into a file that survives a break, and takes it up again where it broke.
//!
//! Nothing is verified here: whoever unpacks the file reads it whole and compares the digest.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::load::blocking;
use super::super::store::{Inner, Tally};
use super::client::{Blob, Session, TOO_SLOW};
use super::pace::Pace;

/// The longest pause before a broken download is taken up again.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// One blob, and where it goes.
pub(super) struct Download<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) session: &'a Session,
    pub(super) blob: Digest,
    pub(super) size_bytes: u64,
    pub(super) path: &'a Path,
    pub(super) on_bytes: &'a (dyn Fn(u64) + Send + Sync),
}

enum Break {
    /// It makes no sense to go on.
    Fatal(ImageError),
    /// It may go on later.
    Network(ImageError),
}

impl Download<'_> {
    /// Brings the file to its size. Where that will never be, the file is gone.
    pub(super) async fn run(&self) -> Result<(), ImageError> {
        let result = self.all().await;
        if result.as_ref().is_err_and(|error| !matches!(error, ImageError::Unreachable { .. })) {
            let _gone_already = tokio::fs::remove_file(self.path).await;
        }
        result
    }

    async fn all(&self) -> Result<(), ImageError> {
        let fault = |e: io::Error| ImageError::io("downloading to", self.path, &e);
        let config = &self.inner.config;
        let mut pace = Pace::new(config.min_download_rate, Instant::now());
        let mut failures = 0;
        loop {
            let mut file =
                File::options().create(true).append(true).open(self.path).await.map_err(fault)?;
            let mut have = file.metadata().await.map_err(fault)?.len();
            if have > self.size_bytes {
                file.set_len(0).await.map_err(fault)?;
                have = 0;
            }
            (self.on_bytes)(have);
            if have == self.size_bytes {
                return Ok(());
            }
            let inner = Arc::clone(self.inner);
            blocking(move || inner.make_room()).await?;
            let error = match self.part(&mut file, have, &mut pace).await {
                Ok(()) => continue,
                Err(Break::Fatal(error)) => return Err(error),
                Err(Break::Network(error)) => error,
            };
            // A connection that breaks again and again and yet advances is a bad one, not a dead
            // one, as long as it keeps up.
            let now = file.metadata().await.map_err(fault)?.len();
            failures = if now > have { 1 } else { failures + 1 };
            if now >= self.size_bytes {
                continue;
            }
            if failures > config.download_attempts || !pace.keeps_up(Instant::now()) {
                return Err(error);
            }
            let (blob, error) = (self.blob, error.operator());
            tracing::info!(blob = %blob, have = now, error, "a download broke");
            let pause = Duration::from_millis(100) * 2u32.pow(failures.min(8));
            tokio::time::sleep(MAX_PAUSE.min(pause)).await;
        }
    }

    /// One request: appends what comes, as far as it comes.
    async fn part(&self, file: &mut File, have: u64, pace: &mut Pace) -> Result<(), Break> {
        let Self { session, blob, size_bytes, .. } = *self;
        let store = |e: io::Error| {
            Break::Fatal(ImageError::io("writing", Path::new("a downloaded layer"), &e))
        };
        let response = session.blob_from(blob, have).await;
        let (mut stream, mut position) = match response {
            Ok(Blob::Rest(stream)) => (stream, have),
            Ok(Blob::Whole(stream)) => {
                // This registry cannot go on in the middle.
                file.set_len(0).await.map_err(store)?;
                (stream, 0)
            }
            Ok(Blob::NoSuchRange) => {
                file.set_len(0).await.map_err(store)?;
                return Err(Break::Network(session.unreachable("the range was refused")));
            }
            Err(error) => {
                return Err(match error {
                    ImageError::Unreachable { .. } => Break::Network(error),
                    ImageError::NotFound { .. } => Break::Fatal(ImageError::refused(
                        session.what(),
                        format!("its layer {blob} is missing in {}", session.host()),
                    )),
                    _ => Break::Fatal(error),
                });
            }
        };
        let mut tally = Tally::default();
        loop {
            let chunk = match tokio::time::timeout_at(pace.window_ends(), stream.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    file.flush().await.map_err(store)?;
                    return Err(Break::Network(session.network(&error)));
                }
                Err(_) if pace.keeps_up(Instant::now()) => continue,
                Err(_) => {
                    file.flush().await.map_err(store)?;
                    let operator = format!("of {blob} less than min_download_rate came");
                    return Err(Break::Fatal(session.not_reached(TOO_SLOW, operator)));
                }
            };
            pace.count(chunk.len());
            position += chunk.len() as u64;
            if position > size_bytes {
                file.set_len(0).await.map_err(store)?;
                return Err(Break::Fatal(ImageError::refused(
                    session.what(),
                    format!("{} sends more for {blob} than its {size_bytes} bytes", session.host()),
                )));
            }
            file.write_all(&chunk).await.map_err(store)?;
            if tally.is_due(chunk.len() as u64) {
                self.inner.keep_reserve_meanwhile().await.map_err(Break::Fatal)?;
            }
            (self.on_bytes)(position);
        }
        file.flush().await.map_err(store)?;
        if position < size_bytes {
            return Err(Break::Network(session.unreachable("the connection ended early")));
        }
        Ok(())
    }
}
