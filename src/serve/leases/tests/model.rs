//! The rules of leases once more, as plainly as they can be written: no counts are kept, nothing is indexed, and whether
//! a request can be met is found by trying every combination. It says what has to be decided, and takes the devices that
//! were picked as they come, once it has seen that they may be.

use std::path::Path;

use hooks::lease::{DeviceName, LeasedDevice};

use super::*;
use crate::plan::Kind;
use crate::plan::kept::KeptDevice;

/// Has or will have a lease.
#[derive(Clone, Debug)]
pub struct Member {
    pub ask: Ask,
    pub tickets: Vec<u64>,
    pub devices: Vec<LeasedDevice>,
    /// Of an MPS server, by the plan of the time.
    pub is_mps: bool,
    pub is_ending: bool,
    pub queue: Option<Queue>,
}

#[derive(Clone, Copy, Debug)]
pub struct Queue {
    pub is_for_pools: bool,
    pub until: u64,
}

/// What has to be decided, but for the choice of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Grant(u64),
    Refuse(u64, u8),
    Queue(u64, u64, u32),
    End(Key),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub plan: Kept,
    pub holders: Vec<Member>,
    pub waiters: Vec<Member>,
    pub now: u64,
}

fn key_of(member: &Member) -> Key {
    Key::of(&member.ask.container)
}

/// Whether what is held keeps a device of the plan from others. A share of another plan may be any of its unit's.
fn keeps(plan: &Kept, held: &LeasedDevice, device: &LeasedDevice) -> bool {
    let is_known = plan.devices.iter().any(|of| of.name == held.name.name && of.uuid == held.uuid);
    exclude(held, device) || held.is_share && !is_known && held.uuid == device.uuid
}

fn exclude(a: &LeasedDevice, b: &LeasedDevice) -> bool {
    if a.is_share && b.is_share { a.name == b.name } else { a.uuid == b.uuid }
}

impl Model {
    fn leased(device: &KeptDevice) -> LeasedDevice {
        LeasedDevice {
            name: DeviceName { class: "gpu".into(), name: device.name.clone() },
            uuid: device.uuid.clone(),
            is_share: device.kind == Kind::Share,
            pool: None,
        }
    }

    fn named(&self, ask: &Ask) -> Vec<LeasedDevice> {
        let asked = |name: &str| ask.request.devices.iter().any(|asked| asked.name == name);
        let is_named = |device: &&KeptDevice| {
            let is_whole = device.kind != Kind::Share;
            device.leased && (asked(&device.name) || is_whole && (asked(&device.uuid) || asked("all")))
        };
        self.plan.devices.iter().filter(is_named).map(Self::leased).collect()
    }

    fn pools(&self, ask: &Ask) -> Vec<String> {
        let is_pool = |name: &&DeviceName| self.plan.pools.iter().any(|pool| pool.name == name.name);
        ask.request.devices.iter().filter(is_pool).map(|name| name.name.clone()).collect()
    }

    fn members(&self, pool: &str) -> Vec<LeasedDevice> {
        let pool = self.plan.pools.iter().find(|of| of.name == pool).unwrap();
        self.plan.devices.iter().filter(|d| pool.devices.contains(&d.name)).map(Self::leased).collect()
    }

    /// Every pick of one device for each pool that is not excluded by what is held.
    fn can_pick(&self, pools: &[String], held: &[LeasedDevice], others: &[String]) -> bool {
        let Some((pool, rest)) = pools.split_first() else { return true };
        self.members(pool).into_iter().any(|device| {
            let is_free = !held.iter().any(|held| keeps(&self.plan, held, &device));
            let serves = !others.contains(&device.uuid);
            is_free && serves && self.can_pick(rest, &[held, &[device]].concat(), others)
        })
    }

    /// A share of an MPS server, by its name.
    fn is_mps(&self, device: &LeasedDevice) -> bool {
        let is_it = |of: &&KeptDevice| of.kind == Kind::Share && of.name == device.name.name;
        self.plan.devices.iter().find(is_it).is_some_and(|of| of.mode == crate::config::Mode::Mps)
    }

