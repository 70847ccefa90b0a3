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
use crate::plan::kept::{Kept, KeptDevice};
use crate::ps::table;
use crate::{publish, sys};

const HEAD: [&str; 7] = ["DEVICE", "STATE", "CONTROL PID", "SERVER PID", "CLIENTS", "LIMITS", "SINCE"];

/// MPS on one device, as programs read it.
#[derive(Debug, Serialize)]
struct Row {
    /// `GPU 0`, `MIG device 0:1`.
    device: String,
    uuid: String,
    #[serde(serialize_with = "state_or_none_yet")]
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

/// `not-started` of what nobody has asked for.
fn state_or_none_yet<S: serde::Serializer>(state: &Option<State>, to: S) -> Result<S::Ok, S::Error> {
    match state {
        Some(state) => state.serialize(to),
        None => to.serialize_str("not-started"),
    }
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
        if rows.is_empty() && !has_plan(state_dir) {
            say("note", super::no_plan(state_dir));
        }
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
    let device = settings.map_or_else(|| uuid.clone(), |settings| settings.what.clone());
    let lost =
        lost.map(|status| format!("{device}: its supervisor, process {}, is gone", status.supervisor_pid));
    let status = status.as_ref();
    Row {
        device,
        state: status.map(|status| status.state),
        supervised: is_supervised,
        control_pid: status.and_then(|status| status.control_pid),
        server_pid: status.and_then(|status| status.server_pid),
        clients: status.map(|status| status.clients.clone()).unwrap_or_default(),
        active_thread_percentage: settings.map(|settings| settings.active_thread_percentage),
        memory_mib: settings.map(|settings| settings.memory_mib),
        since: status.map(|status| status.since),
        hint: match &lost {
            Some(_) => Some("the daemon, `divvy serve`, starts another within 30 seconds".to_owned()),
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
        or_dash(limits.map(|(percent, mib)| in_words_of(percent, mib))),
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
    let state_dir = state_dir(args)?;
    let known = match find(args, &state_dir)? {
        Found::Known(known) => known,
        Found::NotStarted(settings) => {
            say("note", format_args!("MPS on {} has not started", settings.what));
            return Ok(Status::Done);
        }
    };
    // Asked before: who has a share now is who loses it.
    let holders = client::holders(&state_dir, &known.uuid);
    end(args, &known)?;
    for holder in &holders {
        say("warning", format_args!("CUDA fails in {holder} from now on (error 805)"));
    }
    let plan = planned(&state_dir).unwrap_or_default();
    let at_boot = plan.mps.iter().any(|settings| settings.uuid == known.uuid && settings.at_boot);
    let device = in_question(&known);
    match holders[..] {
        [] => say("note", format_args!("{device}: MPS has ended, and the compute mode is that of before")),
        _ => say(
            "note",
            format_args!("{device}: MPS has ended, and nobody gets the GPU until they have ended too"),
        ),
    }
    if !at_boot {
        say("note", "another container that asks for a share begins MPS again");
        return Ok(Status::Done);
    }
    let when = match holders[..] {
        [] => "within 30 seconds",
        _ => "when no container has a share of the device any more, or another asks for one",
    };
    say("note", format_args!("start = \"boot\": `divvy serve` begins it again {when}"));
    say(
        "hint",
        "to keep it away, take its entry out of the configuration and `divvy generate`, or stop divvy.service",
    );
    Ok(Status::Done)
}

fn restart(args: &MpsDeviceArgs) -> Result<Status> {
    let state_dir = state_dir(args)?;
    let known = match find(args, &state_dir)? {
        Found::Known(known) => known,
        Found::NotStarted(settings) => {
            let begins = if settings.at_boot { "`divvy serve` runs" } else { "a container asks for a share" };
            let error = anyhow::anyhow!("MPS on {} has not started: it begins when {begins}", settings.what);
            return Err(Failure::new(error).hint("`divvy mps` shows how it is").into());
        }
    };
    let plan = planned(&state_dir).unwrap_or_default();
    let settings = plan.mps.iter().find(|settings| settings.uuid == known.uuid);
    match client::restart(&state_dir, &known.uuid, args.force, settings) {
        Answer::Ready { .. } => {
            let limits = settings.or(known.settings.as_ref()).map(limits).unwrap_or_default();
            say(
                "note",
                format_args!("{}: MPS runs anew, with {limits} for each process", in_question(&known)),
            );
            Ok(Status::Done)
        }
        other => Err(refused(other)),
    }
}

fn end(args: &MpsDeviceArgs, known: &Known) -> Result<()> {
    match client::stop(&state_dir(args)?, &known.uuid, args.force) {
        Answer::Stopped => Ok(()),
        other => Err(refused(other)),
    }
}

/// `25% SMs, 5000MiB`.
fn limits(settings: &Settings) -> String {
    in_words_of(settings.active_thread_percentage, settings.memory_mib)
}

fn in_words_of(percent: u32, mib: u64) -> String {
    format!("{percent}% SMs, {mib}MiB")
}

/// `GPU 0`, or the UUID where that is all that is known.
fn in_question(known: &Known) -> &str {
    known.settings.as_ref().map_or(&known.uuid, |settings| &settings.what)
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

/// A device in mode mps that was named.
enum Found {
    /// Somebody keeps it, or did.
    Known(Box<Known>),
    /// Nobody has asked for it yet.
    NotStarted(Box<Settings>),
}

fn find(args: &MpsDeviceArgs, state_dir: &Path) -> Result<Found> {
    if !nix::unistd::geteuid().is_root() {
        let error = anyhow::anyhow!("MPS is root's: others cannot end it");
        return Err(Failure::new(error).hint("sudo divvy mps ...").into());
    }
    let known = client::known(state_dir);
    let plan = planned(state_dir).unwrap_or_default();
    let device = plan.devices.iter().find(|device| is_named(device, &args.device));
    let is_it = |uuid: &str, settings: Option<&Settings>| {
        let index = settings.and_then(|settings| settings.what.rsplit(' ').next());
        uuid == args.device || index == Some(&args.device) || device.is_some_and(|device| device.uuid == uuid)
    };
    if let Some(known) = known.iter().find(|known| is_it(&known.uuid, known.settings.as_ref())) {
        return Ok(Found::Known(Box::new(known.clone())));
    }
    if let Some(settings) = plan.mps.iter().find(|settings| is_it(&settings.uuid, Some(settings))) {
        return Ok(Found::NotStarted(Box::new(settings.clone())));
    }
    let error = match device {
        Some(device) => anyhow::anyhow!("{} is not shared by MPS", in_words(device)),
        None => anyhow::anyhow!("there is no device {:?}", args.device),
    };
    let kept = known.iter().filter_map(|known| known.settings.as_ref());
    let mut all: Vec<&str> = kept.chain(&plan.mps).map(|settings| settings.what.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    let hint = match all[..] {
        [] if !has_plan(state_dir) => super::no_plan(state_dir),
        [] => "no device is shared by MPS: `divvy share GPU --replicas N --mode mps` begins that".to_owned(),
        _ => format!("shared by MPS: {}", all.join(", ")),
    };
    Err(Failure::new(error).hint(hint).into())
}

/// By its name, its UUID, or, of a share, by that of its device or the device's index.
fn is_named(device: &KeptDevice, typed: &str) -> bool {
    device.name == typed || device.uuid == typed || index(device) == typed
}

/// `0` of a GPU, `0:1` of a MIG device; of a share, that of its device.
fn index(device: &KeptDevice) -> &str {
    device.share.as_ref().map_or(&device.name, |share| &share.of)
}

/// `GPU 0`, `MIG device 0:1`.
fn in_words(device: &KeptDevice) -> String {
    let index = index(device);
    let kind = if index.contains(':') { "MIG device" } else { "GPU" };
    format!("{kind} {index}")
}

fn state_dir(args: &MpsDeviceArgs) -> Result<PathBuf> {
    absolute(&args.state_dir)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))
}

/// One that cannot be read is there.
fn has_plan(state_dir: &Path) -> bool {
    !publish::plan_text(state_dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
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
