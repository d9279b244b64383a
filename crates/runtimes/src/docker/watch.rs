//! Listening to the engine: what happens to containers and images comes as events. After every
//! (re)connection everything is looked at once, since nobody knows what was missed.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder};
use futures_util::StreamExt;
use stackd_core::StackId;
use tokio::time::MissedTickBehavior;

use super::engine::chain;
use super::exec;
use super::inventory::{Inner, Note};
use super::objects;

/// How long after a failure the engine is asked again, at first and at last.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// How far back events are asked for, so that none is missed between the question and the answer.
const OVERLAP_SECONDS: i64 = 2;
/// What a file counts for at least, so that many small ones are bounded too.
const FILE_BYTES: u64 = 4096;

/// Listens as long as the runtime lives.
pub(super) async fn listen(inner: Arc<Inner>) {
    let mut alive = inner.alive.clone();
    tokio::select! {
        () = listen_forever(&inner) => {}
        _ = alive.changed() => {}
    }
}

async fn listen_forever(inner: &Arc<Inner>) {
    let mut retry = FIRST_RETRY;
    let mut was_away = false;
    loop {
        match inner.docker.info().await {
            Ok(info) => {
                if was_away {
                    tracing::info!("the Docker engine answers again");
                }
                was_away = false;
                retry = FIRST_RETRY;
                let now = info.system_time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
                let now = now.unwrap_or_else(jiff::Timestamp::now).as_second();
                follow(inner, now - OVERLAP_SECONDS).await;
            }
            Err(error) if !was_away => {
                was_away = true;
                tracing::warn!(error = chain(&error), "the Docker engine does not answer");
            }
            Err(_) => {}
        }
        inner.images.forget();
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn follow(inner: &Arc<Inner>, since: i64) {
    let of = |kind: &str, mut filters: HashMap<String, Vec<String>>| {
        filters.insert("type".to_owned(), vec![kind.to_owned()]);
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters);
        inner.docker.events(Some(options.build()))
    };
    let containers = of("container", objects::of_instance(&inner.mold.instance));
    let images = of("image", HashMap::new());
    let mut events = std::pin::pin!(futures_util::stream::select(containers, images));
    inner.images.forget();
    inner.look_at_all();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => heard(inner, &event),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the engine's events have ended");
                return;
            }
        }
    }
}

fn heard(inner: &Arc<Inner>, event: &EventMessage) {
    if event.typ == Some(EventMessageTypeEnum::IMAGE) {
        return inner.images.forget();
    }
    let Some(actor) = &event.actor else { return };
    let Some(id) = actor.attributes.as_ref().and_then(objects::stack_of) else { return };
    match event.action.as_deref() {
        Some("oom") => {
            inner.note(id, Note::OutOfMemory(actor.id.clone().unwrap_or_default()));
        }
        Some("start") => started(inner, id, actor.id.clone().unwrap_or_default()),
        Some("die" | "destroy") => inner.note(id, Note::Look),
        _ => {}
    }
}

/// A container was started. One of a stack that has ended is ended again: a stack runs once.
fn started(inner: &Arc<Inner>, id: StackId, container: String) {
    let ended = {
        // Whoever looks after it reads its notes once more when its end is known.
        let state = inner.state.lock();
        let Some(entry) = state.entries.get(&id) else { return };
        if let (false, Some(warden)) = (entry.is_ended(), &entry.warden) {
            let _ = warden.notes.send(Note::Started(container.clone()));
        }
        entry.is_ended()
    };
    if ended {
        exec::end_soon(inner, &container, Duration::ZERO);
    }
}

/// Looks now and then at how much stacks have written, where the engine cannot limit it; one that
/// has written more than it may is ended.
pub(super) async fn watch_disks(inner: Arc<Inner>) {
    let mut alive = inner.alive.clone();
    let every = Duration::from_secs(inner.mold.config.disk_look_seconds.max(1));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = alive.changed() => return,
        }
        let used = if inner.mold.abilities.is_here {
            used_here(&inner).await
        } else {
            used_elsewhere(&inner).await
        };
        for (id, bytes) in used {
            judge(&inner, id, bytes);
        }
    }
}

fn judge(inner: &Inner, id: StackId, bytes: u64) {
    let most = {
        let mut state = inner.state.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.disk_bytes = bytes;
        entry.request.disk_bytes
    };
    if bytes > most {
        let text = format!("it has written more than its disk of {} MiB holds", most >> 20);
        inner.note(id, Note::DiskFull(text));
    }
}

async fn used_here(inner: &Inner) -> Vec<(StackId, u64)> {
    let wanted: Vec<(StackId, Vec<PathBuf>, u64)> = {
        let state = inner.state.lock();
        let live = state.entries.iter().filter(|(_, entry)| entry.warden.is_some());
        live.map(|(id, e)| (*id, e.paths.clone(), e.request.disk_bytes)).collect()
    };
    let measure = move || {
        let used = wanted.into_iter().map(|(id, paths, most)| {
            let mut bytes = 0;
            for path in paths {
                bytes += measure(&path, most.saturating_sub(bytes).saturating_add(1));
            }
            (id, bytes)
        });
        used.collect()
    };
    tokio::task::spawn_blocking(measure).await.unwrap_or_default()
}

/// The bytes of what is below a path, on its file system only; stops once there are enough.
fn measure(path: &Path, enough: u64) -> u64 {
    let Ok(device) = std::fs::symlink_metadata(path).map(|m| m.dev()) else { return 0 };
    let mut bytes: u64 = 0;
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            // What is nested too deep to be counted counts as all there may be.
            Err(_) => return enough,
        };
        for entry in entries.flatten() {
            // Never through a link: it is the stack's own.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            bytes = bytes.saturating_add((metadata.blocks() * 512).max(FILE_BYTES));
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
            if bytes >= enough {
                return bytes;
            }
        }
    }
    bytes
}

/// What the engine says of its containers' own layers; it does not say it of volumes.
async fn used_elsewhere(inner: &Inner) -> Vec<(StackId, u64)> {
    let filters = objects::of_instance(&inner.mold.instance);
    let options = ListContainersOptionsBuilder::new().size(true).filters(&filters).build();
    let Ok(containers) = inner.docker.list_containers(Some(options)).await else {
        return Vec::new();
    };
    let mut used: HashMap<StackId, u64> = HashMap::new();
    for container in containers {
        let id = container.labels.as_ref().and_then(objects::stack_of);
        if let (Some(id), Some(bytes)) = (id, container.size_rw) {
            *used.entry(id).or_default() += u64::try_from(bytes).unwrap_or(0);
        }
    }
    used.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured_without_following_links() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(measure(path, u64::MAX), 0);
        std::fs::create_dir(path.join("a")).unwrap();
        std::fs::write(path.join("a/file"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", path.join("a/usr")).unwrap();
        let bytes = measure(path, u64::MAX);
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        assert!(measure(path, 1) < bytes, "it stops early");
        assert_eq!(measure(&path.join("absent"), u64::MAX), 0);
    }
}
