//! Those who wait, in the order in which they came.

use std::time::Duration;

use hooks::lease::DeviceName;

use crate::serve::leases::refusal::Unserved;
use crate::serve::leases::stock::{GroupId, Wanted};
use crate::serve::leases::{Ask, Key, Leases, Ticket};

/// How long a start waits for containers to end whose first process is gone.
pub const ENDING: Duration = Duration::from_secs(5);

/// Seconds after which an MPS server's supervisor has said yes or no, or is given up.
pub const MPS_START: u64 = 120;

/// Why a request is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has looked at it.
    New,
    /// What it asks for is held by containers that are about to end, and it was told that it waits.
    Ending,
    /// It queues for its pools, and was told so.
    Queued,
}

/// A request that is not answered yet.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// As it came.
    pub ask: Ask,
    /// Its ticket, and those of its container's other hooks that asked the same.
    pub tickets: Vec<Ticket>,
    /// What it wants of the plan in force.
    pub wanted: Wanted,
    /// Why it waits.
    pub state: State,
    /// Until when.
    pub until: Duration,
    /// The pools that it lacks.
    pub lacks: Vec<GroupId>,
    /// Devices whose MPS servers do not run for it, in the order in which they were tried.
    pub tried: Vec<Unserved>,
    /// Who had not queued before is tried on no further device after that; none before the first.
    pub tries_until: Option<Duration>,
}

/// A place in the queue, for who only looks.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Who waits, and for what.
    pub ask: &'a Ask,
    /// Until when, in seconds since the epoch.
    pub until: u64,
    /// How many wait before it for a pool that it lacks.
    pub ahead: u32,
}

impl Waiter {
    /// A request that came just now.
    pub fn new(ask: Ask, wanted: Wanted) -> Self {
        let tickets = vec![ask.ticket];
        let until = ask.now;
        Self {
            ask,
            tickets,
            wanted,
            state: State::New,
            until,
            lacks: Vec::new(),
            tried: Vec::new(),
            tries_until: None,
        }
    }

    /// Whether the MPS server of the device with this UUID does not run for it.
    pub fn has_tried(&self, uuid: &str) -> bool {
        self.tried.iter().any(|tried| tried.uuid == uuid)
    }

    /// Who waits.
    pub fn key(&self) -> Key {
        Key::of(&self.ask.container)
    }

    /// Whole seconds until its time is over, rounded up.
    pub fn seconds_left(&self, now: Duration) -> u64 {
        let left = self.until.saturating_sub(now);
        left.as_secs() + u64::from(left.subsec_nanos() > 0)
    }
}

impl Leases {
    /// Who queues for a pool, the first in turn first. Who waits for a container that is about to end does not.
    pub fn queue(&self) -> Vec<Place<'_>> {
        let queued = self.waiters.iter().enumerate().filter(|(_, waiter)| waiter.state == State::Queued);
        queued.map(|(place, _)| self.place(place)).collect()
    }

    /// Where in the queue a request is.
    pub fn place_of(&self, ticket: Ticket) -> Option<Place<'_>> {
        let is_it = |waiter: &Waiter| waiter.state == State::Queued && waiter.tickets.contains(&ticket);
        self.waiters.iter().position(is_it).map(|place| self.place(place))
    }

    fn place(&self, place: usize) -> Place<'_> {
        let waiter = &self.waiters[place];
        let ask = &waiter.ask;
        let until = ask.wall.saturating_add(waiter.until.saturating_sub(ask.now).as_secs());
        Place { ask, until, ahead: ahead(&self.waiters[..place], &waiter.lacks) }
    }
}

/// How many of them wait for one of these pools.
pub fn ahead(waiters: &[Waiter], pools: &[GroupId]) -> u32 {
    let waits = |waiter: &&Waiter| waiter.lacks.iter().any(|group| pools.contains(group));
    u32::try_from(waiters.iter().filter(waits).count()).unwrap_or(u32::MAX)
}

/// Whether two lists of names ask for the same, in whatever order.
pub fn same(a: &[DeviceName], b: &[DeviceName]) -> bool {
    let sorted = |names: &[DeviceName]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    sorted(a) == sorted(b)
}
