//! Those who wait, in the order in which they came.

use std::time::Duration;

use hooks::lease::DeviceName;

use crate::serve::leases::stock::{GroupId, Wanted};
use crate::serve::leases::{Ask, Key, Ticket};

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
        Self { ask, tickets, wanted, state: State::New, until, lacks: Vec::new() }
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

/// Whether two lists of names ask for the same, in whatever order.
pub fn same(a: &[DeviceName], b: &[DeviceName]) -> bool {
    let sorted = |names: &[DeviceName]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    sorted(a) == sorted(b)
}
