//! A connection that breaks exactly when `COMMIT` is sent, by a proxy that sees it pass.

use std::sync::Arc;
use std::time::Instant;

use stackd_core::event::{EventKind, Seq};
use stackd_store::{Change, Store, StoreConfig, StoreError};
use stackd_testkit::postgres::Postgres;
use stackd_testkit::store_contract::samples::{event, stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does with the next `COMMIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Lets it pass, as all else.
    Pass,
    /// Cuts the connection and drops it: it has not happened.
    Drop,
    /// Lets it pass and cuts the connection at the answer: it has happened.
    DropAnswer,
    /// Lets it pass and keeps the answer, and the connection, for ever.
    KeepAnswer,
}

struct Proxy {
    url: String,
    next: watch::Sender<Next>,
    /// Whether new connections are let in.
    open: watch::Sender<bool>,
}

impl Proxy {
    async fn before(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let there = url.split(['@', '/']).nth(3).unwrap().to_owned();
        let next = watch::Sender::new(Next::Pass);
        let open = watch::Sender::new(true);
        let proxy =
            Self { url: url.replace(&there, &here), next: next.clone(), open: open.clone() };
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *open.borrow() {
                    let server = TcpStream::connect(&there).await.unwrap();
                    tokio::spawn(relay(client, server, next.clone(), open.clone()));
                }
            }
        });
        proxy
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    next: watch::Sender<Next>,
    open: watch::Sender<bool>,
) {
    let (mut up, mut down) = ([0; 65_536], [0; 65_536]);
    loop {
        tokio::select! {
            Ok(length @ 1..) = client.read(&mut up) => {
                let commit = up[..length].windows(6).any(|word| word == b"COMMIT");
                let then = if commit { next.send_replace(Next::Pass) } else { Next::Pass };
                if then != Next::Pass {
                    open.send_replace(false);
                }
                if then == Next::Drop {
                    return;
                }
                server.write_all(&up[..length]).await.unwrap();
                if then != Next::Pass {
                    let _ = server.read(&mut down).await;
                }
                if then == Next::DropAnswer {
                    return;
                }
                if then == Next::KeepAnswer {
                    std::future::pending::<()>().await;
                }
            }
            Ok(length @ 1..) = server.read(&mut down) => {
                if client.write_all(&down[..length]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}

fn created(number: u64) -> Vec<Change> {
    let stack = stack(number);
    let event = event(stack.id, EventKind::Created);
    vec![Change::InsertStack(Box::new(stack)), Change::Event(event)]
}

/// The write whose commit is lost learns what has become of it, however long the database is
/// away; others are refused meanwhile; and it is there once.
async fn lost(next: Next) {
    let StoreConfig::Postgres { url } = super::in_postgres(Postgres::shared()) else {
        unreachable!()
    };
    let proxy = Proxy::before(&url).await;
    let store = Store::open(StoreConfig::Postgres { url: proxy.url.clone() }).await.unwrap();
    let mut events = store.subscribe();
    store.write(created(1)).await.unwrap();

    let mut gone = proxy.open.subscribe();
    proxy.next.send_replace(next);
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.write(created(2)).await }
    });
    gone.wait_for(|open| !open).await.unwrap();
    let start = Instant::now();
    let refused = store.write(created(3)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(start.elapsed() < super::BOUND, "{:?}", start.elapsed());
    assert!(!writing.is_finished());
    proxy.open.send_replace(true);

    let committed = writing.await.unwrap().unwrap();
    assert_eq!(committed.events[0].seq, Seq(2));
    let later = store.write(created(4)).await.unwrap();
    assert_eq!(later.events[0].seq, Seq(3));
    let there = store.load().await.unwrap().stacks;
    assert_eq!(there.iter().map(|stack| stack.id.bits()).collect::<Vec<_>>(), [1, 2, 4]);
    let stored = store.events_after(Seq(0), 10).await.unwrap();
    assert_eq!(stored.len(), 3);
    for event in stored.into_iter().map(Arc::new) {
        assert_eq!(events.recv().await.unwrap(), event);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_never_arrived_is_done_again() {
    lost(Next::Drop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_answer_was_lost_is_not_done_twice() {
    lost(Next::DropAnswer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_answer_never_comes_is_looked_up() {
    lost(Next::KeepAnswer).await;
}
