//! Numbers of shares: they run over the host in the order of GPUs and MIG devices, each name by itself. What is missing,
//! does not answer or is left out keeps its numbers to itself, so that `shared-5` means the same device tomorrow.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::value::Match;
use crate::config::{Config, MigStrategy, Rule};
use crate::discover::host::Host;

use super::GPU_CLASS;
use super::earlier::{Earlier, KnownUnit, NumberCount, Numbers};
use super::unit::Decided;

/// Which numbers belong to which GPU or MIG device.
#[derive(Debug, Default)]
pub struct Order {
    /// All that have a place in the order, absent ones too.
    pub units: Vec<KnownUnit>,
    /// First number of a unit's shares, by its UUID and the run.
    first: BTreeMap<(String, Numbers), u32>,
}

impl Order {
    /// The first number of a device's shares in a run.
    pub fn first(&self, uuid: &str, run: Numbers) -> u32 {
        self.first.get(&(uuid.to_owned(), run)).copied().unwrap_or(0)
    }
}

/// What stands at a place in the order.
enum Place<'a> {
    Present(&'a Decided<'a>),
    /// NVML counts it, and it cannot be used: by NVML index and MIG index.
    Failed(u32, Option<u32>),
    /// The earlier plan had it.
    Known(&'a KnownUnit),
}

/// Gives every share its number.
pub fn number(host: &Host, config: &Config, decided: &[Decided<'_>], earlier: &Earlier) -> Order {
    let mut order = Order::default();
    let mut next: BTreeMap<Numbers, u32> = BTreeMap::new();
    for place in places(host, config, decided, earlier) {
        let mut unit = match place {
            Place::Present(decided) => KnownUnit {
                uuid: Some(decided.unit.uuid().to_owned()),
                gpu: Some(decided.unit.gpu().uuid.clone()),
                mig: decided.unit.mig_index(),
                numbers: wanted(decided.rule),
            },
            Place::Failed(gpu, mig) => {
                KnownUnit { uuid: None, gpu: None, mig, numbers: wanted(rule_by_index(config, gpu, mig)) }
            }
            Place::Known(unit) => unit.clone(),
        };
        for NumberCount { run, first, count } in &mut unit.numbers {
            let next = next.entry(run.clone()).or_default();
            *first = *next;
            *next = next.saturating_add(*count);
            if let (Place::Present(_), Some(uuid)) = (&place, &unit.uuid) {
                order.first.insert((uuid.clone(), run.clone()), *first);
            }
        }
        order.units.push(unit);
    }
    order
}

/// Everything that NVML counts in its order, and in between what the earlier plan knew and NVML counts no more: it
/// stands where it stood.
fn places<'a>(
    host: &Host,
    config: &Config,
    decided: &'a [Decided<'a>],
    earlier: &'a Earlier,
) -> Vec<Place<'a>> {
    let mut counted: Vec<((u32, Option<u32>), Place<'a>)> = Vec::new();
    counted.extend(decided.iter().map(|decided| {
        let at = (decided.unit.gpu().index, decided.unit.mig_index());
        (at, Place::Present(decided))
    }));
    let mut failed: Vec<(u32, Option<u32>)> = host.failed.iter().map(|failed| (failed.index, None)).collect();
    failed.extend(host.contradictions.iter().map(|contradiction| (contradiction.gpu, contradiction.mig)));
    if config.mig_strategy != Some(MigStrategy::None) {
        for gpu in &host.gpus {
            failed.extend(gpu.mig_failed.iter().map(|mig| (gpu.index, Some(mig.index))));
        }
    }
    counted.extend(failed.into_iter().map(|at| (at, Place::Failed(at.0, at.1))));
    counted.sort_by_key(|(at, _)| *at);
    let mut places: Vec<Place<'a>> = counted.into_iter().map(|(_, place)| place).collect();

    let present: BTreeSet<&str> = decided.iter().map(|decided| decided.unit.uuid()).collect();
    let gpus: BTreeMap<&str, u32> = host.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.index)).collect();
    for (at, unit) in earlier.units.iter().enumerate() {
        // One that was never known by its UUID has nothing that could be kept.
        let (Some(uuid), Some(gpu)) = (&unit.uuid, &unit.gpu) else { continue };
        if present.contains(uuid.as_str()) {
            continue;
        }
        if let Some(index) = gpus.get(gpu.as_str()) {
            // Its GPU is there. Either it does not answer, or MIG was cut anew and it is gone for good.
            let it = |place: &Place<'_>| matches!(place, Place::Failed(gpu, mig) if gpu == index && *mig == unit.mig);
            if let Some(place) = places.iter_mut().find(|place| it(place)) {
                *place = Place::Known(unit);
            }
            continue;
        }
        let at = at.min(places.len());
        match places.get_mut(at) {
            // NVML counts the GPU and cannot read it: it is the one that stood here.
            Some(place @ Place::Failed(_, None)) => *place = Place::Known(unit),
            _ => places.insert(at, Place::Known(unit)),
        }
    }
    places
}

/// The rule for a device of which nothing but its index is known.
fn rule_by_index(config: &Config, gpu: u32, mig: Option<u32>) -> Option<&Rule> {
    let is_about = |entry: &Match| match (entry, mig) {
        (Match::All, _) => true,
        (Match::Index(index), None) => *index == gpu,
        (Match::Model(pattern), None) => pattern.bytes().all(|byte| byte == b'*'),
        (Match::Mig(on, index), Some(mig)) => (*on, *index) == (gpu, mig),
        _ => false,
    };
    config.rules.iter().find(|rule| rule.matches.iter().any(|entry| is_about(&entry.matches)))
}

/// Numbers that a rule takes for each device it decides on.
fn wanted(rule: Option<&Rule>) -> Vec<NumberCount> {
    let shares = rule.into_iter().flat_map(|rule| rule.shares.iter().map(move |share| (rule, share)));
    shares
        .map(|(rule, share)| NumberCount { run: run(rule, &share.name), first: 0, count: share.replicas })
        .collect()
}

/// The run that a rule's shares of this name are numbered in.
pub fn run(rule: &Rule, name: &str) -> Numbers {
    let class = rule.class.clone().unwrap_or_else(|| GPU_CLASS.to_owned());
    Numbers { class, name: name.to_owned() }
}
