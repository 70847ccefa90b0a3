//! `divvy ps`: who has what, as a table or as JSON, once or again and again; and who was refused.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hooks::lease::{DeniedBy, SOCKET};
use serde::Serialize;

use super::STDOUT;
use crate::cli::{ListFormat, PsArgs};
use crate::discover::{self, Roots};
use crate::failure::{Failure, Status, printable, say};
use crate::held;
use crate::mps::protocol::State;
use crate::nvml::processes::Session;
use crate::ps::{self, Held, Mps, Row, table, waiting};
use crate::publish;
use crate::serve::refused::{Refusals, Refused};
use crate::sys;

/// To the upper left corner, and clear from there.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What is shown at one time.
struct Frame {
    text: String,
    warnings: Vec<String>,
    notes: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &PsArgs, quiet: bool) -> Result<Status> {
    if let Some(dir) = &args.state_dir {
        // The dot: of a file it is none.
        std::fs::metadata(dir.join(".")).map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("cannot look into {}", dir.display()));
            let hint = "name the directory that `divvy generate --state-dir` and `divvy serve` were given";
            Failure::new(error).hint(hint).status(Status::Usage)
        })?;
    }
    let state_dir = args.state_dir.clone().unwrap_or_else(|| PathBuf::from(publish::STATE_DIR));
    let mut look = Look { args, state_dir, nvml: None };
    let first = look.frame()?;
    write(&first.text)?;
    first.say(quiet);
    let Some(seconds) = args.watch else { return Ok(Status::Done) };

    let redraws = args.format == ListFormat::Table && io::stdout().is_terminal();
    let mut last = first;
    loop {
        thread::sleep(Duration::from_secs(seconds));
        let frame = look.frame()?;
        let before = match args.format {
            _ if redraws => CLEAR,
            ListFormat::Table => "\n",
            // A document follows the other.
            ListFormat::Json => "",
        };
        write(&format!("{before}{}", frame.text))?;
        // A screen that was cleared has lost them.
        if redraws || frame.warnings != last.warnings || frame.notes != last.notes {
            frame.say(quiet);
        }
        last = frame;
    }
}

/// At once, so that nobody sees half of it.
fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(STDOUT)
}

impl Frame {
    fn say(&self, quiet: bool) {
        for warning in &self.warnings {
            say("warning", warning);
        }
        for note in self.notes.iter().filter(|_| !quiet) {
            say("note", note);
        }
    }
}

struct Look<'a> {
    args: &'a PsArgs,
    state_dir: PathBuf,
    /// Kept: a start takes long where no other program holds the GPUs awake.
    nvml: Option<Session>,
}

