//! Bodies as organisers send them. Every field is read by itself, so that all that is wrong with
//! a body is told at once; what is unknown is ignored.

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use stackd_core::challenge::{
    Challenge, ChallengeNumber, Draft, ExtraConfig, Fault as Kind, Invalid, MAX_SUBJECT, Source,
    Subject, concealed, revealed,
};
use stackd_core::port::{TargetPortError, TargetPorts};
use stackd_engine::challenges::ChallengeError;
use utoipa::ToSchema;

use crate::config::ServerConfig;
use crate::fault::Fault;

/// A refusal of the catalogue.
#[derive(ToSchema)]
#[schema(as = Detail, example = json!({"detail": "challenge not found"}))]
#[expect(dead_code, reason = "it only describes refusals to readers of the API's document")]
pub(crate) struct DetailBody {
    /// What is wrong, in plain words.
    detail: String,
}

/// What is wrong with a body.
#[derive(ToSchema)]
#[schema(as = Invalid, example = json!({"detail": [{"type": "value_error", "loc": ["body", "port"], "msg": "port must be from 1 to 65535", "input": 70000}]}))]
#[expect(dead_code, reason = "it only describes refusals to readers of the API's document")]
pub(crate) struct InvalidBody {
    /// One entry for each thing that is wrong.
    #[schema(value_type = Vec<ProblemSchema>)]
    detail: Vec<()>,
}

/// One thing that is wrong with a body.
#[derive(ToSchema)]
#[schema(as = InvalidEntry)]
#[expect(dead_code, reason = "it only describes `Problem` to readers of the API's document")]
pub(crate) struct ProblemSchema {
    /// `missing`, `string_type`, `int_type`, `bool_type`, `list_type`, `value_error`,
    /// `json_invalid` or `model_type`.
    r#type: String,
    /// Where: `body` or `query`, then the field.
    loc: Vec<String>,
    /// What is wrong.
    msg: String,
    /// What was sent there.
    input: Value,
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    kind: &'static str,
    /// `body` or `query`.
    part: &'static str,
    /// Empty where it is none in particular.
    field: &'static str,
    message: String,
    input: Value,
}

impl Problem {
    /// A field of a body that has the wrong type.
    fn of_type(kind: &'static str, field: &'static str, what: &str, input: &Value) -> Self {
        Self::of_body(kind, field, format!("{field} must be {what}"), shown(field, Some(input)))
    }

    pub(super) fn of_body(
        kind: &'static str,
        field: &'static str,
        message: impl Into<String>,
        input: Value,
    ) -> Self {
        Self { kind, part: "body", field, message: message.into(), input }
    }

    /// What the domain says is wrong, with what the body has there.
    fn of(invalid: Invalid, object: &Map<String, Value>) -> Self {
        let Invalid { field, fault, message } = invalid;
        let kind = match fault {
            Kind::Missing => "missing",
            Kind::Value => "value_error",
        };
        // Some say it by themselves.
        let message =
            if message.starts_with(field) { message } else { format!("{field} {message}") };
        Self::of_body(kind, field, message, shown(field, object.get(field)))
    }

    /// A parameter of the query.
    pub(super) fn of_query(
        kind: &'static str,
        field: &'static str,
        message: &str,
        input: Option<&str>,
    ) -> Self {
        Self { kind, part: "query", field, message: message.to_owned(), input: input.into() }
    }
}

/// What a body has in a field, as it may be shown: no answer has a flag in it.
fn shown(field: &str, input: Option<&Value>) -> Value {
    match input {
        Some(Value::String(extra))
            if field == "extra_config" && ExtraConfig::read(extra).is_ok() =>
        {
            concealed(extra).into()
        }
        // Of one that cannot be read nobody knows where the flag is.
        Some(_) if field == "extra_config" => Value::Null,
        input => input.cloned().unwrap_or_default(),
    }
}

/// 422 with everything that is wrong.
pub(super) fn invalid(problems: impl IntoIterator<Item = Problem>) -> Fault {
    let entry = |problem: Problem| {
        let loc = [problem.part, problem.field];
        let loc: Vec<_> = loc.into_iter().filter(|part| !part.is_empty()).collect();
        json!({"type": problem.kind, "loc": loc, "msg": problem.message, "input": problem.input})
    };
    let problems: Vec<_> = problems.into_iter().collect();
    let text: Vec<_> = problems.iter().map(|problem| problem.message.clone()).collect();
    let detail: Vec<_> = problems.into_iter().map(entry).collect();
    Fault::new(StatusCode::UNPROCESSABLE_ENTITY, text.join("; "))
        .with_body(json!({ "detail": detail }))
}

/// A refusal of what this body asks for.
pub(super) fn refused(error: ChallengeError, object: &Map<String, Value>) -> Fault {
    match error {
        ChallengeError::Invalid(faults) => {
            invalid(faults.into_iter().map(|invalid| Problem::of(invalid, object)))
        }
        error => error.into(),
    }
}

