//! The way of a create: room, ports, the row, then the runtime, in this order. A failure or a crash
//! at any point leaves nothing, or a row that the next pass finishes or removes.

use std::sync::Arc;

use stackd_core::admission::Denied;
use stackd_core::clock::BootTime;
use stackd_core::event::EventKind;
use stackd_core::lifecycle::Seen;
use stackd_core::runtime::ErrorKind;
use stackd_core::spec::{Requested, StackSpec};
use stackd_core::stack::{Condition, reason};
use stackd_core::{Desired, Observed, Owner, PortMapping, RuntimeError, Stack, StackId, pod};
use stackd_store::{Change, StoreError};
use tokio::sync::oneshot;

use crate::book::{Book, Entry, SharedEngine, Times};
use crate::command::{CreateError, CreateStack, Unavailable};
use crate::idempotency::{self, Claim, Claimed};
use crate::live::LiveStack;
use crate::remove;
use crate::shared::unavailable;

/// A stack that a create led to.
#[derive(Debug, Clone)]
pub struct Created {
    /// The stack.
    pub stack: Arc<LiveStack>,
    /// It was made by an earlier request with the same `Idempotency-Key`.
    pub replayed: bool,
}

/// What a create holds until its row is written; given back when dropped.
struct Reservation {
    shared: SharedEngine,
    id: StackId,
    requested: Requested,
    ports: Vec<PortMapping>,
    claimed: bool,
    kept: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if self.claimed {
            self.shared.runtime.unclaim_ports(self.id);
        }
        let mut book = self.shared.book.lock();
        book.ports.give_back(&self.ports);
        book.used = book.used.without(&self.requested);
    }
}

/// Makes a stack.
pub(crate) async fn create(
    shared: SharedEngine,
    command: CreateStack,
) -> Result<Created, CreateError> {
    let claim = match command.idempotency.clone() {
        None => None,
        Some(key) => match idempotency::claim(&shared, key).await? {
            Claim::Mine(claim) => Some(claim),
            Claim::Made(id) => {
                let stack = shared.view.live.read().get(id).ok_or(CreateError::IdempotencyGone)?;
                return Ok(Created { stack, replayed: true });
            }
        },
    };
    // Each try takes other ports, and leaves alone for a while what was found taken. One that would
    // not be told in time is not begun.
    let wait = shared.config.schedule_wait;
    let begun = shared.clock.boot();
    let (begin_by, answer_by) = (begun.after(wait), begun.after(wait * 2));
    for _ in 0..PORT_TRIES {
        match accept(&shared, command.clone(), claim.as_ref(), answer_by).await? {
            Accepted::Made(stack, created_at) => {
                if let Some(claim) = claim {
                    claim.made(stack.stack.id, created_at);
                }
                return Ok(Created { stack, replayed: false });
            }
            Accepted::PortTaken if shared.clock.boot() >= begin_by => break,
            Accepted::PortTaken => {}
        }
    }
    Err(CreateError::NoNodePort)
}

/// How often a create takes other node ports when the runtime finds them taken.
const PORT_TRIES: usize = 5;

/// How a create went.
enum Accepted {
    Made(Arc<LiveStack>, jiff::Timestamp),
    /// Nothing was made: somebody else holds one of the ports that it was given.
    PortTaken,
}

/// Whether stacks of this are started here, as far as it does not change: by what the runtime can do,
/// and within the configured limits.
pub(crate) fn admissible(shared: &SharedEngine, spec: &StackSpec) -> Result<(), String> {
    if let Some(why) = shared.runtime.capabilities().cannot(spec) {
        return Err(why);
    }
    let config = &shared.config;
    let checked = config.limit_range.check(spec, config.container_disk_bytes());
    checked.map_err(|violation| violation.to_string())
}

