//! A device cut into shares: whether the limits of its shares fit into it and are held by something, and which
//! numbers they get. Numbers run over the host in GPU order, each name by itself, and a GPU that is missing or left
//! out keeps its numbers to itself, so that `shared-5` means the same device tomorrow.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::value::Match;
use crate::config::{Config, Memory, Rule, ShareRule};
use crate::discover::host::{ComputeMode, Host};

use super::earlier::{Earlier, KnownGpu, NumberCount, Numbers};
use super::nodes::LeftOut;
use super::unit::Decided;
use super::{Device, GPU_CLASS, Kind, Plan, Share};

/// What holds the memory and SMs of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// None where nobody asked for a limit.
    pub memory: Option<Limit>,
    /// Likewise.
    pub sms: Option<Limit>,
}

/// A limit: by which mechanism it is held, over what, and against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The mechanism.
    pub by: Level,
    /// What is counted together.
    pub over: Over,
    /// Whom it stops.
    pub against: Against,
}

/// Mechanisms that hold a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The hardware.
    Mig,
    /// Nothing: a wish that the administrator knows to be one.
    Advisory,
}

/// What a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// All processes of the container.
    Container,
    /// Each process.
    Process,
}

/// Whom a limit stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// Whatever runs in the container.
    Anything,
    /// Nobody.
    Nothing,
}

impl Limits {
    /// A MIG device's own.
    pub fn of_mig() -> Self {
        let limit = Limit { by: Level::Mig, over: Over::Container, against: Against::Anything };
        Self { memory: Some(limit), sms: Some(limit) }
    }
}

const ADVISORY: Limit = Limit { by: Level::Advisory, over: Over::Process, against: Against::Nothing };

/// Which numbers belong to which unit, and the GPUs in the order of the numbers.
#[derive(Debug, Default)]
pub struct Order {
    /// Every GPU that has a place in the order, absent ones too.
    pub gpus: Vec<KnownGpu>,
    /// First number of a unit's shares, by unit and share name.
    first: BTreeMap<(String, Numbers), u32>,
}

/// Gives every share its number. The order of the earlier plan is kept for GPUs that are absent now: they stand where
/// they stood, with as many numbers as they had.
pub fn number(host: &Host, config: &Config, decided: &[Decided<'_>], earlier: &Earlier) -> Order {
    let gpus = places(host, earlier);
    let mut order = Order::default();
    let mut next: BTreeMap<Numbers, u32> = BTreeMap::new();
    for place in gpus {
        let mut counts: BTreeMap<Numbers, u32> = BTreeMap::new();
        match &place {
            Place::Present(uuid) => {
                for decided in decided.iter().filter(|decided| decided.unit.gpu().uuid == *uuid) {
                    for (numbers, count) in wanted(decided.rule) {
                        let before = counts.entry(numbers.clone()).or_default();
                        let first = next.get(&numbers).copied().unwrap_or(0) + *before;
                        order.first.insert((decided.unit.uuid().to_owned(), numbers), first);
                        *before += count;
                    }
                }
            }
            Place::Failed(index) => {
                let by_entry = |entry: &Match| matches!(entry, Match::All) || *entry == Match::Index(*index);
                let rule = config
                    .rules
                    .iter()
                    .find(|rule| rule.matches.iter().any(|entry| by_entry(&entry.matches)));
                counts.extend(wanted(rule));
            }
            Place::Absent(gpu) => {
                counts.extend(gpu.numbers.iter().map(|part| (part.run.clone(), part.count)))
            }
        }
        for (numbers, count) in &counts {
            *next.entry(numbers.clone()).or_default() += count;
        }
        let uuid = match place {
            Place::Present(uuid) => Some(uuid),
            Place::Failed(_) => None,
            Place::Absent(gpu) => gpu.uuid.clone(),
        };
        let numbers = counts.into_iter().map(|(run, count)| NumberCount { run, count }).collect();
        order.gpus.push(KnownGpu { uuid, numbers });
    }
    order
}

/// A GPU's place in the order of numbers.
enum Place<'a> {
    Present(String),
    Failed(u32),
    Absent(&'a KnownGpu),
}

fn places<'a>(host: &Host, earlier: &'a Earlier) -> Vec<Place<'a>> {
    let mut present: Vec<(u32, Place<'a>)> =
        host.gpus.iter().map(|gpu| (gpu.index, Place::Present(gpu.uuid.clone()))).collect();
    present.extend(host.failed.iter().map(|failed| (failed.index, Place::Failed(failed.index))));
    present.sort_by_key(|(index, _)| *index);
    let mut places: Vec<Place<'a>> = present.into_iter().map(|(_, place)| place).collect();
    for (at, gpu) in earlier.gpus.iter().enumerate() {
        let is_present = host.gpus.iter().any(|present| Some(&present.uuid) == gpu.uuid.as_ref());
        // One that was never known by its UUID has nothing that could be kept.
        if is_present || gpu.uuid.is_none() {
            continue;
        }
        let at = at.min(places.len());
        match places.get_mut(at) {
            // NVML counts it and cannot read it: it is the one that stood here.
            Some(place @ Place::Failed(_)) => *place = Place::Absent(gpu),
            _ => places.insert(at, Place::Absent(gpu)),
        }
    }
    places
}

