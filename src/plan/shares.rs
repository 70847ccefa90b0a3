//! A device cut into shares: whether the limits of its shares fit into it and are held by something. In turns nothing
//! holds them; what an MPS server does is in `mps`.

use serde::{Deserialize, Serialize};

use crate::config::{Mode, Require, Rule, ShareRule};
use crate::discover::host::ComputeMode;

use super::nodes::LeftOut;
use super::unit::Unit;
use super::{Cutting, Device, Kind, MpsShare, Plan, Share, mps, numbers, time_slices};

/// What holds the memory and SMs of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// None where nobody asked for a limit.
    pub memory: Option<Limit>,
    /// Likewise.
    pub sms: Option<Limit>,
}

/// A limit: by which mechanism it is held, over what, and against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The mechanism.
    pub by: Level,
    /// What is counted together.
    pub over: Over,
    /// Whom it stops.
    pub against: Against,
}

/// Mechanisms that hold a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The hardware.
    Mig,
    /// The MPS server.
    Mps,
    /// Nothing: a wish that the administrator knows to be one.
    Advisory,
}

/// What a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// All processes of the container.
    Container,
    /// Each process.
    Process,
}

/// Whom a limit stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    /// Whatever runs in the container.
    Anything,
    /// Programs that use CUDA as it is meant to be used.
    Mistakes,
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

/// What nothing holds.
pub const ADVISORY: Limit = Limit { by: Level::Advisory, over: Over::Process, against: Against::Nothing };

/// The shares of one device, in the order of the configuration.
pub fn cut(
    whole: &Device,
    unit: &Unit<'_>,
    rule: &Rule,
    cutting: &Cutting<'_>,
    plan: &mut Plan,
) -> Result<Vec<Device>, LeftOut> {
    let allowances = match rule.mode {
        Mode::Mps => mps::allow(whole, unit, rule, cutting, plan)?,
        Mode::Whole | Mode::TimeSlice => in_turns(whole, rule)?,
    };
    warn_of_compute_mode(whole, rule.mode, plan);
    let time_slice = time_slices::plan(unit, rule, cutting, plan);
    let count = rule.shares.iter().map(|share| share.replicas).sum();
    let mut devices = Vec::new();
    for (share, allowance) in rule.shares.iter().zip(&allowances) {
        let run = numbers::run(rule, &share.name);
        let class = run.class.clone();
        let first = cutting.order.first(&whole.uuid, run);
        devices.extend((first..first + share.replicas).map(|number| Device {
            name: format!("{}-{number}", share.name),
            classes: vec![class.clone()],
            kind: Kind::Share,
            mode: rule.mode,
            memory_bytes: allowance.memory_bytes.or(whole.memory_bytes),
            sms: allowance.sms,
            limits: allowance.limits,
            leased: true,
            pool: Some(share.name.clone()),
            share: Some(Share { of: whole.name.clone(), name: share.name.clone(), count }),
            time_slice,
            mps: allowance.mps,
            ..whole.clone()
        }));
    }
    Ok(devices)
}

/// What one share of a device may use.
pub struct Allowance {
    /// Bytes; none where nobody asked for a limit.
    pub memory_bytes: Option<u64>,
    /// Likewise.
    pub sm_percent: Option<u32>,
    /// What that leaves of the device's SMs.
    pub sms: Option<u32>,
    /// What holds them.
    pub limits: Limits,
    /// What its container is brought in mode mps.
    pub mps: Option<MpsShare>,
}

/// Shares that take turns have the limits that they are given, and nothing holds those.
fn in_turns(whole: &Device, rule: &Rule) -> Result<Vec<Allowance>, LeftOut> {
    let allow = |share: &ShareRule| {
        let (memory, sms) = (share.memory_bytes.is_some(), share.sm_percent.is_some());
        let asked = limits_in_words(memory, sms);
        if let Some(asked) = asked.filter(|_| !share.advisory) {
            return Err(LeftOut {
                why: format!("nothing on this machine holds the {asked} of its shares {:?}", share.name),
                hint: "leave memory and sm_percent out, share it with mode = \"mps\", or accept limits that nothing holds with advisory = true (--advisory)".into(),
            });
        }
        let limits = Limits { memory: memory.then_some(ADVISORY), sms: sms.then_some(ADVISORY) };
        is_strong_enough(share, &limits, Mode::TimeSlice)?;
        Ok(Allowance {
            memory_bytes: share.memory_bytes,
            sm_percent: share.sm_percent,
            sms: rounded_down(whole.sms, share.sm_percent),
            limits,
            mps: None,
        })
    };
    let allowances = rule.shares.iter().map(allow).collect::<Result<Vec<_>, _>>()?;
    check_memory(whole, rule, &allowances)?;
    check_percent(rule, &allowances)?;
    Ok(allowances)
}

