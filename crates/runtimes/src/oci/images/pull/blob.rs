//! Downloads one blob into a file that survives a break, and takes it up again where it broke.
//!
//! Nothing is verified here: whoever unpacks the file reads it whole and compares the digest.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::super::config::ImageConfig;
use super::super::digest::Digest;
use super::super::error::ImageError;
use super::client::{Blob, Session};

/// The longest pause before a broken download is taken up again.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Brings `path` to `size_bytes` bytes.
pub(super) async fn download(
    session: &Session,
    blob: Digest,
    size_bytes: u64,
    path: &Path,
    config: &ImageConfig,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), ImageError> {
    let fault = |e: io::Error| ImageError::io("downloading to", path, &e);
    let mut failures = 0;
    loop {
        let mut file = File::options().create(true).append(true).open(path).await.map_err(fault)?;
        let mut have = file.metadata().await.map_err(fault)?.len();
        if have > size_bytes {
            file.set_len(0).await.map_err(fault)?;
            have = 0;
        }
        on_bytes(have);
        if have == size_bytes {
            return Ok(());
        }
        let error = match part(session, blob, size_bytes, &mut file, have, on_bytes).await {
            Ok(()) => continue,
            Err(Break::Fatal(error)) => return Err(error),
            Err(Break::Network(error)) => error,
        };
        // A connection that breaks again and again and yet advances is a bad one, not a dead one.
        let now = file.metadata().await.map_err(fault)?.len();
        failures = if now > have { 1 } else { failures + 1 };
        if now >= size_bytes {
            continue;
        }
        if failures > config.download_attempts {
            return Err(error);
        }
        tracing::info!(blob = %blob, have = now, error = error.operator(), "a download broke");
        tokio::time::sleep(MAX_PAUSE.min(Duration::from_millis(100) * 2u32.pow(failures.min(8))))
            .await;
    }
}

enum Break {
    /// It makes no sense to go on.
    Fatal(ImageError),
    /// It may go on later.
    Network(ImageError),
}

/// One request: appends what comes, as far as it comes.
async fn part(
    session: &Session,
    blob: Digest,
    size_bytes: u64,
    file: &mut File,
    have: u64,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Break> {
    let store =
        |e: io::Error| Break::Fatal(ImageError::io("writing", Path::new("a downloaded layer"), &e));
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
    loop {
        let chunk = match stream.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                file.flush().await.map_err(store)?;
                return Err(Break::Network(session.network(&error)));
            }
        };
        position += chunk.len() as u64;
        if position > size_bytes {
            file.set_len(0).await.map_err(store)?;
            return Err(Break::Fatal(ImageError::refused(
                session.what(),
                format!("{} sends more for {blob} than its {size_bytes} bytes", session.host()),
            )));
        }
        file.write_all(&chunk).await.map_err(store)?;
        on_bytes(position);
    }
    file.flush().await.map_err(store)?;
    if position < size_bytes {
        return Err(Break::Network(session.unreachable("the connection ended early")));
    }
    Ok(())
}
