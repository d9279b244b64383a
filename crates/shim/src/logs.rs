//! What containers write, kept in files: one line for each line, as `<time> <stdout|stderr>
//! <F|P> <text>`, where `P` says that the line goes on in the next. A file that has reached its
//! size becomes `….1` and the one before it goes. The bytes are the stack's own; nothing here
//! trusts them.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use stackd_core::runtime::LogStream;

/// A line is cut here, as other engines do.
const LINE_BYTES: usize = 16 << 10;
/// How much one turn may read.
const TURN_BYTES: usize = 256 << 10;

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

    /// Appends lines. What cannot be kept, because the disk of the machine is full, is lost: a
    /// workload must not stand still for its logs.
    fn append(&mut self, lines: &[u8]) {
        if self.bytes + lines.len() as u64 > self.most && self.bytes > 0 {
            self.file = None;
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
            self.bytes = 0;
        }
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

    /// Moves what has come to the file. False once nothing more will come.
    pub(crate) fn turn(&mut self, file: &mut LogFile) -> bool {
        let mut buffer = [0; 32 << 10];
        let mut lines = Vec::new();
        let mut read = 0;
        let open = loop {
            match rustix::io::read(&self.source, &mut buffer) {
                // The other side of a terminal ends with EIO.
                Ok(0) | Err(Errno::IO) => break false,
                Ok(n) => {
                    self.take(&buffer[..n], &mut lines);
                    read += n;
                    if read >= TURN_BYTES {
                        break true;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break true,
                Err(_) => break false,
            }
        };
        if !open && !self.partial.is_empty() {
            let rest = std::mem::take(&mut self.partial);
            self.line(&rest, false, &mut lines);
        }
        if !lines.is_empty() {
            file.append(&lines);
        }
        open
    }

    fn take(&mut self, mut bytes: &[u8], lines: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            if self.partial.is_empty() {
                self.cut(&bytes[..end], lines);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(&bytes[..end]);
                self.cut(&whole, lines);
            }
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        while self.partial.len() >= LINE_BYTES {
            let rest = self.partial.split_off(LINE_BYTES);
            let part = std::mem::replace(&mut self.partial, rest);
            self.line(&part, true, lines);
        }
    }

    /// A whole line, in pieces where it is too long.
    fn cut(&self, mut line: &[u8], lines: &mut Vec<u8>) {
        while line.len() > LINE_BYTES {
            let (part, rest) = line.split_at(LINE_BYTES);
            self.line(part, true, lines);
            line = rest;
        }
        self.line(line, false, lines);
    }

    fn line(&self, text: &[u8], goes_on: bool, lines: &mut Vec<u8>) {
        let stream = match self.stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        let tag = if goes_on { 'P' } else { 'F' };
        // Writing to memory does not fail.
        let _ = write!(lines, "{:.9} {stream} {tag} ", jiff::Timestamp::now());
        lines.extend_from_slice(text);
        lines.push(b'\n');
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
            assert!(output.turn(&mut file));
        }
        drop(sink);
        assert!(!output.turn(&mut file));
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
}
