//! Who has what: leases, what the plan says of their devices, and what NVML says of processes, put together to rows. All
//! of it is what everybody may read; where something cannot be read, the row is there without it.
//!
//! - `process`: what /proc says of a process
//! - `cgroup_name`: which container a cgroup is of, by its name
//! - `table`: rows for people
//! - `waiting`: who waits, likewise

pub mod cgroup_name;
pub mod process;
pub mod table;
pub mod waiting;

use std::collections::BTreeMap;
use std::path::Path;

use hooks::lease::{Container, DeniedBy, LEASES, Lease, LeasedDevice};
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::config::Mode;
use crate::held;
use crate::mps::client::{self, Known};
use crate::mps::protocol::State;
use crate::nvml::processes::{Session, UsedDevice, UsedMemory};
use crate::plan::kept::KeptDevice;
use crate::plan::{Kind, Limits, VENDOR};
use crate::publish;
use crate::serve::waiting::{Waiting, Waits};
use process::{Machine, Process};

/// All there is to show.
#[derive(Debug, Default, Serialize)]
pub struct Held {
    /// The daemon takes requests.
    pub daemon: bool,
    /// Leased devices in the order of the plan, then what is used without a lease.
    pub rows: Vec<Row>,
    /// Who waits for a pool, the first in turn first.
    pub waiting: Vec<Waits>,
    /// What could not be read.
    pub warnings: Vec<String>,
    /// Devices that belong to one container at a time, by the plan; none if there is no plan.
    #[serde(skip)]
    pub leasable: Option<usize>,
}

/// A device and who has it, or who uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The container may use it, and nobody else.
    pub lease: bool,
    /// As `--device` takes it; none where divvy has no name for what is used.
    pub cdi_name: Option<String>,
    /// UUID of the GPU or MIG device that it is, or is a part of.
    pub uuid: String,
    /// NVML index of the GPU.
    pub gpu: Option<u32>,
    /// NVML MIG index, where it is known.
    pub mig: Option<u32>,
    /// Product name of the GPU.
    pub model: Option<String>,
    /// GPU, MIG device or share.
    #[serde(rename = "type")]
    pub kind: Option<Kind>,
    /// Whole, or how it is shared.
    pub mode: Option<Mode>,
    /// What it has, or what the limits leave of it: bytes.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors, likewise.
    pub sms: Option<u32>,
    /// What holds the two.
    pub limits: Option<Limits>,
    /// The pool it was taken from.
    pub pool: Option<String>,
    /// `docker`, `podman`, `containerd`, `kubernetes`.
    pub engine: Option<String>,
    /// The container's name in the engine.
    pub name: Option<String>,
    /// The container's id.
    pub id: Option<String>,
    /// First process of the container with a lease; of others, the first that uses the device.
    pub pid: Option<i64>,
    /// Name of that process, where there is no container.
    pub command: Option<String>,
    /// Whose it is.
    pub uid: Option<u32>,
    /// That user's name.
    pub user: Option<String>,
    /// Seconds since the epoch: of a lease, or when the process started.
    pub since: Option<u64>,
    /// The first process is gone, and its cgroup still has some.
    pub ending: bool,
    /// Nothing is left of the container, and the daemon has not freed the device yet.
    pub ended: bool,
    /// The name means another device by now than the one that is held.
    pub moved: bool,
    /// How the MPS server is that it is a share of; none where no supervisor says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mps: Option<Mps>,
    /// What keeps the container from devices of its pool that are not its own.
    pub denied_by: Option<DeniedBy>,
    /// Memory of the GPU or MIG device that all processes of the container use together: bytes. The same in each row of
    /// a container that has several parts of one device.
    pub used_bytes: UsedMemory,
}

/// An MPS server as its supervisor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mps {
    /// What is there of it.
    pub state: State,
    /// Why, where that does not say it all.
    pub why: Option<String>,
}

