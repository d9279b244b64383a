//! Whether a stack may be made: what one may ask for, what all together may, and what is there.
//!
//! Three rules, from the caller's to the machine's. A [`LimitRange`] bounds one stack; breaking it
//! is the caller's error. A [`Quota`] bounds all stacks, and [`Room`] is what the machine has;
//! against these the engine asks [`Admission::admit`] inside the transaction that makes the stack,
//! so that two creates cannot both take the last of it.

mod limit_range;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use limit_range::{Bounds, ContainerBounds, ContradictoryLimits, LimitRange, LimitViolation};

use crate::quantity::Quantity;
use crate::spec::Requested;

/// An amount of each resource, as configured: `{ cpu = "500m", memory = "1Gi", disk = "2Gi" }`.
/// Each may be left out; numbers may be written without quotes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// CPUs, for example `2` or `"500m"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes of memory, for example `"512Mi"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Bytes of disk, for example `"2Gi"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Cpu,
    Memory,
    Disk,
}

impl Resource {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Disk];

    fn amount(self, value: u64) -> Quantity {
        match self {
            Self::Cpu => Quantity::from_milli(value),
            Self::Memory | Self::Disk => Quantity::from_bytes(value),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
        })
    }
}

impl Amounts {
    fn of(&self, resource: Resource) -> Option<Quantity> {
        match resource {
            Resource::Cpu => self.cpu,
            Resource::Memory => self.memory,
            Resource::Disk => self.disk,
        }
    }
}

impl Requested {
    fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_milli,
            Resource::Memory => self.memory_bytes,
            Resource::Disk => self.disk_bytes,
        }
    }
}

/// What all active stacks together may reserve. What is left out is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Bytes of disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
    /// Stacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacks: Option<u64>,
}

impl Quota {
    fn of(&self, resource: Resource) -> Option<Quantity> {
        match resource {
            Resource::Cpu => self.cpu,
            Resource::Memory => self.memory,
            Resource::Disk => self.disk,
        }
    }
}

/// How much of a machine may be given to stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomPolicy {
    /// How often each CPU may be given away: stacks are idle most of the time.
    #[serde(default = "RoomPolicy::default_cpu_overcommit")]
    pub cpu_overcommit: u32,
    /// Memory that stays with the machine.
    #[serde(default = "RoomPolicy::default_memory_reserve")]
    pub memory_reserve: Quantity,
    /// Disk that stays with the machine.
    #[serde(default = "RoomPolicy::default_disk_reserve")]
    pub disk_reserve: Quantity,
}

impl RoomPolicy {
    const fn default_cpu_overcommit() -> u32 {
        10
    }

    const fn default_memory_reserve() -> Quantity {
        Quantity::from_bytes(512 << 20)
    }

    const fn default_disk_reserve() -> Quantity {
        Quantity::from_bytes(1 << 30)
    }

    /// The room of a machine that has `machine` in all (CPUs in thousandths, bytes).
    pub fn room_of(&self, machine: &Requested) -> Room {
        Room(Requested {
            cpu_milli: machine.cpu_milli.saturating_mul(self.cpu_overcommit.into()),
            memory_bytes: machine.memory_bytes.saturating_sub(self.memory_reserve.units()),
            disk_bytes: machine.disk_bytes.saturating_sub(self.disk_reserve.units()),
        })
    }
}

impl Default for RoomPolicy {
    fn default() -> Self {
        Self {
            cpu_overcommit: Self::default_cpu_overcommit(),
            memory_reserve: Self::default_memory_reserve(),
            disk_reserve: Self::default_disk_reserve(),
        }
    }
}

/// What a machine can give to stacks, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room(pub Requested);

impl Room {
    /// For a runtime that has no machine of its own, or none that is known.
    pub const UNLIMITED: Self =
        Self(Requested { cpu_milli: u64::MAX, memory_bytes: u64::MAX, disk_bytes: u64::MAX });
}

/// What the active stacks hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many they are.
    pub stacks: u64,
    /// What they reserve together.
    pub reserved: Requested,
}

impl Usage {
    /// With one stack more.
    #[must_use]
    pub fn with(&self, wanted: &Requested) -> Self {
        Self { stacks: self.stacks.saturating_add(1), reserved: self.reserved.plus(wanted) }
    }

    /// With one stack less.
    #[must_use]
    pub fn without(&self, held: &Requested) -> Self {
        Self { stacks: self.stacks.saturating_sub(1), reserved: self.reserved.minus(held) }
    }
}

/// There is no place for the stack now. The texts are the provisioner's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The quota would be exceeded; in which resources, and by what.
    #[error("cluster saturated: exceeded quota: {0}")]
    Quota(String),
    /// The machine has no room.
    #[error("cluster saturated")]
    NoRoom {
        /// Which resource is short, for the log.
        operator: String,
    },
}

