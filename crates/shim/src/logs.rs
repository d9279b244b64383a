//! What containers write, kept in files: one line for each line, as `<time> <stdout|stderr>
//! <F|P> <text>`, where `P` says that the line goes on in the next. A file that has reached its
//! size becomes `….1` and the one before it goes. The bytes are the stack's own; nothing here
//! trusts them.
//!
//! An empty line takes one byte to write and some forty to keep, and this process works outside of
//! the stack's CPU limit. So a stack has a [`Budget`] for its logs; when that is spent nothing is
//! read, and who writes on waits.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use stackd_core::runtime::LogStream;

/// A line is cut here, as other engines do.
const LINE_BYTES: usize = 16 << 10;
/// How much is read at once.
const READ_BYTES: usize = 16 << 10;
/// How often the last of an output is read: a pipe can be made to hold 1 MiB.
const LAST_TURNS: usize = (1 << 20) / READ_BYTES + 1;
/// What a stack may write in a second, as it is kept.
const BUDGET_BYTES_PER_SECOND: u32 = 4 << 20;
/// What a turn costs at least: to be woken up for one byte is work, too.
const LEAST_COST_BYTES: usize = 1 << 10;

/// What the logs of a stack may cost. What is spent beyond it is owed.
#[derive(Debug)]
pub(crate) struct Budget {
    /// When all that was spent will have been earned.
    paid: Instant,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { paid: Instant::now() }
    }

    /// Spends on a turn that has kept so many bytes. How long to wait before the next, if at all:
    /// what a second earns may be spent at once.
    pub(crate) fn spend(&mut self, kept: usize) -> Option<Duration> {
        self.spend_at(kept, Instant::now())
    }

    fn spend_at(&mut self, kept: usize, now: Instant) -> Option<Duration> {
        let bytes = u32::try_from(kept.max(LEAST_COST_BYTES)).unwrap_or(u32::MAX);
        let price = Duration::from_secs(1) * bytes / BUDGET_BYTES_PER_SECOND;
        self.paid = self.paid.max(now) + price;
        self.paid
            .checked_duration_since(now + Duration::from_secs(1))
            .filter(|wait| !wait.is_zero())
    }
}

/// The file of a container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: Option<std::fs::File>,
    bytes: u64,
    most: u64,
}

impl LogFile {
    /// Begins a container's file.
    pub(crate) fn new(directory: &Path, container: &str, most: u64) -> Self {
        let path = directory.join(format!("{container}.log"));
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        Self { path, file: None, bytes, most }
    }

