//! The server is killed while players play. What was acknowledged holds, once, and nothing else is
//! there.

use std::collections::BTreeMap;

use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use stackd_core::Timestamp;
use stackd_testkit::within;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::IMAGE;
use crate::play::{SECRET, token};
use crate::server::{Server, fetch};

const CHALLENGES: u32 = 2;
/// Each plays alone, one request after another.
const PLAYERS: std::ops::Range<u32> = 1..5;
/// Starts one stack from many windows at once.
const CROWD: u32 = 50;
const CROWD_WINDOWS: usize = 3;
/// How many requests of players are acknowledged before each kill.
const KILLS: [usize; 4] = [9, 120, 60, 250];

/// What a player knows of a stack.
#[derive(Debug, Clone, PartialEq)]
enum Known {
    None,
    /// This stack, until then at least.
    Live(String, Timestamp),
}

/// What is known of one player and challenge when the server is killed.
#[derive(Debug, Clone)]
struct Account {
    known: Known,
    /// The request that was never answered.
    open: Option<Method>,
}

/// The way to a server that may be gone.
#[derive(Clone)]
struct Way {
    http: Client,
    base: String,
    key: &'static str,
    acknowledged: watch::Sender<usize>,
}

impl Way {
    /// An answer; none when the server is gone.
    async fn ask(&self, method: Method, path: &str, user: u32) -> Option<(StatusCode, Value)> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let answer = request.bearer_auth(token(user)).send().await.ok()?;
        let status = answer.status();
        let text = answer.text().await.ok()?;
        self.acknowledged.send_modify(|count| *count += 1);
        Some((status, serde_json::from_str(&text).expect("JSON")))
    }

    /// Tells of a solve or a lock as the platform does. True when it is acknowledged.
    async fn tell(&self, what: &str, user: u32) -> bool {
        let request = self.http.post(format!("{}/challenges/1/{what}", self.base));
        let request = request.header("x-api-key", self.key).json(&json!({"user": user}));
        let Ok(answer) = request.send().await else { return false };
        assert_eq!(answer.status(), StatusCode::CREATED, "{what} of {user}");
        true
    }
}

fn live(stack: &Value) -> Known {
    let text = |field: &str| stack[field].as_str().expect("a text").to_owned();
    Known::Live(text("stack_id"), text("ttl_expires_at").parse().expect("a time"))
}

fn path_of(challenge: u32) -> String {
    format!("/api/challenges/{challenge}/stack")
}

/// Plays until the server is gone. Each answer must fit what is known.
async fn play(
    way: Way,
    user: u32,
    mut accounts: BTreeMap<u32, Account>,
) -> (u32, BTreeMap<u32, Account>) {
    // Another order for each, the same in every run.
    let mut state = u64::from(user).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    loop {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let challenge = 1 + (state >> 33) as u32 % CHALLENGES;
        let account = accounts.get_mut(&challenge).expect("an account");
        let (method, renew) = match (state >> 40) % 8 {
            0..=2 => (Method::POST, false),
            3..=4 => (Method::POST, true),
            5 => (Method::DELETE, false),
            _ => (Method::GET, false),
        };
        let path = path_of(challenge) + if renew { "/renew" } else { "" };
        // What a renewal may have changed is read from the stack, whatever became of it.
        account.open = Some(if renew { Method::GET } else { method.clone() });
        let Some((status, body)) = way.ask(method.clone(), &path, user).await else {
            return (user, accounts);
        };
        let what = format!("user {user}: {method} {path} of {account:?}: {status} {body}");
        account.open = None;
        let next = match (&account.known, method.as_str(), status.as_u16()) {
            // There is no room for a moment, while what was deleted goes: nothing is made then.
            (Known::None, "POST", 503) if !renew => Known::None,
            (Known::None, "POST", 201) if !renew => live(&body),
            (Known::None, _, 404) => Known::None,
            (Known::Live(..), "DELETE", 200) => Known::None,
            (Known::Live(id, until), _, 200 | 201) => match live(&body) {
                Known::Live(same, later) if same == *id && later >= *until => {
                    Known::Live(same, later)
                }
                _ => panic!("{what}"),
            },
            (Known::Live(..), "POST", 409) if renew => account.known.clone(),
            _ => panic!("{what}"),
        };
        account.known = next;
    }
}

/// Asks for the same stack until the server is gone: everybody is given the same one.
async fn crowd(way: Way) -> Option<String> {
    let mut given = None;
    while let Some((status, body)) = way.ask(Method::POST, &path_of(1), CROWD).await {
        if status == StatusCode::SERVICE_UNAVAILABLE {
            continue;
        }
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id = body["stack_id"].as_str().expect("an id").to_owned();
        assert_eq!(*given.get_or_insert_with(|| id.clone()), id);
    }
    given
}

/// Tells of one player after another until the server is gone, and gives those acknowledged.
async fn platform(
    way: Way,
    what: &'static str,
    first: u32,
) -> (&'static str, std::ops::Range<u32>) {
    let mut next = first;
    while way.tell(what, next).await {
        next += 1;
    }
    (what, first..next)
}

