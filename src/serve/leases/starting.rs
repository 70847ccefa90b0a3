//! Containers that were granted a share of an MPS server and are not told so before it runs. If it does not, the lease is
//! withdrawn, and who asked for any share of a pool is tried on another device: on each once, for as long as a start may
//! take; in a queue again where a device may have recovered. A name stays what it is, and is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hooks::lease::LeasedDevice;

use crate::serve::leases::attempt::{Lack, check};
use crate::serve::leases::queue::{MPS_START, State, Waiter};
use crate::serve::leases::refusal::{No, Reason, Unserved};
use crate::serve::leases::stock::{GroupId, View, Wanted};
use crate::serve::leases::{Decision, Key, Leases, Ticket};

/// For how long a device whose server did not run is chosen last, unless it does before: each container that it is chosen
/// for waits for the refusal. It is as long as a supervisor pauses at most.
const AVOIDED: Duration = Duration::from_secs(60);
/// For how long a start is tried on further devices.
const TRIES: Duration = Duration::from_secs(MPS_START);

/// Seconds within which a start is told whether it has a share, that may be one of so many MPS servers: no try begins
/// after [`TRIES`], and the last one may take as long again. `wait` is how long it may queue between them, and has one more
/// after that where two were in vain.
pub fn longest(devices: usize, wait: u64) -> u64 {
    let starts = match devices {
        0 => 0,
        1 => MPS_START,
        2 => TRIES.as_secs() + MPS_START,
        _ if wait == 0 => TRIES.as_secs() + MPS_START,
        _ => TRIES.as_secs() + 2 * MPS_START,
    };
    starts.saturating_add(wait)
}

/// Grants that are not known to be good, and devices that were not.
#[derive(Debug, Default)]
pub struct Starting {
    /// As they were when they were granted it, but for what they wanted of the plan: that may be another by the end.
    waiters: BTreeMap<Key, Start>,
    /// By their UUIDs, and until when.
    avoided: BTreeMap<String, Duration>,
}

#[derive(Debug)]
struct Start {
    waiter: Waiter,
    /// Seconds within which it is told whether it has a share, of which device ever.
    longest: u64,
}

impl Starting {
    /// A container has a lease, and its server is asked for; with all tries for so many seconds at most.
    pub fn begins(&mut self, waiter: Waiter, longest: u64, now: Duration) {
        let tries_until = waiter.tries_until.or(Some(now.saturating_add(TRIES)));
        let (wanted, lacks) = (Wanted::default(), Vec::new());
        let waiter = Waiter { wanted, lacks, tries_until, ..waiter };
        self.waiters.insert(waiter.key(), Start { waiter, longest });
    }

    /// Another hook of a container waits for the same.
    pub fn joins(&mut self, key: Key, ticket: Ticket) {
        if let Some(start) = self.waiters.get_mut(&key) {
            start.waiter.tickets.push(ticket);
        }
    }

    /// A hook waits no more. The container keeps its lease as long as it lives.
    pub fn left(&mut self, ticket: Ticket) {
        self.waiters.values_mut().for_each(|start| start.waiter.tickets.retain(|other| *other != ticket));
    }

    /// Nothing is waited for any more.
    pub fn remove(&mut self, key: Key) -> Option<Waiter> {
        self.waiters.remove(&key).map(|start| start.waiter)
    }

    /// Devices to be chosen last.
    pub fn avoided(&self) -> BTreeSet<String> {
        self.avoided.keys().cloned().collect()
    }

    /// Lets those who queue have devices that are not avoided any more.
    pub fn forgive(&mut self, waiters: &mut [Waiter], now: Duration) {
        self.avoided.retain(|_, until| *until > now);
        for waiter in waiters.iter_mut().filter(|waiter| waiter.state == State::Queued && waiter.until > now)
        {
            waiter.tried.retain(|tried| self.avoided.contains_key(&tried.uuid));
        }
    }

    /// When that may be: at once, where a minute was over before it came to queue.
    pub fn next_try(&self, waiters: &[Waiter]) -> Option<Duration> {
        let queued = waiters.iter().filter(|waiter| waiter.state == State::Queued);
        queued
            .flat_map(|waiter| &waiter.tried)
            .map(|tried| self.avoided.get(&tried.uuid).copied().unwrap_or_default())
            .min()
    }
}