async fn accept(
    shared: &SharedEngine,
    command: CreateStack,
    claim: Option<&Claimed>,
    answer_by: BootTime,
) -> Result<Accepted, CreateError> {
    let config = &shared.config;
    let ttl = command.ttl.unwrap_or(config.default_ttl);
    if ttl < config.min_ttl || ttl > config.max_ttl {
        return Err(CreateError::Ttl { min: config.min_ttl, max: config.max_ttl });
    }
    let runtime_class = runtime_class(shared, command.runtime_class)?;
    admissible(shared, &command.spec).map_err(CreateError::LimitRange)?;

    let id = new_id()?;
    let requested = command.spec.requested(config.container_disk_bytes());
    let mut reservation = reserve(shared, id, requested)?;
    claim_ports(&mut reservation, &command.spec.target_ports)?;

    let created_at = shared.clock.wall();
    let placement = shared.runtime.placement();
    let stack = Stack {
        id,
        owner: Owner {
            dialect: command.dialect.to_owned(),
            tenant: command.tenant,
            slot: command.slot.unwrap_or_else(|| id.to_string()),
        },
        pod_spec: pod::render(&command.spec),
        spec: Arc::new(command.spec),
        runtime_class,
        labels: command.labels,
        ports: reservation.ports.clone(),
        requested,
        desired: Desired::Running,
        generation: 1,
        observed: Observed {
            node: placement.as_ref().map(|p| p.node.clone()),
            node_public_ip: placement.and_then(|p| p.public_ip),
            condition: Some(Condition::new(
                reason::CONTAINER_CREATING,
                "the stack is being started",
            )),
            ..Observed::accepted()
        },
        created_at,
        updated_at: created_at,
        expires_at: created_at
            .saturating_add(
                jiff::SignedDuration::try_from(ttl).unwrap_or(jiff::SignedDuration::MAX),
            )
            .unwrap_or(jiff::Timestamp::MAX),
    };
    let mut changes = vec![
        Change::InsertStack(Box::new(stack.clone())),
        Change::Event(shared.event(&stack, EventKind::Created)),
    ];
    changes.extend(claim.into_iter().flat_map(|claim| claim.changes(id, created_at)));
    match shared.write(changes).await {
        Ok(()) => {}
        Err(StoreError::OwnerTaken) => {
            let owner = &stack.owner;
            let taken = find_owner(shared, owner).map(CreateError::OwnerTaken);
            return Err(taken.unwrap_or_else(|| {
                CreateError::Saturated("an earlier stack of this owner is being removed".to_owned())
            }));
        }
        Err(error) => return Err(unavailable(error).into()),
    }
    reservation.kept = true;
    tracing::info!(stack = %id, tenant = stack.owner.tenant, "stack accepted");

    let times = Times::of(&stack, config, created_at, shared.clock.boot());
    let mut entry = Entry::new(stack, Seen::Absent, times);
    let verdict = shared.runtime.placement().is_none().then(|| {
        let (sender, verdict) = oneshot::channel();
        entry.verdict = Some(sender);
        verdict
    });
    // The answer is the stack as it was accepted, whatever the first step makes of it.
    let accepted = {
        let mut book = shared.book.lock();
        let accepted = shared.publish(&entry.stack);
        book.entries.insert(id, entry);
        accepted
    };
    shared.drive(id);
    let live = match verdict {
        None => accepted,
        Some(verdict) => match verdict_of(shared, id, verdict).await {
            // With the name of its machine, where that is known by now.
            Ok(()) => match shared.view.live.read().get(id) {
                Some(live) => live,
                // The replica that leads by now goes on with it.
                None if shared.stop.is_cancelled() => accepted,
                None => {
                    let reason = "the stack is gone".to_owned();
                    return Err(Unavailable { reason }.into());
                }
            },
            Err(error) => {
                withdraw(shared, id, claim, answer_by).await?;
                if error.condition.reason == reason::NODE_PORT_TAKEN {
                    return Ok(Accepted::PortTaken);
                }
                return Err(refused(error));
            }
        },
    };
    Ok(Accepted::Made(live, created_at))
}

/// Whether the runtime takes a stack, as far as it says so in time. A runtime that says nothing has
/// not refused.
async fn verdict_of(
    shared: &SharedEngine,
    id: StackId,
    verdict: oneshot::Receiver<Result<(), RuntimeError>>,
) -> Result<(), RuntimeError> {
    let deadline = shared.clock.boot().after(shared.config.schedule_wait);
    tokio::select! {
        // Without a sender the stack was deleted meanwhile.
        verdict = verdict => return verdict.unwrap_or(Ok(())),
        () = shared.clock.sleep_until(deadline) => {}
    }
    let mut book = shared.book.lock();
    let Some(entry) = book.entries.get_mut(&id) else { return Ok(()) };
    entry.verdict = None;
    match entry.no_place() {
        Some(condition) => {
            let text = condition.message.clone();
            Err(RuntimeError::new(ErrorKind::Saturated, condition.clone(), text))
        }
        None => Ok(()),
    }
}

