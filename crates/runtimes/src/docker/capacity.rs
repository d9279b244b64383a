//! How many more stacks of a size an engine has room for, as `stackd doctor` tells it.

use bollard::Docker;
use bollard::models::{HostConfig, SystemInfo};
use bollard::query_parameters::ListContainersOptions;
use futures_util::StreamExt;
use stackd_core::admission::RoomPolicy;
use stackd_core::quantity::Quantity;
use stackd_core::spec::Requested;

use super::config::DockerConfig;
use super::engine::chain;
use super::survey::{Finding, Fit};
use super::{adopt, networks};

/// How many containers are looked at together.
const TOGETHER: usize = 8;

/// What the engine's machine can give, less what its containers hold.
pub(super) async fn find(
    docker: &Docker,
    config: &DockerConfig,
    info: &SystemInfo,
    room: &RoomPolicy,
    size: &Requested,
) -> Finding {
    let name = "capacity";
    let containers = match docker.list_containers(None::<ListContainersOptions>).await {
        Ok(containers) => containers,
        Err(error) => {
            let fix = "what runs on the engine must be listed";
            return Finding { name, fit: Fit::Not, found: chain(&error), fix };
        }
    };
    let ids = containers.into_iter().filter_map(|container| container.id);
    // One that has ended meanwhile holds nothing.
    let held = futures_util::stream::iter(ids)
        .map(|id| async move { docker.inspect_container(&id, None).await.ok()?.host_config })
        .buffer_unordered(TOGETHER)
        .filter_map(|limits| async move { limits })
        .fold(Requested::default(), |sum, limits| async move { sum.plus(&limit(&limits)) })
        .await;
    let networks = match config.is_here() {
        true => None,
        false => networks::count(config),
    };
    let machine = adopt::of_engine(config, info);
    let machine = Requested {
        cpu_milli: machine.cpu_milli,
        memory_bytes: machine.memory_bytes,
        disk_bytes: machine.disk_bytes,
    };
    told(room, &machine, &held, networks, size)
}

/// What a container may take at most, where it is limited.
fn limit(limits: &HostConfig) -> Requested {
    let amount = |number: Option<i64>| u64::try_from(number.unwrap_or(0)).unwrap_or(0);
    Requested {
        cpu_milli: match amount(limits.nano_cpus) {
            0 => amount(limits.cpu_quota).saturating_mul(1000) / amount(limits.cpu_period).max(1),
            nano => nano / 1_000_000,
        },
        memory_bytes: amount(limits.memory),
        disk_bytes: 0,
    }
}

fn told(
    room: &RoomPolicy,
    machine: &Requested,
    held: &Requested,
    networks: Option<u64>,
    size: &Requested,
) -> Finding {
    let free = room.room_of(machine).0.minus(held);
    let times = |have: u64, each: u64| have.checked_div(each).unwrap_or(u64::MAX);
    let fits = times(free.cpu_milli, size.cpu_milli)
        .min(times(free.memory_bytes, size.memory_bytes))
        .min(times(free.disk_bytes, size.disk_bytes))
        .min(networks.unwrap_or(u64::MAX));
    let count = match fits {
        u64::MAX => "any number of".to_owned(),
        fits => format!("about {fits}"),
    };
    let found = format!(
        "{count} more stacks of {}m CPU, {} of memory and {} of disk each",
        size.cpu_milli,
        Quantity::from_bytes(size.memory_bytes),
        Quantity::from_bytes(size.disk_bytes),
    );
    let fix = "remove containers, or take an engine with more memory, CPUs, disk or docker_subnets";
    Finding { name: "capacity", fit: if fits == 0 { Fit::Less } else { Fit::Good }, found, fix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_what_the_scarcest_allows() {
        let amounts = |cpu_milli, mib: u64, disk_mib: u64| Requested {
            cpu_milli,
            memory_bytes: mib << 20,
            disk_bytes: disk_mib << 20,
        };
        let room = RoomPolicy {
            cpu_overcommit: 10,
            memory_reserve: Quantity::from_bytes(512 << 20),
            disk_reserve: Quantity::from_bytes(0),
        };
        let machine = amounts(2000, 2048, 10_000);
        let size = amounts(100, 128, 256);
        let words = |held, networks| told(&room, &machine, &held, networks, &size).found;
        // 1536 MiB of memory are left for stacks.
        assert!(words(amounts(0, 0, 0), None).starts_with("about 12 more stacks of 100m CPU"));
        assert!(words(amounts(0, 1024, 0), None).starts_with("about 4 more"));
        assert!(words(amounts(19_900, 0, 0), None).starts_with("about 1 more"));
        assert!(words(amounts(0, 0, 0), Some(3)).starts_with("about 3 more"));
        let full = told(&room, &machine, &amounts(0, 1500, 0), None, &size);
        assert_eq!(full.fit, Fit::Less, "{full:?}");
    }
}
