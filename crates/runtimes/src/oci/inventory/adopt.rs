//! Finding stacks again after a restart of the server.

use super::*;

/// Every stack that has a directory, with a connection where its shim lives. What was never
/// started whole is removed.
pub(super) async fn scan(
    data_dir: &Path,
    boot_id: &str,
    cgroups: &CgroupLayout,
) -> io::Result<Vec<(Snapshot, Option<OwnedFd>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data_dir.join("stacks"))? {
        let entry = entry?;
        let directory = entry.path();
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<StackId>().ok()) else {
            continue;
        };
        let state = stackd_shim::read_state(&directory).ok().filter(|state| state.id == id);
        let ended = |s: &Snapshot| matches!(s.state, RuntimeState::Ended { .. });
        let socket = match &state {
            Some(state) if ended(state) => None,
            _ => reach_in_time(id, &directory).await?,
        };
        match (state, socket) {
            (Some(state), Some(socket)) => found.push((state, Some(socket))),
            (Some(state), None) => {
                clear(id, machine::remove_groups(cgroups, &id.to_string()));
                found.push((as_ended(state, boot_id, &directory), None));
            }
            (None, socket) => match under_way(id, &directory, socket).await? {
                Some((state, socket)) => found.push((state, Some(socket))),
                None => {
                    // A shim that is on its way still ends when it finds no directory.
                    clear(id, std::fs::remove_dir_all(&directory));
                    clear(id, machine::remove_groups(cgroups, &id.to_string()));
                }
            },
        }
    }
    let known = |name: &str| found.iter().any(|(s, _)| s.id.to_string() == name);
    for name in machine::group_names(cgroups) {
        let stack = name.parse::<StackId>().is_ok();
        if !known(&name) && (stack || name.starts_with(BLANK_PREFIX)) {
            // Another server on this machine may have its stacks below the same parent.
            let removed = machine::remove_unused_groups(cgroups, &name);
            tracing::info!(%name, removed, "control groups of no stack of this server");
        }
    }
    Ok(found)
}

/// What cannot be cleared away now is no reason to leave all other stacks alone: the next start
/// tries again.
fn clear(id: StackId, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(stack = %id, %error, "what is left of it could not be removed");
    }
}

/// See [`reach`]. To take a shim for dead that is not would leave its stack to itself, so it is
/// an error when this remains unknown.
async fn reach_in_time(id: StackId, directory: &Path) -> io::Result<Option<OwnedFd>> {
    tokio::time::timeout(PATIENCE, reach(id, directory)).await.map_err(|_| {
        let text = format!("the shim of {id} cannot be reached, and it is not known why");
        io::Error::new(io::ErrorKind::TimedOut, text)
    })
}

/// A start that was under way when the last server ended goes on: its shim says so as soon as
/// it has started the containers, and nothing if it could not.
async fn under_way(
    id: StackId,
    directory: &Path,
    socket: Option<OwnedFd>,
) -> io::Result<Option<(Snapshot, OwnedFd)>> {
    let Some(socket) = socket else { return Ok(None) };
    let client = Client::new(socket)?;
    let mut inbox = Inbox::default();
    let first = tokio::time::timeout(START_PATIENCE, client.next(&mut inbox)).await;
    let Some(snapshot) = first.ok().flatten().filter(|snapshot| snapshot.id == id) else {
        return Ok(None);
    };
    tracing::info!(stack = %id, "its start was under way");
    let again = reach_in_time(id, directory).await?;
    Ok(again.map(|socket| (snapshot, socket)))
}

/// The last snapshot of a shim that is gone, as the end that it is.
pub(super) fn as_ended(mut last: Snapshot, boot_id: &str, directory: &Path) -> Snapshot {
    if matches!(last.state, RuntimeState::Ended { .. }) {
        return last;
    }
    let condition = if last.boot_id == boot_id {
        Condition::new(reason::LOST, "the process that ran the stack has disappeared")
    } else {
        Condition::new(reason::NODE_REBOOTED, "the machine was restarted")
    };
    last.state = RuntimeState::Ended {
        outcome: Outcome::Failed,
        exit_code: None,
        condition,
        at: Timestamp::now(),
    };
    let write = || {
        let new = directory.join("state.new");
        std::fs::write(&new, serde_json::to_vec(&last)?)?;
        std::fs::rename(new, directory.join(STATE_FILE))
    };
    if let Err(error) = write() {
        tracing::warn!(stack = %last.id, %error, "an end could not be written down");
    }
    last
}
