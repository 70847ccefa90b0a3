//! A device whose shares run at the same time, through an MPS server: what each share gets, what the server is told, and
//! what keeps a device from being shared so. The server has one limit for all of its clients, that of the largest share;
//! whatever a smaller one has of its own is a wish.
//!
//! - `divided`: how memory and SMs are divided

mod divided;

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{Mode, Priority, Rule, ShareRule};
use crate::discover::files::join_root;
use crate::discover::host::Host;
use crate::mps::place::{LONGEST_PIPE_DIRECTORY, Place};
use crate::mps::settings::Settings;
use divided::{Divided, parts, rounded};

use super::nodes::LeftOut;
use super::shares::{
    ADVISORY, Against, Allowance, Level, Limit, Limits, Over, check_percent, is_strong_enough,
    limits_in_words,
};
use super::unit::Unit;
use super::{Cutting, Device, Kind, Plan};

/// Clients of one server, and of those that come with CUDA 13.1 or newer (CUDA Multi-Process Service, "Client
/// Connections").
const MOST_CLIENTS: u32 = 48;
const MOST_CLIENTS_CUDA_13_1: u32 = 60;

/// The first driver whose control daemon can serve all users at once.
const MULTI_USER_BRANCH: u32 = 555;

const PROGRAMS_HINT: &str = "install it in the driver's version: Debian has it in nvidia-cuda-mps, elsewhere it comes with the driver";

/// What a share of a device in mode mps brings its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MpsShare {
    /// Percent of the device's SMs, 1 to 100.
    pub active_thread_percentage: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// How its work stands to that of others.
    pub priority: Priority,
}

/// What each of a rule's shares gets of a device. Says nothing to the plan if the device is left out.
pub fn allow(
    whole: &Device,
    unit: &Unit<'_>,
    rule: &Rule,
    cutting: &Cutting<'_>,
    plan: &mut Plan,
) -> Result<Vec<Allowance>, LeftOut> {
    let host = cutting.host;
    let (control, server) = programs(host)?;
    is_new_enough(whole)?;
    let client_limit = client_limit(host);
    has_room(rule, client_limit)?;
    has_short_path(whole, cutting.places.state)?;
    let divided = Divided::of(whole, unit)?;
    let parts = parts(rule, divided)?;
    let memory_mib = parts.iter().map(|part| part.memory_mib).max().unwrap_or(0);
    let active_thread_percentage =
        parts.iter().map(|part| part.active_thread_percentage).max().unwrap_or(100);
    let allow = |(share, part): (&ShareRule, &MpsShare)| {
        let is_mig = whole.kind == Kind::Mig;
        let limits = limits(part, memory_mib, active_thread_percentage, is_mig);
        is_held(share, &limits)?;
        is_strong_enough(share, &limits, Mode::Mps)?;
        Ok(Allowance {
            memory_bytes: Some(part.memory_mib << 20),
            sm_percent: Some(part.active_thread_percentage),
            sms: whole.sms.map(|sms| rounded(sms, part.active_thread_percentage)),
            limits,
            mps: Some(*part),
        })
    };
    let allowances = rule.shares.iter().zip(&parts).map(allow).collect::<Result<Vec<_>, LeftOut>>()?;
    check_percent(rule, &allowances)?;
    let on_this_machine = |path: &Path| join_root(cutting.places.driver_root, path);
    let multi_user = serves_all_users(host);
    plan.mps.push(Settings {
        uuid: whole.uuid.clone(),
        what: unit.what(),
        gpu_uuid: unit.gpu().uuid.clone(),
        is_mig: whole.kind == Kind::Mig,
        active_thread_percentage,
        memory_mib,
        client_limit,
        multi_user,
        at_boot: rule.mps.at_boot,
        shared_memory_bytes: rule.mps.shared_memory_bytes,
        control: on_this_machine(control),
        server: on_this_machine(server),
        driver_root: cutting.places.driver_root.to_owned(),
        driver_version: host.driver_version.clone(),
    });
    note(whole, unit, host, multi_user, plan);
    Ok(allowances)
}

