//! What was set, and what was there before: `time-slices.json` in the state directory, gone at reboot like what it speaks
//! of. A length that somebody else has set since is theirs, and stays.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Wanted, smi};
use crate::config::TimeSlice;
use crate::publish;

/// The file in the state directory.
pub const FILE: &str = "time-slices.json";
/// The longest one that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// One GPU's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// What was asked for last.
    wanted: Wanted,
    /// What was there before anything was set; none: it could not be read, and nothing was set.
    before: Option<TimeSlice>,
    /// Why it is not as asked for.
    problem: Option<String>,
}

/// Sets what a plan wants, and sets back what none wants any more.
pub fn keep(state_dir: &Path, wanted: &[Wanted]) -> Result<()> {
    let notes = read(state_dir)?;
    let is_wanted = |note: &Note| wanted.iter().any(|one| one.uuid == note.wanted.uuid);
    let (of_these, of_others): (Vec<Note>, Vec<Note>) = notes.clone().into_iter().partition(is_wanted);
    // What cannot be set back is tried again with the next plan.
    let mut kept: Vec<Note> = of_others.into_iter().filter_map(set_back).collect();
    for one in wanted {
        let note = of_these.iter().find(|note| note.wanted.uuid == one.uuid);
        let before = note.and_then(|note| note.before);
        let mut note = Note { wanted: one.clone(), before, problem: None };
        let now = smi::read(one);
        if let Ok(now) = now {
            note.before.get_or_insert(now);
        }
        // On disk before it is done: what is killed in between can be set back.
        let so_far: Vec<Note> = kept.iter().cloned().chain([note.clone()]).collect();
        let rest = of_these
            .iter()
            .filter(|earlier| so_far.iter().all(|note| note.wanted.uuid != earlier.wanted.uuid));
        write(state_dir, &so_far.iter().chain(rest).cloned().collect::<Vec<_>>())?;
        let done = match now {
            Ok(now) if now == one.length => Ok(()),
            Ok(_) => smi::set(one, one.length)
                .inspect(|()| info!("time slices of {} are {}", one.what, word(one.length))),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            warn!("time slices of {} stay as they are: {error}", one.what);
            note.problem = Some(error.to_string());
        }
        kept.push(note);
    }
    if kept != notes { write(state_dir, &kept) } else { Ok(()) }
}

/// The note, if there is something to set back yet.
fn set_back(note: Note) -> Option<Note> {
    let what = &note.wanted.what;
    let before = note.before?;
    let done = match smi::read(&note.wanted) {
        Ok(now) if now == before => return None,
        Ok(now) if now != note.wanted.length => {
            info!("time slices of {what} are {} by somebody else, and stay so", word(now));
            return None;
        }
        Ok(_) => smi::set(&note.wanted, before),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => {
            info!("time slices of {what} are {} again", word(before));
            None
        }
        Err(error) => {
            warn!("time slices of {what} are not {} again: {error}", word(before));
            Some(Note { problem: Some(error.to_string()), ..note })
        }
    }
}

/// Which of these GPUs have not what the plan wants, for people.
pub fn problems(state_dir: &Path, wanted: &[Wanted]) -> Vec<String> {
    let notes = read(state_dir).unwrap_or_default();
    let of_plan = notes.into_iter().filter(|note| wanted.iter().any(|one| one.uuid == note.wanted.uuid));
    let in_words = |note: Note| {
        let what = note.wanted.what;
        note.problem.map(|problem| format!("time slices of {what} stay as they are: {problem}"))
    };
    of_plan.filter_map(in_words).collect()
}

/// As the configuration has it.
pub fn word(length: TimeSlice) -> &'static str {
    match length {
        TimeSlice::Default => "default",
        TimeSlice::Short => "short",
        TimeSlice::Medium => "medium",
        TimeSlice::Long => "long",
    }
}

fn read(state_dir: &Path) -> Result<Vec<Note>> {
    let path = state_dir.join(FILE);
    let text = match publish::read_regular(&path, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
}

/// No file where there is nothing to note.
fn write(state_dir: &Path, notes: &[Note]) -> Result<()> {
    let path = state_dir.join(FILE);
    let put = || {
        if notes.is_empty() {
            return fs::remove_file(&path);
        }
        let mut file = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(state_dir)?;
        file.write_all(&serde_json::to_vec(notes)?)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.persist(&path).map(drop).map_err(|error| error.error)
    };
    match put() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && notes.is_empty() => Ok(()),
        done => done.with_context(|| format!("cannot write {}", path.display())),
    }
}
