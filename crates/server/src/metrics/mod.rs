//! What Prometheus reads at `/metrics`. The names are documented in `docs/metrics.md`.
//!
//! Labels have few values: routes are templates, never addresses, so that neither a key nor an id
//! can stand in one.

mod challenges;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use stackd_core::event::{Event, EventKind};
use stackd_core::{Phase, StackId};
use stackd_engine::{Engine, EventMessage};

use crate::config::is_loopback;
use crate::serve::Connection;
use crate::{ServerState, auth};
use challenges::{ChallengeCollector, PlayerMeters};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// The meters, and the registry that shows them.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answer, Counter>,
    request_seconds: Family<Route, Histogram>,
    events: Family<Kind, Counter>,
    start_seconds: Histogram,
    /// What players do.
    pub(crate) players: PlayerMeters,
    /// Stacks that are on their way to their first readiness, and since when.
    starting: Mutex<HashMap<StackId, Timestamp>>,
}

impl Metrics {
    pub(crate) fn new(engine: Engine) -> Self {
        let requests = Family::default();
        let request_seconds = Family::<Route, Histogram>::new_with_constructor(|| {
            Histogram::new([
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
                10.0,
            ])
        });
        let events = Family::default();
        let start_seconds = Histogram::new([
            0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ]);
        let mut registry = Registry::default();
        registry.register("http_requests", "Requests answered", Family::clone(&requests));
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's headers to its answer's",
            Unit::Seconds,
            Family::clone(&request_seconds),
        );
        registry.register("stackd_stack_events", "Changes of stacks", Family::clone(&events));
        registry.register_with_unit(
            "stackd_stack_start_duration",
            "Time from a stack's creation to its first readiness",
            Unit::Seconds,
            start_seconds.clone(),
        );
        let players = PlayerMeters::default();
        players.register(&mut registry);
        registry.register_collector(Box::new(ChallengeCollector(engine.clone())));
        registry.register_collector(Box::new(EngineCollector(engine)));
        let starting = Mutex::default();
        Self { registry, requests, request_seconds, events, start_seconds, players, starting }
    }

    /// Counts an answer.
    pub(crate) fn answered(
        &self,
        method: &Method,
        route: &str,
        status: StatusCode,
        took: Duration,
    ) {
        let (method, route) = (method_label(method), route.to_owned());
        let answer = Answer { method, route: route.clone(), status: status.as_u16() };
        self.requests.get_or_create(&answer).inc();
        let route = Route { method, route };
        self.request_seconds.get_or_create(&route).observe(took.as_secs_f64());
    }

    /// Counts the engine's events until the engine ends.
    pub(crate) async fn watch(self: Arc<Self>, engine: Engine) {
        let mut events = engine.events(None);
        drop(engine);
        while let Some(message) = events.next().await {
            match message {
                EventMessage::Event(event) => self.happened(&event),
                EventMessage::Reset { .. } => self.starting.lock().clear(),
            }
        }
    }

    fn happened(&self, event: &Event) {
        let event = &event.event;
        self.events.get_or_create(&Kind { kind: event.kind.as_str() }).inc();
        let mut starting = self.starting.lock();
        match (event.kind, event.phase) {
            (EventKind::Created, _) => {
                starting.insert(event.stack, event.at);
            }
            (EventKind::Changed, Phase::Creating) | (EventKind::Renewed, _) => {}
            (EventKind::Changed, Phase::Running) => {
                if let Some(created) = starting.remove(&event.stack) {
                    self.start_seconds.observe(event.at.duration_since(created).as_secs_f64());
                }
            }
            _ => {
                starting.remove(&event.stack);
            }
        }
    }

    fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A made-up method must not make a new series.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// What the engine knows by itself, read at each scrape.
