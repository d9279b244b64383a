//! Unpacks one layer, which may be hostile, into a directory that overlayfs can use as a lower one.
//!
//! What is refused, with the reason: names that are absolute or have `..`, names that lead through
//! a symbolic link, hard links and relative symbolic links out of the root, devices, ids beyond a
//! stack's range, archives that are damaged or too large. What is left out: every extended
//! attribute but `user.*` (file capabilities mean nothing under `no_new_privs`). Set-id bits are
//! kept for the same reason. Symbolic links with absolute targets are kept: they are followed
//! inside the container only.

mod meter;
mod tree;

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Timespec;
use tar::EntryType;

use self::meter::LimitExceeded;
pub(super) use self::meter::Meter;
use self::tree::{Node, Tree};
use super::digest::{Digest, HashingReader};
use super::error::ImageError;
use super::model::Compression;
use super::store::Tally;
use super::users::ID_LIMIT;

/// The most bytes that the headers of one entry may have: names and attributes are held in memory.
pub(super) const MAX_HEADER_BYTES: u64 = 2 << 20;
/// The most bytes of one extended attribute.
const MAX_XATTR_BYTES: usize = 64 << 10;
/// The largest window of zstd, as of the `zstd` program itself; it is held in memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How much one layer may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct UnpackLimits {
    pub(super) max_bytes: u64,
    pub(super) max_entries: u64,
    pub(super) max_expansion: u64,
}

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unpacked {
    /// Of the tar archive.
    pub(super) diff_id: Digest,
    /// Of the tar archive.
    pub(super) plain_bytes: u64,
    /// Of all files.
    pub(super) unpacked_bytes: u64,
    pub(super) entries: u64,
}

/// Who is asked whether to go on, for every entry and chunk.
pub(super) struct Overseer<'a> {
    cancelled: &'a AtomicBool,
    keep_reserve: &'a dyn Fn() -> Result<(), ImageError>,
    tally: Cell<Tally>,
}

/// What an entry takes of the disk, besides its content.
const ENTRY_BYTES: u64 = 4 << 10;

impl<'a> Overseer<'a> {
    /// It ends when `cancelled` is set, or when `keep_reserve` fails, which is called now and then.
    pub(super) fn new(
        cancelled: &'a AtomicBool,
        keep_reserve: &'a dyn Fn() -> Result<(), ImageError>,
    ) -> Self {
        Self { cancelled, keep_reserve, tally: Cell::default() }
    }

    fn wrote(&self, bytes: u64) -> Result<(), Fault> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Fault::Cancelled);
        }
        let mut tally = self.tally.take();
        let due = tally.is_due(bytes);
        self.tally.set(tally);
        if due { (self.keep_reserve)().map_err(Fault::Reserve) } else { Ok(()) }
    }
}

/// A fault of one archive, before it is known what the archive is.
#[derive(Debug)]
pub(super) enum Fault {
    /// Hostile, damaged or unsupported.
    Refused(String),
    /// The archive cannot be read, for no reason of its own.
    Read(io::Error),
    /// The disk.
    Write(String, io::Error),
    /// The disk's reserve is touched.
    Reserve(ImageError),
    Cancelled,
}

impl Fault {
    fn entry(name: &[u8], reason: impl std::fmt::Display) -> Self {
        Self::Refused(format!("entry \"{}\" {reason}", shown(name)))
    }

    /// A failure to read from the archive: its own fault unless the system says otherwise.
    fn of_read(error: io::Error) -> Self {
        if let Some(limit) = error.get_ref().and_then(|inner| inner.downcast_ref::<LimitExceeded>())
        {
            return Self::Refused(limit.to_string());
        }
        if error.raw_os_error().is_some() {
            return Self::Read(error);
        }
        Self::Refused(format!("the archive is damaged: {error}"))
    }
}

fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// A reader that hashes, shared between the decoder and whoever reads the rest.
struct Shared<R>(Rc<RefCell<HashingReader<R>>>);

