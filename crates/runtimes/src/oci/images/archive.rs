//! Where an archive's members are read from: a tar file, by random access, or a directory.
//!
//! Names of members are keys here, never paths: nothing of the outer archive is unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::disk::Disk;
use super::error::ImageError;
use super::model::{Compression, MAX_DOCUMENT_BYTES};
use super::store::Tally;
use super::unpack::{MAX_HEADER_BYTES, Meter, UnpackLimits};

/// More members than any archive of images has.
const MAX_MEMBERS: usize = 100_000;

/// Something that has members by name.
pub(super) enum Archive {
    Tar { file: Arc<File>, members: HashMap<String, Member> },
    Directory(OwnedFd),
}

pub(super) enum Member {
    At { offset: u64, size: u64 },
    LinkTo(String),
}

impl Archive {
    /// Opens a tar file, compressed or not, or a directory.
    pub(super) fn open(path: &Path, disk: &Disk, limits: UnpackLimits) -> Result<Self, ImageError> {
        let fault = |e: io::Error| {
            ImageError::refused(path.display().to_string(), format!("it cannot be read: {e}"))
        };
        let metadata = std::fs::metadata(path).map_err(fault)?;
        if metadata.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, Mode::empty());
            return fd.map(Self::Directory).map_err(|e| fault(e.into()));
        }
        Self::from_file(File::open(path).map_err(fault)?, disk, limits)
    }

    /// Reads a stream to its end into a file without a name, and opens that.
    pub(super) fn from_reader(
        mut reader: impl Read,
        disk: &Disk,
        limits: UnpackLimits,
    ) -> Result<Self, ImageError> {
        let file = spool(&mut reader, disk, limits)?;
        Self::from_file(file, disk, limits)
    }

    fn from_file(file: File, disk: &Disk, limits: UnpackLimits) -> Result<Self, ImageError> {
        let mut start = [0; 4];
        let n = file.read_at(&mut start, 0).map_err(damaged)?;
        let file = match Compression::of_magic(&start[..n]) {
            Compression::Plain => file,
            Compression::Gzip => {
                let reader = BufReader::new(file);
                spool(&mut flate2::bufread::MultiGzDecoder::new(reader), disk, limits)?
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(file).map_err(damaged)?;
                spool(&mut decoder, disk, limits)?
            }
        };
        let file = Arc::new(file);
        let members = index(&file, limits)?;
        Ok(Self::Tar { file, members })
    }

    /// Opens a member; `None` where there is none of this name.
    pub(super) fn member(&self, name: &str) -> Result<Option<(Section, u64)>, ImageError> {
        match self {
            Self::Tar { file, members } => {
                let mut name = name.to_owned();
                // A link to a link is as far as anybody goes.
                for _ in 0..3 {
                    match members.get(&name) {
                        Some(Member::At { offset, size }) => {
                            let section = Section::new(Arc::clone(file), *offset, *size);
                            return Ok(Some((section, *size)));
                        }
                        Some(Member::LinkTo(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
            Self::Directory(root) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let fd = match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
                    Ok(fd) => fd,
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(e) => return Err(damaged(io::Error::from(e))),
                };
                let stat = rustix::fs::fstat(&fd).map_err(|e| damaged(e.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(ImageError::refused(name, "it is not a regular file"));
                }
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(Some((Section::new(Arc::new(File::from(fd)), 0, size), size)))
            }
        }
    }

    /// Reads a small member whole.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((section, size)) = self.member(name)? else { return Ok(None) };
        if size > MAX_DOCUMENT_BYTES {
            let max = MAX_DOCUMENT_BYTES;
            return Err(ImageError::refused(name, format!("it is larger than {max} bytes")));
        }
        let mut text = Vec::new();
        section.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(damaged)?;
        Ok(Some(text))
    }

    /// Reads a small member whole that has to be there.
    pub(super) fn required_document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        self.document(name)?
            .ok_or_else(|| ImageError::refused(name, "it is missing in the archive"))
    }
}

fn damaged(error: io::Error) -> ImageError {
    ImageError::refused("the archive", format!("it is damaged: {error}"))
}

/// Writes a stream to a file without a name.
fn spool(reader: &mut impl Read, disk: &Disk, limits: UnpackLimits) -> Result<File, ImageError> {
    let mut file = disk.anonymous_file()?;
    let mut limited = reader.take(limits.max_bytes.saturating_add(1));
    let mut buffer = vec![0; 256 << 10];
    let (mut total, mut tally) = (0, Tally::default());
    loop {
        let n = match limited.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(damaged(e)),
        };
        total += n as u64;
        if total > limits.max_bytes {
            let max = limits.max_bytes;
            return Err(ImageError::refused(
                "the archive",
                format!("it is larger than {max} bytes; raise max_unpacked_bytes in [images]"),
            ));
        }
        io::Write::write_all(&mut file, &buffer[..n])
            .map_err(|e| ImageError::io("writing", Path::new("a temporary file"), &e))?;
        if tally.is_due(n as u64)
            && let Some(shortage) = disk.shortage()?
        {
            return Err(shortage.into());
        }
    }
    file.seek(SeekFrom::Start(0)).map_err(damaged)?;
    Ok(file)
}