fn programs(host: &Host) -> Result<(&PathBuf, &PathBuf), LeftOut> {
    let missing = |name: &str| LeftOut {
        why: format!("{name} is not installed where drivers have their programs, and MPS needs it"),
        hint: PROGRAMS_HINT.into(),
    };
    let control = host.mps.control.as_ref().ok_or_else(|| missing("nvidia-cuda-mps-control"))?;
    let server = host.mps.server.as_ref().ok_or_else(|| missing("nvidia-cuda-mps-server"))?;
    Ok((control, server))
}

/// Before Volta an MPS server limits nothing.
fn is_new_enough(whole: &Device) -> Result<(), LeftOut> {
    let version = whole.compute_capability.as_deref();
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let why = match (major, version) {
        (Some(7..), _) => return Ok(()),
        (_, Some(version)) => {
            format!("its compute capability is {version}, and MPS limits nothing below 7.0")
        }
        (_, None) => "its compute capability is not known, and MPS limits nothing below 7.0".into(),
    };
    Err(LeftOut { why, hint: "share it with mode = \"time-slice\"".into() })
}

/// How many processes the server of this driver serves at once.
fn client_limit(host: &Host) -> u32 {
    let version = host.cuda_version.as_deref().and_then(|version| version.split_once('.'));
    let version = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if version.is_some_and(|version: (u32, u32)| version >= (13, 1)) {
        MOST_CLIENTS_CUDA_13_1
    } else {
        MOST_CLIENTS
    }
}

/// Each share has a process at least.
fn has_room(rule: &Rule, client_limit: u32) -> Result<(), LeftOut> {
    let count: u32 = rule.shares.iter().map(|share| share.replicas).sum();
    if count <= client_limit {
        return Ok(());
    }
    let newer = match client_limit {
        MOST_CLIENTS => ", or use a driver with CUDA 13.1, whose MPS serves 60",
        _ => "",
    };
    Err(LeftOut {
        why: format!("it has {count} shares, and MPS of this driver serves {client_limit} processes at once"),
        hint: format!("lower replicas at {}{newer}", rule.place),
    })
}

fn has_short_path(whole: &Device, state: &Path) -> Result<(), LeftOut> {
    let pipe = Place::new(state, &whole.uuid).pipe();
    let length = pipe.as_os_str().len();
    if length <= LONGEST_PIPE_DIRECTORY {
        return Ok(());
    }
    Err(LeftOut {
        why: format!(
            "its MPS pipe directory {} is {length} bytes long, and MPS takes {LONGEST_PIPE_DIRECTORY}",
            pipe.display()
        ),
        hint: "choose a shorter state directory with --state-dir".into(),
    })
}

/// The server holds its own limits alone. A client that lies to it is not held to its memory; on a MIG device, which has
/// no compute mode, one that goes past it is held to nothing.
fn limits(part: &MpsShare, memory_mib: u64, percent: u32, is_mig: bool) -> Limits {
    let by_mps = |against| Limit { by: Level::Mps, over: Over::Process, against };
    let memory = if part.memory_mib == memory_mib { by_mps(Against::Mistakes) } else { ADVISORY };
    let sms = match part.active_thread_percentage == percent {
        true => by_mps(if is_mig { Against::Mistakes } else { Against::Anything }),
        false => ADVISORY,
    };
    Limits { memory: Some(memory), sms: Some(sms) }
}

fn is_held(share: &ShareRule, limits: &Limits) -> Result<(), LeftOut> {
    let is_wish = |limit: Option<Limit>| limit == Some(ADVISORY);
    match limits_in_words(is_wish(limits.memory), is_wish(limits.sms)) {
        Some(smaller) if !share.advisory => Err(LeftOut {
            why: format!(
                "nothing holds the {smaller} of its shares {:?}: the MPS server has one limit for all, that of the largest",
                share.name
            ),
            hint:
                "make its shares equal, or accept limits that nothing holds with advisory = true (--advisory)"
                    .into(),
        }),
        _ => Ok(()),
    }
}