    /// Appends whole lines, in as many files as they take. What cannot be kept, because the disk of
    /// the machine is full, is lost: a workload must not stand still for that.
    fn append(&mut self, mut lines: &[u8]) {
        while !lines.is_empty() {
            let room = usize::try_from(self.most.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
            let end = |bytes: &[u8]| bytes.iter().rposition(|b| *b == b'\n').map(|at| at + 1);
            let fits = if lines.len() <= room { Some(lines.len()) } else { end(&lines[..room]) };
            let now = match fits {
                Some(fits) => fits,
                None if self.bytes > 0 => {
                    self.rotate();
                    continue;
                }
                // One line that is longer than a file may be is kept all the same.
                None => lines.iter().position(|b| *b == b'\n').map_or(lines.len(), |at| at + 1),
            };
            let (now, later) = lines.split_at(now);
            self.write(now);
            lines = later;
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
        self.bytes = 0;
    }

    fn write(&mut self, lines: &[u8]) {
        if self.file.is_none() {
            let open = std::fs::OpenOptions::new().append(true).create(true).open(&self.path);
            self.file = open.ok();
        }
        if let Some(file) = &mut self.file {
            match file.write_all(lines) {
                Ok(()) => self.bytes += lines.len() as u64,
                Err(_) => self.file = None,
            }
        }
    }
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// More may come.
    pub(crate) open: bool,
    /// More is here already.
    again: bool,
    /// How many bytes were kept of it.
    pub(crate) kept: usize,
}

/// One of a container's outputs.
#[derive(Debug)]
pub(crate) struct Output {
    source: OwnedFd,
    stream: LogStream,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl Output {
    /// An output that is read without waiting.
    pub(crate) fn new(source: OwnedFd, stream: LogStream) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&source, true)?;
        Ok(Self { source, stream, partial: Vec::new() })
    }

    /// The descriptor to wait on.
    pub(crate) fn source(&self) -> std::os::fd::BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Moves some of what has come to the file.
    pub(crate) fn turn(&mut self, file: &mut LogFile) -> Turn {
        let mut buffer = [0; READ_BYTES];
        let read = loop {
            match rustix::io::read(&self.source, &mut buffer) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        let mut lines = Lines::new(self.stream);
        let (open, again) = match read {
            // The other side of a terminal ends with EIO.
            Ok(0) | Err(Errno::IO) => (false, false),
            Ok(n) => {
                self.take(&buffer[..n], &mut lines);
                (true, true)
            }
            Err(Errno::AGAIN) => (true, false),
            Err(_) => (false, false),
        };
        if !open && !self.partial.is_empty() {
            lines.line(&std::mem::take(&mut self.partial), false);
        }
        file.append(&lines.bytes);
        Turn { open, again, kept: lines.bytes.len() }
    }

    /// Moves all that has come to the file: nobody writes any more.
    pub(crate) fn last_turns(&mut self, file: &mut LogFile) {
        for _ in 0..LAST_TURNS {
            if !self.turn(file).again {
                break;
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], lines: &mut Lines) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            if self.partial.is_empty() {
                lines.cut(&bytes[..end]);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(&bytes[..end]);
                lines.cut(&whole);
            }
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        while self.partial.len() >= LINE_BYTES {
            let rest = self.partial.split_off(LINE_BYTES);
            let part = std::mem::replace(&mut self.partial, rest);
            lines.line(&part, true);
        }
    }
}

/// Lines as they are kept. All of a turn came at the same time.
struct Lines {
    start: String,
    bytes: Vec<u8>,
}

impl Lines {
    fn new(stream: LogStream) -> Self {
        let stream = match stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        let start = format!("{:.9} {stream} ", jiff::Timestamp::now());
        Self { start, bytes: Vec::new() }
    }

    /// A whole line, in pieces where it is too long.
    fn cut(&mut self, mut line: &[u8]) {
        while line.len() > LINE_BYTES {
            let (part, rest) = line.split_at(LINE_BYTES);
            self.line(part, true);
            line = rest;
        }
        self.line(line, false);
    }

    fn line(&mut self, text: &[u8], goes_on: bool) {
        self.bytes.extend_from_slice(self.start.as_bytes());
        self.bytes.extend_from_slice(if goes_on { b"P " } else { b"F " });
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(chunks: &[&[u8]], most: u64) -> (tempfile::TempDir, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let (source, sink) = rustix::pipe::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&sink, 1 << 20).unwrap();
        let mut file = LogFile::new(directory.path(), "web", most);
        let mut output = Output::new(source, LogStream::Stderr).unwrap();
        for chunk in chunks {
            rustix::io::write(&sink, chunk).unwrap();
            assert!(output.turn(&mut file).open);
        }
        drop(sink);
        output.last_turns(&mut file);
        // A test beside this one that forks holds the other end too, for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while output.turn(&mut file).open {
            assert!(Instant::now() < deadline, "nobody writes any more, and it stays open");
            std::thread::yield_now();
        }
        let text = std::fs::read_to_string(directory.path().join("web.log")).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect();
        (directory, lines)
    }

    #[test]
    fn lines_are_kept_whole_however_they_come() {
        let (_directory, lines) = written(&[b"one\ntw", b"o\n\nlast"], 1 << 20);
        assert_eq!(lines, ["stderr F one", "stderr F two", "stderr F ", "stderr F last"]);
    }

    #[test]
    fn a_long_line_is_cut_and_said_to_go_on() {
        let long = vec![b'x'; LINE_BYTES + 5];
        let (_directory, lines) = written(&[&long, b"\n"], 1 << 20);
        assert_eq!(lines[0].len(), "stderr P ".len() + LINE_BYTES);
        assert_eq!(lines[1], "stderr F xxxxx");
    }

    #[test]
    fn no_more_than_two_files_are_kept() {
        let line = [b'y'; 100];
        let chunks: Vec<&[u8]> = (0..50).flat_map(|_| [&line[..], b"\n"]).collect();
        let (directory, _) = written(&chunks, 1000);
        let sizes: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= 1000), "{sizes:?}");
    }
    #[test]
    fn empty_lines_do_not_grow_past_the_size_of_a_file() {
        let (directory, _) = written(&[&[b'\n'; 100_000]], 1 << 20);
        let mut total = 0;
        for entry in std::fs::read_dir(&directory).unwrap() {
            let size = entry.unwrap().metadata().unwrap().len();
            assert!(size <= 1 << 20, "{size} bytes");
            total += size;
        }
        assert!(total > 1 << 20, "both are used: {total} bytes");
    }

    #[test]
    fn who_has_spent_what_a_second_earns_waits() {
        let start = Instant::now();
        let mut budget = Budget { paid: start };
        let second = BUDGET_BYTES_PER_SECOND as usize;
        assert_eq!(budget.spend_at(second, start), None);
        assert_eq!(budget.spend_at(second, start), Some(Duration::from_secs(1)));
        let later = start + Duration::from_secs(2);
        assert_eq!(budget.spend_at(second, later), None, "it is paid");
        // Waking up costs, whatever comes of it.
        let turns = second / LEAST_COST_BYTES;
        let waits = (0..2 * turns).filter_map(|_| budget.spend_at(1, later)).count();
        assert!(waits >= turns, "{waits} of {turns}");
    }
}