impl Leases {
    /// Whether a container waits for the MPS server that its lease is of a share of.
    pub fn is_starting(&self, key: Key) -> bool {
        self.starting.waiters.contains_key(&key)
    }

    /// Seconds within which it is told whether it has a share, of which device ever.
    pub fn longest_start(&self, key: Key) -> u64 {
        self.starting.waiters.get(&key).map_or(MPS_START, |start| start.longest)
    }

    pub(super) fn served(&mut self, key: Key) {
        self.starting.remove(key);
        if let Some(share) = self.mps_share(key) {
            self.starting.avoided.remove(&share.uuid);
        }
    }

    pub(super) fn unserved(&mut self, key: Key, no: No, decisions: &mut Vec<Decision>) {
        // Who was told that it has its share keeps it.
        let Some(mut waiter) = self.starting.remove(key) else { return };
        let Some(LeasedDevice { uuid, pool, .. }) = self.mps_share(key) else { return };
        let is_ending = self.book.get(key).is_some_and(|held| held.is_ending);
        decisions.extend(self.book.strike(key).map(|lease| Decision::Withdraw(Box::new(lease))));
        self.starting.avoided.insert(uuid.clone(), self.now.saturating_add(AVOIDED));
        let what = self.mps(&uuid).map_or_else(|| uuid.clone(), |settings| settings.what.clone());
        waiter.tried.push(Unserved { uuid, what, no });
        if waiter.tickets.is_empty() {
            // Nobody hears it, and it is remembered.
            waiter.tickets.push(waiter.ask.ticket);
        } else if !is_ending && pool.is_some() {
            return self.try_again(waiter, decisions);
        }
        let reason = Reason::Unserved { tried: waiter.tried.clone(), held: Vec::new(), more: 0 };
        self.refuse(&waiter, reason, decisions);
    }

    /// It takes the place that it had.
    fn try_again(&mut self, mut waiter: Waiter, decisions: &mut Vec<Decision>) {
        // The plan may be another by now.
        match self.admit(&waiter.ask) {
            Ok(wanted) => waiter.wanted = wanted,
            Err(reason) => return self.refuse(&waiter, reason, decisions),
        }
        if waiter.state == State::Ending {
            waiter.state = State::New;
        }
        let later = self.waiters.iter().position(|other| other.ask.now > waiter.ask.now);
        self.waiters.insert(later.unwrap_or(self.waiters.len()), waiter);
    }

    /// Whether it has had its time on other devices, and is tried on no more: it may queue for what is held.
    pub(super) fn has_had_its_time(&self, waiter: &Waiter) -> bool {
        let is_over = waiter.tries_until.is_some_and(|until| until <= self.now);
        is_over
            && match waiter.state {
                State::New => true,
                State::Ending => false,
                State::Queued => waiter.until <= self.now,
            }
    }

    /// Whether it would be granted what servers refuse to it alone: it holds up nobody then.
    pub(super) fn is_free_for_others(&self, waiter: &Waiter, before: &BTreeSet<GroupId>) -> bool {
        let other = Waiter { tried: Vec::new(), ..waiter.clone() };
        !waiter.tried.is_empty() && check(&self.book, &other, View::Now, before).is_ok()
    }

    /// Whether no end of another container would help: the servers of all devices of a pool do not run for it.
    pub(super) fn is_refused_by_all(&self, waiter: &Waiter, lack: &Lack) -> bool {
        let stock = self.book.stock();
        lack.pools().iter().any(|group| {
            let devices = &stock.group(*group).devices;
            devices.iter().all(|index| waiter.has_tried(&stock.device(*index).uuid))
        })
    }

    /// The share of an MPS server that a container's lease is of.
    fn mps_share(&self, key: Key) -> Option<LeasedDevice> {
        let lease = self.lease_of(key).filter(|lease| lease.mps.is_some())?;
        lease.devices.iter().find(|device| device.is_share).cloned()
    }
}
