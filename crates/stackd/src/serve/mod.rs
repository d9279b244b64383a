//! `stackd serve`: puts the parts together, and takes them apart in order.
//!
//! Whatever can be refused is refused before anything is touched: settings, then the user, then the
//! lock, then the ports. On the way down the listeners close first, the engine ends the steps under
//! way, and stacks go on: the next start adopts them.

mod check;
mod notify;
mod parts;
mod replica;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use stackd_core::Clock;
use stackd_engine::{Engine, SystemClock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Environment};
use crate::exit::{Exit, Failure};
use crate::local::admin::{self, Admin, Info};
use crate::local::data_dir::DataDir;
use crate::local::first_key::{self, FirstKey};
use crate::local::open_store;
use notify::Notify;
use replica::Part;

pub(crate) use check::{settings as check_settings, user as check_user};
pub(crate) use parts::docker_config;
pub(crate) use parts::kubernetes;

pub(crate) fn run(config: Config, environment: &Environment) -> anyhow::Result<ExitCode> {
    check::settings(&config)?;
    if let (true, Some(secret)) = (config.api.auth, environment.get("STACKD_API_KEY")) {
        first_key::check(secret)?;
    }
    check::user(&config, rustix::process::geteuid().is_root())?;
    let files = check::raise_file_limit();
    let data = DataDir::make(&config.data_dir)?;
    let lock = data.lock("stackd serve")?.map_err(|holder| {
        let path = data.path().display();
        Failure::new(Exit::Busy, format!("the data directory {path} is in use by {}", holder.0))
            .hint("stop that process first, or name another directory with --data-dir")
    })?;
    tracing::debug!(open_files = files.current, data_dir = %data.path().display(), "starting");
    crate::client::use_ring();
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("stackd")
        .build()
        .context("the executor cannot start")?;
    let served = executor.block_on(serve(&config, &data, environment));
    // Work that blocks a thread must not keep the process, nor outlive the lock.
    executor.shutdown_timeout(std::time::Duration::from_secs(5));
    drop(lock);
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: &Config, data: &DataDir, environment: &Environment) -> anyhow::Result<()> {
    for name in environment.unknown() {
        tracing::warn!(
            "the environment variable {name} is no setting of stackd, and has no effect"
        );
    }
    let stopping = CancellationToken::new();
    stop_on_signals(stopping.clone())?;
    let notify = Notify::new(environment.get("NOTIFY_SOCKET"));
    let (listeners, addresses) = bind(config).await?;
    let tls = parts::tls(config)?;
    let store = open_store(config, data).await?;
    let runtime = tokio::select! {
        runtime = parts::runtime(config, data) => runtime?,
        // It may be waited for long.
        () = stopping.cancelled() => return Ok(()),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let settings = config.engine.clone();
    let part = replica::of(config, &addresses, tls.as_ref(), &runtime)?;
    let engine = {
        let runtime = Arc::clone(&runtime.runtime);
        match part {
            Part::Owner => Engine::start(settings, store, runtime, clock.clone()).await,
            Part::Alone(lease) => {
                Engine::start_alone(settings, lease, store, runtime, clock.clone()).await
            }
            Part::Replica(replica) => {
                Engine::start_replica(settings, replica, store, runtime, clock.clone()).await
            }
        }
    };
    let engine = engine.map_err(replica::not_started)?;
    if config.api.auth {
        let from_environment = environment.get("STACKD_API_KEY");
        let first = first_key::ensure(engine.keys(), data, from_environment, clock.wall()).await?;
        tell_first_key(&first, data);
    } else {
        tracing::warn!("authentication is off: every process on this machine may use the API");
    }

    let info = Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        runtime: engine.capabilities().name,
        listen: addresses.clone(),
    };
    let admin =
        Admin { info: Arc::new(info), keys: engine.keys().clone(), images: runtime.images, clock };
    let socket = admin::listen(&data.admin_socket())?;
    let admin_stopping = stopping.clone();
    let admin = tokio::spawn(async move {
        axum::serve(socket, admin::router(admin))
            .with_graceful_shutdown(admin_stopping.cancelled_owned())
            .await
    });

    for address in &addresses {
        tracing::info!(%address, "listening");
    }
    notify.ready(&format!("listening on {}", addresses.join(", ")));
    // Another replica takes over while requests under way come to their end here.
    let leaving = {
        let (engine, stopping) = (engine.clone(), stopping.clone());
        tokio::spawn(async move {
            stopping.cancelled().await;
            engine.resign().await;
        })
    };
    let ousted = {
        let (engine, stopping) = (engine.clone(), stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = engine.ousted() => {}
                () = stopping.cancelled() => return false,
            }
            stopping.cancel();
            true
        })
    };
    let served = parts::listen(config, engine.clone(), listeners, tls, stopping.clone()).await;
    notify.stopping();
    tracing::info!("stopping; stacks go on");
    // The listeners may have ended for another reason than a signal.
    stopping.cancel();
    let _ = std::fs::remove_file(data.admin_socket());
    let _ = leaving.await;
    engine.shutdown().await;
    if tokio::time::timeout(config.api.shutdown_timeout, admin).await.is_err() {
        tracing::warn!("a local command did not end in time");
    }
    if ousted.await.context("a task has ended early")? {
        return Err(replica::ousted().into());
    }
    served
}

/// The listening sockets, and what they are reached at.
async fn bind(config: &Config) -> anyhow::Result<(Vec<TcpListener>, Vec<String>)> {
    let scheme = if config.server.tls_cert.is_some() { "https" } else { "http" };
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in &config.server.listen {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let exit = match error.kind() {
                std::io::ErrorKind::AddrInUse => Exit::Busy,
                _ => Exit::Config,
            };
            Failure::new(exit, format!("{address} cannot be listened on: {error}"))
                .hint("choose another with --listen, or stop what listens there (`ss -ltnp`)")
        })?;
        let bound = listener.local_addr().context("a listener has no address")?;
        addresses.push(format!("{scheme}://{bound}"));
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

/// The first signal stops in order, the second one at once.
fn stop_on_signals(stopping: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                stopping.cancel();
            }
        }
        eprintln!("stopped at once; stacks go on");
        std::process::exit(130);
    });
    Ok(())
}

/// A key is shown once, and only to a terminal; a file that only the operator reads keeps it.
fn tell_first_key(first: &FirstKey, data: &DataDir) {
    let path = data.api_key();
    match first {
        FirstKey::NotNeeded => {}
        FirstKey::AllRevoked => tracing::warn!(
            "every API key was revoked, so that nobody is let in: `stackd key create NAME` makes one"
        ),
        FirstKey::FromEnvironment => tracing::info!("the API key is the one of STACKD_API_KEY"),
        FirstKey::Revoked => tracing::warn!(
            "the key of STACKD_API_KEY was revoked and stays so: set another, or unset it; other \
             keys are good as before"
        ),
        FirstKey::Made(secret) => {
            tracing::info!(file = %path.display(), "made the first API key");
            if std::io::stdout().is_terminal() {
                // Who cannot read it here reads the file.
                let _ = crate::out::line(format_args!("API key: {secret}"));
            }
        }
    }
}