impl<R: Read> Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// Unpacks the layer `archive` into `root`, which must exist and be empty.
///
/// The whole archive is read and hashed also where it is refused halfway, if that can be: an
/// archive that is not what was promised is then reported as that and not by its symptoms.
pub(super) fn unpack_layer<R: Read>(
    what: &str,
    archive: R,
    compression: Compression,
    expected_blob: Option<Digest>,
    root: &Path,
    limits: UnpackLimits,
    overseer: &Overseer<'_>,
) -> Result<Unpacked, ImageError> {
    let to_error = |fault: Fault| match fault {
        Fault::Refused(reason) => ImageError::refused(what, reason),
        Fault::Read(error) => ImageError::store(format!("reading {what}: {error}")),
        Fault::Write(path, error) => {
            ImageError::io("unpacking", &root.join(path.trim_start_matches('/')), &error)
        }
        Fault::Reserve(error) => error,
        Fault::Cancelled => ImageError::store(format!("unpacking {what} was cancelled")),
    };
    let blob = Rc::new(RefCell::new(HashingReader::new(archive)));
    let result = unpack_compressed(&blob, compression, root, limits, overseer);
    let blob = Rc::try_unwrap(blob)
        .map_err(|_| ImageError::store("a decoder outlived its archive"))?
        .into_inner();
    if let Err(fault @ (Fault::Cancelled | Fault::Reserve(_) | Fault::Write(..))) = result {
        return Err(to_error(fault));
    }
    if let Some(expected) = expected_blob {
        let (actual, _) =
            blob.finish(limits.max_bytes).map_err(|error| to_error(Fault::of_read(error)))?;
        if actual != expected {
            return Err(ImageError::DigestMismatch { what: what.to_owned(), expected, actual });
        }
    }
    result.map_err(to_error)
}

fn unpack_compressed<R: Read>(
    blob: &Rc<RefCell<HashingReader<R>>>,
    compression: Compression,
    root: &Path,
    limits: UnpackLimits,
    overseer: &Overseer<'_>,
) -> Result<Unpacked, Fault> {
    let meter = Meter::new(limits);
    let source = BufReader::with_capacity(64 << 10, meter.compressed(Shared(Rc::clone(blob))));
    match compression {
        Compression::Plain => unpack_tar(source, &meter, root, limits, overseer),
        Compression::Gzip => {
            let decoder = flate2::bufread::MultiGzDecoder::new(source);
            unpack_tar(decoder, &meter, root, limits, overseer)
        }
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(source).map_err(Fault::of_read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(Fault::of_read)?;
            unpack_tar(decoder, &meter, root, limits, overseer)
        }
    }
}

fn unpack_tar<R: Read>(
    plain: R,
    meter: &Meter,
    root: &Path,
    limits: UnpackLimits,
    overseer: &Overseer<'_>,
) -> Result<Unpacked, Fault> {
    let mut tree = Tree::open(root)?;
    let mut archive = tar::Archive::new(HashingReader::new(meter.plain(plain)));
    let mut entries: u64 = 0;
    let mut unpacked_bytes: u64 = 0;
    {
        let mut iterator = archive.entries().map_err(Fault::of_read)?;
        loop {
            meter.expect_headers(MAX_HEADER_BYTES);
            let Some(entry) = iterator.next() else { break };
            let mut entry = entry.map_err(Fault::of_read)?;
            overseer.wrote(ENTRY_BYTES)?;
            entries += 1;
            if entries > limits.max_entries {
                let max = limits.max_entries;
                return Err(Fault::Refused(format!("it has more than {max} entries")));
            }
            meter.expect_data();
            let room = limits.max_bytes.saturating_sub(unpacked_bytes);
            unpacked_bytes += unpack_entry(&mut tree, &mut entry, room, overseer)?;
        }
    }
    tree.finish()?;
    // Padding, and whatever else stands behind the end, is part of the digest.
    meter.expect_data();
    let (diff_id, plain_bytes) =
        archive.into_inner().finish(limits.max_bytes).map_err(Fault::of_read)?;
    Ok(Unpacked { diff_id, plain_bytes, unpacked_bytes, entries })
}

/// What the extended headers of an entry say.
#[derive(Default)]
struct Extended {
    mtime: Option<Timespec>,
    xattrs: Vec<(CString, Vec<u8>)>,
}

fn read_extended<R: Read>(name: &[u8], entry: &mut tar::Entry<'_, R>) -> Result<Extended, Fault> {
    let mut extended = Extended::default();
    let Some(records) = entry.pax_extensions().map_err(Fault::of_read)? else {
        return Ok(extended);
    };
    // The reader splits at line ends, also at those inside binary attributes, which are dropped
    // anyway: what it cannot make out is skipped.
    for record in records.flatten() {
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if key.starts_with(b"GNU.sparse.") {
            return Err(Fault::entry(
                name,
                "is a sparse file of a kind that is not supported; make the archive without --sparse",
            ));
        } else if key == b"mtime" {
            extended.mtime = parse_mtime(value);
        } else if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
            let kept = attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay.");
            if kept && value.len() <= MAX_XATTR_BYTES {
                // A name with a NUL is none; it is left out like the others.
                if let Ok(attribute) = CString::new(attribute) {
                    extended.xattrs.push((attribute, value.to_vec()));
                }
            }
        }
    }
    Ok(extended)
}