    fn may_be_mps(&self, ask: &Ask) -> bool {
        let members = self.pools(ask).iter().flat_map(|pool| self.members(pool)).collect::<Vec<_>>();
        self.named(ask).iter().chain(&members).any(|device| self.is_mps(device))
    }

    /// Devices that serve one user at a time, and that is another; and those that are shared in another mode by now.
    fn of_others(&self, ask: &Ask, with_ending: bool) -> Vec<String> {
        let user = ask.container.process_uid;
        let there = self.holders.iter().filter(|holder| with_ending || !holder.is_ending);
        let devices = there.flat_map(|holder| holder.devices.iter().map(move |device| (holder, device)));
        let bars = |(holder, device): &(&Member, &LeasedDevice)| {
            let server = self.plan.mps.iter().find(|server| server.uuid == device.uuid);
            let is_other = user.is_none() || holder.ask.container.process_uid != user;
            let is_of_one_user = server.is_some_and(|server| !server.multi_user);
            server.is_some() != holder.is_mps || is_of_one_user && is_other
        };
        devices.filter(bars).map(|(_, device)| device.uuid.clone()).collect()
    }

    fn held(&self, with_ending: bool) -> Vec<LeasedDevice> {
        let there = self.holders.iter().filter(|holder| with_ending || !holder.is_ending);
        there.flat_map(|holder| holder.devices.clone()).collect()
    }

    /// The status with which a request is refused whoever holds what.
    fn never(&self, ask: &Ask) -> Option<u8> {
        let (named, pools) = (self.named(ask), self.pools(ask));
        let is_known = |asked: &DeviceName| {
            pools.contains(&asked.name)
                || asked.name == "all"
                || named
                    .iter()
                    .any(|device| device.name == *asked || !device.is_share && device.uuid == asked.name)
        };
        if !ask.request.devices.iter().all(is_known) {
            return Some(6);
        }
        let count = named.len() + pools.len();
        let clashes = |a: &LeasedDevice| named.iter().any(|b| a != b && exclude(a, b));
        let too_many = self.plan.pools.iter().any(|pool| {
            let of_pool = pools.iter().filter(|name| **name == pool.name).count()
                + named.iter().filter(|device| pool.devices.contains(&device.name.name)).count();
            pool.per_container.is_some_and(|most| of_pool > most as usize)
        });
        // A spec of another plan may have brought more than this one's pools.
        let own = pools.iter().flat_map(|pool| self.members(pool)).chain(named.clone());
        let own: Vec<_> = own.map(|device| device.uuid).collect();
        let has_more = self.plan.devices.iter().any(|device| {
            let node = &device.nodes.last().unwrap().path;
            device.leased && ask.request.nodes.contains(node) && !own.contains(&device.uuid)
        });
        let cap = self.cap(ask);
        let is_denied = cap.and_then(|cap| cap.pools.as_ref()).is_some_and(|allowed| {
            let may = |device: &LeasedDevice| {
                allowed.iter().any(|pool| {
                    self.plan
                        .pools
                        .iter()
                        .any(|of| of.name == *pool && of.devices.contains(&device.name.name))
                })
            };
            !named.iter().all(may) || !pools.iter().all(|pool| allowed.contains(pool))
        });
        let is_over = cap.and_then(|cap| cap.shares).is_some_and(|most| count > most as usize);
        let is_mps = self.may_be_mps(ask);
        if count == 0 || named.iter().any(clashes) || is_mps && count > 1 {
            return Some(1);
        }
        if has_more || is_mps && self.has_another(ask) {
            return Some(5);
        }
        let refused = too_many || is_denied || is_over || !self.can_pick(&pools, &named, &[]);
        refused.then_some(1)
    }

    /// A GPU's or MIG device's node that nothing of what is asked for brings.
    fn has_another(&self, ask: &Ask) -> bool {
        let names: Vec<_> =
            self.pools(ask).iter().flat_map(|pool| self.members(pool)).chain(self.named(ask)).collect();
        let is_own = |device: &&KeptDevice| names.iter().any(|own| own.name.name == device.name);
        let own: Vec<_> = self.plan.devices.iter().filter(is_own).flat_map(|device| &device.nodes).collect();
        let beside = ask.request.nodes.iter().filter(|node| !own.iter().any(|own| own.path == **node));
        let is_a_devices =
            |node: &Path| self.plan.devices.iter().any(|of| of.nodes.last().unwrap().path == node);
        let number = |node: &Path| node.to_str().unwrap().replace("/dev/nvidia", "").parse::<u32>().is_ok();
        beside.into_iter().any(|node| is_a_devices(node) || number(node))
    }