/// Reads a whole body that must be a JSON object.
pub(super) async fn object(body: Body, config: &ServerConfig) -> Result<Map<String, Value>, Fault> {
    let reading = to_bytes(body, config.body_limit_bytes);
    let too_large =
        || Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "request body too large").into_detail();
    let bytes = match tokio::time::timeout(config.body_timeout, reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return Err(too_large()),
        Err(_) => {
            return Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "request timed out").into_detail());
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(input) => {
            let message = "the body must be a JSON object";
            Err(invalid([Problem::of_body("model_type", "", message, input)]))
        }
        Err(error) => {
            let message = format!("the body is not JSON: {error}");
            Err(invalid([Problem::of_body("json_invalid", "", message, Value::Null)]))
        }
    }
}

/// The fields of a body, read one by one.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    problems: Vec<Problem>,
}

impl<'a> Fields<'a> {
    pub(super) fn of(object: &'a Map<String, Value>) -> Self {
        Self { object, problems: Vec::new() }
    }

    /// A field that is there and not null.
    pub(super) fn given(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn read<T>(
        &mut self,
        field: &'static str,
        kind: &'static str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.given(field)?;
        let read = read(value);
        if read.is_none() {
            self.problems.push(Problem::of_type(kind, field, what, value));
        }
        read
    }

    pub(super) fn text(&mut self, field: &'static str) -> Option<String> {
        self.read(field, "string_type", "a text", |v| v.as_str().map(str::to_owned))
    }

    /// A whole number, which may come as `1.0`.
    pub(super) fn whole(&mut self, field: &'static str) -> Option<i64> {
        self.read(field, "int_type", "a whole number", whole)
    }

    pub(super) fn switch(&mut self, field: &'static str) -> Option<bool> {
        self.read(field, "bool_type", "true or false", Value::as_bool)
    }

    fn ports(&mut self, field: &'static str) -> Option<TargetPorts> {
        let value = self.given(field)?;
        let what = "a port, or a list of {container_port, protocol}";
        match ports(value) {
            Some(Ok(ports)) => Some(ports),
            Some(Err(error)) => {
                self.wrong(field, error.to_string(), value);
                None
            }
            None => {
                self.problems.push(Problem::of_type("list_type", field, what, value));
                None
            }
        }
    }

    /// The name of somebody.
    pub(super) fn name(&mut self, field: &'static str) -> Option<String> {
        let value = self.given(field)?;
        let name = Subject::name_of(value);
        if name.is_none() && value.is_string() {
            let message = format!("{field} must be one line of 1 to {MAX_SUBJECT} characters");
            self.wrong(field, message, value);
        } else if name.is_none() {
            let what = "a text or a whole number";
            self.problems.push(Problem::of_type("string_type", field, what, value));
        }
        name
    }

    pub(super) fn wrong(&mut self, field: &'static str, message: String, input: &Value) {
        self.problems.push(Problem::of_body("value_error", field, message, input.clone()));
    }

    pub(super) fn missing(&mut self, field: &'static str, message: &str) {
        self.problems.push(Problem::of_body("missing", field, message, Value::Null));
    }

    /// Refuses the body where anything of it is wrong.
    pub(super) fn finish(self) -> Result<(), Fault> {
        if self.problems.is_empty() { Ok(()) } else { Err(invalid(self.problems)) }
    }

    fn draft(&mut self) -> Draft {
        Draft {
            id: self.text("id"),
            name: self.text("name"),
            runtime: self.text("runtime"),
            image: self.text("image"),
            port: self.whole("port"),
            protocol: self.text("protocol"),
            cpu_count: self.whole("cpu_count"),
            memory_mb: self.whole("memory_mb"),
            ttl_seconds: self.whole("ttl_seconds"),
            extra_config: self.text("extra_config"),
            pod_spec: self.text("pod_spec"),
            target_port: self.ports("target_port"),
            enabled: self.switch("enabled"),
            stack_enabled: self.switch("stack_enabled"),
            destroy_on_solve: self.switch("destroy_on_solve"),
        }
    }
}

fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15)?;
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
        Some(number as i64)
    })
}

fn ports(value: &Value) -> Option<Result<TargetPorts, TargetPortError>> {
    if let Some(number) = whole(value) {
        return Some(TargetPorts::from_number(number));
    }
    let entries: Option<Vec<_>> = value
        .as_array()?
        .iter()
        .map(|entry| {
            let port = entry.get("container_port").map_or(Some(0), whole)?;
            Some((port, entry.get("protocol").and_then(Value::as_str)))
        })
        .collect();
    Some(TargetPorts::from_list(entries?.into_iter()))
}