impl Mps {
    /// A supervisor that is gone says nothing: what its server is, nobody knows.
    fn of(known: &Known) -> Self {
        let status = known.status.as_ref().filter(|_| known.is_supervised);
        match status {
            Some(status) => Self { state: status.state, why: status.why.clone() },
            None => Self { state: State::Down, why: Some("its supervisor does not run".into()) },
        }
    }
}

/// The plan, with what it says of GPUs besides.
#[derive(Debug, Default, Deserialize)]
struct Planned {
    devices: Vec<PlannedDevice>,
}

#[derive(Debug, Deserialize)]
struct PlannedDevice {
    #[serde(flatten)]
    kept: KeptDevice,
    model: Option<String>,
}

impl PlannedDevice {
    fn is(&self, leased: &LeasedDevice) -> bool {
        self.kept.name == leased.name.name && self.kept.classes.contains(&leased.name.class)
    }
}

/// What is on a device, by container or process: whose lease, if any, or the container by its cgroup, or else itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// Its place.
    Lease(usize),
    Container(cgroup_name::Named),
    Process(u32),
}

/// Puts together what is so now. A session that knows no device any more is taken for lost: the driver was loaded anew.
pub fn look(state_dir: &Path, nvml: &mut Option<Session>) -> Held {
    let mut held = Held { daemon: held::daemon_answers(state_dir), ..Held::default() };
    let (leases, warnings) = held::read(&state_dir.join(LEASES));
    held.warnings = warnings;
    held.waiting = Waiting::read(state_dir).unwrap_or_else(|error| {
        held.warnings.push(format!("{error:#}"));
        Vec::new()
    });
    let planned = planned(state_dir, &mut held);
    let used = nvml.as_ref().map(Session::devices).unwrap_or_default();
    nvml.take_if(|_| used.is_empty());
    let machine = Machine::read();
    let mut users = Users::default();

    let mut of: BTreeMap<(usize, Whose), (UsedMemory, Process)> = BTreeMap::new();
    for (at, device) in used.iter().enumerate() {
        for (pid, memory) in device.processes.iter().flatten() {
            let process = Process::read(*pid, &machine);
            let whose = whose(&leases, &process);
            match of.get_mut(&(at, whose.clone())) {
                Some((sum, first)) => {
                    *sum = add(*sum, *memory);
                    if process.started < first.started {
                        *first = process;
                    }
                }
                None => drop(of.insert((at, whose), (*memory, process))),
            }
        }
    }

    let known =
        if leases.iter().any(|lease| lease.mps.is_some()) { client::known(state_dir) } else { Vec::new() };
    for (place, lease) in leases.iter().enumerate() {
        for leased in &lease.devices {
            let at = used.iter().position(|device| device.uuid == leased.uuid);
            let whose = Whose::Lease(place);
            let mine = at.and_then(|at| of.remove(&(at, whose)));
            let device = at.map(|at| &used[at]);
            let mut row = leased_row(lease, leased, &planned, device);
            let server = known.iter().find(|known| lease.mps.is_some() && known.uuid == leased.uuid);
            row.mps = server.map(Mps::of);
            row.user = users.name(row.uid);
            row.used_bytes = match (mine, device.is_some_and(|device| device.processes.is_some())) {
                (Some((memory, _)), _) => memory,
                // The other rows of a container with two parts of one device.
                (None, _) if held.rows.iter().any(|other| is_same(other, &row)) => {
                    held.rows.iter().find(|other| is_same(other, &row)).and_then(|other| other.used_bytes)
                }
                (None, told) => told.then_some(0),
            };
            held.rows.push(row);
        }
    }
    let order = |row: &Row| {
        let name = row.cdi_name.as_deref();
        planned.devices.iter().position(|device| name == Some(&*cdi_name(&device.kept))).unwrap_or(usize::MAX)
    };
    held.rows.sort_by_key(order);
    for ((at, whose), (memory, process)) in of {
        let mut row = unleased_row(&used[at], &whose, &process, &leases, &planned);
        row.used_bytes = memory;
        row.user = users.name(row.uid);
        held.rows.push(row);
    }
    held
}