    fn cap(&self, ask: &Ask) -> Option<&UserCap> {
        let uid = ask.container.uid;
        let of = |user: &str| self.plan.users.iter().find(|cap| cap.user == user);
        if uid == 0 { None } else { of(&uid.to_string()).or_else(|| of("*")) }
    }

    /// The pools that a request lacks, or none of them if something else is in the way; `Ok` if it can be granted.
    fn lacks(&self, ask: &Ask, with_ending: bool, before: &[String]) -> Result<(), Vec<String>> {
        let (named, pools) = (self.named(ask), self.pools(ask));
        let (held, others) = (self.held(with_ending), self.of_others(ask, with_ending));
        let mut of_uid = self.holders.iter().filter(|h| h.ask.container.uid == ask.container.uid);
        let has: usize =
            of_uid.by_ref().filter(|h| with_ending || !h.is_ending).map(|h| h.devices.len()).sum();
        let is_over = self
            .cap(ask)
            .and_then(|cap| cap.shares)
            .is_some_and(|most| has + named.len() + pools.len() > most as usize);
        let is_kept = |a: &LeasedDevice| held.iter().any(|b| keeps(&self.plan, b, a));
        if is_over || named.iter().any(|named| is_kept(named) || others.contains(&named.uuid)) {
            return Err(Vec::new());
        }
        let held = [held, named].concat();
        let alone = |pool: &String| pools.iter().filter(|of| *of == pool).cloned().collect::<Vec<_>>();
        let mut lacking: Vec<_> = pools
            .iter()
            .filter(|pool| before.contains(pool) || !self.can_pick(&alone(pool), &held, &others))
            .collect();
        if lacking.is_empty() && !self.can_pick(&pools, &held, &others) {
            lacking = pools.iter().collect();
        }
        if lacking.is_empty() { Ok(()) } else { Err(lacking.into_iter().cloned().collect()) }
    }

    fn wait_of(&self, pools: &[String]) -> Option<u64> {
        let wait =
            |name: &String| self.plan.pools.iter().find(|pool| pool.name == *name).unwrap().wait_seconds;
        pools.iter().map(wait).min().filter(|seconds| *seconds > 0)
    }

    fn ending_is_in_the_way(&self, waiter: &Member) -> bool {
        self.holders.iter().any(|holder| holder.is_ending)
            && match self.lacks(&waiter.ask, false, &[]) {
                Ok(()) => true,
                Err(pools) => self.wait_of(&pools).is_some(),
            }
    }

    /// What happens when an event is heard of. `picked` tells the devices of each grant, by ticket.
    pub fn hear(
        &mut self,
        event: &Event,
        picked: &dyn Fn(u64) -> Option<Vec<LeasedDevice>>,
    ) -> Vec<Expected> {
        let mut expected = Vec::new();
        match event {
            Event::Plan(plan) => {
                self.plan = (**plan).clone();
                for waiter in std::mem::take(&mut self.waiters) {
                    match self.never(&waiter.ask) {
                        Some(status) => {
                            expected.extend(waiter.tickets.iter().map(|t| Expected::Refuse(*t, status)));
                        }
                        None => self.waiters.push(waiter),
                    }
                }
            }
            Event::Adopted(_) => unreachable!("a restart keeps the holders"),
            Event::Asked(ask) => self.asked(ask, picked, &mut expected),
            Event::Left(ticket) => {
                self.waiters.iter_mut().for_each(|waiter| waiter.tickets.retain(|of| of != ticket));
                self.waiters.retain(|waiter| !waiter.tickets.is_empty());
            }
            Event::FirstProcessGone(key) | Event::Gone(key) => {
                for gone in self.waiters.extract_if(.., |waiter| key_of(waiter) == *key) {
                    expected.extend(gone.tickets.iter().map(|ticket| Expected::Refuse(*ticket, 1)));
                }
                if matches!(event, Event::Gone(_)) {
                    let gone = self.holders.extract_if(.., |holder| key_of(holder) == *key);
                    expected.extend(gone.map(|holder| Expected::End(key_of(&holder))));
                } else {
                    let holder = self.holders.iter_mut().find(|holder| key_of(holder) == *key);
                    holder.into_iter().for_each(|holder| holder.is_ending = true);
                }
            }
            Event::Failed(key) => self.holders.retain(|holder| key_of(holder) != *key),
            Event::Time(now) => self.now = now.as_secs(),
        }
        self.serve(picked, &mut expected);
        expected
    }

