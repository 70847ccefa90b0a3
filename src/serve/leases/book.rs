//! The leases there are, with what follows from them at hand: which devices they hold, how many each user has, whose
//! mount namespace is whose.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hooks::lease::{Container, Lease, LeasedDevice};

use crate::mps::settings::Settings;
use crate::plan::kept::Kept;
use crate::serve::leases::Key;
use crate::serve::leases::refusal::Holder;
use crate::serve::leases::stock::{Change, Count, Index, Stock, View};

/// A lease, with what its file does not say.
#[derive(Clone, Debug)]
pub struct Held {
    /// As it is on disk.
    pub lease: Lease,
    /// Name of its user, if it was granted by this daemon.
    pub user: Option<String>,
    /// Its first process is gone.
    pub is_ending: bool,
}

impl Held {
    /// What a refusal says of it.
    pub fn holder(&self) -> Holder {
        Holder {
            container: self.lease.container.clone(),
            user: self.user.clone(),
            since: self.lease.since,
            is_ending: self.is_ending,
        }
    }
}

/// All leases.
#[derive(Debug, Default)]
pub struct Book {
    stock: Stock,
    leases: BTreeMap<Key, Held>,
    by_uid: HashMap<u32, Count>,
    /// Who is on each device, by its UUID.
    parties: HashMap<String, BTreeMap<Party, Count>>,
    ending: usize,
}

/// UUIDs of devices that somebody cannot have a share of.
pub type Barred = BTreeSet<String>;

/// Those whose leases are alike for an MPS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Party {
    is_mps: bool,
    /// The user of their programs, who may have no number here.
    user: Option<u32>,
}

impl Party {
    fn of(lease: &Lease) -> Self {
        Self { is_mps: lease.mps.is_some(), user: lease.container.process_uid }
    }

    /// Whether they keep a container from a device that has this MPS server by the plan, or none. Without a number
    /// nobody knows whose programs are the same user's.
    fn bars(self, settings: Option<&Settings>, container: &Container) -> bool {
        let is_other = self.user.is_none() || self.user != container.process_uid;
        match settings {
            Some(settings) => !self.is_mps || !settings.multi_user && is_other,
            None => self.is_mps,
        }
    }
}

impl Book {
    /// Puts a plan in force. What is held stays held.
    pub fn take_up(&mut self, plan: Kept) {
        let mut stock = Stock::new(plan);
        for held in self.leases.values() {
            for device in &held.lease.devices {
                stock.change(device, Change::Taken);
                if held.is_ending {
                    stock.change(device, Change::Ending);
                }
            }
        }
        self.stock = stock;
    }

    /// What the plan in force has.
    pub fn stock(&self) -> &Stock {
        &self.stock
    }

    /// A container's lease.
    pub fn get(&self, key: Key) -> Option<&Held> {
        self.leases.get(&key)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Held> {
        self.leases.values()
    }

    /// Whether a lease waits for its container's last process.
    pub fn is_any_ending(&self) -> bool {
        self.ending > 0
    }

    /// Enters a lease of a container that has none.
    pub fn enter(&mut self, key: Key, lease: Lease, user: Option<String>) {
        let held = Held { lease, user, is_ending: false };
        self.count(&held.lease, Change::Taken);
        self.leases.insert(key, held);
    }

    /// Notes that a container's first process is gone.
    pub fn end_begins(&mut self, key: Key) {
        let Some(held) = self.leases.get_mut(&key).filter(|held| !held.is_ending) else { return };
        held.is_ending = true;
        self.ending += 1;
        let lease = held.lease.clone();
        self.count(&lease, Change::Ending);
    }

    /// Strikes a lease out.
    pub fn strike(&mut self, key: Key) -> Option<Lease> {
        let held = self.leases.remove(&key)?;
        self.ending -= usize::from(held.is_ending);
        self.count(&held.lease, Change::Free { was_ending: held.is_ending });
        Some(held.lease)
    }

    fn count(&mut self, lease: &Lease, change: Change) {
        let of_user = self.by_uid.entry(lease.container.uid).or_default();
        for device in &lease.devices {
            change.apply(of_user);
            let parties = self.parties.entry(device.uuid.clone()).or_default();
            let of_party = parties.entry(Party::of(lease)).or_default();
            change.apply(of_party);
            if of_party.of(View::Now) == 0 {
                parties.remove(&Party::of(lease));
            }
            if parties.is_empty() {
                self.parties.remove(&device.uuid);
            }
            self.stock.change(device, change);
        }
        if of_user.of(View::Now) == 0 {
            self.by_uid.remove(&lease.container.uid);
        }
    }

    /// How many devices the containers of a user hold.
    pub fn held_by(&self, uid: u32, view: View) -> u32 {
        self.by_uid.get(&uid).map_or(0, |count| count.of(view))
    }

    /// Devices that a container cannot have a share of because of what others have there.
    pub fn barred_to(&self, container: &Container, view: View) -> Barred {
        let is_barred = |(uuid, parties): &(&String, &BTreeMap<Party, Count>)| {
            let settings = self.stock.mps(uuid);
            let there = parties.iter().filter(|(_, count)| count.of(view) > 0);
            there.into_iter().any(|(party, _)| party.bars(settings, container))
        };
        self.parties.iter().filter(is_barred).map(|(uuid, _)| uuid.clone()).collect()
    }

    /// Who keeps a container from the device with this UUID so.
    pub fn who_bars(&self, uuid: &str, container: &Container) -> Option<&Held> {
        let settings = self.stock.mps(uuid);
        let is_on = |held: &&Held| held.lease.devices.iter().any(|device| device.uuid == uuid);
        let bars = |held: &&Held| Party::of(&held.lease).bars(settings, container);
        self.leases.values().filter(is_on).find(bars)
    }

    /// Whether a container but this one has something of the device with this UUID.
    pub fn is_used_beside(&self, uuid: &str, key: Key) -> bool {
        let is_on = |held: &Held| held.lease.devices.iter().any(|device| device.uuid == uuid);
        self.leases.iter().any(|(other, held)| *other != key && is_on(held))
    }

    /// What keeps a device from others, and who has it.
    pub fn holder_of(&self, index: Index) -> Option<(&LeasedDevice, &Held)> {
        self.leases.values().find_map(|held| {
            let device = held.lease.devices.iter().find(|device| self.stock.excludes(device, index))?;
            Some((device, held))
        })
    }

    /// A lease that has a device which this one has too, or excludes.
    pub fn clash(&self, lease: &Lease) -> Option<&Held> {
        let excludes = |held: &Held| {
            let theirs = held.lease.devices.iter();
            theirs
                .flat_map(|a| lease.devices.iter().map(move |b| (a, b)))
                .any(|(a, b)| if a.is_share && b.is_share { a.name == b.name } else { a.uuid == b.uuid })
        };
        self.leases.values().find(|held| excludes(held))
    }
}
