//! Waiting for many things at once: descriptors by epoll, moments by a heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// Which part of the shim waits for a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The listening control socket.
    Control,
    /// A connection to it.
    Peer,
    /// The first process of a container.
    Container,
    /// A container's output.
    Output,
    /// A further command.
    Command,
    /// A published TCP port.
    TcpPort,
    /// A relayed connection.
    Connection,
    /// A published UDP port.
    UdpPort,
    /// A relayed flow.
    Flow,
    /// An attempt of a probe.
    Probe,
    /// The kernel telling of a limit.
    Limit,
}

const KINDS: &[Kind] = &[
    Kind::Control,
    Kind::Peer,
    Kind::Container,
    Kind::Output,
    Kind::Command,
    Kind::TcpPort,
    Kind::Connection,
    Kind::UdpPort,
    Kind::Flow,
    Kind::Probe,
    Kind::Limit,
];

/// Who waits: a part of the shim and a number of its own choice. Numbers are not used twice, so
/// that a late event for something closed finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
}

impl Token {
    pub(crate) fn new(kind: Kind, id: u64) -> Self {
        Self { kind, id }
    }

    fn pack(self) -> u64 {
        (self.kind as u64) << 56 | self.id & ((1 << 56) - 1)
    }

    fn unpack(data: u64) -> Option<Self> {
        let kind = *KINDS.get(usize::try_from(data >> 56).ok()?)?;
        Some(Self { kind, id: data & ((1 << 56) - 1) })
    }
}

pub(crate) use rustix::event::epoll::EventFlags as Interest;

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits for a descriptor from now on.
    pub(crate) fn add(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), interest)
    }

    /// Waits for something else of it.
    pub(crate) fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
    ) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), interest)
    }

    /// Waits for it no more. A descriptor that other processes may hold must be removed before it
    /// is closed.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Not being there is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, or until `timeout` has passed.
    pub(crate) fn wait(
        &self,
        timeout: Option<Duration>,
        events: &mut Vec<(Token, Interest)>,
    ) -> std::io::Result<()> {
        events.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut buffer =
            [epoll::Event { flags: Interest::empty(), data: epoll::EventData::new_u64(0) }; 64];
        let n = match epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for event in &buffer[..n] {
            let (data, flags) = (event.data, event.flags);
            if let Some(token) = Token::unpack(data.u64()) {
                events.push((token, flags));
            }
        }
        Ok(())
    }
}

/// Moments at which something is to be done.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    count: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Instant,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), count: 0 }
    }

    /// Remembers to do something later.
    pub(crate) fn after(&mut self, delay: Duration, what: T) {
        self.count += 1;
        self.heap.push(Reverse(Entry { at: Instant::now() + delay, number: self.count, what }));
    }

    /// How long until the next is due.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let Reverse(next) = self.heap.peek()?;
        Some(next.at.saturating_duration_since(Instant::now()))
    }

    /// The next that is due.
    pub(crate) fn due(&mut self) -> Option<T> {
        if self.heap.peek()?.0.at > Instant::now() {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for (i, kind) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, i);
            let token = Token::new(*kind, 7 + i as u64);
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn timers_come_due_in_order() {
        let mut timers = Timers::new();
        timers.after(Duration::from_secs(60), "later");
        timers.after(Duration::ZERO, "first");
        timers.after(Duration::ZERO, "second");
        assert_eq!(
            (timers.due(), timers.due(), timers.due()),
            (Some("first"), Some("second"), None)
        );
        assert!(timers.timeout().is_some_and(|t| t > Duration::from_secs(50)));
    }
}