/// Takes back what nobody was told of, and waits until nothing is left of it, as long as the caller
/// may still wait: who asks again is not to be refused for its sake.
async fn withdraw(
    shared: &SharedEngine,
    id: StackId,
    claim: Option<&Claimed>,
    answer_by: BootTime,
) -> Result<(), CreateError> {
    remove::end(shared, id, claim.map(Claimed::forget)).await?;
    let mut sleep = shared.clock.sleep_until(answer_by);
    loop {
        let changed = shared.waiter(id).notified_owned();
        if !shared.book.lock().entries.contains_key(&id) {
            shared.wake(id);
            return Ok(());
        }
        tokio::select! {
            () = changed => {}
            () = &mut sleep => return Ok(()),
        }
    }
}

/// How the runtime's refusal looks to a caller.
fn refused(error: RuntimeError) -> CreateError {
    let text = error.condition.message;
    match (error.kind, error.condition.reason.as_str()) {
        (ErrorKind::Rejected, _) => CreateError::LimitRange(text),
        (_, reason::EXCEEDED_QUOTA) => CreateError::Quota(text),
        _ => CreateError::Saturated(error.operator),
    }
}

fn runtime_class(shared: &SharedEngine, asked: Option<String>) -> Result<String, CreateError> {
    let served = &shared.runtime.capabilities().runtime_classes;
    match asked {
        Some(class) if served.contains(&class) => Ok(class),
        Some(class) => Err(CreateError::RuntimeClass(class)),
        None => Ok(served.first().cloned().unwrap_or_default()),
    }
}

fn new_id() -> Result<StackId, CreateError> {
    let mut bits = [0u8; 8];
    getrandom::fill(&mut bits).map_err(|error| {
        tracing::error!(%error, "the system gives no randomness");
        Unavailable { reason: "the system gives no randomness".to_owned() }
    })?;
    Ok(StackId::from_bits(u64::from_ne_bytes(bits)))
}

/// Decides whether there is room, and holds it.
fn reserve(
    shared: &SharedEngine,
    id: StackId,
    requested: Requested,
) -> Result<Reservation, CreateError> {
    let mut book = shared.book.lock();
    let Book { used, starts, .. } = &mut *book;
    if starts.waiting() >= shared.config.max_waiting_starts {
        return Err(CreateError::Saturated("the start queue is full".to_owned()));
    }
    shared.admission.admit(used, &requested).map_err(|denied| match denied {
        Denied::Quota(exceeded) => CreateError::Quota(format!("exceeded quota: {exceeded}")),
        Denied::NoRoom { operator } => CreateError::Saturated(operator),
    })?;
    *used = used.with(&requested);
    drop(book);
    let shared = Arc::clone(shared);
    Ok(Reservation { shared, id, requested, ports: Vec::new(), claimed: false, kept: false })
}

/// Takes node ports that nobody holds, here or elsewhere on the machine.
fn claim_ports(
    reservation: &mut Reservation,
    targets: &[stackd_core::TargetPort],
) -> Result<(), CreateError> {
    let shared = Arc::clone(&reservation.shared);
    loop {
        let now = shared.clock.boot();
        let ports = shared.book.lock().ports.take(targets, now).ok_or(CreateError::NoNodePort)?;
        match shared.runtime.claim_ports(reservation.id, &ports) {
            Ok(()) => {
                reservation.ports = ports;
                reservation.claimed = true;
                return Ok(());
            }
            Err(taken) if taken.0.is_empty() => {
                shared.book.lock().ports.give_back(&ports);
                return Err(CreateError::Saturated("no node port can be bound for now".to_owned()));
            }
            Err(taken) => {
                tracing::warn!(ports = ?taken.0, "node ports are held by another process");
                let mut book = shared.book.lock();
                book.ports.give_back(&ports);
                book.ports.avoid(&taken.0, now);
            }
        }
    }
}

fn find_owner(shared: &SharedEngine, owner: &Owner) -> Option<Arc<LiveStack>> {
    let live = shared.view.live.read();
    let mut stacks = live.of_tenant(&owner.dialect, &owner.tenant);
    stacks.find(|l| l.stack.owner.slot == owner.slot && l.stack.is_active()).cloned()
}
