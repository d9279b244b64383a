//! Start slots: how many starts are under way at once, and whose turn it is next.
//!
//! Tenants take turns, so that one who asks for a hundred stacks delays another by one start, not
//! by a hundred. Within a tenant the order is that of asking.

use std::collections::{HashMap, VecDeque};

use stackd_core::StackId;
use tokio::sync::oneshot;

#[derive(Debug)]
struct Waiting {
    id: StackId,
    go: oneshot::Sender<()>,
}

/// The start slots and the queue for them.
#[derive(Debug)]
pub(crate) struct Starts {
    slots: usize,
    busy: usize,
    /// Tenants with someone waiting, in the order of their turns.
    turns: VecDeque<String>,
    waiting: HashMap<String, VecDeque<Waiting>>,
    tenant_of: HashMap<StackId, String>,
}

/// How asking for a slot went.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A slot is free and taken now.
    Now,
    /// A slot is taken when this completes; an error means the wait was given up.
    Later(oneshot::Receiver<()>),
}

impl Starts {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots: slots.max(1),
            busy: 0,
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            tenant_of: HashMap::new(),
        }
    }

    /// Asks for a slot. Each [`Turn`] that leads to a start is given back by [`Starts::leave`].
    pub(crate) fn enter(&mut self, tenant: &str, id: StackId) -> Turn {
        if self.busy < self.slots && self.turns.is_empty() {
            self.busy += 1;
            return Turn::Now;
        }
        let (go, turn) = oneshot::channel();
        let queue = self.waiting.entry(tenant.to_owned()).or_default();
        if queue.is_empty() {
            self.turns.push_back(tenant.to_owned());
        }
        queue.push_back(Waiting { id, go });
        self.tenant_of.insert(id, tenant.to_owned());
        Turn::Later(turn)
    }

    /// Gives a slot back.
    pub(crate) fn leave(&mut self) {
        self.busy = self.busy.saturating_sub(1);
        while self.busy < self.slots {
            let Some(next) = self.pop() else { return };
            // A receiver that is gone gave up between its turn and now.
            if next.go.send(()).is_ok() {
                self.busy += 1;
            }
        }
    }

    /// Gives up waiting.
    pub(crate) fn give_up(&mut self, id: StackId) {
        let Some(tenant) = self.tenant_of.remove(&id) else { return };
        let Some(queue) = self.waiting.get_mut(&tenant) else { return };
        queue.retain(|waiting| waiting.id != id);
        if queue.is_empty() {
            self.waiting.remove(&tenant);
            self.turns.retain(|turn| *turn != tenant);
        }
    }

    fn pop(&mut self) -> Option<Waiting> {
        let tenant = self.turns.pop_front()?;
        let queue = self.waiting.get_mut(&tenant)?;
        let next = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        self.tenant_of.remove(&next.id);
        Some(next)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.tenant_of.len()
    }

    /// The place of a waiting stack, from 1, and how many wait.
    pub(crate) fn place(&self, id: StackId) -> Option<(usize, usize)> {
        let tenant = self.tenant_of.get(&id)?;
        let turn = self.turns.iter().position(|t| t == tenant)?;
        let ahead_of_own = self.waiting.get(tenant)?.iter().position(|w| w.id == id)?;
        let mut before = 0;
        for (i, other) in self.turns.iter().enumerate() {
            let len = self.waiting.get(other).map_or(0, VecDeque::len);
            // In each round before ours everybody goes once; in ours, those whose turn is earlier.
            let rounds = ahead_of_own + usize::from(i < turn);
            before += len.min(rounds);
        }
        Some((before + 1, self.waiting()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> StackId {
        StackId::from_bits(n)
    }

    fn queue(starts: &mut Starts, tenant: &str, n: u64) -> oneshot::Receiver<()> {
        match starts.enter(tenant, id(n)) {
            Turn::Later(turn) => turn,
            Turn::Now => panic!("a slot was free"),
        }
    }

    #[test]
    fn tenants_take_turns_and_the_shown_place_is_the_real_one() {
        let mut starts = Starts::new(1);
        assert!(matches!(starts.enter("a", id(0)), Turn::Now));
        let asked = [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)];
        let mut turns: Vec<_> =
            asked.iter().map(|(tenant, n)| (*n, queue(&mut starts, tenant, *n))).collect();
        let mut shown: Vec<_> =
            asked.iter().map(|(_, n)| (starts.place(id(*n)).unwrap().0, *n)).collect();
        shown.sort_unstable();
        let mut served = Vec::new();
        while !turns.is_empty() {
            starts.leave();
            let i = turns.iter_mut().position(|(_, turn)| turn.try_recv().is_ok()).unwrap();
            served.push(turns.remove(i).0);
        }
        assert_eq!(served, [1, 4, 5, 2, 6, 3]);
        assert_eq!(shown.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), served);
    }

    #[test]
    fn who_gives_up_takes_no_slot() {
        let mut starts = Starts::new(1);
        assert!(matches!(starts.enter("a", id(0)), Turn::Now));
        drop(queue(&mut starts, "a", 1));
        let mut second = queue(&mut starts, "b", 2);
        starts.give_up(id(1));
        assert_eq!(starts.place(id(2)), Some((1, 1)));
        starts.leave();
        assert!(second.try_recv().is_ok());
        starts.leave();
        assert!(matches!(starts.enter("a", id(3)), Turn::Now));
    }
}
