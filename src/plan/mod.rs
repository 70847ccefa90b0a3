//! Step 2: `Host` + `Config` -> `Plan`: which CDI devices there will be, under which names, with which nodes and
//! limits; and what is left out, each with its reason. Pure: no file is read and no clock asked here, so that a plan
//! is the same on the machine, on a simulated host and in a test.
//!
//! - `unit`: whole GPUs and MIG devices, and which rule decides on each
//! - `nodes`: what a device consists of, and what keeps it from being given out
//! - `numbers`: which number each share gets, and keeps
//! - `shares`: a device cut into shares: sums and limits
//! - `mps`: the same where an MPS server holds them
//! - `time_slices`: how long their turns are, where there is none
//! - `side`: devices beside the GPUs
//! - `names`: names that others write too
//! - `moved`: names that mean another device than before
//! - `pools`: names for any free one of several devices
//! - `earlier`, `kept`: the plan as a file; what is read back by the next plan, and by the daemon

pub mod earlier;
pub mod kept;
pub mod moved;
mod mps;
pub mod names;
mod nodes;
mod numbers;
pub mod pools;
mod shares;
mod side;
mod time_slices;
mod unit;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, MigStrategy, Mode, TimeSlice};
use crate::discover::host::{ComputeMode, Gpu, Host, MigMode, Placement};
use crate::mps::settings::Settings;
use crate::time_slices::Wanted;
use earlier::{Earlier, KnownUnit};
pub use mps::MpsShare;
use numbers::Order;
use pools::{Pool, UserCap};
pub use shares::{Against, Level, Limit, Limits, Over};
pub use side::SideDevice;
pub use unit::{Unit, covers, units};

/// Vendor of all kinds: the one that NVIDIA's tools taught.
pub const VENDOR: &str = "nvidia.com";
/// Class of whole GPUs, MIG devices, and of shares that have no other.
pub const GPU_CLASS: &str = "gpu";
/// The name for every whole GPU and MIG device that has one.
pub const ALL: &str = "all";

/// What `generate` writes and `list` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tells one plan from another; in the plan's file and in every spec made from it.
    pub generation: String,
    /// Devices in GPU order, MIG devices and shares in the place of their GPU.
    pub devices: Vec<Device>,
    /// Devices of side kinds.
    pub side: Vec<SideDevice>,
    /// GPUs and MIG devices in the order of their shares' numbers.
    pub units: Vec<KnownUnit>,
    /// Names under which any free one of several devices can be had.
    pub pools: Vec<Pool>,
    /// What users may hold.
    pub users: Vec<UserCap>,
    /// MPS control daemons, one for each device that is shared in mode mps.
    pub mps: Vec<Settings>,
    /// How long the driver is to let GPUs work for one process.
    pub time_slices: Vec<Wanted>,
    /// How long a container's start waits for the daemon, in seconds; none: the hook's default.
    pub start_timeout: Option<u32>,
    /// What every container with a device gets besides.
    pub control_nodes: Vec<PlannedNode>,
    /// What should be there and is not.
    pub problems: Vec<Problem>,
    /// What is done as asked, and may not be what was meant.
    pub warnings: Vec<String>,
    /// What is as it should be and may still surprise.
    pub notes: Vec<String>,
    /// What became of each GPU and MIG device and why, a line each, for `generate --dry-run`.
    pub decisions: Vec<String>,
    /// Names of whole GPUs and MIG devices are left to another generator.
    pub whole_names_withheld: bool,
}

/// One CDI device: a whole GPU, a MIG device, or a share of either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `0` for a GPU, `0:1` for a MIG device: NVML indices; `shared-0` for a share.
    pub name: String,
    /// CDI classes in which it has its names: `gpu` for the kind nvidia.com/gpu.
    pub classes: Vec<String>,
    /// The same device by UUID, `GPU-...` or `MIG-...`; of a share, the device that it is a part of.
    pub uuid: String,
    /// GPU, MIG device or share.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whole, or how the shares of one device share it.
    pub mode: Mode,
    /// NVML index of the GPU.
    pub gpu: u32,
    /// Product name of the GPU.
    pub model: Option<String>,
    /// PCI address of the GPU, as sysfs writes it.
    pub pci_address: Option<String>,
    /// CUDA compute capability of the GPU.
    pub compute_capability: Option<String>,
    /// Who may open contexts on the GPU.
    pub compute_mode: Option<ComputeMode>,
    /// Memory that the device has, or that the share's limit leaves of it, bytes.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors, likewise.
    pub sms: Option<u32>,
    /// What holds the two.
    pub limits: Limits,
    /// What a share is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// How long its turns are, where the configuration says so of the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_slice: Option<TimeSlice>,
    /// What a share brings its container in mode mps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mps: Option<MpsShare>,
    /// What a MIG device, or the one that it is a share of, is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigPart>,
    /// Device nodes of this device alone.
    pub nodes: Vec<PlannedNode>,
    /// Containers get what draws besides: files for OpenGL, Vulkan, X11, and the nodes in /dev/dri.
    pub graphics: bool,
    /// Those nodes, where the GPU has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dri_nodes: Vec<PlannedNode>,
    /// It belongs to one container at a time.
    pub leased: bool,
    /// The pool that it can be taken from, in each of its classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

