//! A device cut into shares: whether the limits of its shares fit into it and are held by something.

use serde::{Deserialize, Serialize};

use crate::config::{Memory, Rule, ShareRule};
use crate::discover::host::ComputeMode;

use super::nodes::LeftOut;
use super::numbers::{self, Order};
use super::{Device, Kind, Plan, Share};

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

/// The shares of one device, in the order of the configuration.
pub fn cut(whole: &Device, rule: &Rule, order: &Order, plan: &mut Plan) -> Result<Vec<Device>, LeftOut> {
    let count = rule.shares.iter().map(|share| share.replicas).sum();
    let limits: Vec<_> =
        rule.shares.iter().map(|share| Allowance::of(whole, share, count)).collect::<Result<_, _>>()?;
    check_sums(whole, rule, &limits)?;
    warn_of_compute_mode(whole, plan);
    let mut devices = Vec::new();
    for (share, cut) in rule.shares.iter().zip(&limits) {
        let run = numbers::run(rule, &share.name);
        let class = run.class.clone();
        let first = order.first(&whole.uuid, run);
        devices.extend((first..first + share.replicas).map(|number| Device {
            name: format!("{}-{number}", share.name),
            classes: vec![class.clone()],
            kind: Kind::Share,
            mode: rule.mode,
            memory_bytes: cut.memory_bytes.or(whole.memory_bytes),
            sms: cut.sms(whole),
            limits: Limits {
                memory: cut.memory_bytes.map(|_| ADVISORY),
                sms: cut.sm_percent.map(|_| ADVISORY),
            },
            leased: true,
            pool: Some(share.name.clone()),
            share: Some(Share { of: whole.name.clone(), name: share.name.clone(), count }),
            ..whole.clone()
        }));
    }
    Ok(devices)
}

/// What one share of a device may use.
struct Allowance {
    memory_bytes: Option<u64>,
    sm_percent: Option<u32>,
}

impl Allowance {
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
                hint: "leave memory and sm_percent out, or accept limits that nothing holds with advisory = true (--advisory)".into(),
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
            (Some(sms), Some(percent)) => {
                let part = u64::from(sms) * u64::from(percent) / 100;
                Some(u32::try_from(part).unwrap_or(sms).max(1))
            }
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

fn check_sums(whole: &Device, rule: &Rule, cuts: &[Allowance]) -> Result<(), LeftOut> {
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
    format!("{}MiB", bytes.div_ceil(1 << 20))
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