impl Look<'_> {
    fn frame(&mut self) -> Result<Frame> {
        match (self.args.refused, self.args.format) {
            (true, ListFormat::Json) => Ok(json(&self.refusals()?)?),
            (true, ListFormat::Table) => Ok(self.refused_table()?),
            (false, ListFormat::Json) => Ok(json(&self.held()?)?),
            (false, ListFormat::Table) => Ok(held_table(&self.held()?, &self.state_dir)),
        }
    }

    fn held(&mut self) -> Result<Held> {
        if self.nvml.is_none() {
            let driver = std::path::absolute(&self.args.driver_root)
                .with_context(|| format!("cannot resolve {}", self.args.driver_root.display()))?;
            self.nvml = discover::nvml_session(&Roots { dev: driver.clone(), driver });
        }
        Ok(ps::look(&self.state_dir, &mut self.nvml))
    }

    fn refusals(&self) -> Result<Vec<Refused>> {
        let refusals = Refusals::read(&self.state_dir)?;
        let uid = nix::unistd::getuid().as_raw();
        Ok(refusals.of_user_first(uid).into_iter().cloned().collect())
    }

    fn refused_table(&self) -> Result<Frame> {
        let now = now();
        let refusals = self.refusals()?;
        let mut frame = Frame { text: String::new(), warnings: Vec::new(), notes: Vec::new() };
        if refusals.is_empty() {
            frame.text = "no start was refused\n".into();
            return Ok(frame);
        }
        let head = ["TIME", "CONTAINER", "USER", "ASKED", "WHY"].map(str::to_owned);
        let rows = refusals.iter().map(|refused| refused_cells(refused, now));
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        frame.text = text(table::aligned(&rows));
        Ok(frame)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lines that a terminal obeys nothing of: names are what containers were given.
fn text(lines: Vec<String>) -> String {
    lines.iter().map(|line| printable(line) + "\n").collect()
}

fn json(shown: &impl Serialize) -> Result<Frame> {
    let text = serde_json::to_string_pretty(shown).map_err(io::Error::from).context(STDOUT)? + "\n";
    Ok(Frame { text, warnings: Vec::new(), notes: Vec::new() })
}

fn refused_cells(refused: &Refused, now: u64) -> [String; 5] {
    let id = table::short_id(&refused.id);
    let container = refused.name.clone().unwrap_or(id);
    let hint = refused.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    [
        sys::local_time(refused.at, now),
        refused.engine.as_ref().map_or_else(|| container.clone(), |engine| format!("{engine} {container}")),
        ps::user_name(refused.uid).unwrap_or_else(|| refused.uid.to_string()),
        refused.asked.join(" "),
        format!("{}{hint}", refused.message),
    ]
}

fn held_table(held: &Held, state_dir: &Path) -> Frame {
    let mut lines = match &held.rows[..] {
        [] => vec!["nothing is held".into()],
        rows => table::lines(rows, now()),
    };
    lines.extend(held.waiting.iter().map(|waits| waiting::line(waits, now())));
    Frame { text: text(lines), warnings: held.warnings.clone(), notes: notes(held, state_dir) }
}

/// What the state of an MPS server means for its containers.
fn mps_note(uuid: &str, mps: &Mps) -> Option<String> {
    let means = match mps.state {
        State::Ready => return None,
        State::Down => "CUDA fails with 805 in its containers until it runs again",
        State::Starting => "CUDA fails with 805 in its containers until it is ready",
        State::Fault => {
            "a client's fault has ended the work of all, and it takes no new one until all have left"
        }
        State::Blocked => "nobody can connect",
    };
    let what = mps.why.clone().unwrap_or_else(|| format!("the MPS server of {uuid} does not serve"));
    Some(format!("{what} ({means}; `divvy mps` shows more)"))
}

fn notes(held: &Held, state_dir: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    let any = |is_so: fn(&Row) -> bool| held.rows.iter().any(is_so);
    if any(|row| !row.lease) {
        notes.push(
            "no lease: it uses the GPU by a name that is not leased, or from outside of any container; nothing \
             keeps it from the memory of others there"
                .to_owned(),
        );
    }
    if any(|row| row.moved) {
        notes.push(
            "moved: the name means another device by now; the container goes on using the one that is shown, and \
             the name is taken until it ends"
                .to_owned(),
        );
    }
    let mut servers: Vec<_> =
        held.rows.iter().filter_map(|row| Some((&row.uuid, row.mps.as_ref()?))).collect();
    servers.dedup_by_key(|(uuid, _)| *uuid);
    notes.extend(servers.into_iter().filter_map(|(uuid, mps)| mps_note(uuid, mps)));
    if any(|row| row.ended) && !held.daemon {
        notes.push(held::ENDED.to_owned());
    }
    if any(|row| row.denied_by == Some(DeniedBy::CgroupV1)) {
        notes.push(
            "v1: other devices of the pool are denied by cgroup v1, which holds until something writes that container's devices anew"
                .to_owned(),
        );
    }
    let (leases, leasable) = (held.rows.iter().filter(|row| row.lease).count(), held.leasable);
    if leasable.is_none() && leases == 0 {
        notes.push(super::no_plan(state_dir));
    } else if leasable == Some(0) && leases == 0 {
        notes.push("no device is leased here: shares are, and GPUs with exclusive = true".to_owned());
    } else if !held.daemon {
        notes.push(format!(
            "the daemon does not answer at {}: starts with a leased device wait for it and then fail, and what ends \
             now is free when it is there again (`divvy serve`)",
            state_dir.join(SOCKET).display()
        ));
    }
    notes
}
