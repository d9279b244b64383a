//! Networks for stacks on an engine elsewhere, whose containers' own networks cannot be entered:
//! each stack has a bridge to itself, with a small subnet of ours, made ahead of need because that
//! is slow. A stack's network is given back when the stack is removed, and serves another.
//!
//! Published ports want a bridge that is not internal, so the way out cannot be closed entirely:
//! addresses are not translated on the way out, which leaves the engine's own machine and networks
//! that route back.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use bollard::Docker;
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder};
use parking_lot::Mutex;
use stackd_core::{RuntimeError, StackId};

use super::config::DockerConfig;
use super::engine::{EngineError, answer, failed, fault, unless_absent};
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
}

#[derive(Default)]
struct State {
    /// Those that are there and serve nobody.
    free: BTreeSet<u32>,
    used: HashMap<StackId, u32>,
    /// Those that somebody else's networks are in the way of.
    blocked: BTreeSet<u32>,
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
        networks.fill().await.map_err(|e| EngineError::Unfit {
            host: config.host.clone(),
            lack: format!("does not make networks: {}", e.operator),
        })?;
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
    pub(super) async fn take(&self, id: StackId) -> Result<Place, RuntimeError> {
        let there = {
            let mut state = self.state.lock();
            match state.used.get(&id).copied() {
                Some(number) => Some(number),
                None => state.free.pop_first().inspect(|number| {
                    state.used.insert(id, *number);
                }),
            }
        };
        let number = match there {
            Some(number) => number,
            None => {
                let number = self.make().await?;
                let mut state = self.state.lock();
                state.free.remove(&number);
                state.used.insert(id, number);
                number
            }
        };
        Ok(Place { network: self.name(number) })
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
        let Some(number) = surplus else { return Ok(()) };
        let removed = self.docker.remove_network(&self.name(number)).await;
        unless_absent(removed).map_err(|e| fault("remove a network", &e))
    }

    /// Makes as many ahead as are configured.
    pub(super) async fn fill(&self) -> Result<(), RuntimeError> {
        while self.state.lock().free.len() < self.ready {
            let number = self.make().await?;
            self.state.lock().free.insert(number);
        }
        Ok(())
    }

    /// Makes a network with addresses that nobody has.
    async fn make(&self) -> Result<u32, RuntimeError> {
        loop {
            let number = {
                let mut state = self.state.lock();
                let taken = |number: &u32| {
                    state.free.contains(number)
                        || state.blocked.contains(number)
                        || state.used.values().any(|used| used == number)
                };
                let number = (0..self.count).find(|number| !taken(number));
                let number =
                    number.ok_or_else(|| failed("every network's addresses are in use"))?;
                // Nobody else is to try it meanwhile.
                state.blocked.insert(number);
                number
            };
            let made = self.docker.create_network(self.described(number)).await;
            match made {
                Ok(_) => {
                    self.state.lock().blocked.remove(&number);
                    return Ok(number);
                }
                Err(e) if answer(&e).is_some_and(|(_, text)| text.contains("already exists")) => {
                    self.state.lock().blocked.remove(&number);
                    return Ok(number);
                }
                // Somebody's network is in the way.
                Err(e) if answer(&e).is_some_and(|(_, text)| text.contains("overlap")) => {}
                Err(e) => {
                    self.state.lock().blocked.remove(&number);
                    return Err(fault("make a network", &e));
                }
            }
        }
    }

    fn described(&self, number: u32) -> NetworkCreateRequest {
        let first = Ipv4Addr::from(self.first + number * ADDRESSES);
        let gateway = Ipv4Addr::from(self.first + number * ADDRESSES + 1);
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