    fn asked(
        &mut self,
        ask: &Ask,
        picked: &dyn Fn(u64) -> Option<Vec<LeasedDevice>>,
        expected: &mut Vec<Expected>,
    ) {
        let sorted = |ask: &Ask| {
            let mut names = ask.request.devices.clone();
            names.sort();
            names
        };
        let key = Key::of(&ask.container);
        if let Some(holder) = self.holders.iter().find(|holder| key_of(holder) == key) {
            if sorted(&holder.ask) == sorted(ask) {
                assert_eq!(picked(ask.ticket).as_ref(), Some(&holder.devices), "another grant than before");
                expected.push(Expected::Grant(ask.ticket));
            } else {
                expected.push(Expected::Refuse(ask.ticket, 1));
            }
        } else if let Some(place) = self.waiters.iter().position(|waiter| key_of(waiter) == key) {
            if sorted(&self.waiters[place].ask) != sorted(ask) {
                expected.push(Expected::Refuse(ask.ticket, 1));
                return;
            }
            self.waiters[place].tickets.push(ask.ticket);
            let seconds = self.longest(&self.waiters[place]);
            expected.push(Expected::Queue(ask.ticket, seconds, self.ahead(place)));
        } else if let Some(status) = self.never(ask) {
            expected.push(Expected::Refuse(ask.ticket, status));
        } else {
            self.waiters.push(Member {
                ask: ask.clone(),
                tickets: vec![ask.ticket],
                devices: Vec::new(),
                is_mps: false,
                is_ending: false,
                queue: None,
            });
        }
    }

    /// How long who waits for an end, and may queue after it, or queues, waits at most.
    fn longest(&self, waiter: &Member) -> u64 {
        let queue = waiter.queue.unwrap();
        let pools = self.pools(&waiter.ask);
        let waits = pools.iter().filter_map(|pool| self.wait_of(std::slice::from_ref(pool)));
        let mps = if self.may_be_mps(&waiter.ask) { 120 } else { 0 };
        queue.until - self.now + mps + if queue.is_for_pools { 0 } else { waits.max().unwrap_or(0) }
    }

    /// The pools that those in front of a place lack, each for itself.
    fn lacked_before(&self, place: usize) -> Vec<Vec<String>> {
        let mut before: Vec<Vec<String>> = Vec::new();
        for waiter in &self.waiters[..place] {
            before.push(self.lacks(&waiter.ask, true, &before.concat()).err().unwrap_or_default());
        }
        before
    }

    fn ahead(&self, place: usize) -> u32 {
        let before = self.lacked_before(place);
        let own = self.lacks(&self.waiters[place].ask, true, &before.concat()).err().unwrap_or_default();
        let wait = before.iter().filter(|pools| pools.iter().any(|pool| own.contains(pool)));
        u32::try_from(wait.count()).unwrap()
    }

