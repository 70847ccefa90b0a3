//! Who else is on a device: while one is, no MPS server gets it alone, and what it does has no limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::at_work::AtWork;
use super::place::Place;
use super::process::users;
use super::reason::Reason;
use super::settings::Settings;
use crate::container::process::text;
use crate::nvml::processes::Session;

/// More are not named.
const NAMED: usize = 8;

/// Refuses a device that is not there, that a process uses, or that another control daemon would serve.
pub fn check(settings: &Settings, place: &Place, nvml: &Session) -> Result<(), Reason> {
    let what = &settings.what;
    let devices = nvml.devices();
    let Some(device) = devices.iter().find(|device| device.uuid == settings.uuid) else {
        return Err(Reason::failed(
            format!("{what}: {} is not there any more", settings.uuid),
            "`nvidia-smi -L` shows what is there; then `divvy generate`",
        ));
    };
    let uuids = [settings.uuid.as_str(), settings.gpu_uuid.as_str()];
    let pipe = place.pipe();
    let is_other = |other: &AtWork| {
        !other.is_server && other.is_roots() && !other.is_of(&pipe) && other.may_serve(&uuids)
    };
    if let Some(other) = AtWork::all().into_iter().find(is_other) {
        return Err(Reason::not_now(
            format!("{what}: another MPS control daemon may serve it, {}", named(other.pid)),
            end(&other),
        ));
    }
    let Some(processes) = &device.processes else {
        return Err(Reason::failed(
            format!("{what}: NVML does not tell who uses it"),
            "MPS needs the device for itself; `divvy --debug ps` shows NVML's words",
        ));
    };
    let pids: Vec<i32> = processes.keys().filter_map(|pid| i32::try_from(*pid).ok()).collect();
    if pids.is_empty() {
        return Ok(());
    }
    Err(in_use(what, &pids))
}

/// Refuses a device that others use than these processes.
pub fn check_alone(settings: &Settings, nvml: &Session, own: &[i32]) -> Result<(), Reason> {
    let devices = nvml.devices();
    let device = devices.iter().find(|device| device.uuid == settings.uuid);
    let processes =
        device.and_then(|device| device.processes.as_ref()).into_iter().flat_map(|all| all.keys());
    let pids: Vec<i32> = processes.filter_map(|pid| i32::try_from(*pid).ok()).collect();
    let others: Vec<i32> = pids.into_iter().filter(|pid| !own.contains(pid)).collect();
    if others.is_empty() { Ok(()) } else { Err(in_use(&settings.what, &others)) }
}

fn in_use(what: &str, pids: &[i32]) -> Reason {
    Reason::not_now(
        format!("{what}: MPS needs it for itself, and {} it", list(pids, "uses", "use")),
        "end what uses it; `divvy ps` shows whose it is",
    )
}

/// How another control daemon is ended, for a shell: its environment is whatever somebody wrote into it.
fn end(other: &AtWork) -> String {
    let kill = format!("end it: `kill {}`", other.pid);
    match other.pipe().to_str().filter(|path| is_plain(path)) {
        Some(path) => {
            format!("{kill}, or `echo quit | CUDA_MPS_PIPE_DIRECTORY={path} nvidia-cuda-mps-control`")
        }
        None => kill,
    }
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c))
}

/// Refuses a lock that somebody else holds: process `pid`, if that is known.
pub fn refuse(what: &str, lock: &Path, pid: Option<i32>) -> Reason {
    let Some(pid) = pid.or_else(|| who_has_open(lock)) else {
        return Reason::not_now(
            format!("{what}: somebody holds the lock of MPS, {}", lock.display()),
            "`lslocks` may show who; end that",
        );
    };
    let name = name(pid).map(|name| format!("{name}, ")).unwrap_or_default();
    let user = users(pid).map_or("gone".to_owned(), |[user, _]| format!("uid {user}"));
    Reason::not_now(
        format!("{what}: process {pid} ({name}{user}) holds the lock of MPS"),
        format!("end it: `kill {pid}`"),
    )
}

/// A process that has a file open: a lock may be of an open file and tell no process.
fn who_has_open(path: &Path) -> Option<i32> {
    let file = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let wanted = file(path)?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| file(&fd.path()) == Some(wanted))
    })
}

/// `process 4711 (python3)`.
pub fn named(pid: i32) -> String {
    let name = name(pid).map(|name| format!(" ({name})")).unwrap_or_default();
    format!("process {pid}{name}")
}

/// What a process calls itself, which may be anything.
fn name(pid: i32) -> Option<String> {
    let name = text(pid, "comm").ok()?;
    Some(name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}

/// `process 4711 (python3) uses`, `processes 4711 (python3), 4712 (python3) use`; the verb in both numbers.
pub fn list(pids: &[i32], one: &str, several: &str) -> String {
    if let [pid] = pids {
        return format!("{} {one}", named(*pid));
    }
    let names = pids.iter().take(NAMED).map(|pid| named(*pid).replacen("process ", "", 1));
    let more = if pids.len() > NAMED { format!(" and {} more", pids.len() - NAMED) } else { String::new() };
    format!("processes {}{more} {several}", names.collect::<Vec<_>>().join(", "))
}
