//! What the plan has to lease, and how much of it is held: names resolved, counts kept up with every lease. A lease of
//! an earlier plan counts by its name and its UUID, whether or not this plan knows them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use hooks::lease::{DeviceName, LeasedDevice};

use crate::config::Mode;
use crate::mps::settings::Settings;
use crate::plan::kept::{Kept, KeptDevice};
use crate::plan::pools::{Pool, UserCap};
use crate::plan::{ALL, Kind};

/// Place of a device in the plan.
pub type Index = usize;
/// Place of a group in [`Stock::groups`].
pub type GroupId = usize;

/// Whose leases count as held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of them.
    Now,
    /// Those alone whose containers still run.
    EndingGone,
    /// None.
    Unheld,
}

/// How many leased devices stand in the way of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    all: u32,
    ending: u32,
}

impl Count {
    /// How many count.
    pub fn of(self, view: View) -> u32 {
        match view {
            View::Unheld => 0,
            View::Now => self.all,
            View::EndingGone => self.all - self.ending,
        }
    }
}

/// What becomes of a lease's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A container has them.
    Taken,
    /// Its first process is gone.
    Ending,
    /// They are free again; whether the lease was ending before.
    Free { was_ending: bool },
}

impl Change {
    /// Counts it.
    pub fn apply(self, count: &mut Count) {
        match self {
            Change::Taken => count.all += 1,
            Change::Ending => count.ending += 1,
            Change::Free { was_ending } => {
                count.all -= 1;
                count.ending -= u32::from(was_ending);
            }
        }
    }
}

/// A pool, under each of its names: a MIG device's class gives its pool a second one.
#[derive(Debug)]
pub struct Group {
    /// As the plan has it first.
    pub pool: Pool,
    /// Its devices, in the plan's order.
    pub devices: Vec<Index>,
    /// The nodes of all of them, by their paths in the container.
    pub nodes: BTreeSet<PathBuf>,
    free: [u32; 2],
}

/// What a request asks for, in the plan's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Devices by name, each once.
    pub named: Vec<Index>,
    /// Pools, and how many devices of each.
    pub pools: Vec<(GroupId, u32)>,
}

