//! Between rows and records. Writing cannot fail; reading names the row and the column that holds
//! what this program does not know.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stackd_core::event::{Event, EventKind, NewEvent, Seq};
use stackd_core::stack::{Condition, Desired, Observed, Owner};
use stackd_core::{Phase, Stack, StackId, Timestamp};

use crate::entities::{api_keys, events, idempotency, jobs, ports, stacks};
use crate::{ApiKey, IdempotencyRecord, Job, JobStatus, StoreError};

/// Nanoseconds since 1970. The year 2262 is the last that fits.
pub(crate) fn nanos(at: Timestamp) -> i64 {
    let nanos = at.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// What [`nanos`] was made of.
pub(crate) fn timestamp(nanos: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanos.into()).ok()
}

/// A number that is not expected to pass 2^63.
pub(crate) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// PostgreSQL refuses NUL in a text, and a use case would fail for ever on it.
pub(crate) fn text(value: &str) -> String {
    value.replace('\0', "\u{fffd}")
}

pub(crate) fn text_opt(value: Option<&str>) -> Option<String> {
    value.map(text)
}

#[expect(clippy::expect_used, reason = "the records' keys are strings and nothing in them fails")]
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("serialisable")
}

pub(crate) fn desired_word(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Gone => "gone",
    }
}

fn parse_desired(word: &str) -> Option<Desired> {
    [Desired::Running, Desired::Gone].into_iter().find(|desired| desired_word(*desired) == word)
}

/// A row while it is read; `what` names it in errors.
pub(crate) struct Reader<'a> {
    pub(crate) what: &'a str,
}

impl Reader<'_> {
    pub(crate) fn fault(&self, column: &str, value: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("{}: {column} is {value}", self.what))
    }

    pub(crate) fn word<T>(
        &self,
        column: &str,
        word: &str,
        value: Option<T>,
    ) -> Result<T, StoreError> {
        value.ok_or_else(|| self.fault(column, format_args!("{word:?}")))
    }

    pub(crate) fn number<T: TryFrom<i64>>(
        &self,
        column: &str,
        value: i64,
    ) -> Result<T, StoreError> {
        T::try_from(value).map_err(|_| self.fault(column, value))
    }

    pub(crate) fn time(&self, column: &str, value: i64) -> Result<Timestamp, StoreError> {
        timestamp(value).ok_or_else(|| self.fault(column, value))
    }

    fn time_opt(&self, column: &str, value: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
        value.map(|value| self.time(column, value)).transpose()
    }

    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        column: &str,
        value: &str,
    ) -> Result<T, StoreError> {
        // serde's text tells the place and the type, never more of the value than a word.
        serde_json::from_str(value).map_err(|e| self.fault(column, e))
    }

    fn hash(&self, column: &str, value: &str) -> Result<[u8; 32], StoreError> {
        let mut hash = [0; 32];
        hex::decode_to_slice(value, &mut hash).map_err(|e| self.fault(column, e))?;
        Ok(hash)
    }
}

pub(crate) fn stack_row(stack: &Stack) -> stacks::Model {
    let Stack {
        id,
        owner,
        spec,
        pod_spec,
        runtime_class,
        labels,
        ports,
        requested,
        desired,
        generation,
        observed,
        created_at,
        updated_at,
        expires_at,
    } = stack;
    let condition = observed.condition.as_ref();
    stacks::Model {
        id: id.to_string(),
        dialect: text(&owner.dialect),
        tenant: text(&owner.tenant),
        slot: text(&owner.slot),
        desired: desired_word(*desired).to_owned(),
        generation: int(*generation),
        phase: observed.phase.as_str().to_owned(),
        node: text_opt(observed.node.as_deref()),
        node_public_ip: text_opt(observed.node_public_ip.as_deref()),
        reason: condition.map(|c| text(&c.reason)),
        message: condition.map(|c| text(&c.message)),
        restarts: observed.restarts.into(),
        exit_code: observed.exit_code,
        ready_at: observed.ready_at.map(nanos),
        ended_at: observed.ended_at.map(nanos),
        created_at: nanos(*created_at),
        updated_at: nanos(*updated_at),
        expires_at: nanos(*expires_at),
        runtime_class: text(runtime_class),
        labels: json(labels),
        ports: json(ports),
        requested: json(requested),
        spec: json(spec),
        pod_spec: text(pod_spec),
    }
}

pub(crate) fn port_rows(stack: &Stack) -> impl Iterator<Item = ports::Model> {
    stack.ports.iter().map(|port| ports::Model {
        protocol: port.protocol.as_str().to_owned(),
        node_port: port.node_port.into(),
        stack_id: stack.id.to_string(),
    })
}

