//! Units: what can be given to one container as a whole, or be cut into shares. A GPU that is not in MIG mode is one,
//! a MIG device is one. The first rule with an entry that covers a unit decides on it.

use crate::config::value::{Match, glob};
use crate::config::{Config, MatchEntry, MigStrategy, Mode, Rule};
use crate::discover::host::{Gpu, Host, MigDevice, MigMode};

use super::{Device, Kind, Limits, MigPart, Plan, Problem};

/// A whole GPU, or a MIG device and its GPU.
#[derive(Clone, Copy, Debug)]
pub enum Unit<'a> {
    /// A GPU that is not in MIG mode.
    Gpu(&'a Gpu),
    /// One compute instance.
    Mig(&'a Gpu, &'a MigDevice),
}

/// A unit and the rule that decides on it.
#[derive(Debug)]
pub struct Decided<'a> {
    /// The unit.
    pub unit: Unit<'a>,
    /// None: it stays whole.
    pub rule: Option<&'a Rule>,
}

impl<'a> Unit<'a> {
    /// The GPU that it is or lies on.
    pub fn gpu(&self) -> &'a Gpu {
        match self {
            Unit::Gpu(gpu) | Unit::Mig(gpu, _) => gpu,
        }
    }

    /// NVML MIG index of a MIG device.
    pub fn mig_index(&self) -> Option<u32> {
        match self {
            Unit::Gpu(_) => None,
            Unit::Mig(_, mig) => Some(mig.index),
        }
    }

    /// `GPU-...` or `MIG-...`.
    pub fn uuid(&self) -> &'a str {
        match self {
            Unit::Gpu(gpu) => &gpu.uuid,
            Unit::Mig(_, mig) => &mig.uuid,
        }
    }

    /// `0` or `0:1`.
    pub fn name(&self) -> String {
        match self {
            Unit::Gpu(gpu) => gpu.index.to_string(),
            Unit::Mig(gpu, mig) => format!("{}:{}", gpu.index, mig.index),
        }
    }

    /// `GPU 0` or `MIG device 0:1`, for messages.
    pub fn what(&self) -> String {
        match self {
            Unit::Gpu(_) => format!("GPU {}", self.name()),
            Unit::Mig(..) => format!("MIG device {}", self.name()),
        }
    }

    /// What the driver keeps of its memory to itself, bytes.
    pub fn reserved_memory_bytes(&self) -> Option<u64> {
        match self {
            Unit::Gpu(gpu) => gpu.reserved_memory_bytes,
            Unit::Mig(_, mig) => mig.reserved_memory_bytes,
        }
    }

    /// The unit as a device, without nodes and classes.
    pub fn device(&self) -> Device {
        let gpu = self.gpu();
        let device = Device {
            name: self.name(),
            classes: Vec::new(),
            uuid: self.uuid().to_owned(),
            kind: Kind::Gpu,
            mode: Mode::Whole,
            gpu: gpu.index,
            model: gpu.model.clone(),
            pci_address: gpu.pci_address.clone(),
            compute_capability: gpu.compute_capability.clone(),
            compute_mode: gpu.compute_mode,
            memory_bytes: gpu.memory_bytes,
            sms: gpu.sms,
            limits: Limits::default(),
            share: None,
            time_slice: None,
            mps: None,
            mig: None,
            nodes: Vec::new(),
            graphics: false,
            dri_nodes: Vec::new(),
            leased: false,
            pool: None,
        };
        let Unit::Mig(_, mig) = self else { return device };
        Device {
            kind: Kind::Mig,
            memory_bytes: mig.memory_bytes,
            sms: mig.sms,
            limits: Limits::of_mig(),
            mig: Some(MigPart {
                profile: mig.profile.clone(),
                gpu_instance: mig.gpu_instance,
                compute_instance: mig.compute_instance,
                placement: mig.placement,
            }),
            ..device
        }
    }
}

/// Every unit of the host, in GPU order.
pub fn units<'a>(host: &'a Host, config: &Config) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for gpu in &host.gpus {
        match gpu.mig_mode {
            MigMode::Enabled if config.mig_strategy == Some(MigStrategy::None) => {}
            MigMode::Enabled => units.extend(gpu.mig_devices.iter().map(|mig| Unit::Mig(gpu, mig))),
            _ => units.push(Unit::Gpu(gpu)),
        }
    }
    units
}