struct EngineCollector(Engine);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCollector")
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        let health = self.0.health();

        let name = "stackd_stacks";
        let kind = ConstGauge::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(name, "Stacks by status", None, kind)?;
        for phase in Phase::ALL {
            // A series that comes and goes cannot be alerted on: none is 0.
            let count = stats.by_phase.get(phase.as_str()).copied().unwrap_or_default();
            let labels = [("status", phase.as_str())];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }

        let name = "stackd_reserved_cpu";
        let cores = Unit::Other("cores".to_owned());
        let kind = ConstGauge::new(0f64).metric_type();
        let help = "CPU reserved by active stacks";
        let metric = encoder.encode_descriptor(name, help, Some(&cores), kind)?;
        ConstGauge::new(stats.reserved_cpu_milli as f64 / 1000.0).encode(metric)?;

        let plain: [(&str, &str, Option<Unit>, u64); 7] = [
            (
                "stackd_reserved_memory",
                "Memory reserved by active stacks",
                Some(Unit::Bytes),
                stats.reserved_memory_bytes,
            ),
            (
                "stackd_reserved_disk",
                "Disk reserved by active stacks",
                Some(Unit::Bytes),
                stats.reserved_disk_bytes,
            ),
            (
                "stackd_active_stacks",
                "Stacks that are creating or running",
                None,
                stats.active_stacks,
            ),
            (
                "stackd_used_node_ports",
                "Node ports held by active stacks",
                None,
                stats.used_node_ports,
            ),
            (
                "stackd_waiting_starts",
                "Stacks that wait for a start slot",
                None,
                health.waiting_starts as u64,
            ),
            (
                "stackd_store_up",
                "1 while writes are made durable",
                None,
                health.store.is_ok().into(),
            ),
            (
                "stackd_runtime_synced",
                "1 once the runtime has told what it runs",
                None,
                health.runtime_synced.into(),
            ),
        ];
        let replica = health.replica.map(|replica| {
            [
                ("stackd_leader", "1 while this replica leads", None, u64::from(replica.leads)),
                ("stackd_leader_epoch", "Which leader this replica knows of", None, replica.epoch),
                (
                    "stackd_replica_in_step",
                    "1 while this replica can follow or lead",
                    None,
                    u64::from(replica.in_step),
                ),
            ]
        });
        for (name, help, unit, value) in plain.into_iter().chain(replica.into_iter().flatten()) {
            let gauge = ConstGauge::new(value);
            let metric =
                encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?;
            gauge.encode(metric)?;
        }

        let build = ConstGauge::new(1u64);
        let help = "The version that runs; always 1";
        let mut family =
            encoder.encode_descriptor("stackd_build_info", help, None, build.metric_type())?;
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        build.encode(family.encode_family(&labels)?)
    }
}

/// Metrics for Prometheus.
///
/// Without a key on a loopback listener; elsewhere it needs one.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses(
        (status = 200, description = "All metrics.", body = String,
            content_type = "application/openmetrics-text"),
        (status = 401, description = "No key, or a wrong one, on a listener that is not on loopback.",
            body = crate::fault::ErrorBody, example = json!({"error": "invalid api key"})),
    ),
    security((), ("api_key_header" = []), ("api_key_query" = []))
)]
pub(crate) async fn metrics(State(state): State<ServerState>, request: Request) -> Response {
    let connection = request.extensions().get::<Connection>();
    if !connection.is_some_and(|connection| is_loopback(&connection.listener)) {
        if let Err(behind) = state.engine().in_step().await {
            return crate::fault::Fault::from(behind).into_response();
        }
        let dialect = crate::provisioner::DIALECT;
        let headers = with_bearer(request.headers());
        if let Err(fault) = auth::authenticate(&state, dialect, &headers, request.uri()) {
            return fault.into_response();
        }
    }
    const TEXT: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match state.metrics().render() {
        Ok(text) => ([(CONTENT_TYPE, TEXT)], text).into_response(),
        Err(e) => crate::fault::Fault::internal(&e).into_response(),
    }
}

/// The headers with a bearer token as the key, where they have no other: Prometheus cannot send a
/// key in a header of our name everywhere.
fn with_bearer(headers: &HeaderMap) -> Cow<'_, HeaderMap> {
    let token = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| HeaderValue::from_str(token).ok())?
    });
    match token {
        Some(token) if !headers.contains_key(auth::KEY_HEADER) => {
            let mut headers = headers.clone();
            headers.insert(auth::KEY_HEADER, token);
            Cow::Owned(headers)
        }
        _ => Cow::Borrowed(headers),
    }
}