impl Device {
    /// Its names in each of its classes. A share has no UUID of its own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let uuid = (self.kind != Kind::Share).then_some(self.uuid.as_str());
        std::iter::once(self.name.as_str()).chain(uuid)
    }
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole GPU.
    Gpu,
    /// A compute instance inside a GPU instance.
    Mig,
    /// A part of one of the two.
    Share,
}

/// What a share is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The whole device, as `0` or `0:1`.
    pub of: String,
    /// The share's name in the configuration: its device name without the number.
    pub name: String,
    /// How many shares the whole device is cut into.
    pub count: u32,
}

/// The instances that a MIG device is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigPart {
    /// Profile, as `1c.2g.10gb`.
    pub profile: Option<String>,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// Memory slices of the GPU instance.
    pub placement: Option<Placement>,
}

/// A device node that goes into the spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedNode {
    /// Path in the container, and below the device root.
    pub path: PathBuf,
    /// Path on this machine.
    #[serde(skip)]
    pub host_path: PathBuf,
    /// Permission bits in the container: those of the host's node.
    #[serde(skip)]
    pub mode: u32,
    /// Group in the container: that of the host's node.
    #[serde(skip)]
    pub gid: u32,
}

/// Something that had to be left out, or that will keep containers from starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where in the configuration, if it comes from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What: `GPU 3`, `MIG device 0:1`, `/dev/nvidia-uvm`.
    pub what: String,
    /// Why, for a sentence that begins with `what`.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{} {}", self.what, self.why)
    }
}

/// Where things lie on the machine that is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The spec, in whose directory no other spec may define a name too.
    pub output: &'a Path,
    /// The state directory, where the daemon keeps what it has running.
    pub state: &'a Path,
    /// Prefix of the driver's files.
    pub driver_root: &'a Path,
}

/// What is known when a device is cut.
struct Cutting<'a> {
    host: &'a Host,
    places: &'a Places<'a>,
    order: Order,
}

/// Decides on every device of the host. `earlier` is the plan before this one, whose names shall not wander.
pub fn plan(host: &Host, config: &Config, earlier: &Earlier, places: &Places<'_>) -> Plan {
    let mut plan = Plan { warnings: config.warnings.clone(), ..Plan::default() };
    if !refused_by_mig_strategy(host, config, &mut plan) {
        let units = unit::units(host, config);
        let decided = unit::decide(&units, host, config, &mut plan);
        let order = numbers::number(host, config, &decided, earlier);
        plan_units(&Cutting { host, places, order }, config, &decided, &mut plan);
        side::plan(host, config, &mut plan);
        names::consider_others(host, config, earlier, places.output, &mut plan);
        pools::plan(config, &mut plan);
    }
    plan.start_timeout = config.start_timeout;
    what_nvml_cannot_tell(host, config, &mut plan);
    for control in &host.control_nodes {
        nodes::plan_control_node(control, &mut plan);
    }
    nodes::plan_libraries(host, &mut plan);
    let closed = host.driver_files.closed_sockets.iter();
    plan.decisions.extend(closed.map(|(path, why)| format!("{}: not for containers: {why}", path.display())));
    moved::moved(earlier, &mut plan);
    plan.generation = earlier::generation(host, &plan);
    plan
}