impl Wanted {
    /// How many devices it comes to.
    pub fn count(&self) -> u32 {
        let named = u32::try_from(self.named.len()).unwrap_or(u32::MAX);
        self.pools.iter().fold(named, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// On how many devices it may come to a share of an MPS server.
    pub fn mps_devices(&self, stock: &Stock) -> usize {
        let pools = self.pools.iter().flat_map(|(group, _)| &stock.group(*group).devices);
        let shares = self.named.iter().chain(pools).filter(|index| stock.is_mps(**index));
        shares.map(|index| &stock.device(*index).uuid).collect::<BTreeSet<_>>().len()
    }

    /// How many devices of each pool, by whatever name.
    pub fn of_groups(&self, stock: &Stock) -> BTreeMap<GroupId, u32> {
        let mut counts: BTreeMap<_, _> = self.pools.iter().copied().collect();
        for group in self.named.iter().filter_map(|index| stock.group_of(*index)) {
            *counts.entry(group).or_default() += 1;
        }
        counts
    }
}

/// The plan's leased devices and what is held of them.
#[derive(Debug, Default)]
pub struct Stock {
    devices: Vec<KeptDevice>,
    users: Vec<UserCap>,
    /// What MPS servers shall be, by the UUIDs of their devices.
    mps: BTreeMap<String, Settings>,
    groups: Vec<Group>,
    names: HashMap<DeviceName, Index>,
    group_names: HashMap<DeviceName, GroupId>,
    by_uuid: HashMap<String, Vec<Index>>,
    group_of: Vec<Option<GroupId>>,
    /// Devices by the node that nothing else opens.
    identities: BTreeMap<PathBuf, Index>,
    counts: Vec<Count>,
    on_gpu: BTreeMap<u32, u32>,
}

impl Stock {
    /// Takes up a plan. Nothing of it is held until [`Stock::change`] says so.
    pub fn new(plan: Kept) -> Self {
        let mut stock = Self {
            counts: vec![Count::default(); plan.devices.len()],
            group_of: vec![None; plan.devices.len()],
            users: plan.users,
            mps: plan.mps.into_iter().map(|settings| (settings.uuid.clone(), settings)).collect(),
            ..Self::default()
        };
        for (index, device) in plan.devices.iter().enumerate() {
            stock.by_uuid.entry(device.uuid.clone()).or_default().push(index);
            if let Some(node) = identity(device) {
                stock.identities.entry(node.to_owned()).or_insert(index);
            }
            if !device.leased {
                continue;
            }
            let uuid = (device.kind != Kind::Share).then_some(&device.uuid);
            for (class, name) in device
                .classes
                .iter()
                .flat_map(|c| uuid.into_iter().chain([&device.name]).map(move |n| (c, n)))
            {
                stock.names.insert(DeviceName { class: class.clone(), name: name.clone() }, index);
            }
        }
        stock.devices = plan.devices;
        for pool in plan.pools {
            stock.add_pool(pool);
        }
        stock
    }

    fn add_pool(&mut self, pool: Pool) {
        let name = DeviceName { class: pool.class.clone(), name: pool.name.clone() };
        let of_class = |device: &String| DeviceName { class: pool.class.clone(), name: device.clone() };
        let devices: Vec<Index> =
            pool.devices.iter().filter_map(|device| self.names.get(&of_class(device)).copied()).collect();
        let known = self.groups.iter().position(|group| group.devices == devices);
        let group = known.unwrap_or(self.groups.len());
        self.group_names.insert(name, group);
        if known.is_some() {
            return;
        }
        for device in &devices {
            self.group_of[*device].get_or_insert(group);
        }
        let nodes = devices.iter().flat_map(|device| nodes(&self.devices[*device])).cloned().collect();
        // Nothing is held yet.
        let free = [u32::try_from(devices.len()).unwrap_or(u32::MAX); 2];
        self.groups.push(Group { pool, devices, nodes, free });
    }

    /// Keeps counts up with what becomes of a leased device.
    pub fn change(&mut self, device: &LeasedDevice, change: Change) {
        for index in self.excluded_by(device) {
            let before = self.counts[index];
            change.apply(&mut self.counts[index]);
            let after = self.counts[index];
            let Some(group) = self.group_of[index] else { continue };
            for (view, free) in [View::Now, View::EndingGone].into_iter().zip(&mut self.groups[group].free) {
                match (before.of(view), after.of(view)) {
                    (0, 1) => *free -= 1,
                    (1, 0) => *free += 1,
                    _ => {}
                }
            }
        }
        if let Some(gpu) = self.gpu_of(device) {
            let count = self.on_gpu.entry(gpu).or_default();
            match change {
                Change::Taken => *count += 1,
                Change::Ending => {}
                Change::Free { .. } => *count -= 1,
            }
        }
    }

    /// Devices of the plan that nobody else can have beside this one.
    fn excluded_by(&self, leased: &LeasedDevice) -> Vec<Index> {
        let of_unit = self.by_uuid.get(&leased.uuid).map(Vec::as_slice).unwrap_or_default();
        if !leased.is_share {
            return of_unit.to_vec();
        }
        let named = self.names.get(&leased.name).copied().filter(|index| self.is_share(*index));
        let is_known = named.is_some_and(|index| self.devices[index].uuid == leased.uuid);
        // A share of another plan is one of this unit's, and nobody can tell any more which.
        let mut excluded: Vec<_> =
            of_unit.iter().copied().filter(|index| !is_known || !self.is_share(*index)).collect();
        excluded.extend(named);
        excluded
    }

    /// The GPU that a leased device lies on, by NVML index.
    fn gpu_of(&self, leased: &LeasedDevice) -> Option<u32> {
        let index = self.by_uuid.get(&leased.uuid)?.first()?;
        Some(self.devices[*index].gpu)
    }

    /// Whether a leased device keeps this one from others.
    pub fn excludes(&self, leased: &LeasedDevice, index: Index) -> bool {
        if leased.is_share && self.is_share(index) {
            return self.names.get(&leased.name) == Some(&index);
        }
        self.devices[index].uuid == leased.uuid
    }

    /// What the names of a request mean; or those that mean nothing in this plan.
    pub fn resolve(&self, asked: &[DeviceName]) -> Result<Wanted, Vec<DeviceName>> {
        let mut named = BTreeSet::new();
        let mut pools = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in asked {
            if let Some(index) = self.names.get(name) {
                named.insert(*index);
            } else if let Some(group) = self.group_names.get(name) {
                *pools.entry(*group).or_default() += 1;
            } else if name.name == ALL {
                let of_class = |device: &KeptDevice| device.leased && device.classes.contains(&name.class);
                let whole = (0..self.devices.len()).filter(|index| !self.is_share(*index));
                named.extend(whole.filter(|index| of_class(&self.devices[*index])));
            } else if !unknown.contains(name) {
                unknown.push(name.clone());
            }
        }
        if unknown.is_empty() {
            Ok(Wanted { named: named.into_iter().collect(), pools: pools.into_iter().collect() })
        } else {
            Err(unknown)
        }
    }

    /// A device of the plan.
    pub fn device(&self, index: Index) -> &KeptDevice {
        &self.devices[index]
    }

    /// Whether it is a part of a GPU or MIG device.
    pub fn is_share(&self, index: Index) -> bool {
        self.devices[index].kind == Kind::Share
    }

    /// Whether its GPU or MIG device is cut into shares.
    pub fn is_cut(&self, index: Index) -> bool {
        let of_unit = self.by_uuid.get(&self.devices[index].uuid);
        of_unit.into_iter().flatten().any(|index| self.is_share(*index))
    }

    /// Whether two devices are one GPU or MIG device, the one as a whole and the other a share or the same.
    pub fn exclude_each_other(&self, a: Index, b: Index) -> bool {
        let same_unit = self.devices[a].uuid == self.devices[b].uuid;
        a == b || same_unit && !(self.is_share(a) && self.is_share(b))
    }

    /// Whether it is a share of an MPS server.
    pub fn is_mps(&self, index: Index) -> bool {
        self.is_share(index) && self.devices[index].mode == Mode::Mps
    }

    /// What the MPS server of the device with this UUID shall be; none if it is not shared in mode mps.
    pub fn mps(&self, uuid: &str) -> Option<&Settings> {
        self.mps.get(uuid)
    }

    /// All of them.
    pub fn mps_settings(&self) -> impl Iterator<Item = &Settings> {
        self.mps.values()
    }

    /// A pool.
    pub fn group(&self, group: GroupId) -> &Group {
        &self.groups[group]
    }

    /// The pool that a device is of.
    pub fn group_of(&self, index: Index) -> Option<GroupId> {
        self.group_of[index]
    }

    /// Whether nobody has it.
    pub fn is_free(&self, index: Index, view: View) -> bool {
        self.counts[index].of(view) == 0
    }

    /// How many devices of a pool nobody has.
    pub fn free_in(&self, group: GroupId, view: View) -> u32 {
        let Group { devices, free, .. } = &self.groups[group];
        match view {
            View::Now => free[0],
            View::EndingGone => free[1],
            View::Unheld => u32::try_from(devices.len()).unwrap_or(u32::MAX),
        }
    }

    /// How many leased devices there are on each GPU, by NVML index.
    pub fn on_gpus(&self) -> &BTreeMap<u32, u32> {
        &self.on_gpu
    }

    /// What a user may hold: the entry of their name or uid, else that for all others. Root holds what it likes.
    pub fn cap(&self, uid: u32, user: Option<&str>) -> Option<&UserCap> {
        if uid == 0 {
            return None;
        }
        let is_theirs = |cap: &&UserCap| Some(cap.user.as_str()) == user || cap.user == uid.to_string();
        self.users.iter().find(is_theirs).or_else(|| self.users.iter().find(|cap| cap.user == "*"))
    }

    /// The device that a node is of, if it alone opens it.
    pub fn identified_by(&self, node: &Path) -> Option<Index> {
        self.identities.get(node).copied()
    }

    /// A device as a container has it.
    pub fn leased(&self, index: Index, from: Option<GroupId>) -> LeasedDevice {
        let device = &self.devices[index];
        LeasedDevice {
            name: self.name(index),
            uuid: device.uuid.clone(),
            is_share: self.is_share(index),
            pool: from.map(|group| self.groups[group].pool.name.clone()),
        }
    }

    /// Its name in the first of its classes.
    pub fn name(&self, index: Index) -> DeviceName {
        let device = &self.devices[index];
        let class = device.classes.first().cloned().unwrap_or_default();
        DeviceName { class, name: device.name.clone() }
    }
}

/// Everything that a device brings, by path in the container.
pub fn nodes(device: &KeptDevice) -> impl Iterator<Item = &PathBuf> {
    device.nodes.iter().chain(&device.dri_nodes).map(|node| &node.path)
}

/// The node without which a device cannot be opened and which no other needs: a GPU's own, and the capability of a MIG
/// device's compute instance, which is the last of its three.
pub fn identity(device: &KeptDevice) -> Option<&Path> {
    device.nodes.last().map(|node| node.path.as_path())
}
