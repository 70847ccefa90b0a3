//! Who holds what: a state machine, events in and decisions out. Pure: it opens nothing, asks no clock, and knows a
//! container only by the facts in the events. Whoever runs it carries decisions out in their order, before the next
//! event, and says what time it is before an event that may grant (`Event::Time`), so that a lease begins when it does.
//!
//! - `stock`: what the plan has, and how much of it is held
//! - `book`: the leases
//! - `queue`: requests that wait
//! - `admit`: what can never be granted
//! - `attempt`: what cannot be granted now, and whose fault that is
//! - `choose`: which devices of a pool
//! - `brought`: nodes that a container has past what it is granted
//! - `starting`: grants that wait for an MPS server, and whose it is if that does not run
//! - `refusal`: why not, in data and in words

mod admit;
mod attempt;
mod book;
mod brought;
mod choose;
pub mod queue;
pub mod refusal;
mod starting;
mod stock;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hooks::lease::{Container, DeviceName, Lease, LeasedMps, Request, VERSION};

use crate::mps::place::Place as Mps;
use crate::mps::settings::Settings;
use crate::plan::kept::Kept;
use crate::publish::PLAN;
use admit::{admit, no_cgroup};
use attempt::{Lack, all_pools, attempt, check};
use book::Book;
use queue::{State, Waiter, ahead};
use refusal::{No, Reason, Refusal};
use starting::Starting;
use stock::{GroupId, Index, View, Wanted};

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

impl Key {
    /// That of a container.
    pub fn of(container: &Container) -> Self {
        Self { pid: container.pid, start_time: container.start_time }
    }
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
    /// The MPS server runs of whose shares a container has one.
    Served(Key),
    /// It does not, and the container was granted its share for it.
    Unserved(Key, Box<No>),
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
    /// Tell that it waits: seconds at most, and how many wait before it. To who waits for an end, and then queues, it is
    /// told twice; the first time is long enough for both.
    Queue(Ticket, u64, u32),
    /// Remove the lease.
    End(Box<Lease>),
    /// Remove the lease, and take back what its grant denied: its container gets another, or none.
    Withdraw(Box<Lease>),
    /// Something for the log that no caller asked about.
    Warn(String),
}

/// The state: leases, and requests that are not answered yet.
#[derive(Debug, Default)]
pub struct Leases {
    book: Book,
    waiters: Vec<Waiter>,
    starting: Starting,
    /// Where plans come from, and MPS servers have their directories.
    state_dir: PathBuf,
    has_plan: bool,
    now: Duration,
}

