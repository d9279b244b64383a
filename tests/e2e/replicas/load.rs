//! Callers at every replica, while one after another goes away or loses its database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use stackd_testkit::postgres::Postgres;
use stackd_testkit::within;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::id_of;
use crate::fleet::{Clients, Fleet, Line, answer, create_body};
use crate::on::On;

/// What callers were told.
#[derive(Default)]
struct Told {
    made: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

impl Told {
    /// What there must be, and nothing else.
    fn wanted(&self) -> BTreeSet<String> {
        self.made.difference(&self.deleted).cloned().collect()
    }
}

/// Callers of a fleet, until they are told to stop.
struct Callers {
    clients: Arc<Clients>,
    stop: Arc<AtomicBool>,
    made: watch::Receiver<usize>,
    callers: Vec<JoinHandle<Told>>,
}

impl Callers {
    /// So many callers, each of which keeps so many stacks at most.
    fn start(fleet: &Fleet, count: usize, keeps: usize) -> Self {
        let clients = fleet.clients();
        let stop = Arc::new(AtomicBool::new(false));
        let (told, made) = watch::channel(0);
        let start =
            |caller| tokio::spawn(call(caller, keeps, clients.clone(), stop.clone(), told.clone()));
        let callers = (0..count).map(start).collect();
        Self { clients, stop, made, callers }
    }

    /// Waits until that many more stacks were acknowledged.
    async fn go_on(&mut self, count: usize) {
        let goal = *self.made.borrow() + count;
        let answered = within("callers are answered", self.made.wait_for(|made| *made >= goal));
        answered.await.expect("they ask");
    }

    async fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for caller in self.callers {
            let of_one = caller.await.expect("a caller was told the truth");
            told.made.extend(of_one.made);
            told.deleted.extend(of_one.deleted);
        }
        told
    }
}

/// Makes and deletes stacks at any replica, and looks at once at another. Whoever gets no answer,
/// or 503, asks again: with the same key, so that it is told of one stack in the end.
async fn call(
    caller: usize,
    keeps: usize,
    clients: Arc<Clients>,
    stop: Arc<AtomicBool>,
    made: watch::Sender<usize>,
) -> Told {
    let mut told = Told::default();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("caller-{caller}-{round}");
        let (status, stack) = until_told(&clients, caller + round, |index| {
            let request = clients.request(index, Method::POST, "/stacks");
            request.header("Idempotency-Key", &key).json(&create_body())
        })
        .await;
        assert_eq!(status, 201, "{stack}");
        let id = id_of(&stack);
        told.made.insert(id.clone());
        made.send_modify(|made| *made += 1);
        let path = format!("/stacks/{id}");
        // Away, paused or cut off it may be; but whoever answers must know.
        let look = async |index: usize| match clients
            .json(index % clients.count(), Method::GET, &path)
            .await
        {
            Some((503, _)) | None => None,
            Some((status, _)) => Some(status),
        };
        let seen = look(caller + round + 1).await;
        assert!(seen.is_none_or(|status| status == 200), "acknowledged, and {seen:?} elsewhere");
        if round % 3 == 0 && told.made.len() - told.deleted.len() <= keeps {
            continue;
        }
        let (status, body) = until_told(&clients, caller + round + 1, |index| {
            clients.request(index, Method::DELETE, &path)
        })
        .await;
        // An earlier attempt may have done it without an answer.
        assert!(matches!(status, 200 | 404), "{status} {body}");
        told.deleted.insert(id.clone());
        let seen = look(caller + round + 2).await;
        assert!(seen.is_none_or(|status| status == 404), "deleted, and {seen:?} elsewhere");
    }
    told
}

async fn until_told(
    clients: &Clients,
    first: usize,
    request: impl Fn(usize) -> reqwest::RequestBuilder,
) -> (u16, Value) {
    within("a replica answers", async {
        for attempt in 0.. {
            let request = request((first + attempt) % clients.count());
            match answer(request.timeout(Duration::from_secs(6))).await {
                Some((503, _)) | None => tokio::time::sleep(Duration::from_millis(20)).await,
                Some(told) => return told,
            }
        }
        unreachable!("attempts do not end")
    })
    .await
}

/// Lets the leader go away in this way, until another leads and callers have gone on, and come back.
async fn inflict(fault: &str, fleet: &mut Fleet, callers: &mut Callers, count: usize) {
    let leader = fleet.leader().await;
    let others: Vec<_> = (0..3).filter(|index| *index != leader).collect();
    match fault {
        "killed" => {
            fleet.end(leader, Signal::KILL).await;
            callers.go_on(count).await;
            fleet.launch(leader);
            fleet.ready(leader).await;
        }
        "paused" => {
            // Whoever asks the paused one meanwhile waits for nothing.
            fleet.signal(leader, Signal::STOP);
            fleet.leader_among(&others).await;
            fleet.signal(leader, Signal::CONT);
        }
        "cut off" | "silent" => {
            let line = if fault == "silent" { Line::Silent } else { Line::Cut };
            fleet.replicas[leader].line.send_replace(line);
            fleet.leader_among(&others).await;
            callers.go_on(count).await;
            fleet.replicas[leader].line.send_replace(Line::Open);
        }
        _ => unreachable!("no such fault"),
    }
    callers.go_on(count).await;
}

