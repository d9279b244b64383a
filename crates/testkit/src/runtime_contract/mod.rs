//! The executable form of `stackd_core::runtime`: what every driver must do, run against the real
//! thing.
//!
//! A driver's test makes a [`Subject`] and calls [`crate::runtime_contract!`], which makes one test
//! of each promise. Promises about what goes on inside a container need the sample image, and are
//! passed over by a runtime that starts nothing.

mod inside;
mod life;
mod look;
mod ports;
mod restrict;

pub use inside::*;
pub use life::*;
pub use look::*;
pub use ports::*;
pub use restrict::*;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::port::PortMapping;
use stackd_core::runtime::{
    BoxFuture, BoxStream, ErrorKind, ExecOutput, ExecRequest, Observation, ObservedStack, Runtime,
    RuntimeError, RuntimeState,
};
use stackd_core::{Protocol, StackId, StackSpec};
use tokio::net::TcpStream;

use crate::build::{self, SpecBuilder};
use crate::within;

/// A runtime under test.
pub struct Subject {
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// The name of an image in it; where [`Subject::real`] is set, the sample's.
    pub image: String,
    /// Set where containers really run.
    pub real: Option<Real>,
    /// What must live as long as the runtime, for example its directory.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// What promises about running containers need to know.
#[derive(Debug, Clone)]
pub struct Real {
    /// The path of the sample program inside the image, which is also the image's entrypoint.
    pub sample: String,
    /// The address at which node ports are reached.
    pub address: std::net::IpAddr,
}

/// A promise, as a test runner of one's own takes it.
pub type Promise = for<'a> fn(&'a Subject) -> BoxFuture<'a, ()>;

/// Makes one test of each promise; `$make` is an async function that gives a fresh [`Subject`].
/// `@table` makes a list of names and [`Promise`]s instead.
#[macro_export]
macro_rules! runtime_contract {
    (@table) => { $crate::runtime_contract! { @each @entries } };
    (@entries: $($promise:ident)*) => {
        [$((
            stringify!($promise),
            (|subject| Box::pin($crate::runtime_contract::$promise(subject)))
                as $crate::runtime_contract::Promise,
        )),*]
    };
    (@tests $make:path: $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::runtime_contract::$promise(&$make().await).await;
            }
        )*
    };
    (@each $($head:tt)*) => {
        $crate::runtime_contract! { $($head)*:
            a_stack_starts_and_becomes_ready
            a_start_asked_for_twice_is_one
            starts_asked_for_at_once_are_one
            what_has_ended_is_not_started_again
            an_older_generation_is_refused
            an_older_epoch_is_refused
            an_unknown_runtime_class_is_refused
            stop_gives_back_and_keeps_the_logs
            stop_and_remove_may_come_twice_and_late
            remove_gives_up_a_start_under_way
            remove_leaves_nothing
            many_stacks_come_and_go
            an_observer_gets_the_inventory_then_the_mark_then_changes
            every_observer_sees_every_change
            calls_about_an_unknown_stack_are_refused
            an_unknown_container_is_refused
            logs_tell_what_was_written
            a_follower_of_logs_ends_with_the_stack
            usage_tells_of_what_runs
            a_claimed_port_is_refused_to_others
            a_claim_takes_all_or_nothing
            a_claim_is_given_back
            a_port_that_another_process_holds_is_told
            a_command_ends_with_its_code
            a_command_reads_its_input
            nothing_can_be_run_in_what_has_ended
            the_end_of_a_container_is_told_with_its_code
            a_command_that_does_not_exist_is_refused
            an_image_that_is_not_here_is_refused
            traffic_reaches_the_ports
            a_stack_at_its_memory_limit_is_told_so
            init_containers_come_first
            a_probe_decides_on_readiness
            a_container_that_ended_well_is_probed_no_more
            a_read_only_root_cannot_be_written
            dropped_capabilities_are_not_there
            a_lower_limit_of_processes_holds
        }
    };
    ($make:path) => { $crate::runtime_contract! { @each @tests $make } };
}

impl Subject {
    /// A spec that goes on to run, and listens on 80/TCP where containers are real.
    fn spec(&self) -> SpecBuilder {
        build::spec(&self.image)
    }

    fn class(&self) -> String {
        self.runtime.capabilities().runtime_classes[0].clone()
    }

    /// Whether node ports are of this machine, so that what else runs here can hold one. They are not
    /// where a stack is placed only when it starts.
    fn is_of_one_machine(&self) -> bool {
        self.runtime.placement().is_some()
    }

    /// Claims a free node port for each target port.
    fn claim(&self, id: StackId, spec: &StackSpec) -> Vec<PortMapping> {
        for _ in 0..50 {
            let ports: Vec<_> = spec
                .target_ports
                .iter()
                .map(|port| PortMapping {
                    container_port: port.container_port,
                    protocol: port.protocol,
                    node_port: self.some_port(),
                })
                .collect();
            if self.runtime.claim_ports(id, &ports).is_ok() {
                return ports;
            }
        }
        panic!("no node port is free")
    }

    /// Claims ports and asks for the start of this spec as the engine does.
    async fn begin(&self, spec: StackSpec) -> (StackId, Vec<PortMapping>) {
        let (id, ports, result) = self.try_begin(spec).await;
        result.expect("it starts");
        (id, ports)
    }

