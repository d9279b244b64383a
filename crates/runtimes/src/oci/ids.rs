//! Which user and group ids stacks get: never the same for two of them, also not for stacks of two
//! servers on one machine, which do not know of each other.
//!
//! The ids are cut into regions, and a server takes a region when it needs one: by a lock on a file
//! that names its data directory. The lock ends with the server, but its stacks go on; so a region
//! is free only when its owner's data directory has no stacks either. The files are in `/run`, which
//! is empty after a restart of the machine, as are the regions.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use stackd_shim::protocol::IDS_PER_STACK;

/// Where servers of this machine meet.
pub(super) const LOCKS: &str = "/run/stackd/ids";
/// How many ids a region has: enough for 256 stacks.
const REGION: u32 = 1 << 24;

/// A range of user and group ids; given back when this is dropped.
#[derive(Debug)]
pub(super) struct IdRange {
    pub(super) base: u32,
    ids: Arc<Ids>,
}

impl Drop for IdRange {
    fn drop(&mut self) {
        self.ids.taken.lock().used.remove(&self.base);
    }
}

/// Which ranges of ids are in use.
#[derive(Debug)]
pub(super) struct Ids {
    first: u32,
    locks: PathBuf,
    data_dir: PathBuf,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    used: BTreeSet<u32>,
    /// The regions that are this server's, with what holds them.
    regions: Vec<(u32, File)>,
    /// The range that was given out last.
    last: u32,
}

impl Ids {
    /// The ids from `first` on, for the server on a data directory.
    pub(super) fn new(first: u32, locks: &Path, data_dir: &Path) -> io::Result<Arc<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(locks)?;
        Ok(Arc::new(Self {
            first,
            locks: locks.to_owned(),
            data_dir: data_dir.canonicalize()?,
            taken: Mutex::default(),
        }))
    }

    /// A range that nobody uses: of this server's, the one that was free longest.
    pub(super) fn allocate(self: &Arc<Self>) -> io::Result<IdRange> {
        let mut taken = self.taken.lock();
        loop {
            let free = |base: &u32| !taken.used.contains(base);
            let mut bases: Vec<_> =
                taken.regions.iter().flat_map(|(n, _)| self.bases(*n)).collect();
            bases.sort_unstable();
            let later = bases.iter().filter(|base| **base > taken.last);
            if let Some(base) = later.chain(&bases).copied().find(free) {
                taken.used.insert(base);
                taken.last = base;
                return Ok(IdRange { base, ids: Arc::clone(self) });
            }
            self.take_region(&mut taken)?;
        }
    }

    /// The first id of each range in a region.
    fn bases(&self, region: u32) -> impl Iterator<Item = u32> {
        let (first, start) = (self.first, region * REGION);
        let bases = (0..REGION / IDS_PER_STACK).map(move |n| start + n * IDS_PER_STACK);
        // The last id of all means "no id".
        bases.filter(move |base| *base >= first && base.checked_add(IDS_PER_STACK).is_some())
    }

    fn take_region(&self, taken: &mut Taken) -> io::Result<()> {
        for region in self.first / REGION..=u32::MAX / REGION {
            let held = taken.regions.iter().any(|(number, _)| *number == region);
            if held || self.bases(region).next().is_none() {
                continue;
            }
            if let Some(file) = self.lock(region)? {
                taken.regions.push((region, file));
                return Ok(());
            }
        }
        Err(io::Error::other(format!(
            "every range of user ids from {} on is in use: a lower first_id gives more",
            self.first
        )))
    }

    /// Takes a region, unless it is another server's.
    fn lock(&self, region: u32) -> io::Result<Option<File>> {
        let path = self.locks.join(region.to_string());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut owner = Vec::new();
        file.read_to_end(&mut owner)?;
        let owner = PathBuf::from(std::ffi::OsString::from_vec(owner));
        if owner != self.data_dir {
            let has_stacks = |dir: &Path| std::fs::read_dir(dir.join("stacks"))?.next().transpose();
            if !owner.as_os_str().is_empty() && has_stacks(&owner).is_ok_and(|one| one.is_some()) {
                return Ok(None);
            }
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(self.data_dir.as_os_str().as_bytes())?;
        }
        Ok(Some(file))
    }

    /// Takes the range of a stack that is there already.
    pub(super) fn adopt(self: &Arc<Self>, base: u32) -> IdRange {
        let mut taken = self.taken.lock();
        taken.used.insert(base);
        let region = base / REGION;
        if taken.regions.iter().all(|(number, _)| *number != region) {
            // Where the server before this one has not quite ended, the stack itself keeps others
            // away.
            match self.lock(region) {
                Ok(Some(file)) => taken.regions.push((region, file)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, region, "user ids could not be locked"),
            }
        }
        drop(taken);
        IdRange { base, ids: Arc::clone(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = 1 << 28;

    fn server(dir: &Path, name: &str, first: u32) -> Arc<Ids> {
        let data = dir.join(name);
        std::fs::create_dir_all(data.join("stacks")).unwrap();
        Ids::new(first, &dir.join("locks"), &data).unwrap()
    }

    #[test]
    fn ranges_of_ids_never_overlap_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let ids = server(dir.path(), "a", FIRST);
        let adopted = ids.adopt(FIRST + IDS_PER_STACK);
        let (a, b) = (ids.allocate().unwrap(), ids.allocate().unwrap());
        let bases = [a.base, adopted.base, b.base];
        assert_eq!(bases, [FIRST, FIRST + 65536, FIRST + 2 * 65536]);
        drop(a);
        assert_ne!(ids.allocate().unwrap().base, FIRST, "the one that was free longest");
    }

    #[test]
    fn ids_end_where_numbers_do() {
        let dir = tempfile::tempdir().unwrap();
        let small = server(dir.path(), "a", u32::MAX - 3 * IDS_PER_STACK);
        let held: Vec<_> = std::iter::from_fn(|| small.allocate().ok()).collect();
        assert!((2..=3).contains(&held.len()), "{}", held.len());
        assert!(held.iter().all(|range| range.base.checked_add(IDS_PER_STACK).is_some()));
        assert!(small.allocate().unwrap_err().to_string().contains("first_id"));
    }

    #[test]
    fn two_servers_of_a_machine_share_no_ids() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (server(dir.path(), "a", FIRST), server(dir.path(), "b", FIRST));
        let mut bases = BTreeSet::new();
        let held: Vec<_> =
            (0..300).flat_map(|_| [a.allocate().unwrap(), b.allocate().unwrap()]).collect();
        assert!(held.iter().all(|range| bases.insert(range.base)), "a range twice");
    }

    #[test]
    fn what_a_stopped_server_has_left_running_keeps_its_ids() {
        let dir = tempfile::tempdir().unwrap();
        let base = server(dir.path(), "a", FIRST).allocate().unwrap().base;
        assert_eq!(base, FIRST, "the first region is free");
        let stack = dir.path().join("a/stacks/stack-1");
        std::fs::create_dir(&stack).unwrap();
        let other = server(dir.path(), "b", FIRST).allocate().unwrap().base;
        assert_eq!(other, FIRST + REGION, "it belongs to a stack");
        assert_eq!(server(dir.path(), "a", FIRST).allocate().unwrap().base, FIRST, "it is its own");
        std::fs::remove_dir(&stack).unwrap();
        assert_eq!(server(dir.path(), "b", FIRST).allocate().unwrap().base, FIRST, "free again");
    }
}
