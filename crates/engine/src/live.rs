//! What readers see: the live set, in memory, without a database or a runtime behind it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use stackd_core::challenge::ChallengeNumber;
use stackd_core::isolation::EffectiveSecurity;
use stackd_core::{Stack, StackId, Timestamp};

use crate::challenges;

/// A stack as a reader sees it: one version of it, which never changes.
#[derive(Debug)]
pub struct LiveStack {
    /// The stack.
    pub stack: Stack,
    /// What is really applied to it.
    pub security: EffectiveSecurity,
    /// The rendered JSON of this version, for the dialect that made the stack. Filled by the
    /// dialect, on the first read.
    pub rendered: OnceLock<Arc<str>>,
}

/// A place in the list of stacks, to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    created_at: Timestamp,
    id: StackId,
}

impl Cursor {
    /// The place of this stack.
    pub fn of(stack: &Stack) -> Self {
        Self { created_at: stack.created_at, id: stack.id }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:016x}", self.created_at.as_nanosecond(), self.id.bits())
    }
}

/// The text is not a cursor that this server gave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this list")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (at, id) = text.split_once('-').ok_or(InvalidCursor)?;
        let at = i128::from_str_radix(at, 16).map_err(|_| InvalidCursor)?;
        let created_at = Timestamp::from_nanosecond(at).map_err(|_| InvalidCursor)?;
        let id = u64::from_str_radix(id, 16).map_err(|_| InvalidCursor)?;
        Ok(Self { created_at, id: StackId::from_bits(id) })
    }
}

/// Numbers over all stacks, kept up to date with every change, so that reading them costs the same
/// with one stack as with a million.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// All stacks that a reader can see.
    pub total_stacks: u64,
    /// Those that are creating or running.
    pub active_stacks: u64,
    /// Active stacks by node; a stack that is not placed yet is in none.
    pub node_distribution: BTreeMap<String, u64>,
    /// Node ports held by active stacks.
    pub used_node_ports: u64,
    /// CPU held by active stacks, in thousandths.
    pub reserved_cpu_milli: u64,
    /// Memory held by active stacks.
    pub reserved_memory_bytes: u64,
    /// Disk held by active stacks.
    pub reserved_disk_bytes: u64,
    /// All stacks that a reader can see, by the word for their phase.
    pub by_phase: BTreeMap<&'static str, u64>,
    /// Players' active stacks, by challenge; a challenge without any is not in it.
    pub active_by_challenge: BTreeMap<ChallengeNumber, u64>,
}

impl Stats {
    fn count(&mut self, stack: &Stack, add: bool) {
        let step = |n: &mut u64, by: u64| {
            *n = if add { n.saturating_add(by) } else { n.saturating_sub(by) };
        };
        step(&mut self.total_stacks, 1);
        let phase = stack.observed.phase.as_str();
        step(self.by_phase.entry(phase).or_default(), 1);
        self.by_phase.retain(|_, n| *n > 0);
        if !stack.is_active() {
            return;
        }
        step(&mut self.active_stacks, 1);
        step(&mut self.used_node_ports, stack.ports.len() as u64);
        step(&mut self.reserved_cpu_milli, stack.requested.cpu_milli);
        step(&mut self.reserved_memory_bytes, stack.requested.memory_bytes);
        step(&mut self.reserved_disk_bytes, stack.requested.disk_bytes);
        if let Some(node) = &stack.observed.node {
            step_in(node.clone(), &mut self.node_distribution, add);
        }
        let player = stack.owner.dialect == challenges::DIALECT;
        if let Some(Ok(number)) = player.then(|| stack.owner.slot.parse()) {
            step_in(number, &mut self.active_by_challenge, add);
        }
    }
}

/// One more or less of this kind; what there is none of is not kept.
fn step_in<K: Ord>(key: K, map: &mut BTreeMap<K, u64>, add: bool) {
    match map.entry(key) {
        Entry::Occupied(held) if !add && *held.get() <= 1 => {
            held.remove();
        }
        held => {
            let n = held.or_default();
            *n = if add { n.saturating_add(1) } else { n.saturating_sub(1) };
        }
    }
}

/// A dialect and a tenant of it, as one text: neither has a NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tenant(String);

impl Tenant {
    fn of(dialect: &str, tenant: &str) -> Self {
        Self(format!("{dialect}\0{tenant}"))
    }
}

/// The stacks that readers can see.
#[derive(Debug, Default)]
pub(crate) struct LiveSet {
    by_age: BTreeMap<Cursor, Arc<LiveStack>>,
    place: HashMap<StackId, Cursor>,
    /// The same stacks by whose they are.
    by_tenant: HashMap<Tenant, BTreeMap<Cursor, Arc<LiveStack>>>,
    stats: Stats,
    revision: u64,
}

impl LiveSet {
    /// Shows this version of a stack from now on.
    pub(crate) fn put(&mut self, live: Arc<LiveStack>) {
        let cursor = Cursor::of(&live.stack);
        self.stats.count(&live.stack, true);
        self.place.insert(live.stack.id, cursor);
        let owner = &live.stack.owner;
        let tenant = Tenant::of(&owner.dialect, &owner.tenant);
        self.by_tenant.entry(tenant).or_default().insert(cursor, Arc::clone(&live));
        if let Some(before) = self.by_age.insert(cursor, live) {
            self.stats.count(&before.stack, false);
        }
        self.revision += 1;
    }

    /// Hides a stack from all readers.
    pub(crate) fn hide(&mut self, id: StackId) -> Option<Arc<LiveStack>> {
        let cursor = self.place.remove(&id)?;
        let before = self.by_age.remove(&cursor);
        if let Some(before) = &before {
            self.stats.count(&before.stack, false);
            let owner = &before.stack.owner;
            let tenant = Tenant::of(&owner.dialect, &owner.tenant);
            if let Some(stacks) = self.by_tenant.get_mut(&tenant) {
                stacks.remove(&cursor);
                if stacks.is_empty() {
                    self.by_tenant.remove(&tenant);
                }
            }
        }
        self.revision += 1;
        before
    }

    /// The stacks of a tenant, oldest first, also ended ones.
    pub(crate) fn of_tenant<'a>(
        &'a self,
        dialect: &str,
        tenant: &str,
    ) -> impl DoubleEndedIterator<Item = &'a Arc<LiveStack>> + use<'a> {
        self.by_tenant.get(&Tenant::of(dialect, tenant)).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn get(&self, id: StackId) -> Option<Arc<LiveStack>> {
        self.by_age.get(self.place.get(&id)?).cloned()
    }

    pub(crate) fn after(&self, cursor: Option<Cursor>) -> impl Iterator<Item = &Arc<LiveStack>> {
        use std::ops::Bound;
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_age.range((from, Bound::Unbounded)).map(|(_, live)| live)
    }

    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }
}