    fn serve(&mut self, picked: &dyn Fn(u64) -> Option<Vec<LeasedDevice>>, expected: &mut Vec<Expected>) {
        let mut place = 0;
        while place < self.waiters.len() {
            let mut waiter = self.waiters[place].clone();
            let lacked_before = self.lacked_before(place).concat();
            let lacking = match self.lacks(&waiter.ask, true, &lacked_before) {
                Ok(()) => {
                    expected.extend(waiter.tickets.iter().map(|ticket| Expected::Grant(*ticket)));
                    waiter.devices = picked(waiter.tickets[0]).expect("it is in the way of nobody");
                    self.check_pick(&waiter);
                    waiter.is_mps = waiter.devices.iter().any(|device| self.is_mps(device));
                    self.waiters.remove(place);
                    self.holders.push(waiter);
                    place = 0;
                    continue;
                }
                Err(lacking) => lacking,
            };
            let is_over = waiter.queue.is_some_and(|queue| queue.until <= self.now);
            let is_queued = waiter.queue.is_some_and(|queue| queue.is_for_pools);
            let wait = self.wait_of(&lacking).filter(|_| !is_queued && !is_over);
            let before = waiter.queue.map(|queue| queue.is_for_pools);
            if is_over {
                waiter.queue = None;
            } else if let Some(seconds) = wait {
                waiter.queue = Some(Queue { is_for_pools: true, until: self.now + seconds });
            } else if is_queued {
                if lacking.is_empty() && !self.ending_is_in_the_way(&waiter) {
                    waiter.queue = None;
                }
            } else if !self.ending_is_in_the_way(&waiter) {
                waiter.queue = None;
            } else if waiter.queue.is_none() {
                waiter.queue = Some(Queue { is_for_pools: false, until: self.now + 5 });
            }
            if waiter.queue.is_some() {
                self.waiters[place] = waiter.clone();
                if before != waiter.queue.map(|queue| queue.is_for_pools) {
                    let (seconds, ahead) = (self.longest(&waiter), self.ahead(place));
                    expected
                        .extend(waiter.tickets.iter().map(|ticket| Expected::Queue(*ticket, seconds, ahead)));
                }
                place += 1;
            } else {
                expected.extend(waiter.tickets.iter().map(|ticket| Expected::Refuse(*ticket, 3)));
                self.waiters.remove(place);
            }
        }
    }

    /// All or nothing, and of nobody else's.
    fn check_pick(&self, waiter: &Member) {
        let held = self.held(true);
        let devices = &waiter.devices;
        for (place, device) in devices.iter().enumerate() {
            let others = held.iter().chain(&devices[..place]);
            assert!(!others.clone().any(|other| exclude(other, device)), "{device:?} is had twice");
        }
        let mut named: Vec<_> = devices.iter().filter(|device| device.pool.is_none()).cloned().collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        let mut asked = self.named(&waiter.ask);
        asked.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(named, asked);
        let mut pools: Vec<_> = devices.iter().filter_map(|device| device.pool.clone()).collect();
        pools.sort();
        let mut asked = self.pools(&waiter.ask);
        asked.sort();
        assert_eq!(pools, asked);
        for device in devices {
            let Some(pool) = &device.pool else { continue };
            let is_this = |of: &LeasedDevice| of.name == device.name && of.uuid == device.uuid;
            assert!(self.members(pool).iter().any(is_this), "{device:?} is not of {pool}");
        }
        let others = self.of_others(&waiter.ask, true);
        assert!(
            !devices.iter().any(|device| others.contains(&device.uuid)),
            "{devices:?} serves another user"
        );
        self.check_order(waiter, &held, &others);
    }

    /// Of a single pick: no other free device of the pool lies on a GPU that its order prefers.
    fn check_order(&self, waiter: &Member, held: &[LeasedDevice], others: &[String]) {
        let ([device], [pool]) = (&waiter.devices[..], &self.pools(&waiter.ask)[..]) else { return };
        let gpu = |device: &LeasedDevice| {
            self.plan.devices.iter().find(|of| of.uuid == device.uuid).map(|device| device.gpu)
        };
        let leases = |on: &LeasedDevice| held.iter().filter(|held| gpu(held) == gpu(on)).count();
        let of = self.plan.pools.iter().find(|of| of.name == *pool).unwrap();
        let free = self.members(pool);
        let free = free.iter().filter(|device| !others.contains(&device.uuid));
        let free = free.filter(|device| !held.iter().any(|held| keeps(&self.plan, held, device)));
        let best = match of.order {
            crate::plan::pools::Order::Spread => free.min_by_key(|device| leases(device)),
            crate::plan::pools::Order::Pack => free.rev().max_by_key(|device| leases(device)),
        };
        assert_eq!(best.unwrap().name, device.name, "not in the order of {pool}");
    }
}