/// NVIDIA's `single` means that every device is the same; a machine where they are not is refused as a whole, since
/// `nvidia.com/gpu` would mean two things.
fn refused_by_mig_strategy(host: &Host, config: &Config, plan: &mut Plan) -> bool {
    if config.mig_strategy != Some(MigStrategy::Single) {
        return false;
    }
    let mut profiles: Vec<_> =
        host.gpus.iter().flat_map(|gpu| &gpu.mig_devices).map(|mig| &mig.profile).collect();
    profiles.sort();
    profiles.dedup();
    let whole = host.gpus.iter().find(|gpu| gpu.mig_mode != MigMode::Enabled);
    // Whole GPUs alone are all the same too.
    let whole = whole.filter(|_| !profiles.is_empty());
    let (what, why) = match (whole, &profiles[..]) {
        (Some(gpu), _) => (format!("GPU {}", gpu.index), "is not in MIG mode".to_owned()),
        (None, [_, _, ..]) => {
            let names: Vec<_> =
                profiles.iter().map(|profile| profile.as_deref().unwrap_or("(no name)")).collect();
            ("this machine".into(), format!("has MIG devices of several profiles: {}", names.join(", ")))
        }
        _ => return false,
    };
    plan.problems.push(Problem {
        place: None,
        what,
        why: format!("{why}, and mig_strategy = \"single\" means that all devices are the same"),
        hint: "use mig_strategy = \"mixed\", or cut all GPUs alike".into(),
    });
    true
}

fn plan_units(cutting: &Cutting<'_>, config: &Config, decided: &[unit::Decided<'_>], plan: &mut Plan) {
    for decided in decided {
        let unit = &decided.unit;
        let planned = nodes::usable_uuid(unit).and_then(|()| match unit {
            Unit::Gpu(gpu) => Ok(vec![nodes::gpu_node(gpu)?]),
            Unit::Mig(gpu, mig) => nodes::mig_nodes(gpu, mig),
        });
        let devices = planned.and_then(|nodes| {
            let classes = classes(unit, config);
            devices(Device { nodes, classes, ..unit.device() }, decided, cutting, plan)
        });
        plan.decisions.push(decision(decided, devices.as_deref()));
        if let (Ok(devices), Some(settings)) =
            (&devices, plan.mps.iter().find(|settings| settings.uuid == unit.uuid()))
        {
            plan.decisions.extend(mps::explain(unit, devices, settings));
        }
        match devices {
            Ok(devices) => plan.devices.extend(devices),
            Err(left_out) => plan.problems.push(left_out.problem(unit.what())),
        }
    }
    plan.units.clone_from(&cutting.order.units);
}

/// What a unit is given out as: itself, its shares, or both.
fn devices(
    unit: Device,
    decided: &unit::Decided<'_>,
    cutting: &Cutting<'_>,
    plan: &mut Plan,
) -> Result<Vec<Device>, nodes::LeftOut> {
    let cut_by = decided.rule.filter(|rule| rule.mode != Mode::Whole);
    let Some(rule) = cut_by else {
        let leased = decided.rule.is_some_and(|rule| rule.exclusive);
        return Ok(vec![pools::whole(draws(unit, decided, false, plan), leased, leased)]);
    };
    let mut devices = Vec::new();
    if rule.whole {
        devices.push(pools::whole(draws(unit.clone(), decided, false, plan), true, rule.exclusive));
    }
    devices.extend(shares::cut(&draws(unit, decided, true, plan), &decided.unit, rule, cutting, plan)?);
    Ok(devices)
}

/// `GPU 2: cut into 4 by config.toml:2:1, shared-0 to shared-3 with /dev/nvidia2, no name as a whole`
fn decision(decided: &unit::Decided<'_>, devices: Result<&[Device], &nodes::LeftOut>) -> String {
    let by = decided.rule.map_or("(no rule)".to_owned(), |rule| format!("by {}", rule.place));
    let what = match devices.map(|devices| devices.split_first()) {
        Err(left_out) => format!("left out {by}, {}", left_out.why),
        Ok(Some((whole, []))) if whole.kind != Kind::Share => {
            let leased = if whole.leased { "leased, " } else { "" };
            format!("whole {by}, {leased}{} with {}", drawing(whole), paths(whole))
        }
        Ok(Some((whole, shares))) if whole.kind != Kind::Share => {
            let as_whole = format!("leased as a whole too, {} with {}", drawing(whole), paths(whole));
            cut_into(shares, &by, &as_whole)
        }
        Ok(_) => cut_into(devices.unwrap_or_default(), &by, "no name as a whole"),
    };
    format!("{}: {what}", decided.unit.what())
}