/// Every replica lists what is wanted and nothing else, and no node port is another's too. What
/// they are, by stack.
async fn node_ports(clients: &Clients, wanted: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut ports = BTreeMap::new();
    for index in 0..clients.count() {
        let listed = clients.list(index).await.expect("a list");
        let there: BTreeSet<_> = listed.keys().cloned().collect();
        let lost: Vec<_> = wanted.difference(&there).collect();
        let unknown: Vec<_> = there.difference(wanted).collect();
        assert!(lost.is_empty() && unknown.is_empty(), "lost {lost:?}, unasked for {unknown:?}");
        for (id, stack) in listed {
            let port = stack["ports"][0]["node_port"].to_string();
            let holder = ports.entry(port.clone()).or_insert_with(|| id.clone());
            assert_eq!(*holder, id, "node port {port} was given twice");
        }
    }
    ports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_away_under_load_nothing_is_lost_or_done_twice() {
    let cluster = Arc::new(Postgres::start());
    let mut fleet =
        Fleet::start(&cluster.database(), 3, &["--simulated-start-delay", "30ms"]).await;
    let mut callers = Callers::start(&fleet, 6, usize::MAX);
    let clients = callers.clients.clone();
    callers.go_on(30).await;
    for fault in ["killed", "paused", "cut off", "silent"] {
        inflict(fault, &mut fleet, &mut callers, 15).await;
    }
    for _ in 0..2 {
        let cluster = cluster.clone();
        let restart = tokio::task::spawn_blocking(move || {
            cluster.kill();
            cluster.start_again();
        });
        restart.await.expect("it is restarted");
        callers.go_on(30).await;
    }
    for index in 0..3 {
        fleet.ready(index).await;
    }
    let told = callers.end().await;
    let wanted = told.wanted();
    node_ports(&clients, &wanted).await;
    within("the runtime has what is wanted, and nothing else", async {
        while fleet.running().into_iter().collect::<BTreeSet<_>>() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let calls = fleet.calls();
    let twice: Vec<_> = calls["start"].iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "started twice: {twice:?}");
    assert!(!calls.contains_key("twice") && !calls.contains_key("conflict"), "{calls:?}");
    let unasked: Vec<_> = calls["start"].keys().filter(|id| !told.made.contains(*id)).collect();
    assert!(unasked.is_empty(), "started without being asked for: {unasked:?}");
}

/// The same on a cluster, where each replica watches all the time: what the leader does, no other
/// undoes, and in the end there is what callers were told of and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_whoever_leads_has_the_same_stacks() {
    if !On::Kubernetes.is_here() {
        return;
    }
    let range = On::Kubernetes.node_ports();
    let database = Postgres::shared().database();
    let mut fleet = Fleet::on_cluster(&database, 3, range).await;
    // There are not many node ports: callers wait for each other's.
    let mut callers = Callers::start(&fleet, 3, 2);
    let clients = callers.clients.clone();
    callers.go_on(6).await;
    for fault in ["killed", "paused", "cut off", "silent"] {
        inflict(fault, &mut fleet, &mut callers, 6).await;
    }
    for index in 0..3 {
        fleet.ready(index).await;
    }
    let wanted = callers.end().await.wanted();
    for index in 0..3 {
        within("all run", async {
            let runs = |stack: &Value| stack["status"] == "running";
            while !clients.list(index).await.expect("a list").values().all(runs) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
    let ports = node_ports(&clients, &wanted).await;
    within("the cluster has what is wanted, and nothing else", async {
        let of_each = |kind, prefix: &str| {
            let names = On::Kubernetes.objects(kind, range);
            let names = names.iter().map(|name| name.trim_start_matches(prefix).to_owned());
            names.collect::<BTreeSet<_>>()
        };
        while [("networkpolicies", ""), ("services", "svc-"), ("pods", "")]
            .iter()
            .any(|(kind, prefix)| of_each(*kind, prefix) != wanted)
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let held = On::Kubernetes.held_ports(range);
    assert_eq!(held, ports.into_keys().collect(), "node ports of the cluster");
    for id in &wanted {
        let path = format!("/stacks/{id}");
        let gone = until_told(&clients, 0, |index| clients.request(index, Method::DELETE, &path));
        let (status, body) = gone.await;
        assert_eq!(status, 200, "{body}");
    }
    On::Kubernetes.cleared(range).await;
}