/// Numbers that a rule takes for each unit it decides on.
fn wanted(rule: Option<&Rule>) -> impl Iterator<Item = (Numbers, u32)> {
    rule.into_iter().flat_map(|rule| {
        rule.shares
            .iter()
            .map(|share| (Numbers { class: class(rule), name: share.name.clone() }, share.replicas))
    })
}

fn class(rule: &Rule) -> String {
    rule.class.clone().unwrap_or_else(|| GPU_CLASS.to_owned())
}

/// The shares of one device, in the order of the configuration.
pub fn cut(whole: &Device, rule: &Rule, order: &Order, plan: &mut Plan) -> Result<Vec<Device>, LeftOut> {
    let count = rule.shares.iter().map(|share| share.replicas).sum();
    let limits: Vec<_> =
        rule.shares.iter().map(|share| Cut::of(whole, share, count)).collect::<Result<_, _>>()?;
    check_sums(whole, rule, &limits)?;
    warn_of_compute_mode(whole, plan);
    let mut devices = Vec::new();
    for (share, cut) in rule.shares.iter().zip(&limits) {
        let numbers = Numbers { class: class(rule), name: share.name.clone() };
        let first = order.first.get(&(whole.uuid.clone(), numbers)).copied().unwrap_or(0);
        devices.extend((first..first + share.replicas).map(|number| Device {
            name: format!("{}-{number}", share.name),
            classes: vec![class(rule)],
            kind: Kind::Share,
            mode: rule.mode,
            memory_bytes: cut.memory_bytes.or(whole.memory_bytes),
            sms: cut.sms(whole),
            limits: Limits {
                memory: cut.memory_bytes.map(|_| ADVISORY),
                sms: cut.sm_percent.map(|_| ADVISORY),
            },
            share: Some(Share { of: whole.name.clone(), name: share.name.clone(), count }),
            ..whole.clone()
        }));
    }
    Ok(devices)
}

/// What one share of a device may use.
struct Cut {
    memory_bytes: Option<u64>,
    sm_percent: Option<u32>,
}

impl Cut {
    fn of(whole: &Device, share: &ShareRule, count: u32) -> Result<Self, LeftOut> {
        let asked = match (share.memory, share.sm_percent) {
            (None, None) => return Ok(Self { memory_bytes: None, sm_percent: None }),
            (Some(_), None) => "memory limit",
            (None, Some(_)) => "SM limit",
            (Some(_), Some(_)) => "memory and SM limits",
        };
        if !share.advisory {
            return Err(LeftOut {
                why: format!("nothing on this machine holds the {asked} of its shares {:?}", share.name),
                hint: "leave memory and sm_percent out, or accept limits that nothing holds with advisory = true".into(),
            });
        }
        let memory_bytes = match share.memory {
            None => None,
            Some(Memory::Bytes(bytes)) => Some(bytes),
            Some(Memory::EqualPart) => Some(memory_of(whole)? / u64::from(count)),
        };
        Ok(Self { memory_bytes, sm_percent: share.sm_percent })
    }

    /// Rounded down, as the driver does; a share has one at least.
    fn sms(&self, whole: &Device) -> Option<u32> {
        match (whole.sms, self.sm_percent) {
            (Some(sms), Some(percent)) => Some((sms * percent / 100).max(1)),
            (sms, _) => sms,
        }
    }
}

fn memory_of(whole: &Device) -> Result<u64, LeftOut> {
    whole.memory_bytes.ok_or_else(|| LeftOut {
        why: "its memory is not known, so that limits cannot be checked against it".into(),
        hint: "`nvidia-smi` should show it; leave memory out of the configuration meanwhile".into(),
    })
}

fn check_sums(whole: &Device, rule: &Rule, cuts: &[Cut]) -> Result<(), LeftOut> {
    let hint = |key: &str| format!("lower {key} at {}, or say overcommit = true", rule.place);
    let shares = || rule.shares.iter().zip(cuts);
    let mut memory = 0_u64;
    for (share, bytes) in shares().filter_map(|(share, cut)| Some((share, cut.memory_bytes?))) {
        memory = memory.saturating_add(bytes.saturating_mul(share.replicas.into()));
    }
    if memory > 0 && !rule.overcommit && memory > memory_of(whole)? {
        return Err(LeftOut {
            why: format!(
                "its shares have {} of memory together, and it has {}",
                mib(memory),
                mib(memory_of(whole)?)
            ),
            hint: hint("memory"),
        });
    }
    let percent: u32 = shares().filter_map(|(share, cut)| Some(share.replicas * cut.sm_percent?)).sum();
    if percent > 100 && !rule.overcommit {
        return Err(LeftOut {
            why: format!("its shares have {percent} % of the SMs together"),
            hint: hint("sm_percent"),
        });
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

/// The compute mode is the administrator's; divvy only says what will come of it.
fn warn_of_compute_mode(whole: &Device, plan: &mut Plan) {
    let (mode, effect) = match whole.compute_mode {
        Some(ComputeMode::ExclusiveProcess) => ("exclusive-process", "only one process at a time can use it"),
        Some(ComputeMode::Prohibited) => ("prohibited", "no process can use it"),
        Some(ComputeMode::Default) | None => return,
    };
    plan.warnings.push(format!(
        "GPU {gpu} is cut into shares and in compute mode {mode}: {effect}; `nvidia-smi -i {gpu} -c DEFAULT` lets shares work",
        gpu = whole.gpu
    ));
}