/// Whether a share's limits are held by what the configuration requires.
pub fn is_strong_enough(share: &ShareRule, limits: &Limits, mode: Mode) -> Result<(), LeftOut> {
    let Some(require) = share.require else { return Ok(()) };
    let (required, hint) = match (require, mode) {
        (Require::Kernel, _) => {
            ("kernel", "no limit is the kernel's yet: require = \"mps\", or leave it out")
        }
        (Require::Mps, Mode::Mps) => ("mps", "make its shares equal, or leave require out"),
        (Require::Mps, _) => {
            ("mps", "share it with mode = \"mps\" and make its shares equal, or leave require out")
        }
    };
    let is_weaker = |limit: Option<Limit>| match require {
        Require::Kernel => true,
        Require::Mps => limit.is_none_or(|limit| limit.by == Level::Advisory),
    };
    match limits_in_words(is_weaker(limits.memory), is_weaker(limits.sms)) {
        None => Ok(()),
        Some(weaker) => Err(LeftOut {
            why: format!(
                "nothing on this machine holds the {weaker} of its shares {:?} as require = {required:?} wants it",
                share.name
            ),
            hint: hint.into(),
        }),
    }
}

/// `memory limit` and the like, of those that are meant; none of none.
pub fn limits_in_words(memory: bool, sms: bool) -> Option<&'static str> {
    match (memory, sms) {
        (false, false) => None,
        (true, false) => Some("memory limit"),
        (false, true) => Some("SM limit"),
        (true, true) => Some("memory and SM limits"),
    }
}

/// A share has one SM at least.
fn rounded_down(sms: Option<u32>, percent: Option<u32>) -> Option<u32> {
    let (Some(all), Some(percent)) = (sms, percent) else { return sms };
    let part = u64::from(all) * u64::from(percent) / 100;
    Some(u32::try_from(part).unwrap_or(all).max(1))
}

pub fn memory_of(whole: &Device) -> Result<u64, LeftOut> {
    whole.memory_bytes.ok_or_else(|| LeftOut {
        why: "its memory is not known, so that limits cannot be checked against it".into(),
        hint: "`nvidia-smi` should show it; leave memory out of the configuration meanwhile".into(),
    })
}

fn check_memory(whole: &Device, rule: &Rule, allowances: &[Allowance]) -> Result<(), LeftOut> {
    let mut memory = 0_u64;
    for (share, allowance) in rule.shares.iter().zip(allowances) {
        let bytes = allowance.memory_bytes.unwrap_or(0);
        memory = memory.saturating_add(bytes.saturating_mul(share.replicas.into()));
    }
    if memory == 0 || rule.overcommit || memory <= memory_of(whole)? {
        return Ok(());
    }
    let (asked, has) = (mib(memory), mib(memory_of(whole)?));
    Err(LeftOut {
        why: format!("its shares have {asked} of memory together, and it has {has}"),
        hint: lower("memory", rule),
    })
}

/// SMs are divided by whole percents.
pub fn check_percent(rule: &Rule, allowances: &[Allowance]) -> Result<(), LeftOut> {
    let shares = rule.shares.iter().zip(allowances);
    let percent: u32 =
        shares.filter_map(|(share, allowance)| Some(share.replicas * allowance.sm_percent?)).sum();
    if percent <= 100 || rule.overcommit {
        return Ok(());
    }
    Err(LeftOut {
        why: format!("its shares have {percent} % of the SMs together"),
        hint: lower("sm_percent", rule),
    })
}

fn lower(key: &str, rule: &Rule) -> String {
    format!("lower {key} at {}, or say overcommit = true", rule.place)
}

fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// The compute mode is the administrator's; divvy only says what will come of it.
fn warn_of_compute_mode(whole: &Device, mode: Mode, plan: &mut Plan) {
    if mode == Mode::Mps {
        if whole.compute_mode == Some(ComputeMode::Prohibited) && whole.kind == Kind::Gpu {
            plan.warnings.push(format!(
                "GPU {gpu} is to be shared through MPS and in compute mode prohibited: whoever set that meant that nobody uses it, so starts will be refused; `nvidia-smi -i {gpu} -c DEFAULT` lets shares work",
                gpu = whole.gpu
            ));
        }
        return;
    }
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