pub(crate) fn stack(row: stacks::Model) -> Result<Stack, StoreError> {
    let read = Reader { what: &row.id };
    let id: StackId = row.id.parse().map_err(|e| read.fault("id", e))?;
    let condition = match (row.reason, row.message) {
        (None, None) => None,
        (reason, message) => {
            Some(Condition::new(reason.unwrap_or_default(), message.unwrap_or_default()))
        }
    };
    let observed = Observed {
        phase: read.word("phase", &row.phase, Phase::parse(&row.phase))?,
        node: row.node,
        node_public_ip: row.node_public_ip,
        condition,
        restarts: read.number("restarts", row.restarts)?,
        exit_code: row.exit_code,
        ready_at: read.time_opt("ready_at", row.ready_at)?,
        ended_at: read.time_opt("ended_at", row.ended_at)?,
    };
    Ok(Stack {
        id,
        spec: Arc::new(read.json("spec", &row.spec)?),
        labels: read.json("labels", &row.labels)?,
        ports: read.json("ports", &row.ports)?,
        requested: read.json("requested", &row.requested)?,
        desired: read.word("desired", &row.desired, parse_desired(&row.desired))?,
        generation: read.number("generation", row.generation)?,
        observed,
        created_at: read.time("created_at", row.created_at)?,
        updated_at: read.time("updated_at", row.updated_at)?,
        expires_at: read.time("expires_at", row.expires_at)?,
        owner: Owner { dialect: row.dialect, tenant: row.tenant, slot: row.slot },
        runtime_class: row.runtime_class,
        pod_spec: row.pod_spec.into(),
    })
}

pub(crate) fn event_row(event: &Event) -> events::Model {
    let Event { seq, event: NewEvent { at, stack, kind, phase, reason, message } } = event;
    events::Model {
        seq: int(seq.0),
        at: nanos(*at),
        stack_id: stack.to_string(),
        kind: kind.as_str().to_owned(),
        phase: phase.as_str().to_owned(),
        reason: text_opt(reason.as_deref()),
        message: text_opt(message.as_deref()),
    }
}

pub(crate) fn event(row: events::Model) -> Result<Event, StoreError> {
    let what = format!("event {}", row.seq);
    let read = Reader { what: &what };
    Ok(Event {
        seq: Seq(read.number("seq", row.seq)?),
        event: NewEvent {
            at: read.time("at", row.at)?,
            stack: row.stack_id.parse().map_err(|e| read.fault("stack_id", e))?,
            kind: read.word("kind", &row.kind, EventKind::parse(&row.kind))?,
            phase: read.word("phase", &row.phase, Phase::parse(&row.phase))?,
            reason: row.reason,
            message: row.message,
        },
    })
}

pub(crate) fn idempotency_row(record: &IdempotencyRecord) -> idempotency::Model {
    let IdempotencyRecord { scope, key, body_hash, stack, created_at } = record;
    idempotency::Model {
        scope: text(scope),
        key: text(key),
        body_hash: hex::encode(body_hash),
        stack_id: stack.to_string(),
        created_at: nanos(*created_at),
    }
}

pub(crate) fn idempotency(row: idempotency::Model) -> Result<IdempotencyRecord, StoreError> {
    let what = format!("an idempotency key of {}", row.scope);
    let read = Reader { what: &what };
    Ok(IdempotencyRecord {
        body_hash: read.hash("body_hash", &row.body_hash)?,
        stack: row.stack_id.parse().map_err(|e| read.fault("stack_id", e))?,
        created_at: read.time("created_at", row.created_at)?,
        scope: row.scope,
        key: row.key,
    })
}

pub(crate) fn job_row(job: &Job) -> jobs::Model {
    let Job {
        id,
        status,
        stack_ids,
        done,
        deleted,
        not_found,
        failed,
        errors,
        created_at,
        updated_at,
    } = job;
    jobs::Model {
        id: id.to_string(),
        status: status.as_str().to_owned(),
        stack_ids: json(&&stack_ids[..]),
        done: int(*done),
        deleted: int(*deleted),
        not_found: int(*not_found),
        failed: int(*failed),
        errors: json(errors),
        created_at: nanos(*created_at),
        updated_at: nanos(*updated_at),
    }
}

pub(crate) fn job(row: &jobs::Model) -> Result<Job, StoreError> {
    let read = Reader { what: &row.id };
    Ok(Job {
        id: row.id.parse().map_err(|e| read.fault("id", e))?,
        status: read.word("status", &row.status, JobStatus::parse(&row.status))?,
        stack_ids: read.json::<Vec<_>>("stack_ids", &row.stack_ids)?.into(),
        done: read.number("done", row.done)?,
        deleted: read.number("deleted", row.deleted)?,
        not_found: read.number("not_found", row.not_found)?,
        failed: read.number("failed", row.failed)?,
        errors: read.json("errors", &row.errors)?,
        created_at: read.time("created_at", row.created_at)?,
        updated_at: read.time("updated_at", row.updated_at)?,
    })
}

pub(crate) fn api_key_row(key: &ApiKey) -> api_keys::Model {
    let ApiKey { name, hash, permissions, dialects, created_at, revoked_at } = key;
    api_keys::Model {
        hash: hex::encode(hash),
        name: text(name),
        permissions: json(permissions),
        dialects: json(dialects),
        created_at: nanos(*created_at),
        revoked_at: revoked_at.map(nanos),
    }
}

pub(crate) fn api_key(row: api_keys::Model) -> Result<ApiKey, StoreError> {
    let what = format!("API key {}", row.name);
    let read = Reader { what: &what };
    Ok(ApiKey {
        hash: read.hash("hash", &row.hash)?,
        permissions: read.json("permissions", &row.permissions)?,
        dialects: read.json("dialects", &row.dialects)?,
        created_at: read.time("created_at", row.created_at)?,
        revoked_at: read.time_opt("revoked_at", row.revoked_at)?,
        name: row.name,
    })
}
