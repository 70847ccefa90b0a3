//! `divvy mps`: MPS as it is on each device, its end, its beginning anew, and the process that keeps it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;

use super::STDOUT;
use crate::cli::{ListFormat, MpsArgs, MpsCommand, MpsDeviceArgs, SuperviseArgs};
use crate::failure::{Failure, Status, printable, say};
use crate::mps::client::{self, Known};
use crate::mps::protocol::{Answer, State};
use crate::mps::settings::Settings;
use crate::mps::{start, supervisor};
use crate::plan::kept::Kept;
use crate::ps::table;
use crate::{publish, sys};

const HEAD: [&str; 7] = ["DEVICE", "STATE", "CONTROL PID", "SERVER PID", "CLIENTS", "LIMITS", "SINCE"];

/// MPS on one device, as programs read it.
#[derive(Debug, Serialize)]
struct Row {
    /// `GPU 0`, `MIG device 0:1`.
    device: String,
    uuid: String,
    /// None: nothing has asked for it yet.
    state: Option<State>,
    /// Somebody keeps it; if not, the rest is of another time.
    supervised: bool,
    control_pid: Option<i32>,
    server_pid: Option<i32>,
    clients: Vec<i32>,
    /// Percent of the SMs, of each process.
    active_thread_percentage: Option<u32>,
    /// MiB, of each process.
    memory_mib: Option<u64>,
    /// Seconds since the epoch.
    since: Option<u64>,
    why: Option<String>,
    hint: Option<String>,
}

/// Runs the verb.
pub fn run(args: &MpsArgs) -> Result<Status> {
    match &args.command {
        None => list(&args.state_dir, args.format),
        Some(MpsCommand::Stop(args)) => stop(args),
        Some(MpsCommand::Restart(args)) => restart(args),
        Some(MpsCommand::Supervise(args)) => supervise(args),
    }
}

fn list(state_dir: &Path, format: ListFormat) -> Result<Status> {
    let rows = rows(state_dir);
    let mut out = std::io::stdout().lock();
    let text = match format {
        ListFormat::Json => {
            serde_json::to_string_pretty(&rows).map_err(std::io::Error::from).context(STDOUT)? + "\n"
        }
        ListFormat::Table if rows.is_empty() => "no device is shared by MPS\n".into(),
        ListFormat::Table => lines(&rows).iter().map(|line| printable(line) + "\n").collect(),
    };
    out.write_all(text.as_bytes()).context(STDOUT)?;
    if format == ListFormat::Table {
        for row in &rows {
            row.why.iter().for_each(|why| say("warning", why));
            row.hint.iter().for_each(|hint| say("hint", hint));
        }
    }
    Ok(Status::Done)
}

/// Those that are known, and those of the plan that nobody has asked for.
fn rows(state_dir: &Path) -> Vec<Row> {
    client::look_again(state_dir);
    let mut known = client::known(state_dir);
    // A supervisor that has just begun, or has ended MPS and is about to leave.
    known.retain(|known| known.settings.is_some() || known.status.is_some());
    let planned = planned(state_dir).map(|plan| plan.mps).unwrap_or_default();
    let unknown: Vec<Settings> = planned
        .into_iter()
        .filter(|settings| known.iter().all(|known| known.uuid != settings.uuid))
        .collect();
    let unknown = unknown.into_iter().map(|settings| {
        let uuid = settings.uuid.clone();
        row(Known { uuid, settings: Some(settings), uid: 0, status: None, is_supervised: false })
    });
    known.into_iter().map(row).chain(unknown).collect()
}

fn row(known: Known) -> Row {
    let Known { uuid, settings, status, is_supervised, .. } = known;
    let settings = settings.as_ref();
    let lost = status.as_ref().filter(|_| !is_supervised);
    let lost = lost.map(|status| format!("its supervisor, process {}, is gone", status.supervisor_pid));
    let status = status.as_ref();
    Row {
        device: settings.map_or_else(|| uuid.clone(), |settings| settings.what.clone()),
        state: status.map(|status| status.state),
        supervised: is_supervised,
        control_pid: status.and_then(|status| status.control_pid),
        server_pid: status.and_then(|status| status.server_pid),
        clients: status.map(|status| status.clients.clone()).unwrap_or_default(),
        active_thread_percentage: settings.map(|settings| settings.active_thread_percentage),
        memory_mib: settings.map(|settings| settings.memory_mib),
        since: status.map(|status| status.since),
        hint: match &lost {
            Some(_) => Some("`divvy serve` starts another".to_owned()),
            None => status.and_then(|status| status.hint.clone()),
        },
        why: lost.or_else(|| status.and_then(|status| status.why.clone())),
        uuid,
    }
}