fn cut_into(shares: &[Device], by: &str, as_whole: &str) -> String {
    let name = |device: &Device| device.share.as_ref().map(|share| share.name.clone());
    let names = shares.chunk_by(|a, b| name(a) == name(b)).map(|run| match run {
        [first, .., last] => format!("{} to {}", first.name, last.name),
        _ => run.iter().map(|share| share.name.clone()).collect(),
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let nodes = shares.first().map(paths).unwrap_or_default();
    let drawing = shares.first().map(drawing).unwrap_or_default();
    format!("cut into {} {by}, {names} {drawing} with {nodes}; {as_whole}", shares.len())
}

fn drawing(device: &Device) -> &'static str {
    match (device.graphics, device.dri_nodes.is_empty()) {
        (false, _) => "without graphics,",
        (true, true) => "with files for graphics and nothing in /dev/dri,",
        (true, false) => "with graphics,",
    }
}

fn paths(device: &Device) -> String {
    let nodes = device.nodes.iter().chain(&device.dri_nodes);
    nodes.map(|node| node.path.display().to_string()).collect::<Vec<_>>().join(" ")
}

/// What draws goes to whole GPUs and MIG devices that are made for it, not to shares, unless the configuration says
/// otherwise. The nodes in /dev/dri are the GPU's: with a MIG device they go only where its profile includes graphics,
/// as NVIDIA's generator has it.
fn draws(whole: Device, decided: &unit::Decided<'_>, is_cut: bool, plan: &mut Plan) -> Device {
    let is_made_for_it = match &decided.unit {
        Unit::Gpu(_) => true,
        Unit::Mig(_, mig) => mig.profile.as_ref().is_some_and(|profile| profile.contains("gfx")),
    };
    let asked = decided.rule.and_then(|rule| rule.graphics);
    let graphics = asked.unwrap_or(is_made_for_it && !is_cut);
    let dri_nodes =
        if graphics && is_made_for_it { nodes::dri_nodes(decided.unit.gpu(), plan) } else { Vec::new() };
    Device { graphics, dri_nodes, ..whole }
}

/// The kinds of a whole device's names. Under `mixed` a MIG device is also of the kind that NVIDIA's plugin calls
/// a resource: `nvidia.com/mig-1g.10gb`, with a dot for each `+`.
fn classes(unit: &Unit<'_>, config: &Config) -> Vec<String> {
    let mut classes = vec![GPU_CLASS.to_owned()];
    if let Unit::Mig(_, mig) = unit
        && config.mig_strategy == Some(MigStrategy::Mixed)
        && let Some(profile) = &mig.profile
    {
        let class = format!("mig-{}", profile.replace('+', "."));
        // A profile that nobody has heard of may hold anything.
        if format!("{VENDOR}/{class}").parse::<cdi::Kind>().is_ok() {
            classes.push(class);
        }
    }
    classes
}

/// GPUs and MIG devices that did not answer, or contradict each other, and GPUs that are cut by MIG into nothing.
fn what_nvml_cannot_tell(host: &Host, config: &Config, plan: &mut Plan) {
    for gpu in &host.gpus {
        mig_failures(host, gpu, config, plan);
    }
    contradictions(host, plan);
    for failed in &host.failed {
        plan.problems.push(Problem {
            place: None,
            what: format!("GPU {}", failed.index),
            why: format!("is left out: NVML cannot read it: {}", failed.reason),
            hint: "`dmesg | grep -i xid` may say why; a GPU that fell off the bus needs a reset or a reboot"
                .into(),
        });
    }
}

/// Two names for one device, or one for two: whichever is told the truth about, neither is given out.
fn contradictions(host: &Host, plan: &mut Plan) {
    plan.problems.extend(host.contradictions.iter().map(|contradiction| Problem {
        place: None,
        what: contradiction.what.clone(),
        why: format!("is left out: {}", contradiction.why),
        hint: "compare with `nvidia-smi -L` and /proc/driver/nvidia; a driver that mixes up its devices must be reloaded".into(),
    }));
}

fn mig_failures(host: &Host, gpu: &Gpu, config: &Config, plan: &mut Plan) {
    if gpu.mig_mode != MigMode::Enabled {
        return;
    }
    if config.mig_strategy == Some(MigStrategy::None) {
        plan.notes.push(format!(
            "GPU {} is in MIG mode and mig_strategy is \"none\", so neither it nor its MIG devices have names",
            gpu.index
        ));
        return;
    }
    let contradicted = host.contradictions.iter().any(|contradiction| contradiction.gpu == gpu.index);
    if gpu.mig_devices.is_empty() && gpu.mig_failed.is_empty() && !contradicted {
        plan.notes.push(format!(
            "GPU {index} is in MIG mode and has no MIG devices, so it has no name; `nvidia-smi mig -i {index} -lgip` lists what can be made",
            index = gpu.index
        ));
    }
    for failed in &gpu.mig_failed {
        plan.problems.push(Problem {
            place: None,
            what: format!("MIG device {}:{}", gpu.index, failed.index),
            why: format!("is left out: NVML cannot read it: {}", failed.reason),
            hint: "`nvidia-smi -L` should show it; a driver older than its GPU may not".into(),
        });
    }
}

#[cfg(test)]
mod tests;
