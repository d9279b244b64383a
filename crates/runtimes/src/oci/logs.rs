//! Reading what shims have kept of containers' output. Nobody's slowness costs more than a task: a
//! thread is borrowed only for as long as it takes to read some lines.

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
/// How much of a log is read at once.
const BATCH_BYTES: usize = 1 << 20;

type Lines = mpsc::Sender<Result<LogLine, RuntimeError>>;

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
    tokio::spawn(async move {
        let mut reader = Reader::new(path);
        if send_all(&mut reader, options.tail, &sender).await.is_some() && options.follow {
            follow(reader, &weak, id, &sender).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Sends what is there, or its last lines. None once nobody wants them.
async fn send_all(reader: &mut Reader, tail: Option<usize>, sender: &Lines) -> Option<()> {
    let Some(tail) = tail else { return send_more(reader, sender).await };
    let mut last = VecDeque::new();
    let mut at_end = false;
    while !at_end {
        let lines;
        (lines, at_end) = read_some(reader).await?;
        for line in lines {
            last.push_back(line);
            if last.len() > tail {
                last.pop_front();
            }
        }
    }
    send(last, sender).await
}

/// Sends what has come.
async fn send_more(reader: &mut Reader, sender: &Lines) -> Option<()> {
    loop {
        let (lines, at_end) = read_some(reader).await?;
        send(lines, sender).await?;
        if at_end {
            return Some(());
        }
    }
}

async fn send(lines: impl IntoIterator<Item = LogLine>, sender: &Lines) -> Option<()> {
    for line in lines {
        sender.send(Ok(line)).await.ok()?;
    }
    Some(())
}

/// Reads some lines on a thread that may wait for a disk; says whether these were the last.
async fn read_some(reader: &mut Reader) -> Option<(Vec<LogLine>, bool)> {
    let mut here = std::mem::take(reader);
    let read = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        let at_end = here.more(&mut lines);
        (here, lines, at_end)
    });
    let (back, lines, at_end) = read.await.ok()?;
    *reader = back;
    Some((lines, at_end))
}

async fn follow(mut reader: Reader, inner: &Weak<Inner>, id: StackId, sender: &Lines) {
    loop {
        // Asked before the last look, so that nothing written until the end is missed.
        let ended = inner.upgrade().is_none_or(|inner| {
            let state = inner.state.lock();
            let observed = state.entries.get(&id).map(|entry| &entry.observed.state);
            matches!(observed, None | Some(RuntimeState::Ended { .. }))
        });
        if (ended || reader.has_more()) && send_more(&mut reader, sender).await.is_none() {
            return;
        }
        if ended {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = sender.closed() => return,
        }
    }
}

/// Reads a log that may be rotated meanwhile.
#[derive(Default)]
struct Reader {
    path: PathBuf,
    /// Whether the rotated file has been opened, which comes first.
    begun: bool,
    file: Option<BufReader<File>>,
    inode: u64,
    /// How long the file was when its end was reached.
    length: u64,
    /// A line in the file whose end has not been written yet.
    unfinished: Vec<u8>,
    /// A line of the container of which only parts have come.
    partial: Option<(Timestamp, LogStream, BytesMut)>,
}

impl Reader {
    fn new(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// Whether there is something to read since the end was reached. Only asks for the file's
    /// length, so it waits for no disk.
    fn has_more(&self) -> bool {
        std::fs::metadata(&self.path)
            .is_ok_and(|now| (now.ino(), now.len()) != (self.inode, self.length))
    }

    /// Reads some of what there is: the rotated file, then the current one. True at the end.
    fn more(&mut self, lines: &mut Vec<LogLine>) -> bool {
        if !self.begun {
            self.begun = true;
            self.file = File::open(self.path.with_extension("log.1")).ok().map(BufReader::new);
        }
        // Asked before reading: a file that is found rotated has got its last lines, and what is
        // written to one that is not is seen by the next look.
        let mut now = std::fs::metadata(&self.path).ok();
        if !self.drain(lines) {
            return false;
        }
        if self.file.is_none() || now.as_ref().map_or(0, MetadataExt::ino) != self.inode {
            let file = File::open(&self.path).ok();
            now = file.as_ref().and_then(|file| file.metadata().ok());
            self.inode = now.as_ref().map_or(0, MetadataExt::ino);
            self.file = file.map(BufReader::new);
            if !self.drain(lines) {
                return false;
            }
        }
        self.length = now.map_or(0, |now| now.len());
        true
    }

    /// Reads the file to its end, or as much as is read at once: false then.
    fn drain(&mut self, lines: &mut Vec<LogLine>) -> bool {
        let Some(file) = &mut self.file else { return true };
        let mut bytes = 0;
        while let Ok(read) = file.read_until(b'\n', &mut self.unfinished) {
            if read == 0 || self.unfinished.last() != Some(&b'\n') {
                return true;
            }
            bytes += read;
            self.unfinished.pop();
            let line = std::mem::take(&mut self.unfinished);
            let Some((at, stream, whole, text)) = parse(&line) else { continue };
            let (at, stream, mut so_far) = match self.partial.take() {
                Some(partial) if partial.1 == stream => partial,
                Some((at, stream, text)) => {
                    lines.push(LogLine { at, stream, text: text.freeze() });
                    (at, stream, BytesMut::new())
                }
                None => (at, stream, BytesMut::new()),
            };
            if whole && so_far.is_empty() {
                lines.push(LogLine { at, stream, text: Bytes::copy_from_slice(text) });
            } else {
                so_far.extend_from_slice(text);
                if whole || so_far.len() > MOST_LINE_BYTES {
                    lines.push(LogLine { at, stream, text: so_far.freeze() });
                } else {
                    self.partial = Some((at, stream, so_far));
                }
            }
            if bytes >= BATCH_BYTES {
                return false;
            }
        }
        true
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

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut lines = Vec::new();
        while !reader.more(&mut lines) {}
        lines.into_iter().map(|line| String::from_utf8(line.text.to_vec()).unwrap()).collect()
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
        assert_eq!(texts(&mut reader), ["old", "one"]);
        let add = |text: &str| {
            let mut now = std::fs::read_to_string(&path).unwrap();
            now.push_str(text);
            std::fs::write(&path, now).unwrap();
        };
        add(&line('F', "o"));
        add("2026-01-02T03:04:05Z stdo");
        assert_eq!(texts(&mut reader), ["two"]);
        add("ut F three\n");
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        std::fs::write(&path, line('F', "new")).unwrap();
        assert_eq!(texts(&mut reader), ["three", "new"]);
        assert!(!reader.has_more() && texts(&mut reader).is_empty());
        add(&line('F', "more"));
        assert!(reader.has_more());
        assert_eq!(texts(&mut reader), ["more"]);
    }

    #[test]
    fn a_long_log_is_read_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.log");
        let text = line('F', &"x".repeat(1000)).repeat(3000);
        std::fs::write(&path, &text).unwrap();
        let mut reader = Reader::new(path);
        let (mut lines, mut parts) = (Vec::new(), 1);
        while !reader.more(&mut lines) {
            parts += 1;
        }
        assert_eq!((lines.len(), parts), (3000, text.len() / BATCH_BYTES + 1));
    }

    #[test]
    fn what_is_no_log_line_is_left_out() {
        assert!(parse(b"garbage").is_none());
        assert!(parse(b"2026-01-02T03:04:05Z stdin F x").is_none());
        let (_, stream, whole, text) = parse(b"2026-01-02T03:04:05Z stderr P a b c").unwrap();
        assert_eq!((stream, whole, text), (LogStream::Stderr, false, &b"a b c"[..]));
    }
}
