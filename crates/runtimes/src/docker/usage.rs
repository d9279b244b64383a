//! What a stack uses, as the engine measures it.

use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::StatsOptionsBuilder;
use futures_util::StreamExt;
use stackd_core::runtime::Usage;
use stackd_core::{RuntimeError, StackId};

use super::engine::{fault, is_absent};
use super::inventory::Inner;
use super::{not_running, objects, unknown};

/// The sum over a stack's containers that run. Its disk is as it was last looked at.
pub(super) async fn of(inner: &Arc<Inner>, id: StackId) -> Result<Usage, RuntimeError> {
    let (names, disk_bytes) = {
        let state = inner.state.lock();
        let entry = state.entries.get(&id).ok_or_else(unknown)?;
        if entry.is_ended() {
            return Err(not_running());
        }
        let containers = entry.request.spec.all_containers();
        let names = containers.map(|container| objects::container(id, &container.name));
        (names.collect::<Vec<_>>(), entry.disk_bytes)
    };
    let each = names.iter().map(|name| one(inner, name));
    let mut sum = Usage { disk_bytes, ..Usage::default() };
    for usage in futures_util::future::join_all(each).await {
        let usage = usage?;
        sum.cpu_time += usage.cpu_time;
        sum.memory_bytes += usage.memory_bytes;
        sum.pids += usage.pids;
    }
    Ok(sum)
}

async fn one(inner: &Inner, name: &str) -> Result<Usage, RuntimeError> {
    let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
    let stats = match inner.docker.stats(name, Some(options)).next().await {
        Some(Ok(stats)) => stats,
        Some(Err(e)) if is_absent(&e) => return Ok(Usage::default()),
        Some(Err(e)) => return Err(fault("ask for usage", &e)),
        None => return Ok(Usage::default()),
    };
    let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage?.total_usage).unwrap_or(0);
    let memory = stats.memory_stats.unwrap_or_default();
    // What the kernel could take back at once is not counted, as everywhere.
    let idle = memory.stats.as_ref().and_then(|stats| {
        stats.get("total_inactive_file").or_else(|| stats.get("inactive_file")).copied()
    });
    Ok(Usage {
        cpu_time: Duration::from_nanos(cpu),
        memory_bytes: memory.usage.unwrap_or(0).saturating_sub(idle.unwrap_or(0)),
        pids: stats.pids_stats.and_then(|pids| pids.current).unwrap_or(0),
        disk_bytes: 0,
    })
}