impl Leases {
    /// Without leases and plan, which would come from that directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, ..Self::default() }
    }

    /// Takes note of what happened, and says what is to be done.
    pub fn handle(&mut self, event: Event) -> Vec<Decision> {
        let mut decisions = Vec::new();
        match event {
            Event::Plan(plan) => self.take_up(*plan, &mut decisions),
            Event::Adopted(lease) => self.adopt(*lease, &mut decisions),
            Event::Asked(ask) => self.asked(*ask, &mut decisions),
            Event::Left(ticket) => self.left(ticket),
            Event::FirstProcessGone(key) => {
                self.forget(key, &mut decisions);
                self.book.end_begins(key);
            }
            Event::Gone(key) => {
                self.forget(key, &mut decisions);
                self.starting.remove(key);
                decisions.extend(self.book.strike(key).map(|lease| Decision::End(Box::new(lease))));
            }
            Event::Failed(key) => {
                self.starting.remove(key);
                self.book.strike(key);
            }
            Event::Served(key) => self.served(key),
            Event::Unserved(key, no) => self.unserved(key, *no, &mut decisions),
            Event::Time(now) => self.now = self.now.max(now),
        }
        self.serve(&mut decisions);
        decisions
    }

    /// When `Event::Time` is needed; none while nothing waits.
    pub fn next_deadline(&self) -> Option<Duration> {
        let ends = self.waiters.iter().map(|waiter| waiter.until);
        ends.chain(self.starting.next_try(&self.waiters)).min()
    }

    /// A container's lease.
    pub fn lease_of(&self, key: Key) -> Option<&Lease> {
        self.book.get(key).map(|held| &held.lease)
    }

    /// All leases.
    pub fn all(&self) -> impl Iterator<Item = &Lease> {
        self.book.all().map(|held| &held.lease)
    }

    /// What the MPS server of the device with this UUID shall be, if the plan in force shares it so.
    pub fn mps(&self, uuid: &str) -> Option<&Settings> {
        self.book.stock().mps(uuid)
    }

    /// What all of them shall be.
    pub fn mps_settings(&self) -> impl Iterator<Item = &Settings> {
        self.book.stock().mps_settings()
    }

    /// Leases of shares of the MPS server of the device with this UUID.
    pub fn on_mps<'a>(&'a self, uuid: &'a str) -> impl Iterator<Item = &'a Lease> {
        let is_on = move |lease: &&Lease| lease.devices.iter().any(|device| device.uuid == uuid);
        self.all().filter(|lease| lease.mps.is_some()).filter(is_on)
    }

    /// Whether a container but this one has something of the device with this UUID.
    pub fn is_used_beside(&self, uuid: &str, key: Key) -> bool {
        self.book.is_used_beside(uuid, key)
    }

    fn take_up(&mut self, plan: Kept, decisions: &mut Vec<Decision>) {
        self.has_plan = true;
        self.book.take_up(plan);
        for mut waiter in std::mem::take(&mut self.waiters) {
            match self.admit(&waiter.ask) {
                Ok(wanted) => {
                    waiter.wanted = wanted;
                    self.waiters.push(waiter);
                }
                Err(reason) => self.refuse(&waiter, reason, decisions),
            }
        }
    }

    /// A hold that is in doubt is kept: two containers that run with one device are better known than one of them.
    fn adopt(&mut self, lease: Lease, decisions: &mut Vec<Decision>) {
        let key = Key::of(&lease.container);
        if let Some(held) = self.book.get(key) {
            if held.lease != lease {
                decisions.push(Decision::Warn(format!(
                    "container {} has two leases: the one since {} is kept",
                    lease.container.id, held.lease.since
                )));
            }
            return;
        }
        if let Some(held) = self.book.clash(&lease) {
            decisions.push(Decision::Warn(format!(
                "containers {} and {} have leases of one device: both are kept until they end",
                held.lease.container.id, lease.container.id
            )));
        }
        self.book.enter(key, lease, None);
    }

    fn asked(&mut self, ask: Ask, decisions: &mut Vec<Decision>) {
        self.now = self.now.max(ask.now);
        let key = Key::of(&ask.container);
        let asked = &ask.request.devices;
        if let Some(held) = self.book.get(key) {
            if queue::same(&held.lease.asked, asked) {
                decisions.push(Decision::Grant(ask.ticket, Box::new(held.lease.clone())));
                self.starting.joins(key, ask.ticket);
            } else {
                decisions.push(asks_another(&ask, &held.lease.asked));
            }
            return;
        }
        if let Some(place) = self.waiters.iter().position(|waiter| waiter.key() == key) {
            self.joins(place, &ask, decisions);
            return;
        }
        match self.admit(&ask) {
            Ok(wanted) => self.waiters.push(Waiter::new(ask, wanted)),
            Err(reason) => decisions.push(refusal(&ask, ask.ticket, ask.wall, reason)),
        }
    }

    /// Another hook of a container that waits: it is answered with the first.
    fn joins(&mut self, place: usize, ask: &Ask, decisions: &mut Vec<Decision>) {
        let waiter = &self.waiters[place];
        if !queue::same(&waiter.ask.request.devices, &ask.request.devices) {
            decisions.push(asks_another(ask, &waiter.ask.request.devices));
            return;
        }
        let ahead = ahead(&self.waiters[..place], &waiter.lacks);
        decisions.push(Decision::Queue(ask.ticket, self.longest(waiter), ahead));
        self.waiters[place].tickets.push(ask.ticket);
    }

    fn admit(&self, ask: &Ask) -> Result<Wanted, Reason> {
        if !self.has_plan {
            return Err(Reason::NoPlan { file: self.state_dir.join(PLAN) });
        }
        admit(self.book.stock(), &ask.request, &ask.container, ask.user.as_deref())
    }

    fn left(&mut self, ticket: Ticket) {
        for waiter in &mut self.waiters {
            waiter.tickets.retain(|other| *other != ticket);
        }
        self.waiters.retain(|waiter| !waiter.tickets.is_empty());
        self.starting.left(ticket);
    }

    /// A container that is gone waits for nothing.
    fn forget(&mut self, key: Key, decisions: &mut Vec<Decision>) {
        if let Some(place) = self.waiters.iter().position(|waiter| waiter.key() == key) {
            let waiter = self.waiters.remove(place);
            self.refuse(&waiter, Reason::ContainerGone, decisions);
        }
    }

    fn serve(&mut self, decisions: &mut Vec<Decision>) {
        self.starting.forgive(&mut self.waiters, self.now);
        // A grant may take what one before it lacks besides: they are looked at again.
        while self.serve_first(decisions) {}
    }

    /// Grants the first request that can be granted, and ends waits that are over or in vain, in the order in which they
    /// were asked for. Whether one was granted.
    fn serve_first(&mut self, decisions: &mut Vec<Decision>) -> bool {
        let mut before = BTreeSet::new();
        let mut waiters = std::mem::take(&mut self.waiters).into_iter();
        while let Some(mut waiter) = waiters.next() {
            match attempt(&self.book, &waiter, &before, &self.starting.avoided()) {
                Ok(_) if self.has_had_its_time(&waiter) => {
                    let all = all_pools(&waiter.wanted);
                    let reason = attempt::reason(&self.book, &waiter, &all, &|_| 0);
                    self.refuse(&waiter, reason, decisions);
                }
                Ok(picks) => {
                    self.grant(waiter, &picks, decisions);
                    self.waiters.extend(waiters);
                    return true;
                }
                Err(lack) if self.waits(&mut waiter, &lack, decisions) => {
                    if !self.is_free_for_others(&waiter, &before) {
                        before.extend(lack.pools().iter().copied());
                    }
                    waiter.lacks = lack.pools().to_vec();
                    self.waiters.push(waiter);
                }
                Err(lack) => {
                    let reason = self.in_the_way(&waiter, &lack);
                    self.refuse(&waiter, reason, decisions);
                }
            }
        }
        false
    }

    /// Whether a request that cannot be granted waits on.
    fn waits(&self, waiter: &mut Waiter, lack: &Lack, decisions: &mut Vec<Decision>) -> bool {
        let is_over = waiter.state != State::New && waiter.until <= self.now;
        if is_over || self.is_refused_by_all(waiter, lack) {
            return false;
        }
        match waiter.state {
            State::Queued => matches!(lack, Lack::Pools(_)) || self.ending_is_in_the_way(waiter),
            State::New | State::Ending => {
                if let Some(seconds) = self.wait_of(lack) {
                    waiter.state = State::Queued;
                    waiter.until = self.now.saturating_add(Duration::from_secs(seconds));
                    self.tell(waiter, lack, decisions);
                    return true;
                }
                if self.has_had_its_time(waiter) || !self.ending_is_in_the_way(waiter) {
                    return false;
                }
                if waiter.state == State::New {
                    waiter.state = State::Ending;
                    waiter.until = self.now.saturating_add(queue::ENDING);
                    // It would give up a silent daemon before, if its patience is shorter.
                    self.tell(waiter, lack, decisions);
                }
                true
            }
        }
    }

    fn tell(&self, waiter: &Waiter, lack: &Lack, decisions: &mut Vec<Decision>) {
        let (seconds, ahead) = (self.longest(waiter), ahead(&self.waiters, lack.pools()));
        decisions.extend(waiter.tickets.iter().map(|ticket| Decision::Queue(*ticket, seconds, ahead)));
    }

    /// How long a request waits at most, in seconds. Who waits for an end may come to queue for its pools after it, and
    /// hooks believe what they are told first.
    fn longest(&self, waiter: &Waiter) -> u64 {
        let stock = self.book.stock();
        let waits = waiter.wanted.pools.iter().map(|(group, _)| stock.group(*group).pool.wait_seconds);
        let wait = waits.max().filter(|_| waiter.state != State::Queued).unwrap_or_default();
        let starts = starting::longest(waiter.wanted.mps_devices(stock), wait);
        waiter.seconds_left(self.now).saturating_add(starts)
    }

    /// How long who lacks this may queue, in seconds; none if not at all.
    fn wait_of(&self, lack: &Lack) -> Option<u64> {
        let stock = self.book.stock();
        let waits = lack.pools().iter().map(|group| stock.group(*group).pool.wait_seconds);
        waits.min().filter(|seconds| *seconds > 0)
    }

    /// Whether it would be granted, or could queue, if the containers were gone whose first process is.
    fn ending_is_in_the_way(&self, waiter: &Waiter) -> bool {
        if !self.book.is_any_ending() {
            return false;
        }
        match check(&self.book, waiter, View::EndingGone, &BTreeSet::new()) {
            Ok(()) => true,
            Err(lack) => self.wait_of(&lack).is_some(),
        }
    }

    fn in_the_way(&self, waiter: &Waiter, lack: &Lack) -> Reason {
        let waiting = |group| ahead(&self.waiters, &[group]);
        let reason = attempt::reason(&self.book, waiter, lack, &waiting);
        if waiter.state != State::Queued || waiter.until > self.now {
            return reason;
        }
        Reason::Waited { seconds: (self.now - waiter.ask.now).as_secs(), last: Box::new(reason) }
    }

    fn grant(&mut self, waiter: Waiter, picks: &[(GroupId, Index)], decisions: &mut Vec<Decision>) {
        let stock = self.book.stock();
        let ask = &waiter.ask;
        let indices: Vec<_> =
            waiter.wanted.named.iter().copied().chain(picks.iter().map(|(_, index)| *index)).collect();
        let remove = brought::to_remove(stock, &waiter.wanted, &indices, &ask.request.nodes);
        if !remove.is_empty() && ask.container.uid == 0 && ask.container.cgroup.is_none() {
            let reason = no_cgroup(stock, &waiter.wanted);
            self.refuse(&waiter, reason, decisions);
            return;
        }
        let named = waiter.wanted.named.iter().map(|index| stock.leased(*index, None));
        let picked = picks.iter().map(|(group, index)| stock.leased(*index, Some(*group)));
        let lease = Lease {
            version: VERSION,
            container: ask.container.clone(),
            since: self.wall(ask),
            asked: ask.request.devices.clone(),
            devices: named.chain(picked).collect(),
            remove,
            denied_by: None,
            mps: indices.iter().find_map(|index| self.mps_of(*index)),
        };
        let grant = |ticket: &Ticket| Decision::Grant(*ticket, Box::new(lease.clone()));
        decisions.extend(waiter.tickets.iter().map(grant));
        let is_mps = lease.mps.is_some();
        self.book.enter(waiter.key(), lease, ask.user.clone());
        if is_mps {
            let longest = self.longest(&waiter);
            self.starting.begins(waiter, longest, self.now);
        }
    }

    /// What a container gets of its share's MPS server.
    fn mps_of(&self, index: Index) -> Option<LeasedMps> {
        let stock = self.book.stock();
        stock.is_mps(index).then(|| {
            let uuid = &stock.device(index).uuid;
            let place = Mps::new(&self.state_dir, uuid);
            let shares_memory = stock.mps(uuid).is_some_and(|of| of.shared_memory_bytes.is_some());
            LeasedMps { front: place.front(), shared_memory: shares_memory.then(|| place.shared_memory()) }
        })
    }

    fn refuse(&self, waiter: &Waiter, reason: Reason, decisions: &mut Vec<Decision>) {
        let at = self.wall(&waiter.ask);
        let refuse = |ticket: &Ticket| refusal(&waiter.ask, *ticket, at, reason.clone());
        decisions.extend(waiter.tickets.iter().map(refuse));
    }

    /// Now, in seconds since the epoch, by the clock of the request.
    fn wall(&self, ask: &Ask) -> u64 {
        ask.wall.saturating_add(self.now.saturating_sub(ask.now).as_secs())
    }
}

fn asks_another(ask: &Ask, before: &[DeviceName]) -> Decision {
    refusal(ask, ask.ticket, ask.wall, Reason::AsksAnother { before: before.to_vec() })
}

fn refusal(ask: &Ask, ticket: Ticket, at: u64, reason: Reason) -> Decision {
    let refusal = Refusal {
        reason,
        asked: ask.request.devices.clone(),
        container: ask.container.clone(),
        user: ask.user.clone(),
        at,
    };
    Decision::Refuse(ticket, Box::new(refusal))
}