/// Reads a new challenge, and its number where one is given.
pub(super) fn create(
    object: &Map<String, Value>,
) -> Result<(Draft, Option<ChallengeNumber>), Fault> {
    let mut fields = Fields::of(object);
    let draft = fields.draft();
    let number = fields.whole("number").and_then(|number| {
        let valid = u64::try_from(number).ok().and_then(ChallengeNumber::new);
        if valid.is_none() {
            let message = format!("number must be from 1 to {}", ChallengeNumber::MAX);
            fields.wrong("number", message, &number.into());
        }
        valid
    });
    fields.finish().map(|()| (draft, number))
}

/// A change of a challenge, its types right.
pub(super) struct Patch {
    draft: Draft,
    number: Option<i64>,
    /// The fields that were sent as null.
    nulls: Vec<&'static str>,
}

/// The fields that a patch may name.
const FIELDS: [&str; 16] = [
    "id",
    "number",
    "name",
    "runtime",
    "image",
    "port",
    "protocol",
    "cpu_count",
    "memory_mb",
    "ttl_seconds",
    "extra_config",
    "pod_spec",
    "target_port",
    "enabled",
    "stack_enabled",
    "destroy_on_solve",
];

impl Patch {
    pub(super) fn read(object: &Map<String, Value>) -> Result<Self, Fault> {
        let mut fields = Fields::of(object);
        let (draft, number) = (fields.draft(), fields.whole("number"));
        fields.finish()?;
        let nulls = FIELDS.into_iter().filter(|f| object.get(*f).is_some_and(Value::is_null));
        Ok(Self { draft, number, nulls: nulls.collect() })
    }

    /// The challenge as this makes it: `before` is what it is now.
    pub(super) fn apply(self, challenge: &Challenge, before: Draft) -> Result<Draft, Vec<Invalid>> {
        let mut problems = Vec::new();
        let mut wrong = |field: &'static str, message: &str| {
            problems.push(Invalid { field, fault: Kind::Value, message: message.to_owned() });
        };
        let mut new = self.draft;
        // What was shown comes back.
        let shown = new.extra_config.take();
        new.extra_config = shown.map(|text| revealed(text, before.extra_config.as_deref()));
        if new.id.as_ref().is_some_and(|id| Some(id) != before.id.as_ref()) {
            wrong("id", "cannot be changed");
        }
        let number = i64::try_from(challenge.number.get()).ok();
        if self.number.is_some() && self.number != number {
            wrong("number", "cannot be changed");
        }
        // A description of the other kind takes the place of the one there was.
        let is_image = matches!(challenge.definition.source, Source::Image { .. });
        let kept = match (is_image, new.pod_spec.is_some(), new.image.is_some()) {
            (true, true, _) => {
                Draft { image: None, port: None, cpu_count: None, memory_mb: None, ..before }
            }
            (false, _, true) => Draft { pod_spec: None, target_port: None, ..before },
            _ => before,
        };
        let is_set = |field: &str| match field {
            "image" => kept.image.is_some(),
            "port" => kept.port.is_some(),
            "cpu_count" => kept.cpu_count.is_some(),
            "memory_mb" => kept.memory_mb.is_some(),
            "pod_spec" => kept.pod_spec.is_some(),
            "target_port" => kept.target_port.is_some(),
            // These two are cleared by it.
            "ttl_seconds" | "extra_config" => false,
            _ => true,
        };
        for field in &self.nulls {
            if is_set(field) {
                wrong(field, "cannot be null");
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let cleared = |field: &str| self.nulls.contains(&field);
        // What new options say of the protocol takes the place of the one there was.
        let extra = new.extra_config.as_deref().map(ExtraConfig::read);
        let says_protocol = extra.is_some_and(|e| e.is_ok_and(|extra| extra.protocol.is_some()));
        Ok(Draft {
            id: kept.id,
            name: new.name.or(kept.name),
            runtime: new.runtime.or(kept.runtime),
            image: new.image.or(kept.image),
            port: new.port.or(kept.port),
            protocol: new.protocol.or(kept.protocol.filter(|_| !says_protocol)),
            cpu_count: new.cpu_count.or(kept.cpu_count),
            memory_mb: new.memory_mb.or(kept.memory_mb),
            ttl_seconds: new.ttl_seconds.or(kept.ttl_seconds.filter(|_| !cleared("ttl_seconds"))),
            extra_config: new
                .extra_config
                .or(kept.extra_config.filter(|_| !cleared("extra_config"))),
            pod_spec: new.pod_spec.or(kept.pod_spec),
            target_port: new.target_port.or(kept.target_port),
            enabled: new.enabled.or(kept.enabled),
            stack_enabled: new.stack_enabled.or(kept.stack_enabled),
            destroy_on_solve: new.destroy_on_solve.or(kept.destroy_on_solve),
        })
    }
}
