//! What is refused whoever holds what.

use std::path::Path;

use super::*;

impl Model {
    /// The status with which a request is refused so.
    pub(super) fn never(&self, ask: &Ask) -> Option<u8> {
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
        let is_mps = !self.mps_devices(ask).is_empty();
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
}