fn serves_all_users(host: &Host) -> bool {
    let branch = host.driver_version.split('.').next().and_then(|branch| branch.parse::<u32>().ok());
    branch.is_some_and(|branch| branch >= MULTI_USER_BRANCH)
}

fn note(whole: &Device, unit: &Unit<'_>, host: &Host, multi_user: bool, plan: &mut Plan) {
    if whole.kind == Kind::Mig {
        plan.notes.push(format!(
            "{} has no compute mode, as no MIG device has: a process in a share that avoids MPS has no limits there",
            unit.what()
        ));
    }
    if let Unit::Mig(gpu, mig) = unit {
        let mut beside = gpu.mig_devices.iter().filter(|other| other.gpu_instance == mig.gpu_instance);
        if let Some(other) = beside.find(|other| other.index != mig.index) {
            plan.notes.push(format!(
                "{} is a compute instance beside {}:{} in one GPU instance, whose memory they have together: what its shares have of that is not theirs alone",
                unit.what(), gpu.index, other.index
            ));
        }
    }
    let one_user = format!(
        "MPS of driver {} serves one user at a time: a container of another user is refused while one has a share of its device",
        host.driver_version
    );
    if !multi_user && !plan.notes.contains(&one_user) {
        plan.notes.push(one_user);
    }
}

/// How the shares of a device came by what they have, a line each.
pub fn explain(unit: &Unit<'_>, devices: &[Device], settings: &Settings) -> Vec<String> {
    let what = unit.what();
    let Ok(divided) = Divided::of(&unit.device(), unit) else { return Vec::new() };
    let mut lines = vec![format!("{what}: MPS: {}MiB of memory for shares: {divided}", divided.for_shares())];
    let name = |device: &Device| device.share.as_ref().map(|share| share.name.clone());
    for alike in devices.chunk_by(|a, b| name(a) == name(b)) {
        let [first, ..] = alike else { continue };
        let Some(part) = first.mps else { continue };
        let names = match alike {
            [first, .., last] => format!("each of {} to {}", first.name, last.name),
            _ => first.name.clone(),
        };
        let sms = match (first.sms, unit.device().sms) {
            (Some(sms), Some(all)) => in_sms(sms, all, part.active_thread_percentage),
            _ => String::new(),
        };
        lines.push(format!(
            "{what}: MPS: {names} has {}MiB and {} % of the SMs{sms}",
            part.memory_mib, part.active_thread_percentage
        ));
        if part.priority == Priority::Low {
            let names = names.trim_start_matches("each of ");
            lines.push(format!("{what}: MPS: work of {names} waits for that of others"));
        }
    }
    let Settings { memory_mib, active_thread_percentage, client_limit, .. } = settings;
    let start = if settings.at_boot { "the daemon" } else { "the first share that is asked for" };
    lines.push(format!(
        "{what}: MPS: the server starts with {start}, serves {client_limit} processes at once, and keeps each to {memory_mib}MiB and {active_thread_percentage} %"
    ));
    if let Some(bytes) = settings.shared_memory_bytes {
        lines.push(format!("{what}: MPS: its containers share a /dev/shm of {}MiB", bytes >> 20));
    }
    lines
}

/// What a percentage comes to, which is rounded to pairs.
fn in_sms(sms: u32, all: u32, percent: u32) -> String {
    let asked = u64::from(all) * u64::from(percent);
    let how = match (u64::from(sms) * 100).cmp(&asked) {
        Ordering::Less => "rounded down to ",
        Ordering::Equal => "",
        Ordering::Greater => "at least ",
    };
    format!(", {how}{sms} of {all}")
}