/// Seconds with up to nine decimals, perhaps before 1970.
fn parse_mtime(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    // Below zero, the fraction counts backwards.
    let (tv_sec, tv_nsec) = if text.starts_with('-') && nanos > 0 {
        (tv_sec - 1, 1_000_000_000 - nanos)
    } else {
        (tv_sec, nanos)
    };
    Some(Timespec { tv_sec, tv_nsec })
}

fn id(name: &[u8], what: &str, value: io::Result<u64>) -> Result<u32, Fault> {
    let value = value.map_err(Fault::of_read)?;
    u32::try_from(value).ok().filter(|id| *id < ID_LIMIT).ok_or_else(|| {
        Fault::entry(name, format!("belongs to {what} {value}; ids must be below {ID_LIMIT}"))
    })
}

/// Unpacks one entry and tells how many bytes of content it had.
fn unpack_entry<R: Read>(
    tree: &mut Tree,
    entry: &mut tar::Entry<'_, R>,
    room_bytes: u64,
    overseer: &Overseer<'_>,
) -> Result<u64, Fault> {
    let header = entry.header();
    let kind = header.entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(0);
    }
    let name = entry.path_bytes().into_owned();
    let path = tree::components(&name).map_err(|reason| Fault::entry(&name, reason))?;
    let mode = header.mode().map_err(Fault::of_read)? & 0o7777;
    let uid = id(&name, "user", header.uid())?;
    let gid = id(&name, "group", header.gid())?;
    let seconds = header.mtime().unwrap_or(0);
    let extended = read_extended(&name, entry)?;
    let mtime = extended
        .mtime
        .unwrap_or(Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 });
    let node = Node { mode, uid, gid, mtime, xattrs: &extended.xattrs };

    let Some((last, parents)) = path.split_last() else {
        // The root itself. Anything but a directory makes no sense there.
        return if kind.is_dir() {
            tree.set_root(&node).map(|()| 0)
        } else {
            Err(Fault::entry(&name, "is the root and not a directory"))
        };
    };
    if parents.iter().any(|part| part.starts_with(b".wh.")) {
        return Err(Fault::entry(&name, "lies in a whiteout"));
    }
    if let Some(hidden) = last.strip_prefix(b".wh.") {
        return match hidden {
            b".wh..opq" => tree.opaque(&name, parents).map(|()| 0),
            // What AUFS kept for itself.
            _ if hidden.starts_with(b".wh.") => Ok(0),
            b"" | b"." | b".." => Err(Fault::entry(&name, "is not a valid whiteout")),
            _ => tree.whiteout(&name, parents, hidden).map(|()| 0),
        };
    }
    // Archives older than POSIX mark directories by the slash alone.
    let old_directory = kind == EntryType::Regular && name.ends_with(b"/");
    match kind {
        _ if old_directory => tree.directory(&name, parents, last, node).map(|()| 0),
        EntryType::Directory => tree.directory(&name, parents, last, node).map(|()| 0),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let size = entry.size();
            if size > room_bytes {
                return Err(Fault::Refused(format!(
                    "unpacked, the image would be larger than allowed (entry \"{}\" has {size} \
                     bytes); see max_unpacked_bytes and max_pulled_bytes in [images]",
                    shown(&name)
                )));
            }
            let sparse = kind == EntryType::GNUSparse;
            tree.file(&name, parents, last, node, entry, size, sparse, overseer).map(|()| size)
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            tree::check_symlink(&path, &target).map_err(|reason| Fault::entry(&name, reason))?;
            tree.symlink(&name, parents, last, node, &target).map(|()| 0)
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = tree::components(&target).map_err(|reason| {
                Fault::entry(&name, format!("is a link to \"{}\", which {reason}", shown(&target)))
            })?;
            tree.hard_link(&name, parents, last, &target).map(|()| 0)
        }
        EntryType::Fifo => tree.fifo(&name, parents, last, node).map(|()| 0),
        EntryType::Char | EntryType::Block => Err(Fault::entry(
            &name,
            "is a device; leave /dev out of the archive, every container gets its own",
        )),
        other => Err(Fault::entry(
            &name,
            format!("is of an unknown kind ({:?})", char::from(other.as_byte())),
        )),
    }
}
