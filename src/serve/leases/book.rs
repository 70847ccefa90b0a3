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
    /// Users whose programs are on each device, by its UUID. One without a number here is one of them.
    users_on: HashMap<String, BTreeMap<Option<u32>, Count>>,
    ending: usize,
}

/// UUIDs of devices whose MPS server serves one user at a time, and that is another than somebody's.
pub type Barred = BTreeSet<String>;

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
            let users = self.users_on.entry(device.uuid.clone()).or_default();
            let of_process = users.entry(lease.container.process_uid).or_default();
            change.apply(of_process);
            if of_process.of(View::Now) == 0 {
                users.remove(&lease.container.process_uid);
            }
            if users.is_empty() {
                self.users_on.remove(&device.uuid);
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

    /// Devices that a container cannot have a share of because of its user.
    pub fn barred_to(&self, container: &Container, view: View) -> Barred {
        let of_one_user = self.stock.mps_settings().filter(|settings| !settings.multi_user);
        let is_barred = |settings: &&Settings| {
            let users = self.users_on.get(&settings.uuid).into_iter().flatten();
            users
                .filter(|(_, count)| count.of(view) > 0)
                .any(|(user, _)| is_another(*user, container.process_uid))
        };
        of_one_user.filter(is_barred).map(|settings| settings.uuid.clone()).collect()
    }

    /// Who keeps a container from the device with this UUID because of its user.
    pub fn other_user_on(&self, uuid: &str, container: &Container) -> Option<&Held> {
        let is_on = |held: &&Held| held.lease.devices.iter().any(|device| device.uuid == uuid);
        let is_other = |held: &&Held| is_another(held.lease.container.process_uid, container.process_uid);
        self.leases.values().filter(is_on).find(is_other)
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

/// Whether two programs are of different users. Nobody knows whose one without a number is.
fn is_another(one: Option<u32>, other: Option<u32>) -> bool {
    one.is_none() || one != other
}
