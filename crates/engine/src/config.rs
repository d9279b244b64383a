//! What an operator may set about stacks in general.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stackd_core::admission::{Admission, LimitRange, Quota, Room, RoomPolicy};
use stackd_core::challenge::ChallengePolicy;
use stackd_core::isolation::{DEFAULT_PIDS_LIMIT, Profile};
use stackd_core::runtime::Machine;
use stackd_core::spec::Requested;

/// The engine's settings, read once at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// How long a stack lives when its creator did not say.
    #[serde(with = "stackd_core::duration")]
    pub default_ttl: Duration,
    /// The shortest life that may be asked for.
    #[serde(with = "stackd_core::duration")]
    pub min_ttl: Duration,
    /// The longest life that may be asked for.
    #[serde(with = "stackd_core::duration")]
    pub max_ttl: Duration,
    /// How long a stack may take to become ready before it has failed.
    #[serde(with = "stackd_core::duration")]
    pub start_timeout: Duration,
    /// How long a create waits for the name of the machine, where the runtime finds one only when
    /// a start is asked for. What has none for want of room by then is refused.
    #[serde(with = "stackd_core::duration")]
    pub schedule_wait: Duration,
    /// How long a stack may wait for a machine before it has failed.
    #[serde(with = "stackd_core::duration")]
    pub schedule_timeout: Duration,
    /// How long containers may take to end after a delete, at most.
    #[serde(with = "stackd_core::duration")]
    pub delete_grace: Duration,
    /// The node ports to give out.
    #[serde(with = "stackd_core::port::range")]
    pub node_ports: RangeInclusive<u16>,
    /// How many stacks may wait for a start slot before creates are refused.
    pub max_waiting_starts: usize,
    /// The most processes and threads of a stack.
    pub pids_limit: u32,
    /// The disk of a container that names no `ephemeral-storage`, where the limit range has no
    /// default.
    pub default_disk_bytes: u64,
    /// What processes may do.
    pub profile: Profile,
    /// How many events are kept.
    pub keep_events: u64,
    /// What one stack or container may ask for.
    pub limit_range: LimitRange,
    /// What all stacks together may hold.
    pub quota: Quota,
    /// How much of the machine may be given to stacks.
    pub room: RoomPolicy,
    /// What challenges may ask for.
    pub challenges: ChallengePolicy,
    /// How much a player may have.
    pub players: PlayerLimits,
}

/// How much a player may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlayerLimits {
    /// How many stacks a user may make within [`PlayerLimits::create_window`].
    pub create_max: u32,
    /// The window: it begins with the first create and is then over at once.
    #[serde(with = "stackd_core::duration")]
    pub create_window: Duration,
    /// How many live stacks an owner may have, over all challenges.
    pub max_stacks: usize,
    /// How long after it was made a stack can live when it is extended; twice the challenge's
    /// lifetime where absent.
    #[serde(with = "stackd_core::duration::option")]
    pub max_lifetime: Option<Duration>,
}

impl Default for PlayerLimits {
    fn default() -> Self {
        Self {
            create_max: 1,
            create_window: Duration::from_secs(60),
            max_stacks: 3,
            max_lifetime: None,
        }
    }
}

impl PlayerLimits {
    /// How long a stack of this lifetime can live when it is extended.
    pub fn longest(&self, ttl: Duration) -> Duration {
        self.max_lifetime.unwrap_or_else(|| ttl.saturating_mul(2))
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(2 * 3600),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(7 * 24 * 3600),
            start_timeout: Duration::from_secs(5 * 60),
            schedule_wait: Duration::from_secs(2),
            schedule_timeout: Duration::from_secs(20),
            delete_grace: Duration::from_secs(5),
            node_ports: 31001..=32767,
            max_waiting_starts: 1000,
            pids_limit: DEFAULT_PIDS_LIMIT,
            default_disk_bytes: 256 << 20,
            profile: Profile::Default,
            keep_events: 100_000,
            limit_range: LimitRange::default(),
            quota: Quota::default(),
            room: RoomPolicy::default(),
            challenges: ChallengePolicy::default(),
            players: PlayerLimits::default(),
        }
    }
}

impl EngineConfig {
    /// The disk of a container that names none.
    pub fn container_disk_bytes(&self) -> u64 {
        self.limit_range.default_disk_bytes().unwrap_or(self.default_disk_bytes)
    }

    /// What new stacks are measured against on this machine, or on none in particular.
    pub(crate) fn admission(&self, machine: Option<Machine>) -> Admission {
        let room = machine.map_or(Room::UNLIMITED, |machine| {
            self.room.room_of(&Requested {
                cpu_milli: machine.cpu_milli,
                memory_bytes: machine.memory_bytes,
                disk_bytes: machine.disk_bytes,
            })
        });
        Admission { quota: self.quota, room }
    }
}
