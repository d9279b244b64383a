//! Reading what shims have kept of containers' output.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use stackd_core::runtime::{BoxStream, ErrorKind, LogLine, LogOptions, LogStream, RuntimeState};
use stackd_core::stack::reason;
use stackd_core::{RuntimeError, StackId, Timestamp};
use stackd_shim::protocol::LOG_DIRECTORY;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::inventory::Inner;
use super::unknown;

/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The most bytes of one line, put together from its parts.
const MOST_LINE_BYTES: usize = 1 << 20;

/// Opens a container's log.
pub(super) fn open(
    inner: &Arc<Inner>,
    id: StackId,
    options: LogOptions,
) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
    let containers = {
        let state = inner.state.lock();
        state.entries.get(&id).ok_or_else(unknown)?.containers.clone()
    };
    let name = match &options.container {
        Some(name) if containers.contains(name) => name.clone(),
        Some(name) => {
            let text =
                format!("there is no container {name:?}; there are: {}", containers.join(", "));
            return Err(RuntimeError::open(ErrorKind::Rejected, reason::ERROR, text));
        }
        None => {
            let first = inner.state.lock().entries.get(&id).and_then(|e| e.main_container());
            first.ok_or_else(unknown)?
        }
    };
    let path = inner.directory(id).join(LOG_DIRECTORY).join(format!("{name}.log"));
    let (sender, receiver) = mpsc::channel(256);
    let weak = Arc::downgrade(inner);
    tokio::task::spawn_blocking(move || {
        let mut reader = Reader::new(path);
        let mut lines = VecDeque::new();
        reader.begin(&mut |line| {
            if options.tail.is_some_and(|tail| lines.len() >= tail) {
                lines.pop_front();
            }
            if options.tail != Some(0) {
                lines.push_back(line);
            }
        });
        for line in lines {
            if sender.blocking_send(Ok(line)).is_err() {
                return;
            }
        }
        if options.follow {
            follow(reader, &weak, id, &sender);
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn follow(
    mut reader: Reader,
    inner: &Weak<Inner>,
    id: StackId,
    sender: &mpsc::Sender<Result<LogLine, RuntimeError>>,
) {
    while !sender.is_closed() {
        // Asked before the last look, so that nothing written until the end is missed.
        let ended = inner.upgrade().is_none_or(|inner| {
            let state = inner.state.lock();
            let observed = state.entries.get(&id).map(|entry| &entry.observed.state);
            matches!(observed, None | Some(RuntimeState::Ended { .. }))
        });
        let mut open = true;
        reader.more(&mut |line| open = open && sender.blocking_send(Ok(line)).is_ok());
        if ended || !open {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

/// Reads a log that may be rotated meanwhile.
struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    inode: u64,
    /// A line in the file whose end has not been written yet.
    unfinished: Vec<u8>,
    /// A line of the container of which only parts have come.
    partial: Option<(Timestamp, LogStream, BytesMut)>,
}

impl Reader {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None, inode: 0, unfinished: Vec::new(), partial: None }
    }

    /// Reads what is there: the rotated file, then the current one.
    fn begin(&mut self, take: &mut dyn FnMut(LogLine)) {
        if let Ok(file) = File::open(self.path.with_extension("log.1")) {
            self.file = Some(BufReader::new(file));
            self.drain(take);
            self.file = None;
        }
        self.more(take);
    }

    /// Reads what has come since.
    fn more(&mut self, take: &mut dyn FnMut(LogLine)) {
        self.drain(take);
        let inode = std::fs::metadata(&self.path).map_or(0, |m| m.ino());
        if inode != self.inode || self.file.is_none() {
            // The file that was read may have got its last lines before it was rotated.
            self.drain(take);
            self.inode = inode;
            self.file = File::open(&self.path).ok().map(BufReader::new);
            self.drain(take);
        }
    }

    fn drain(&mut self, take: &mut dyn FnMut(LogLine)) {
        let Some(file) = &mut self.file else { return };
        while let Ok(read) = file.read_until(b'\n', &mut self.unfinished) {
            if read == 0 || self.unfinished.last() != Some(&b'\n') {
                return;
            }
            self.unfinished.pop();
            let line = std::mem::take(&mut self.unfinished);
            let Some((at, stream, whole, text)) = parse(&line) else { continue };
            let (at, stream, mut so_far) = match self.partial.take() {
                Some(partial) if partial.1 == stream => partial,
                Some((at, stream, text)) => {
                    take(LogLine { at, stream, text: text.freeze() });
                    (at, stream, BytesMut::new())
                }
                None => (at, stream, BytesMut::new()),
            };
            if whole && so_far.is_empty() {
                take(LogLine { at, stream, text: Bytes::copy_from_slice(text) });
                continue;
            }
            so_far.extend_from_slice(text);
            if whole || so_far.len() > MOST_LINE_BYTES {
                take(LogLine { at, stream, text: so_far.freeze() });
            } else {
                self.partial = Some((at, stream, so_far));
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<(Timestamp, LogStream, bool, &[u8])> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let whole = parts.next()? == b"F";
    Some((at, stream, whole, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(reader: &mut Reader, first: bool) -> Vec<String> {
        let mut out = Vec::new();
        let mut take = |line: LogLine| out.push(String::from_utf8(line.text.to_vec()).unwrap());
        if first {
            reader.begin(&mut take)
        } else {
            reader.more(&mut take)
        }
        out
    }

    fn line(tag: char, text: &str) -> String {
        format!("2026-01-02T03:04:05.000000006Z stdout {tag} {text}\n")
    }

    #[test]
    fn a_log_is_read_across_its_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        std::fs::write(path.with_extension("log.1"), line('F', "old")).unwrap();
        std::fs::write(&path, line('F', "one") + &line('P', "tw")).unwrap();
        let mut reader = Reader::new(path.clone());
        assert_eq!(texts(&mut reader, true), ["old", "one"]);
        let add = |text: &str| {
            let mut now = std::fs::read_to_string(&path).unwrap();
            now.push_str(text);
            std::fs::write(&path, now).unwrap();
        };
        add(&line('F', "o"));
        add("2026-01-02T03:04:05Z stdo");
        assert_eq!(texts(&mut reader, false), ["two"]);
        add("ut F three\n");
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        std::fs::write(&path, line('F', "new")).unwrap();
        assert_eq!(texts(&mut reader, false), ["three", "new"]);
        assert!(texts(&mut reader, false).is_empty());
    }

    #[test]
    fn what_is_no_log_line_is_left_out() {
        assert!(parse(b"garbage").is_none());
        assert!(parse(b"2026-01-02T03:04:05Z stdin F x").is_none());
        let (_, stream, whole, text) = parse(b"2026-01-02T03:04:05Z stderr P a b c").unwrap();
        assert_eq!((stream, whole, text), (LogStream::Stderr, false, &b"a b c"[..]));
    }
}
