//! Which node ports are free. TCP and UDP are counted apart, unless the runtime has numbers only.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use stackd_core::clock::BootTime;
use stackd_core::{PortMapping, Protocol, TargetPort};

/// How long a port that a foreign process held is left alone.
const FOREIGN_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Set {
    taken: Vec<bool>,
    next: usize,
    used: usize,
}

/// The node ports of this server.
#[derive(Debug)]
pub(crate) struct Ports {
    first: u16,
    tcp: Set,
    /// Of UDP, where that has ports of its own.
    udp: Option<Set>,
    foreign: HashMap<(Protocol, u16), BootTime>,
}

impl Ports {
    /// All ports of the range are free. `apart` says whether one number may be given out for TCP and
    /// for UDP, `seed` where giving out begins.
    pub(crate) fn new(range: &RangeInclusive<u16>, apart: bool, seed: u64) -> Self {
        let len = range.len();
        let next = usize::try_from(seed % (len.max(1) as u64)).unwrap_or(0);
        let set = || Set { taken: vec![false; len], next, used: 0 };
        let udp = apart.then(set);
        Self { first: *range.start(), tcp: set(), udp, foreign: HashMap::new() }
    }

    fn set(&mut self, protocol: Protocol) -> &mut Set {
        match (protocol, &mut self.udp) {
            (Protocol::Udp, Some(udp)) => udp,
            _ => &mut self.tcp,
        }
    }

    /// What a port is known by that somebody else holds.
    fn key(&self, (protocol, port): (Protocol, u16)) -> (Protocol, u16) {
        if self.udp.is_some() { (protocol, port) } else { (Protocol::Tcp, port) }
    }

    fn index(&self, port: u16) -> Option<usize> {
        port.checked_sub(self.first).map(usize::from).filter(|i| *i < self.tcp.taken.len())
    }

    /// Takes a node port for each target, or none at all where one has none left.
    pub(crate) fn take(
        &mut self,
        targets: &[TargetPort],
        now: BootTime,
    ) -> Option<Vec<PortMapping>> {
        self.foreign.retain(|_, until| *until > now);
        let mut mappings = Vec::with_capacity(targets.len());
        for target in targets {
            match self.take_one(target.protocol) {
                Some(node_port) => mappings.push(PortMapping {
                    container_port: target.container_port,
                    protocol: target.protocol,
                    node_port,
                }),
                None => {
                    self.give_back(&mappings);
                    return None;
                }
            }
        }
        Some(mappings)
    }

    /// The next free port after the last one given out, so that a port rests as long as possible
    /// before another stack gets it.
    fn take_one(&mut self, protocol: Protocol) -> Option<u16> {
        let first = self.first;
        let len = self.tcp.taken.len();
        for step in 0..len {
            let set = self.set(protocol);
            let i = (set.next + step) % len;
            let taken = set.taken[i];
            let port = first + u16::try_from(i).ok()?;
            if taken || self.foreign.contains_key(&self.key((protocol, port))) {
                continue;
            }
            let set = self.set(protocol);
            set.taken[i] = true;
            set.used += 1;
            set.next = i + 1;
            return Some(port);
        }
        None
    }

    /// Marks the ports of a stack that was loaded. Ports outside of the range are its own affair.
    pub(crate) fn occupy(&mut self, mappings: &[PortMapping]) {
        for mapping in mappings {
            let Some(i) = self.index(mapping.node_port) else { continue };
            let set = self.set(mapping.protocol);
            if !std::mem::replace(&mut set.taken[i], true) {
                set.used += 1;
            }
        }
    }

    /// Frees ports.
    pub(crate) fn give_back(&mut self, mappings: &[PortMapping]) {
        for mapping in mappings {
            let Some(i) = self.index(mapping.node_port) else { continue };
            let set = self.set(mapping.protocol);
            if std::mem::replace(&mut set.taken[i], false) {
                set.used -= 1;
            }
        }
    }

    /// Leaves ports alone for a while that somebody else holds.
    pub(crate) fn avoid(&mut self, held: &[(Protocol, u16)], now: BootTime) {
        for port in held {
            self.foreign.insert(self.key(*port), now.after(FOREIGN_FOR));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootTime = BootTime(Duration::from_secs(100));

    fn target(protocol: Protocol) -> TargetPort {
        TargetPort { container_port: 53, protocol }
    }

    #[test]
    fn protocols_are_counted_apart_and_nothing_is_given_twice() {
        let mut ports = Ports::new(&(31001..=31002), true, 1);
        let both = [target(Protocol::Tcp), target(Protocol::Udp)];
        let a = ports.take(&both, NOW).unwrap();
        let b = ports.take(&both, NOW).unwrap();
        assert_ne!(a[0].node_port, b[0].node_port);
        assert_eq!(a[0].node_port, a[1].node_port);
        assert_eq!(ports.take(&both, NOW), None);
        ports.give_back(&a);
        assert_eq!(ports.take(&both, NOW), Some(a));
    }

    #[test]
    fn where_a_port_is_a_number_it_is_given_for_one_protocol() {
        let mut ports = Ports::new(&(31001..=31003), false, 0);
        let both = [target(Protocol::Tcp), target(Protocol::Udp)];
        let taken = ports.take(&both, NOW).unwrap();
        assert_ne!(taken[0].node_port, taken[1].node_port);
        assert_eq!(ports.take(&both, NOW), None, "one is left");
        ports.give_back(&taken);
        // What is held in one protocol is held in the other.
        ports.avoid(&[(Protocol::Udp, 31001), (Protocol::Tcp, 31002)], NOW);
        let left = ports.take(&both[..1], NOW).unwrap();
        assert_eq!(left[0].node_port, 31003);
        assert_eq!(ports.take(&both[1..], NOW), None);
    }

    #[test]
    fn a_list_that_does_not_fit_takes_nothing() {
        let mut ports = Ports::new(&(31001..=31002), true, 0);
        let three = [target(Protocol::Tcp); 3];
        assert_eq!(ports.take(&three, NOW), None);
        assert_eq!(ports.tcp.used, 0);
        assert!(ports.take(&three[..2], NOW).is_some());
    }

    #[test]
    fn a_foreign_port_is_left_alone_for_a_while() {
        let mut ports = Ports::new(&(31001..=31001), true, 0);
        let one = [target(Protocol::Tcp)];
        ports.avoid(&[(Protocol::Tcp, 31001)], NOW);
        assert_eq!(ports.take(&one, NOW), None);
        assert!(ports.take(&one, NOW.after(FOREIGN_FOR)).is_some());
    }
}