/// What new stacks are measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Configured.
    pub quota: Quota,
    /// What there is.
    pub room: Room,
}

impl Admission {
    /// Whether a stack that reserves `wanted` may come to those that hold `used`. The quota is
    /// asked first: it says more.
    pub fn admit(&self, used: &Usage, wanted: &Requested) -> Result<(), Denied> {
        let after = used.with(wanted);
        let mut exceeded = Vec::new();
        let asked = Resource::ALL.into_iter().filter(|resource| wanted.of(*resource) > 0);
        for resource in asked.clone() {
            let Some(limit) = self.quota.of(resource) else { continue };
            if resource.amount(after.reserved.of(resource)).exceeds(limit) {
                let wanted = resource.amount(wanted.of(resource));
                let used = resource.amount(used.reserved.of(resource));
                exceeded.push(format!(
                    "requested {resource} {wanted}, used {used}, limited to {limit}"
                ));
            }
        }
        if let Some(limit) = self.quota.stacks
            && after.stacks > limit
        {
            exceeded.push(format!("requested stacks 1, used {}, limited to {limit}", used.stacks));
        }
        if !exceeded.is_empty() {
            return Err(Denied::Quota(exceeded.join("; ")));
        }
        for resource in asked {
            let (all, after) = (self.room.0.of(resource), after.reserved.of(resource));
            if after > all {
                let (after, all) = (resource.amount(after), resource.amount(all));
                let operator = format!("{resource}: {after} would be reserved of {all}");
                return Err(Denied::NoRoom { operator });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn q(text: &str) -> Option<Quantity> {
        Some(text.parse().expect(text))
    }

    fn amounts(cpu_milli: u64, memory_bytes: u64, disk_bytes: u64) -> Requested {
        Requested { cpu_milli, memory_bytes, disk_bytes }
    }

    #[test]
    fn the_quota_and_the_room_are_told_apart() {
        let admission = Admission {
            quota: Quota { cpu: q("1"), memory: q("1Gi"), disk: None, stacks: Some(3) },
            room: Room(amounts(10_000, 2 << 30, 100)),
        };
        let used = |stacks, cpu_milli| Usage { stacks, reserved: amounts(cpu_milli, 0, 0) };
        let cases = [
            (used(0, 0), amounts(1000, 1 << 30, 100), ""),
            (
                used(1, 901),
                amounts(100, 1, 1),
                "cluster saturated: exceeded quota: requested cpu 100m, used 901m, limited to 1",
            ),
            (
                used(3, 950),
                amounts(100, 2 << 30, 1),
                "cluster saturated: exceeded quota: requested cpu 100m, used 950m, limited to 1; \
                 requested memory 2Gi, used 0, limited to 1Gi; \
                 requested stacks 1, used 3, limited to 3",
            ),
            (used(0, 0), amounts(100, 1, 101), "cluster saturated"),
            (used(0, 0), amounts(u64::MAX, u64::MAX, u64::MAX), "cluster saturated: exceeded"),
        ];
        for (used, wanted, text) in cases {
            let denied = admission.admit(&used, &wanted).err();
            let shown = denied.as_ref().map(ToString::to_string).unwrap_or_default();
            match text {
                "cluster saturated: exceeded" => assert!(shown.starts_with(text), "{shown}"),
                text => assert_eq!(shown, text),
            }
        }
        let denied = admission.admit(&used(0, 0), &amounts(0, 0, 101));
        let operator = "ephemeral-storage: 101 would be reserved of 100".to_owned();
        assert_eq!(denied, Err(Denied::NoRoom { operator }));
    }

    #[test]
    fn a_machine_keeps_its_reserve() {
        let room = RoomPolicy::default().room_of(&amounts(2000, 1 << 30, 1 << 20));
        assert_eq!(room, Room(amounts(20_000, 512 << 20, 0)));
        let policy: RoomPolicy = serde_json::from_str("{}").expect("defaults");
        assert_eq!(policy, RoomPolicy::default());
    }

    proptest! {
        /// Whatever is admitted one by one never exceeds the room or the quota.
        #[test]
        fn admitted_stacks_stay_within_the_limits(
            stacks in prop::collection::vec((0u64..400, 0u64..400, 0u64..400), 0..40),
            limit in 0u64..6,
        ) {
            let quota = Quota { cpu: q("1"), stacks: Some(limit), ..Quota::default() };
            let admission = Admission { quota, room: Room(amounts(u64::MAX, 1000, 800)) };
            let mut used = Usage::default();
            for (cpu, memory, disk) in stacks {
                let wanted = amounts(cpu, memory, disk);
                if admission.admit(&used, &wanted).is_ok() {
                    used = used.with(&wanted);
                }
            }
            prop_assert!(used.stacks <= limit && used.reserved.cpu_milli <= 1000);
            prop_assert!(used.reserved.memory_bytes <= 1000 && used.reserved.disk_bytes <= 800);
        }
    }
}