fn is_same(one: &Row, other: &Row) -> bool {
    one.lease && one.uuid == other.uuid && one.id == other.id && one.pid == other.pid
}

fn planned(state_dir: &Path, held: &mut Held) -> Planned {
    let text = match publish::plan_text(state_dir) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Planned::default(),
        Err(error) => {
            held.warnings.push(format!("cannot read the plan in {}: {error}", state_dir.display()));
            return Planned::default();
        }
    };
    match serde_json::from_str::<Planned>(&text) {
        Ok(planned) => {
            held.leasable = Some(planned.devices.iter().filter(|device| device.kept.leased).count());
            planned
        }
        Err(error) => {
            held.warnings.push(format!("the plan in {} is damaged: {error}", state_dir.display()));
            Planned::default()
        }
    }
}

fn whose(leases: &[Lease], process: &Process) -> Whose {
    let named = process.cgroups.iter().find_map(|cgroup| cgroup_name::container(cgroup));
    // In a cgroup that is the user's, as rootless ones are, what an engine started later (`podman exec`) is no child of
    // the first process, and only its user sees its namespace.
    let is_named = |container: &Container| {
        container.cgroup.is_none() && named.as_ref().is_some_and(|named| named.id == container.id)
    };
    let is_its = |lease: &Lease| process.is_in(&lease.container) || is_named(&lease.container);
    match leases.iter().position(is_its) {
        Some(place) => Whose::Lease(place),
        None => named.map_or(Whose::Process(process.pid), Whose::Container),
    }
}

fn add(one: UsedMemory, other: UsedMemory) -> UsedMemory {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    }
}

fn leased_row(lease: &Lease, leased: &LeasedDevice, planned: &Planned, used: Option<&UsedDevice>) -> Row {
    let has_first = held::has_first_process(&lease.container);
    let is_alive = has_first || held::is_alive(lease);
    let mut row = Row {
        lease: true,
        cdi_name: Some(format!("{VENDOR}/{}", leased.name)),
        uuid: leased.uuid.clone(),
        pool: leased.pool.clone(),
        since: Some(lease.since),
        ending: is_alive && !has_first,
        ended: !is_alive,
        denied_by: lease.denied_by,
        ..Row::default()
    };
    row.held_by(&lease.container);
    row.pid = row.pid.filter(|_| has_first);
    match planned.devices.iter().find(|device| device.is(leased)) {
        Some(device) if device.kept.uuid == leased.uuid => row.planned(device),
        named => row.elsewhere(leased, planned, named.is_some()),
    }
    row.seen(used);
    row
}

fn unleased_row(
    used: &UsedDevice,
    whose: &Whose,
    process: &Process,
    leases: &[Lease],
    planned: &Planned,
) -> Row {
    let mut row = Row { uuid: used.uuid.clone(), ..Row::default() };
    // A device that is cut into shares has no name as a whole.
    let whole = |device: &&PlannedDevice| device.kept.uuid == used.uuid && device.kept.kind != Kind::Share;
    if let Some(device) = planned.devices.iter().find(whole) {
        row.cdi_name = Some(cdi_name(&device.kept));
        row.planned(device);
    }
    row.seen(Some(used));
    row.uid = process.uid;
    row.since = process.started;
    row.pid = Some(process.pid.into());
    match whose {
        Whose::Lease(place) => row.held_by(&leases[*place].container),
        Whose::Container(named) => {
            row.engine = named.engine.map(str::to_owned);
            row.id = Some(named.id.clone());
        }
        Whose::Process(_) => row.command.clone_from(&process.command),
    }
    row
}

impl Row {
    fn planned(&mut self, device: &PlannedDevice) {
        let kept = &device.kept;
        self.gpu = Some(kept.gpu);
        self.model.clone_from(&device.model);
        self.kind = Some(kept.kind);
        self.mode = Some(kept.mode);
        self.memory_bytes = kept.memory_bytes;
        self.sms = kept.sms;
        self.limits = Some(kept.limits);
        let whole = kept.share.as_ref().map_or(&kept.name, |share| &share.of);
        self.mig = whole.split_once(':').and_then(|(_, mig)| mig.parse().ok());
    }

