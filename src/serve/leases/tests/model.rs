//! The rules of leases once more, as plainly as they can be written: no counts are kept, nothing is indexed, and whether
//! a request can be met is found by trying every combination. It says what has to be decided, and takes the devices that
//! were picked as they come, once it has seen that they may be.

mod never;
mod picks;

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
    /// Its MPS server is asked for.
    pub is_starting: bool,
    /// Devices whose servers do not run for it, with what was said of each; until when there may be more.
    pub tried: Vec<String>,
    pub statuses: Vec<u8>,
    pub tries_until: Option<u64>,
    /// For how long its hooks were told to wait when its MPS server was asked for.
    pub told: u64,
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
    Withdraw(Key),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub plan: Kept,
    pub holders: Vec<Member>,
    pub waiters: Vec<Member>,
    /// Devices that are chosen last, each until then.
    pub avoided: BTreeMap<String, u64>,
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

/// That of the first server that did not run, if waiting would not help.
fn refused_with(waiter: &Member, others_are_held: bool) -> u8 {
    if others_are_held || waiter.statuses.contains(&3) { 3 } else { waiter.statuses[0] }
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

    fn mps_devices(&self, ask: &Ask) -> BTreeSet<String> {
        let members = self.pools(ask).into_iter().flat_map(|pool| self.members(&pool));
        let all = members.chain(self.named(ask)).filter(|device| self.is_mps(device));
        all.map(|device| device.uuid).collect()
    }

    /// Devices that serve one user at a time, and that is another; those that are shared in another mode by now; and those
    /// whose servers do not run for it.
    fn of_others(&self, waiter: &Member, with_ending: bool) -> Vec<String> {
        let user = waiter.ask.container.process_uid;
        let there = self.holders.iter().filter(|holder| with_ending || !holder.is_ending);
        let devices = there.flat_map(|holder| holder.devices.iter().map(move |device| (holder, device)));
        let bars = |(holder, device): &(&Member, &LeasedDevice)| {
            let server = self.plan.mps.iter().find(|server| server.uuid == device.uuid);
            let is_other = user.is_none() || holder.ask.container.process_uid != user;
            let is_of_one_user = server.is_some_and(|server| !server.multi_user);
            server.is_some() != holder.is_mps || is_of_one_user && is_other
        };
        devices.filter(bars).map(|(_, device)| &device.uuid).chain(&waiter.tried).cloned().collect()
    }

    fn held(&self, with_ending: bool) -> Vec<LeasedDevice> {
        let there = self.holders.iter().filter(|holder| with_ending || !holder.is_ending);
        there.flat_map(|holder| holder.devices.clone()).collect()
    }

    fn cap(&self, ask: &Ask) -> Option<&UserCap> {
        let uid = ask.container.uid;
        let of = |user: &str| self.plan.users.iter().find(|cap| cap.user == user);
        if uid == 0 { None } else { of(&uid.to_string()).or_else(|| of("*")) }
    }

    /// The pools that a request lacks, or none of them if something else is in the way; `Ok` if it can be granted.
    fn lacks(&self, waiter: &Member, with_ending: bool, before: &[String]) -> Result<(), Vec<String>> {
        let ask = &waiter.ask;
        let (named, pools) = (self.named(ask), self.pools(ask));
        let (held, others) = (self.held(with_ending), self.of_others(waiter, with_ending));
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
            && match self.lacks(waiter, false, &[]) {
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
                let starting = self.holders.iter_mut().filter(|holder| holder.is_starting);
                starting.for_each(|holder| holder.tickets.retain(|of| of != ticket));
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
            Event::Served(key) => {
                if let Some(holder) = self.holders.iter_mut().find(|holder| key_of(holder) == *key) {
                    holder.is_starting = false;
                    if holder.is_mps {
                        self.avoided.remove(&holder.devices[0].uuid);
                    }
                }
            }
            Event::Unserved(key, no) => self.unserved(*key, no.status, &mut expected),
            Event::Time(now) => self.now = now.as_secs(),
        }
        self.serve(picked, &mut expected);
        expected
    }

    fn unserved(&mut self, key: Key, status: u8, expected: &mut Vec<Expected>) {
        let is_it = |holder: &Member| holder.is_starting && key_of(holder) == key;
        let Some(place) = self.holders.iter().position(is_it) else { return };
        let mut member = self.holders.remove(place);
        expected.push(Expected::Withdraw(key));
        let LeasedDevice { uuid, pool, .. } = member.devices.remove(0);
        self.avoided.insert(uuid.clone(), self.now + 60);
        member.tried.push(uuid);
        member.statuses.push(status);
        let is_heard = !member.tickets.is_empty();
        if !is_heard {
            member.tickets.push(member.ask.ticket);
        }
        let never = self.never(&member.ask);
        if !is_heard || member.is_ending || pool.is_none() {
            let status = refused_with(&member, false);
            expected.extend(member.tickets.iter().map(|ticket| Expected::Refuse(*ticket, status)));
        } else if let Some(status) = never {
            expected.extend(member.tickets.iter().map(|ticket| Expected::Refuse(*ticket, status)));
        } else {
            member.queue = member.queue.filter(|queue| queue.is_for_pools);
            member.is_starting = false;
            let later = self.waiters.iter().position(|other| other.ask.now > member.ask.now);
            self.waiters.insert(later.unwrap_or(self.waiters.len()), member);
        }
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
        if let Some(holder) = self.holders.iter_mut().find(|holder| key_of(holder) == key) {
            if sorted(&holder.ask) == sorted(ask) {
                if holder.is_starting {
                    holder.tickets.push(ask.ticket);
                }
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
                is_starting: false,
                tried: Vec::new(),
                statuses: Vec::new(),
                tries_until: None,
                told: 0,
            });
        }
    }

    /// By others, and not refused to it by the server.
    fn is_held(&self, waiter: &Member, device: LeasedDevice) -> bool {
        let is_kept = self.held(true).iter().any(|held| keeps(&self.plan, held, &device));
        let others = self.of_others(waiter, true).contains(&device.uuid);
        (is_kept || others) && !waiter.tried.contains(&device.uuid)
    }

    /// How long who waits for an end, and may queue after it, or queues, waits at most.
    fn longest(&self, waiter: &Member) -> u64 {
        let queue = waiter.queue.unwrap_or(Queue { is_for_pools: false, until: self.now });
        let pools = self.pools(&waiter.ask);
        let waits = pools.iter().filter_map(|pool| self.wait_of(std::slice::from_ref(pool)));
        let may_queue = !queue.is_for_pools && waits.clone().max().is_some();
        let mps = match self.mps_devices(&waiter.ask).len() {
            0 => 0,
            1 => 120,
            2 => 240,
            _ => 240 + 120 * u64::from(may_queue),
        };
        queue.until.saturating_sub(self.now)
            + mps
            + if queue.is_for_pools { 0 } else { waits.max().unwrap_or(0) }
    }

    /// For how long a hook of a container with a lease is told to wait; without a start that is under way, for one.
    pub fn told(&self, key: Key) -> u64 {
        let holder = self.holders.iter().find(|holder| key_of(holder) == key);
        holder.filter(|holder| holder.is_starting).map_or(120, |holder| holder.told)
    }

    /// The pools that those in front of a place lack, each for itself; and those that are kept for them. What servers have
    /// refused to one of them, and is free, is anybody's.
    fn lacked_before(&self, place: usize) -> (Vec<Vec<String>>, Vec<String>) {
        let (mut lacked, mut kept) = (Vec::new(), Vec::new());
        for waiter in &self.waiters[..place] {
            let lacks = self.lacks(waiter, true, &kept).err().unwrap_or_default();
            let untried = Member { tried: Vec::new(), ..waiter.clone() };
            if self.lacks(&untried, true, &kept).is_err() {
                kept.extend(lacks.clone());
            }
            lacked.push(lacks);
        }
        (lacked, kept)
    }

    fn ahead(&self, place: usize) -> u32 {
        let (before, kept) = self.lacked_before(place);
        let own = self.lacks(&self.waiters[place], true, &kept).err().unwrap_or_default();
        let wait = before.iter().filter(|pools| pools.iter().any(|pool| own.contains(pool)));
        u32::try_from(wait.count()).unwrap()
    }

    fn serve(&mut self, picked: &dyn Fn(u64) -> Option<Vec<LeasedDevice>>, expected: &mut Vec<Expected>) {
        let (mut place, now) = (0, self.now);
        self.avoided.retain(|_, until| *until > now);
        for waiter in &mut self.waiters {
            if waiter.queue.is_some_and(|queue| queue.is_for_pools && queue.until > now) {
                let is_avoided: Vec<_> =
                    waiter.tried.iter().map(|uuid| self.avoided.contains_key(uuid)).collect();
                let mut keep = is_avoided.iter();
                waiter.tried.retain(|_| *keep.next().unwrap());
                let mut keep = is_avoided.iter();
                waiter.statuses.retain(|_| *keep.next().unwrap());
            }
        }
        while place < self.waiters.len() {
            let mut waiter = self.waiters[place].clone();
            let (_, kept) = self.lacked_before(place);
            // Two minutes after its first grant it is tried on no more, unless it has a turn in a queue.
            let is_late = waiter.tries_until.is_some_and(|until| until <= now);
            let is_late =
                is_late && waiter.queue.is_none_or(|queue| queue.is_for_pools && queue.until <= now);
            let lacking = match self.lacks(&waiter, true, &kept) {
                Ok(()) if is_late => {
                    let of_pools = self.pools(&waiter.ask).into_iter().flat_map(|pool| self.members(&pool));
                    let status =
                        refused_with(&waiter, of_pools.into_iter().any(|of| self.is_held(&waiter, of)));
                    expected.extend(waiter.tickets.iter().map(|ticket| Expected::Refuse(*ticket, status)));
                    self.waiters.remove(place);
                    continue;
                }
                Ok(()) => {
                    expected.extend(waiter.tickets.iter().map(|ticket| Expected::Grant(*ticket)));
                    waiter.devices = picked(waiter.tickets[0]).expect("it is in the way of nobody");
                    self.check_pick(&waiter);
                    waiter.is_mps = waiter.devices.iter().any(|device| self.is_mps(device));
                    waiter.is_starting = waiter.is_mps;
                    if waiter.is_mps {
                        waiter.told = self.longest(&waiter);
                        waiter.tries_until.get_or_insert(self.now + 120);
                    }
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
            let is_tried = |device: &LeasedDevice| waiter.tried.contains(&device.uuid);
            let in_vain = lacking.iter().any(|pool| self.members(pool).iter().all(is_tried));
            if is_over || in_vain {
                waiter.queue = None;
            } else if let Some(seconds) = wait {
                waiter.queue = Some(Queue { is_for_pools: true, until: self.now + seconds });
            } else if is_queued {
                if lacking.is_empty() && !self.ending_is_in_the_way(&waiter) {
                    waiter.queue = None;
                }
            } else if is_late || !self.ending_is_in_the_way(&waiter) {
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
                let is_held = |device: LeasedDevice| self.is_held(&waiter, device);
                let of_pools = lacking.iter().flat_map(|pool| self.members(pool));
                let has_more = waiter.tried.is_empty() || of_pools.into_iter().any(is_held);
                // Whoever waited in vain might have had it at another time.
                let has_waited = is_over && before == Some(true);
                let status =
                    if has_waited { 3 } else { refused_with(&waiter, has_more || lacking.is_empty()) };
                expected.extend(waiter.tickets.iter().map(|ticket| Expected::Refuse(*ticket, status)));
                self.waiters.remove(place);
            }
        }
    }
}