fn index(file: &Arc<File>, limits: UnpackLimits) -> Result<HashMap<String, Member>, ImageError> {
    let size = file.metadata().map_err(damaged)?.len();
    let meter = Meter::new(UnpackLimits { max_bytes: u64::MAX, max_expansion: u64::MAX, ..limits });
    let reader = meter.plain(Section::new(Arc::clone(file), 0, size));
    let mut archive = tar::Archive::new(reader);
    let mut members = HashMap::new();
    let mut entries = archive.entries_with_seek().map_err(damaged)?;
    loop {
        meter.expect_headers(MAX_HEADER_BYTES);
        let Some(entry) = entries.next() else { break };
        let entry = entry.map_err(damaged)?;
        let Some(name) = key(&String::from_utf8_lossy(&entry.path_bytes()), "") else { continue };
        let kind = entry.header().entry_type();
        let offset = entry.raw_file_position();
        let member = if kind.is_file() {
            if entry.size() > size.saturating_sub(offset) {
                return Err(ImageError::refused("the archive", "it ends in the middle of a file"));
            }
            Member::At { offset, size: entry.size() }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let from = if kind.is_symlink() { name.as_str() } else { "" };
            match key(&String::from_utf8_lossy(&target), from) {
                Some(target) => Member::LinkTo(target),
                None => continue,
            }
        } else {
            continue;
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(ImageError::refused("the archive", "it has too many members"));
        }
    }
    Ok(members)
}

/// The name of a member as it is looked up: without `.` and `..`, a link relative to `from`.
fn key(name: &str, from: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A part of a file, read by position: any number of them share one descriptor.
pub(super) struct Section {
    file: Arc<File>,
    start: u64,
    end: u64,
    position: u64,
}

impl Section {
    fn new(file: Arc<File>, offset: u64, size: u64) -> Self {
        Self { file, start: offset, end: offset.saturating_add(size), position: offset }
    }

    /// The first bytes, to tell what it is.
    pub(super) fn peek(&self) -> Result<Vec<u8>, ImageError> {
        let mut start = vec![0; 4];
        let n = self.file.read_at(&mut start, self.start).map_err(damaged)?;
        start.truncate(n);
        Ok(start)
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let n = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => self.start.checked_add(offset),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        // Skipping the padding of a last member may lead behind the end; there is nothing there.
        let target = target.filter(|target| *target >= self.start).map(|t| t.min(self.end));
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position - self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_members_are_keys() {
        for (name, from, expected) in [
            ("./manifest.json", "", Some("manifest.json")),
            ("/a//b", "", Some("a/b")),
            ("../x/layer.tar", "y/layer.tar", Some("x/layer.tar")),
            ("layer.tar", "y/other.tar", Some("y/layer.tar")),
            ("../../x", "y/z", None),
            ("./", "", None),
        ] {
            assert_eq!(key(name, from).as_deref(), expected, "{name} from {from}");
        }
    }
}