fn lines(rows: &[Row]) -> Vec<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let cells = std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(|row| cells(row, now)));
    table::aligned(&cells.collect::<Vec<_>>())
}

fn cells(row: &Row, now: u64) -> [String; HEAD.len()] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let pid = |pid: Option<i32>| or_dash(pid.map(|pid| pid.to_string()));
    let limits = row.active_thread_percentage.zip(row.memory_mib);
    let clients: Vec<String> = row.clients.iter().map(i32::to_string).collect();
    [
        row.device.clone(),
        word(row).to_owned(),
        pid(row.control_pid),
        pid(row.server_pid),
        or_dash(Some(clients.join(" ")).filter(|clients| !clients.is_empty())),
        or_dash(limits.map(|(percent, mib)| format!("{percent}% SMs, {mib}MiB"))),
        or_dash(row.since.map(|since| sys::local_time(since, now))),
    ]
}

/// What is seen by nobody is not known.
fn word(row: &Row) -> &'static str {
    match row.state {
        None => "not started",
        Some(_) if !row.supervised => "unknown",
        Some(State::Down) => "down",
        Some(State::Starting) => "starting",
        Some(State::Ready) => "ready",
        Some(State::Fault) => "fault",
        Some(State::Blocked) => "blocked",
    }
}

fn stop(args: &MpsDeviceArgs) -> Result<Status> {
    let known = find(args)?;
    // Asked before: a container that starts meanwhile is refused.
    let holders = client::holders(&state_dir(args)?, &known.uuid);
    end(args, &known)?;
    for holder in holders {
        say("warning", format_args!("CUDA programs that {holder} starts from now on have no limits"));
    }
    say("note", "it begins again when a container asks for a share of the device");
    Ok(Status::Done)
}

fn restart(args: &MpsDeviceArgs) -> Result<Status> {
    let known = find(args)?;
    match client::restart(&state_dir(args)?, &known.uuid, args.force) {
        Answer::Ready { .. } => Ok(Status::Done),
        other => Err(refused(other)),
    }
}

fn end(args: &MpsDeviceArgs, known: &Known) -> Result<()> {
    match client::stop(&state_dir(args)?, &known.uuid, args.force) {
        Answer::Stopped => Ok(()),
        other => Err(refused(other)),
    }
}

fn refused(answer: Answer) -> anyhow::Error {
    match answer {
        Answer::Refused { message, hint, .. } => {
            let failure = Failure::new(anyhow::anyhow!(message));
            hint.into_iter().fold(failure, Failure::hint).into()
        }
        other => anyhow::anyhow!("the MPS supervisor answers another question: {other:?}"),
    }
}

/// The device that was named.
fn find(args: &MpsDeviceArgs) -> Result<Known> {
    if !nix::unistd::geteuid().is_root() {
        let error = anyhow::anyhow!("MPS is root's: others cannot end it");
        return Err(Failure::new(error).hint("sudo divvy mps ...").into());
    }
    let state_dir = state_dir(args)?;
    let known = client::known(&state_dir);
    let share = planned(&state_dir).and_then(|plan| {
        let mut devices = plan.devices.into_iter();
        devices.find(|device| device.name == args.device).map(|device| device.uuid)
    });
    let is_it = |known: &&Known| {
        let index = known.settings.as_ref().and_then(|settings| settings.what.rsplit(' ').next());
        known.uuid == args.device || index == Some(&args.device) || share.as_ref() == Some(&known.uuid)
    };
    known.iter().find(is_it).cloned().ok_or_else(|| {
        let error = anyhow::anyhow!("there is no MPS on {:?}", args.device);
        let all: Vec<&str> = known.iter().map(|known| known.uuid.as_str()).collect();
        let hint = match all[..] {
            [] => "`divvy mps` shows the devices that are shared by it".to_owned(),
            _ => format!("it is on {}", all.join(", ")),
        };
        Failure::new(error).hint(hint).into()
    })
}

fn state_dir(args: &MpsDeviceArgs) -> Result<PathBuf> {
    absolute(&args.state_dir)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}

/// The plan; none where there is none, or it cannot be read.
fn planned(state_dir: &Path) -> Option<Kept> {
    serde_json::from_str(&publish::plan_text(state_dir).ok()?).ok()
}

fn supervise(args: &SuperviseArgs) -> Result<Status> {
    let state_dir = absolute(&args.state_dir)?;
    match args.background {
        true => start::in_background(&state_dir, &args.uuid).context("cannot start a supervisor")?,
        false => supervisor::run(&state_dir, &args.uuid)?,
    }
    Ok(Status::Done)
}
