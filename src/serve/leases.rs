//! Who holds what: a state machine, events in and decisions out. Pure: it opens nothing, asks no clock, and knows a
//! container only by the facts in the events. Whoever runs it carries decisions out in their order, before the next
//! event.

use std::time::Duration;

use hooks::lease::{Container, Lease, Request};

use crate::plan::kept::Kept;
use crate::serve::refusal::Refusal;

/// A request that was not answered yet.
pub type Ticket = u64;

/// A container's first process, for good: process ids come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Process id.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

/// What a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The request to answer.
    pub ticket: Ticket,
    /// What the kernel says of the container.
    pub container: Container,
    /// What the hook says.
    pub request: Request,
    /// Name of the user that the container is of; none for root.
    pub user: Option<String>,
    /// Seconds since the epoch.
    pub wall: u64,
    /// On a clock that only goes forward.
    pub now: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A plan is in force.
    Plan(Box<Kept>),
    /// A lease from before this daemon started, whose container still runs.
    Adopted(Box<Lease>),
    /// A request.
    Asked(Box<Ask>),
    /// The caller of a request went away before its answer.
    Left(Ticket),
    /// A first process is gone; its cgroup may still have processes.
    FirstProcessGone(Key),
    /// A container is gone: first process and cgroup.
    Gone(Key),
    /// A grant could not be carried out: as if it had never been made. The carrier has answered.
    Failed(Key),
    /// Time went by.
    Time(Duration),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the lease, deny what `Lease::remove` says, answer. For a container that has it already: the same again.
    Grant(Ticket, Box<Lease>),
    /// Answer, and remember.
    Refuse(Ticket, Box<Refusal>),
    /// Tell that it waits: seconds at most, and how many wait before it.
    Queue(Ticket, u64, u32),
    /// Remove the lease.
    End(Box<Lease>),
}