/// Whether an entry is about this unit. What names a GPU is about the GPU as a whole, so it is not about the MIG
/// devices of a GPU that is cut by MIG.
pub fn covers(entry: &Match, unit: &Unit<'_>) -> bool {
    match (entry, unit) {
        (Match::All, _) => true,
        (Match::Uuid(uuid), unit) => uuid.eq_ignore_ascii_case(unit.uuid()),
        (Match::Mig(gpu, mig), Unit::Mig(on, device)) => *gpu == on.index && *mig == device.index,
        // NVIDIA's resource names have a dot for each plus.
        (Match::Profile(profile), Unit::Mig(_, device)) => {
            device.profile.as_ref().is_some_and(|of| of == profile || of.replace('+', ".") == *profile)
        }
        (_, Unit::Gpu(gpu)) => names_gpu(entry, gpu),
        _ => false,
    }
}

/// Whether an entry names this GPU, be it whole or not.
fn names_gpu(entry: &Match, gpu: &Gpu) -> bool {
    match entry {
        Match::Index(index) => *index == gpu.index,
        Match::Uuid(uuid) => uuid.eq_ignore_ascii_case(&gpu.uuid),
        Match::Pci(address) => gpu.pci_address.as_ref() == Some(address),
        Match::Model(pattern) => {
            // Of a model that NVML does not tell, `*` is the only name.
            glob(pattern, gpu.model.as_deref().unwrap_or_default())
        }
        Match::All | Match::Mig(..) | Match::Profile(_) => false,
    }
}

/// Finds each unit's rule, and says which entries of the configuration are in vain.
pub fn decide<'a>(units: &[Unit<'a>], host: &Host, config: &'a Config, plan: &mut Plan) -> Vec<Decided<'a>> {
    let mut decided: Vec<Decided<'a>> =
        units.iter().map(|unit| Decided { unit: *unit, rule: None }).collect();
    for rule in &config.rules {
        for entry in &rule.matches {
            let is_about = |unit: &Unit<'_>| {
                covers(&entry.matches, unit) && rule.only.as_ref().is_none_or(|only| covers(only, unit))
            };
            let covered: Vec<_> = decided.iter_mut().filter(|decided| is_about(&decided.unit)).collect();
            if covered.is_empty() {
                matches_nothing(entry, rule, host, config, plan);
                continue;
            }
            if covered.iter().all(|decided| decided.rule.is_some()) && entry.matches != Match::All {
                plan.warnings.push(format!(
                    "{}: {:?} matches only what earlier entries have matched: the first match wins",
                    entry.place, entry.text
                ));
            }
            for decided in covered {
                decided.rule.get_or_insert(rule);
            }
        }
    }
    decided
}

fn matches_nothing(entry: &MatchEntry, rule: &Rule, host: &Host, config: &Config, plan: &mut Plan) {
    // A GPU that does not answer is named elsewhere, and may be back tomorrow.
    if let Match::Index(index) = entry.matches
        && host.failed.iter().any(|failed| failed.index == index)
    {
        return;
    }
    let in_mig_mode = host.gpus.iter().find(|gpu| names_gpu(&entry.matches, gpu));
    let mig = matches!(entry.matches, Match::Mig(..) | Match::Profile(_));
    let (why, hint) = match in_mig_mode {
        _ if mig && config.mig_strategy == Some(MigStrategy::None) => (
            "matches nothing: under mig_strategy = \"none\" MIG devices are not given out".to_owned(),
            "use mig_strategy = \"mixed\", or leave it out".to_owned(),
        ),
        Some(gpu) => (
            format!(
                "matches nothing: GPU {} is in MIG mode, and only its MIG devices can be used",
                gpu.index
            ),
            format!("match them one by one (\"{}:0\") or by profile", gpu.index),
        ),
        None if rule.only.as_ref().is_some_and(|only| *only != entry.matches) => (
            "matches no device of its resource on this machine".to_owned(),
            "nvidia.com/gpu is for whole GPUs, nvidia.com/mig-<profile> for MIG devices of that profile"
                .to_owned(),
        ),
        None => (
            "matches nothing on this machine".to_owned(),
            "`divvy list` shows what there is; a GPU that comes back needs no change".to_owned(),
        ),
    };
    let place = Some(entry.place.to_string());
    plan.problems.push(Problem { place, what: format!("{:?}", entry.text), why, hint });
}
