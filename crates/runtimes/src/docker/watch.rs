//! Listening to the engine: what happens to containers and images comes as events. After every
//! (re)connection everything is looked at once, since nobody knows what was missed. Events are asked
//! for anew now and then, since a connection to another machine may be dead and nobody told; this is
//! the slow sweep, too.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{ContainerSummaryStateEnum, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListVolumesOptionsBuilder,
};
use futures_util::StreamExt;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2, statat,
};
use rustix::io::Errno;
use stackd_core::{RuntimeError, StackId};
use tokio::time::MissedTickBehavior;

use super::engine::{chain, fault};
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
                let now = info.system_time.and_then(|time| time.parse::<jiff::Timestamp>().ok());
                let now = now.unwrap_or_else(jiff::Timestamp::now).as_second();
                let began = Instant::now();
                let lasted = follow(inner, now - OVERLAP_SECONDS).await;
                // One that refuses events is not to be asked without end.
                if lasted || began.elapsed() > LAST_RETRY {
                    retry = FIRST_RETRY;
                }
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

/// Listens until the events end, or it is time for new ones; says whether it was that.
async fn follow(inner: &Arc<Inner>, since: i64) -> bool {
    let of = |kind: &str, mut filters: HashMap<String, Vec<String>>| {
        filters.insert("type".to_owned(), vec![kind.to_owned()]);
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters);
        // The end of one is the end of both.
        let events = inner.docker.events(Some(options.build())).map(Some);
        events.chain(futures_util::stream::iter([None]))
    };
    let containers = of("container", objects::of_instance(&inner.mold.instance));
    let images = of("image", HashMap::new());
    let mut events = std::pin::pin!(futures_util::stream::select(containers, images));
    inner.images.forget();
    inner.look_at_all();
    let listen = async {
        while let Some(Some(event)) = events.next().await {
            match event {
                Ok(event) => heard(inner, &event),
                Err(error) => {
                    tracing::debug!(error = chain(&error), "the engine's events have ended");
                    return;
                }
            }
        }
    };
    let renew = async {
        if let Err(error) = sweep(inner).await {
            tracing::debug!(error = error.operator, "not everything could be looked at");
        }
        tokio::time::sleep(inner.mold.config.renew_events).await;
    };
    tokio::select! {
        () = listen => false,
        () = renew => true,
    }
}

/// Ends what runs of stacks that have ended, and removes what is there of stacks that are not known.
async fn sweep(inner: &Arc<Inner>) -> Result<(), RuntimeError> {
    let filters = objects::of_instance(&inner.mold.instance);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let containers = inner.docker.list_containers(Some(options)).await;
    let containers = containers.map_err(|e| fault("list containers", &e))?;
    let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let volumes = inner.docker.list_volumes(Some(options)).await;
    let volumes = volumes.map_err(|e| fault("list volumes", &e))?.volumes.unwrap_or_default();
    let mut orphans: BTreeSet<_> =
        volumes.iter().filter_map(|v| objects::stack_of(&v.labels)).collect();
    for container in containers {
        let Some(id) = container.labels.as_ref().and_then(objects::stack_of) else { continue };
        orphans.insert(id);
        if container.state == Some(ContainerSummaryStateEnum::RUNNING) && inner.has_ended(id) {
            exec::end_soon(inner, &container.id.unwrap_or_default(), Duration::ZERO);
        }
    }
    orphans.retain(|id| !inner.state.lock().entries.contains_key(id));
    for id in orphans {
        inner.remove_orphan(id).await?;
    }
    Ok(())
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

/// Looks now and then at how much stacks have written, as far as the engine cannot limit it; one
/// that has written more than it may is ended.
pub(super) async fn watch_disks(inner: Arc<Inner>) {
    let mut alive = inner.alive.clone();
    let every = inner.mold.config.disk_look.max(Duration::from_secs(1));
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

/// What is to be measured of a stack.
struct Wanted {
    id: StackId,
    paths: BTreeSet<PathBuf>,
    unseen: BTreeSet<String>,
    most: u64,
}

async fn used_here(inner: &Inner) -> Vec<(StackId, u64)> {
    let wanted: Vec<_> = {
        let state = inner.state.lock();
        let live = state.entries.iter().filter(|(_, entry)| entry.warden.is_some());
        let wanted = live.map(|(id, entry)| Wanted {
            id: *id,
            paths: entry.paths.clone(),
            unseen: entry.unseen.clone(),
            most: entry.request.disk_bytes,
        });
        wanted.collect()
    };
    let mut used = Vec::new();
    for wanted in wanted {
        let mut told = 0u64;
        for container in &wanted.unseen {
            told = told.saturating_add(layer_of(inner, container).await);
        }
        let Wanted { id, paths, most, .. } = wanted;
        let measured = tokio::task::spawn_blocking(move || {
            paths.iter().fold(told, |bytes, path| {
                bytes.saturating_add(measure(path, most.saturating_sub(bytes).saturating_add(1)))
            })
        });
        used.push((id, measured.await.unwrap_or(told)));
    }
    used
}

/// What the engine says of a container's own layer.
async fn layer_of(inner: &Inner, container: &str) -> u64 {
    let options = InspectContainerOptionsBuilder::new().size(true).build();
    let there = inner.docker.inspect_container(container, Some(options)).await;
    let bytes = there.ok().and_then(|there| there.size_rw);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// The bytes of what is below a path, on its file system only; stops once there are enough. Never
/// through a link: what is looked at changes meanwhile as the stack wants.
fn measure(path: &Path, enough: u64) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = open(path, flags, Mode::empty()) else { return 0 };
    let Ok(device) = fstat(&root).map(|found| found.st_dev) else { return 0 };
    let mut bytes: u64 = 0;
    let mut waiting = vec![PathBuf::from(".")];
    while let Some(directory) = waiting.pop() {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = match openat2(&root, &directory, flags, Mode::empty(), resolve) {
            // A kernel before 5.6 cannot say that of the whole of a path.
            Err(Errno::NOSYS) => openat(&root, &directory, flags, Mode::empty()),
            opened => opened,
        };
        let (opened, entries) = match opened.and_then(|fd| Ok((Dir::read_from(&fd)?, fd))) {
            Ok((entries, opened)) => (opened, entries),
            // It was removed, or is something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            // What is nested too deep to be counted counts as all there may be.
            Err(_) => return enough,
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(found) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if found.st_dev != device {
                continue;
            }
            let size = u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512);
            bytes = bytes.saturating_add(size.max(FILE_BYTES));
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                waiting.push(directory.join(OsStr::from_bytes(name.to_bytes())));
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
