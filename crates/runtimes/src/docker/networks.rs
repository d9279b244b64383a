//! Networks for stacks on an engine elsewhere, whose containers' own networks cannot be entered:
//! each stack has a bridge to itself, with a small subnet of ours, made ahead of need because that
//! is slow. A stack's network is given back when the stack is removed, and serves another.
//!
//! Published ports want a bridge that is not internal, so the way out cannot be closed entirely:
//! addresses are not translated on the way out, which leaves the engine's own machine and networks
//! that route back.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use parking_lot::Mutex;
use stackd_core::{RuntimeError, StackId};

use super::config::DockerConfig;
use super::engine::{EngineError, answer, failed, fault, is_absent, unless_absent};
use super::objects;
use super::plan::Place;

/// Addresses of one network: its own, the gateway, the stack, the broadcast, and some spare.
const ADDRESSES: u32 = 8;

/// How many stacks have room in the addresses that are configured.
pub(super) fn count(config: &DockerConfig) -> Option<u64> {
    parse(&config.subnets).map(|(_, count)| count.into())
}

/// The networks of a server.
pub(super) struct Networks {
    docker: Docker,
    instance: String,
    first: u32,
    count: u32,
    ready: usize,
    state: Mutex<State>,
    /// One at a time makes them ahead.
    filling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Those that are there and serve nobody.
    free: BTreeSet<u32>,
    used: HashMap<StackId, u32>,
    /// Those that somebody else's networks are in the way of.
    blocked: BTreeSet<u32>,
    /// The one that is being made ahead.
    filling: Option<u32>,
}

impl State {
    /// The first that is nobody's.
    fn unclaimed(&self, count: u32) -> Option<u32> {
        let taken: BTreeSet<_> = self.used.values().copied().collect();
        (0..count).find(|number| {
            !taken.contains(number)
                && !self.free.contains(number)
                && !self.blocked.contains(number)
                && self.filling != Some(*number)
        })
    }

    /// Gives a stack the one that it has, else one that is there, else one that is to be made.
    fn take(&mut self, id: StackId, count: u32) -> Option<u32> {
        let number = match self.used.get(&id) {
            Some(number) => *number,
            None => self.free.pop_first().or_else(|| self.unclaimed(count))?,
        };
        self.used.insert(id, number);
        Some(number)
    }

    /// Takes from a stack a network whose addresses are somebody else's.
    fn block(&mut self, id: StackId, number: u32) {
        self.used.remove(&id);
        self.blocked.insert(number);
    }
}

impl Networks {
    /// Finds the networks that are there, and whom they serve.
    pub(super) async fn open(
        docker: Docker,
        instance: &str,
        config: &DockerConfig,
    ) -> Result<Self, EngineError> {
        let (first, count) = parse(&config.subnets).ok_or_else(|| {
            EngineError::Settings(format!(
                "{:?} is not a range of addresses such as 10.213.0.0/16",
                config.subnets
            ))
        })?;
        let networks = Self {
            docker,
            instance: instance.to_owned(),
            first,
            count,
            ready: config.ready_networks,
            state: Mutex::default(),
            filling: tokio::sync::Mutex::default(),
        };
        let unreachable = |e: bollard::errors::Error| EngineError::Unreachable {
            host: config.host.clone(),
            cause: super::engine::chain(&e),
        };
        let filters = objects::of_instance(instance);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let there = networks.docker.list_networks(Some(options)).await.map_err(unreachable)?;
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = networks.docker.list_containers(Some(options)).await;
        {
            let mut state = networks.state.lock();
            for network in there {
                state.free.extend(network.name.as_deref().and_then(|name| networks.number(name)));
            }
            for container in containers.map_err(unreachable)? {
                let mode = container.host_config.and_then(|host| host.network_mode);
                let number = mode.as_deref().and_then(|name| networks.number(name));
                let stack = container.labels.as_ref().and_then(objects::stack_of);
                if let (Some(stack), Some(number)) = (stack, number) {
                    state.free.remove(&number);
                    state.used.insert(stack, number);
                }
            }
        }
        let filled = networks.fill().await;
        filled.map_err(|e| EngineError::of(&config.host, "does not make networks", &e))?;
        Ok(networks)
    }

    fn name(&self, number: u32) -> String {
        format!("stackd-{}-{number}", self.instance)
    }

    fn number(&self, name: &str) -> Option<u32> {
        let rest = name.strip_prefix("stackd-")?.strip_prefix(&self.instance)?;
        rest.strip_prefix('-')?.parse().ok().filter(|number| *number < self.count)
    }

    /// A network for a stack: one that is there, else a new one.
    pub(super) async fn take(self: &Arc<Self>, id: StackId) -> Result<Place, RuntimeError> {
        loop {
            let number = self.state.lock().take(id, self.count);
            let number = match number {
                Some(number) => number,
                None if self.state.lock().filling.is_some() => {
                    // The last one is about to be there.
                    drop(self.filling.lock().await);
                    continue;
                }
                None => return Err(failed("every network's addresses are in use")),
            };
            match self.make(number).await {
                Ok(true) => {
                    let networks = Arc::clone(self);
                    tokio::spawn(async move { networks.refill().await });
                    return Ok(Place { network: self.name(number) });
                }
                Ok(false) => self.state.lock().block(id, number),
                Err(error) => {
                    self.state.lock().used.remove(&id);
                    return Err(error);
                }
            }
        }
    }