    async fn try_begin(
        &self,
        spec: StackSpec,
    ) -> (StackId, Vec<PortMapping>, Result<(), RuntimeError>) {
        let id = build::stack_id();
        let ports = self.claim(id, &spec);
        let request = build::ensure(id, spec, ports.clone(), &self.class());
        let result = within("a start is answered", self.runtime.ensure(request)).await;
        (id, ports, result)
    }

    /// A stack of this spec that is ready for traffic.
    async fn running(&self, spec: StackSpec) -> (StackId, Vec<PortMapping>) {
        let mut watch = Watch::of(self).await;
        let (id, ports) = self.begin(spec).await;
        watch.ready(id).await;
        self.heard(&ports, true).await;
        (id, ports)
    }

    /// A cluster is reached by one of its nodes, which may not be the stack's own, and hears a
    /// moment later that its port takes traffic, or does not any more.
    async fn heard(&self, ports: &[PortMapping], takes: bool) {
        let tcp = ports.iter().find(|port| port.protocol == Protocol::Tcp);
        let (Some(real), Some(port)) = (&self.real, tcp) else { return };
        let heard = async {
            while TcpStream::connect((real.address, port.node_port)).await.is_ok() != takes {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if !self.is_of_one_machine() {
            within("the node has heard of the stack", heard).await;
        }
    }

    /// A node port that no other test is given.
    fn some_port(&self) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        if self.is_of_one_machine() {
            return crate::ports::free();
        }
        // A cluster gives out what its services may have, and has a network to itself.
        30_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 2768
    }

    async fn remove(&self, id: StackId) {
        within("a removal", self.runtime.remove(id, Duration::ZERO)).await.expect("removed");
    }

    /// What the runtime has, by a fresh inventory.
    async fn inventory(&self) -> HashMap<StackId, ObservedStack> {
        Watch::of(self).await.seen
    }

    async fn log_texts(&self, id: StackId, tail: Option<usize>) -> Vec<String> {
        let options = stackd_core::runtime::LogOptions { tail, ..Default::default() };
        let stream = self.runtime.logs(id, options).await.expect("logs");
        within("all logs are read", stream.map(|line| text_of(&line.expect("a line"))).collect())
            .await
    }

    /// Runs a command to its end.
    async fn exec(&self, id: StackId, command: &[&str], input: Option<&str>) -> (String, i32) {
        let request = ExecRequest {
            container: None,
            command: command.iter().map(|arg| (*arg).to_owned()).collect(),
            terminal: None,
            stdin: input.is_some(),
        };
        within("a command ends", async {
            let mut session = self.runtime.exec(id, request).await.expect("it runs");
            if let Some(input) = input {
                session.input.write(input.to_owned().into()).await.expect("it reads");
                session.input.close().await.expect("its input ends");
            }
            let mut text = String::new();
            while let Some(output) = session.output.next().await {
                match output.expect("output") {
                    ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => {
                        text.push_str(&String::from_utf8_lossy(&data));
                    }
                    ExecOutput::Exit(code) => return (text, code),
                }
            }
            panic!("no code came after {text:?}")
        })
        .await
    }
}

fn text_of(line: &stackd_core::runtime::LogLine) -> String {
    String::from_utf8_lossy(&line.text).into_owned()
}

fn assert_kind<T>(result: Result<T, RuntimeError>, kind: ErrorKind, what: &str) {
    match result {
        Ok(_) => panic!("{what}: this should have been refused"),
        Err(error) => assert_eq!(error.kind, kind, "{what}: {error:?}"),
    }
}

/// An observer that remembers what it saw.
struct Watch {
    stream: BoxStream<'static, Observation>,
    /// The latest of each stack.
    seen: HashMap<StackId, ObservedStack>,
}

impl Watch {
    /// An observer that has the inventory.
    async fn of(subject: &Subject) -> Self {
        let mut watch = Self { stream: subject.runtime.observe(), seen: HashMap::new() };
        while watch.next().await != Observation::Synced {}
        watch
    }

    async fn next(&mut self) -> Observation {
        let observation = within("an observation comes", self.stream.next()).await;
        let observation = observation.expect("the stream of observations goes on");
        match &observation {
            Observation::Stack(stack) => {
                self.seen.insert(stack.id, stack.clone());
            }
            Observation::Gone(id) => {
                self.seen.remove(id);
            }
            Observation::Synced => {}
        }
        observation
    }

    async fn until(&mut self, id: StackId, what: impl Fn(&RuntimeState) -> bool) -> ObservedStack {
        loop {
            if let Some(stack) = self.seen.get(&id).filter(|stack| what(&stack.state)) {
                return stack.clone();
            }
            self.next().await;
        }
    }

    async fn ready(&mut self, id: StackId) -> ObservedStack {
        let settled = |state: &RuntimeState| {
            matches!(state, RuntimeState::Running { ready: true, .. } | RuntimeState::Ended { .. })
        };
        let stack = self.until(id, settled).await;
        assert!(
            matches!(stack.state, RuntimeState::Running { .. }),
            "it should have become ready, and ended: {stack:?}"
        );
        stack
    }

    async fn ended(&mut self, id: StackId) -> ObservedStack {
        self.until(id, |state| matches!(state, RuntimeState::Ended { .. })).await
    }
}