    /// A device whose name means another by now, or nothing. A share's limits were those of a plan that is gone.
    fn elsewhere(&mut self, leased: &LeasedDevice, planned: &Planned, moved: bool) {
        self.moved = moved;
        let of_it = || planned.devices.iter().filter(|device| device.kept.uuid == leased.uuid);
        let is_alike = |device: &&PlannedDevice| (device.kept.kind == Kind::Share) == leased.is_share;
        let alike = of_it().find(is_alike);
        if let Some(device) = alike.or_else(|| of_it().next()) {
            self.planned(device);
        }
        if leased.is_share || alike.is_none() {
            (self.memory_bytes, self.sms, self.limits) = (None, None, None);
            self.kind = leased.is_share.then_some(Kind::Share);
            self.mode = alike.map(|device| device.kept.mode);
        }
    }

    /// As NVML sees it now: an index may have moved since the plan was made.
    fn seen(&mut self, used: Option<&UsedDevice>) {
        let Some(used) = used else { return };
        self.gpu = Some(used.gpu);
        self.mig = used.mig;
        self.model = used.model.clone().or_else(|| self.model.take());
    }

    fn held_by(&mut self, container: &Container) {
        self.engine.clone_from(&container.engine);
        self.name.clone_from(&container.name);
        self.id = Some(container.id.clone());
        self.pid = Some(container.pid.into());
        self.uid = Some(container.uid);
    }
}

fn cdi_name(device: &KeptDevice) -> String {
    let class = device.classes.first().map_or(crate::plan::GPU_CLASS, String::as_str);
    format!("{VENDOR}/{class}={}", device.name)
}

/// Names of users, each asked for once: a directory service may be slow.
#[derive(Debug, Default)]
struct Users(BTreeMap<u32, Option<String>>);

impl Users {
    fn name(&mut self, uid: Option<u32>) -> Option<String> {
        let uid = uid?;
        self.0.entry(uid).or_insert_with(|| user_name(uid)).clone()
    }
}

/// The name of a user; none if nobody knows.
pub fn user_name(uid: u32) -> Option<String> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_a_lease_or_of_the_container_that_its_cgroup_names() {
        let id = "3f2a".repeat(16);
        let lease = |cgroup: Option<&str>| Lease {
            version: hooks::lease::VERSION,
            container: Container {
                mount_namespace: 7,
                pid: 1,
                start_time: 0,
                boot_id: String::new(),
                cgroup: cgroup.map(Into::into),
                uid: 1001,
                process_uid: Some(0),
                id: id.clone(),
                bundle: "/b".into(),
                engine: None,
                name: None,
            },
            since: 0,
            asked: Vec::new(),
            devices: Vec::new(),
            remove: Vec::new(),
            denied_by: None,
            mps: None,
        };
        let cgroups = vec![format!("/sys/fs/cgroup/user.slice/libpod-{id}.scope").into()];
        let mut process = Process::default();
        (process.pid, process.cgroups) = (9, cgroups);
        assert_eq!(whose(&[lease(None)], &process), Whose::Lease(0));
        // One that ends elsewhere had a mount namespace of the same number.
        assert_eq!(whose(&[lease(Some("/other")), lease(None)], &process), Whose::Lease(1));
        let named = cgroup_name::Named { engine: Some("podman"), id: id.clone() };
        let elsewhere = [lease(Some("/sys/fs/cgroup/machine.slice/other"))];
        assert_eq!(whose(&elsewhere, &process), Whose::Container(named));
        process.cgroups.clear();
        assert_eq!(whose(&elsewhere, &process), Whose::Process(9));
    }

    #[test]
    fn what_is_not_counted_adds_nothing() {
        assert_eq!((add(Some(1), Some(2)), add(None, Some(2)), add(None, None)), (Some(3), Some(2), None));
    }
}