    /// Takes a network back from a stack that is removed.
    pub(super) async fn give_back(&self, id: StackId) -> Result<(), RuntimeError> {
        let surplus = {
            let mut state = self.state.lock();
            let Some(number) = state.used.remove(&id) else { return Ok(()) };
            if state.free.len() < self.ready {
                state.free.insert(number);
                None
            } else {
                Some(number)
            }
        };
        match surplus {
            Some(number) => self.remove(number).await,
            None => Ok(()),
        }
    }

    /// Removes those that serve nobody.
    pub(super) async fn clear(&self) -> Result<(), RuntimeError> {
        let free = std::mem::take(&mut self.state.lock().free);
        for number in free {
            self.remove(number).await?;
        }
        Ok(())
    }

    async fn remove(&self, number: u32) -> Result<(), RuntimeError> {
        let removed = self.docker.remove_network(&self.name(number)).await;
        unless_absent(removed).map_err(|e| fault("remove a network", &e))
    }

    /// The address of a stack's machine in its network.
    pub(super) fn gateway_of(&self, id: StackId) -> Option<Ipv4Addr> {
        self.state.lock().used.get(&id).map(|number| self.gateway(*number))
    }

    /// Makes some ahead again for those that were taken. What fails is made when it is needed, or
    /// told then.
    async fn refill(&self) {
        if let Err(error) = self.fill().await {
            tracing::debug!(error = error.operator, "no network is made ahead");
        }
    }

    /// Makes as many ahead as are configured and have room.
    pub(super) async fn fill(&self) -> Result<(), RuntimeError> {
        let _turn = self.filling.lock().await;
        loop {
            let number = {
                let mut state = self.state.lock();
                if state.free.len() >= self.ready {
                    return Ok(());
                }
                let Some(number) = state.unclaimed(self.count) else { return Ok(()) };
                state.filling = Some(number);
                number
            };
            let made = self.make(number).await;
            let there = {
                let mut state = self.state.lock();
                state.filling = None;
                let there = made?;
                if there && state.free.len() < self.ready {
                    state.free.insert(number);
                    continue;
                }
                // Somebody's; or one too many, since another was given back meanwhile.
                state.blocked.insert(number);
                there
            };
            if there {
                let removed = self.remove(number).await;
                self.state.lock().blocked.remove(&number);
                return removed;
            }
        }
    }

    /// Makes a network unless it is there: one that was may have been removed by somebody. Says
    /// whether its addresses can be had.
    async fn make(&self, number: u32) -> Result<bool, RuntimeError> {
        match self.docker.inspect_network(&self.name(number), None).await {
            Ok(_) => return Ok(true),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(fault("look for a network", &e)),
        }
        match self.docker.create_network(self.described(number)).await {
            Ok(_) => Ok(true),
            Err(e) if answer(&e).is_some_and(|(_, text)| text.contains("already exists")) => {
                Ok(true)
            }
            // Somebody's network is in the way.
            Err(e) if answer(&e).is_some_and(|(_, text)| text.contains("overlap")) => Ok(false),
            Err(e) => Err(fault("make a network", &e)),
        }
    }

    fn gateway(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + number * ADDRESSES + 1)
    }

    fn described(&self, number: u32) -> NetworkCreateRequest {
        let first = Ipv4Addr::from(self.first + number * ADDRESSES);
        let gateway = self.gateway(number);
        let option = |name: &str, value: &str| {
            (format!("com.docker.network.bridge.{name}"), value.to_owned())
        };
        NetworkCreateRequest {
            name: self.name(number),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(format!("{first}/29")),
                    gateway: Some(gateway.to_string()),
                    ..IpamConfig::default()
                }]),
                ..Ipam::default()
            }),
            options: Some(HashMap::from([
                option("enable_icc", "false"),
                option("enable_ip_masquerade", "false"),
            ])),
            labels: Some(HashMap::from([(objects::INSTANCE.to_owned(), self.instance.clone())])),
            ..NetworkCreateRequest::default()
        }
    }
}

/// The first address of a range, and how many networks fit into it.
fn parse(range: &str) -> Option<(u32, u32)> {
    let (address, bits) = range.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|bits| (8..=29).contains(bits))?;
    let size = 1u32 << (32 - bits);
    let first = u32::from(address);
    (first % size == 0).then_some((first, size / ADDRESSES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_networks() {
        assert_eq!(parse("10.213.0.0/16"), Some((u32::from(Ipv4Addr::new(10, 213, 0, 0)), 8192)));
        assert_eq!(parse("192.0.2.8/29").map(|(_, count)| count), Some(1));
        for range in ["", "10.0.0.0", "10.0.0.1/16", "10.0.0.0/30", "::/64", "10.0.0.0/4"] {
            assert_eq!(parse(range), None, "{range}");
        }
    }
}
