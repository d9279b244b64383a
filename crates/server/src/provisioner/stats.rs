//! `GET /stats`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use stackd_engine::Stats;
use utoipa::ToSchema;

use crate::ServerState;

/// Numbers over all stacks.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats, example = json!({
    "total_stacks": 7,
    "active_stacks": 7,
    "node_distribution": {"dev-worker": 3, "dev-worker2": 4},
    "used_node_ports": 7,
    "reserved_cpu_milli": 700,
    "reserved_memory_bytes": 939524096,
    "reserved_disk_bytes": 1879048192,
    "stacks_by_status": {"running": 7}
}))]
pub(super) struct StatsView {
    /// All stacks, also those that have ended.
    total_stacks: u64,
    /// Those that are creating or running.
    active_stacks: u64,
    /// Active stacks by machine.
    node_distribution: BTreeMap<String, u64>,
    /// Node ports that active stacks hold.
    used_node_ports: u64,
    /// CPU that active stacks hold, in thousandths.
    reserved_cpu_milli: u64,
    /// Memory that active stacks hold.
    reserved_memory_bytes: u64,
    /// Disk that active stacks hold.
    reserved_disk_bytes: u64,
    /// All stacks by status; a status that none has may be left out.
    #[schema(value_type = BTreeMap<String, u64>)]
    stacks_by_status: BTreeMap<&'static str, u64>,
}

/// Numbers over all stacks.
#[utoipa::path(
    get, path = "/stats", tag = "stacks", operation_id = "getStats",
    responses((status = 200, description = "The numbers.", body = inline(StatsView)))
)]
pub(super) async fn stats(State(state): State<ServerState>) -> Json<StatsView> {
    let Stats {
        total_stacks,
        active_stacks,
        node_distribution,
        used_node_ports,
        reserved_cpu_milli,
        reserved_memory_bytes,
        reserved_disk_bytes,
        by_phase,
        active_by_challenge: _,
    } = state.engine().stats();
    Json(StatsView {
        total_stacks,
        active_stacks,
        node_distribution,
        used_node_ports,
        reserved_cpu_milli,
        reserved_memory_bytes,
        reserved_disk_bytes,
        stacks_by_status: by_phase,
    })
}
