//! Whether devices that were picked may be, and are those that are preferred.

use super::*;

impl Model {
    /// All or nothing, and of nobody else's.
    pub(super) fn check_pick(&self, waiter: &Member) {
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
        let others = self.of_others(waiter, true);
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
        let is_last = |device: &LeasedDevice| self.avoided.contains_key(&device.uuid);
        let of = self.plan.pools.iter().find(|of| of.name == *pool).unwrap();
        let free = self.members(pool);
        let free = free.iter().filter(|device| !others.contains(&device.uuid));
        let free = free.filter(|device| !held.iter().any(|held| keeps(&self.plan, held, device)));
        let best = match of.order {
            crate::plan::pools::Order::Spread => free.min_by_key(|device| (is_last(device), leases(device))),
            crate::plan::pools::Order::Pack => {
                free.rev().max_by_key(|device| (!is_last(device), leases(device)))
            }
        };
        assert_eq!(best.unwrap().name, device.name, "not in the order of {pool}");
    }
}