/// What is true of the players now is what each was told, or what the open request has made of it.
async fn settled(
    server: &Server,
    way: &Way,
    players: &mut BTreeMap<u32, BTreeMap<u32, Account>>,
) -> BTreeMap<String, (u32, u32)> {
    let mut stacks = BTreeMap::new();
    for (user, accounts) in players {
        for (challenge, account) in accounts {
            let answer = way.ask(Method::GET, &path_of(*challenge), *user).await;
            let (status, body) = answer.expect("an answer");
            let now = match status.as_u16() {
                200 => live(&body),
                404 => Known::None,
                _ => panic!("{status} {body}"),
            };
            let open = account.open.take().map(|method| method.to_string());
            let holds = match (&account.known, open.as_deref(), &now) {
                (Known::None, Some("POST"), _) => true,
                (Known::Live(..), Some("DELETE"), Known::None) => true,
                (Known::Live(id, until), _, Known::Live(same, later)) => {
                    id == same && later >= until
                }
                (known, _, now) => known == now,
            };
            assert!(
                holds,
                "{user}, {challenge}: {account:?}, then {open:?}, now {now:?}\n{}",
                server.log()
            );
            if let Known::Live(id, _) = &now {
                let twice = stacks.insert(id.clone(), (*user, *challenge));
                assert_eq!(twice, None, "one stack of two");
            }
            account.known = now;
        }
    }
    stacks
}

async fn told(server: &Server, what: &str) -> Vec<u32> {
    let (_, marks) = server.get(&format!("/challenges/1/{what}")).await;
    let users = marks.as_array().expect("a list").iter();
    users
        .map(|mark| mark["user"].as_str().and_then(|user| user.parse().ok()).expect("a user"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_players_were_told_outlives_a_kill() {
    let mut server =
        Server::with_options(&["--player-jwt-secret", SECRET, "--player-create-max", "100000"])
            .await;
    for challenge in 1..=CHALLENGES {
        let body = json!({
            "id": format!("c{challenge}"), "number": challenge, "name": "C", "runtime": "docker",
            "image": IMAGE, "port": 80, "ttl_seconds": 3600,
        });
        let (status, made) = server.post("/challenges", &body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
    }
    let none = Account { known: Known::None, open: None };
    let fresh = || (1..=CHALLENGES).map(|challenge| (challenge, none.clone())).collect();
    let mut players: BTreeMap<u32, BTreeMap<u32, Account>> =
        PLAYERS.map(|user| (user, fresh())).collect();
    let mut crowded = None;
    // Whom the platform tells of next, and of whom it was told that it is noted.
    let mut marks = BTreeMap::from([("solves", (1000, vec![])), ("locks", (1_000_000, vec![]))]);
    for target in KILLS {
        let (acknowledged, mut seen) = watch::channel(0);
        let way =
            Way { http: Client::new(), base: server.url(""), key: server.key(), acknowledged };
        let mut playing = JoinSet::new();
        for (user, accounts) in std::mem::take(&mut players) {
            playing.spawn(play(way.clone(), user, accounts));
        }
        let mut crowding = JoinSet::new();
        for _ in 0..CROWD_WINDOWS {
            crowding.spawn(crowd(way.clone()));
        }
        let mut telling = JoinSet::new();
        for (what, (next, _)) in &marks {
            telling.spawn(platform(way.clone(), what, *next));
        }
        within("requests are acknowledged", seen.wait_for(|count| *count >= target))
            .await
            .expect("somebody counts");
        server.kill();
        players = within("players notice", playing.join_all()).await.into_iter().collect();
        let given = within("the crowd notices", crowding.join_all()).await;
        let told_of = within("the platform notices", telling.join_all()).await;
        server.launch().await;

        let way = Way { http: Client::new(), ..way };
        let mut stacks = settled(&server, &way, &mut players).await;
        // Of the crowd's stack there is one, the one that everybody was given.
        let (status, body) = way.ask(Method::GET, &path_of(1), CROWD).await.expect("an answer");
        let now = (status == StatusCode::OK)
            .then(|| body["stack_id"].as_str().expect("an id").to_owned());
        for id in given.into_iter().flatten().chain(crowded) {
            assert_eq!(Some(&id), now.as_ref(), "{}", server.log());
        }
        stacks.extend(now.clone().map(|id| (id, (CROWD, 1))));
        crowded = now;
        // Nobody else has one, and each of them comes to run.
        let (_, list) = server.get("/stacks").await;
        let listed: Vec<_> = list["stacks"].as_array().expect("a list").iter().collect();
        assert_eq!(listed.len(), stacks.len(), "{list:#}\n{stacks:#?}");
        for (id, (user, _)) in &stacks {
            let stack = server.running(id).await;
            assert_eq!(stack["owner"], format!("user:{user}"));
            let port = stack["node_port"].as_u64().expect("a port");
            fetch(u16::try_from(port).expect("a port"), "/healthz").await.expect("it serves");
        }
        for (what, users) in told_of {
            let known = told(&server, what).await;
            let (next, all) = marks.get_mut(what).expect("both are there");
            // The last one may have been noted, or not.
            *next = users.end + 1;
            all.extend(users);
            assert!(all.iter().all(|user| known.contains(user)), "{what}: {known:?} of {all:?}");
            assert!(known.iter().all(|user| *user < *next), "{what}: {known:?} of {all:?}");
            let refused =
                if what == "solves" { StatusCode::CONFLICT } else { StatusCode::FORBIDDEN };
            if let Some(last) = all.last() {
                let (status, body) =
                    way.ask(Method::POST, &path_of(1), *last).await.expect("an answer");
                assert_eq!(status, refused, "{body}");
            }
        }
    }
    server.finish().await;
}
