//! What the administrator wants: /etc/divvy/config.toml, or NVIDIA's device-plugin YAML, as a `Config` whose every
//! value is allowed. Nothing of the machine is known here; whether the wish can be met is the planner's part. What
//! this version cannot do yet is refused by its name and never ignored.
//!
//! - `stored`: its text, read and written
//! - `value`: sizes, durations, share names and match entries, each from its text
//! - `file`: TOML -> `Config`, every mistake with line and column
//! - `device_plugin`: the YAML of NVIDIA's Kubernetes device plugin -> `Config`
//! - `edit`: changes a rule in the TOML text and keeps all the rest

mod device_plugin;
pub mod edit;
mod file;
pub mod stored;
pub mod value;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Status};
use value::Match;

/// Most replicas of one GPU or MIG device. Each time-sliced container holds a context of some 200 MiB, so the largest
/// GPUs end well below; more is a slip of the finger that would fill the spec directory.
pub const MOST_REPLICAS: u32 = 1024;

/// Most match entries of a configuration: some for each MIG device of the largest hosts.
pub const MOST_ENTRIES: usize = 4096;

/// What the configuration asks for. The default is that of a missing file: whole GPUs and MIG devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[[gpu]]` tables in file order; the first that matches a device decides on it.
    pub rules: Vec<Rule>,
    /// Whether whole GPUs and MIG devices get names.
    pub whole_names: WholeNames,
    /// NVIDIA's strategy for MIG names; none: index and UUID in the one kind.
    pub mig_strategy: Option<MigStrategy>,
    /// Whether there is a device with which a container manages the driver.
    pub management: bool,
    /// `[pool.NAME]` tables.
    pub pools: Vec<PoolRule>,
    /// `[users.NAME]` tables.
    pub users: Vec<UserRule>,
    /// How long a container's start waits for the daemon, in seconds; none: the hook's default.
    pub start_timeout: Option<u32>,
    /// What the user should know about how this file was understood.
    pub warnings: Vec<String>,
}

/// One `[[gpu]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// File and line, for messages.
    pub place: Place,
    /// What it is about.
    pub matches: Vec<MatchEntry>,
    /// What an entry must be besides: under NVIDIA's YAML a device of the resource.
    pub only: Option<Match>,
    /// Whole, or cut into shares in which way.
    pub mode: Mode,
    /// Shares of each matched device; empty where it stays whole.
    pub shares: Vec<ShareRule>,
    /// The shares' limits may add up to more than the device has.
    pub overcommit: bool,
    /// CDI class of the shares if not `gpu`.
    pub class: Option<String>,
    /// Whether containers get what draws; none: whole GPUs do, shares do not.
    pub graphics: Option<bool>,
    /// The whole device belongs to one container at a time, and is in a pool.
    pub exclusive: bool,
    /// A device that is cut into shares keeps its names as a whole; it is leased then.
    pub whole: bool,
    /// What is about MPS alone.
    pub mps: MpsRule,
    /// How long the turns of a whole GPU's shares are; none: as they are.
    pub time_slice: Option<TimeSlice>,
}

/// What a `[[gpu]]` table with mode mps says besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MpsRule {
    /// The server is started with the daemon, and not when the first share is asked for.
    pub at_boot: bool,
    /// Size of a tmpfs that the device's containers share at /dev/shm, bytes; none: each has its own.
    pub shared_memory_bytes: Option<u64>,
}

/// One `[pool.NAME]` table: how devices of this name are given out, in whichever kind they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRule {
    /// The name of shares, `whole`, or `mig-<profile>` with a dot for each `+`.
    pub name: String,
    /// Where somebody wrote it; none if it follows from something else.
    pub place: Option<Place>,
    /// How long a start may queue, in seconds.
    pub wait_seconds: u64,
    /// Which free one is taken.
    pub order: Order,
    /// How many one container may have; none: the default of its devices.
    pub per_container: Option<u32>,
}

/// Which free device of a pool is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One on the GPU with the fewest leases.
    #[default]
    Spread,
    /// One on the GPU with the most.
    Pack,
}

/// One `[users.NAME]` table: what a user may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRule {
    /// User name, uid, or `*` for whoever is not listed.
    pub user: String,
    /// How many leased devices at once; none: any number.
    pub shares: Option<u32>,
    /// Pools whose devices the user may have, each with its place; none: all.
    pub pools: Option<Vec<(String, Place)>>,
    /// Where somebody wrote it.
    pub place: Place,
}

/// One entry of a match list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchEntry {
    /// As it was written.
    pub text: String,
    /// What it means.
    pub matches: Match,
    /// Where it stands.
    pub place: Place,
}

/// Equal shares under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRule {
    /// The prefix of their device names.
    pub name: String,
    /// How many of them each matched device has, 1 to `MOST_REPLICAS`.
    pub replicas: u32,
    /// Memory that each may use, bytes.
    pub memory_bytes: Option<u64>,
    /// Percent of the device's SMs that each may use, 1 to 100.
    pub sm_percent: Option<u32>,
    /// A limit that nothing holds is accepted.
    pub advisory: bool,
    /// The weakest that may hold its limits; none: whatever there is.
    pub require: Option<Require>,
    /// How its work stands to that of other shares in mode mps.
    pub priority: Priority,
}

/// What has to hold a share's limits at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    /// The kernel.
    Kernel,
    /// The MPS server.
    Mps,
}

/// CUDA_MPS_CLIENT_PRIORITY (nvidia-cuda-mps-control(1)): a hint to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// 0
    #[default]
    Normal,
    /// 1
    Low,
}

/// How long a GPU works for one process before another has its turn: lengths that the driver knows by name, from CUDA
/// 11.1 on (`nvidia-smi compute-policy -h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeSlice {
    /// As the driver has it.
    #[default]
    Default,
    /// For work that waits for little.
    Short,
    /// Between the two.
    Medium,
    /// For work that shall not be interrupted.
    Long,
}

/// How a GPU or MIG device is given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// To one name.
    #[default]
    Whole,
    /// To several, which the driver serves in turns.
    TimeSlice,
    /// To several at once, through NVIDIA's MPS server.
    Mps,
}

/// Whether names of whole GPUs and MIG devices are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WholeNames {
    /// Unless another generator writes them into the same directory.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// NVIDIA's strategies for MIG devices, as its Kubernetes plugin has them (`--mig-strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MigStrategy {
    /// MIG devices have no names.
    None,
    /// All GPUs are cut into MIG devices of one profile, which are `nvidia.com/gpu`.
    Single,
    /// MIG devices are also `nvidia.com/mig-<profile>`.
    Mixed,
}

/// A place in a file, for messages: `/etc/divvy/config.toml:7:12`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    file: String,
    /// Both from 1; column counts characters.
    line_and_column: Option<(usize, usize)>,
}

impl Place {
    /// The place of byte `offset` in `text`, whose lines begin at `line_starts`.
    fn in_text(file: &str, text: &str, line_starts: &[usize], offset: usize) -> Self {
        let offset = offset.min(text.len());
        let line = line_starts.partition_point(|start| *start <= offset).max(1);
        let before = &text.as_bytes()[line_starts.get(line - 1).copied().unwrap_or(0)..offset];
        let column = 1 + String::from_utf8_lossy(before).chars().count();
        Self { file: file.to_owned(), line_and_column: Some((line, column)) }
    }

    /// A file as a whole.
    fn file(file: &str) -> Self {
        Self { file: file.to_owned(), line_and_column: None }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line_and_column {
            Some((line, column)) => write!(f, "{}:{line}:{column}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// Where each line of a text begins.
fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What is wrong, and what is allowed.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<Mistake> for Failure {
    fn from(mistake: Mistake) -> Self {
        let hint = mistake.hint.clone();
        let failure = Failure::new(mistake).status(Status::Usage);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl Config {
    /// Reads a configuration's text: NVIDIA's device-plugin YAML if the name ends so, else TOML. `name` is for
    /// messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, Mistake> {
        if is_yaml(name) { device_plugin::parse(name, text) } else { file::parse(name, text) }
    }
}

/// Whether a file of this name is NVIDIA's YAML.
pub fn is_yaml(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml")
}

/// The first match wins, so the second of two same entries never does anything.
fn no_entry_twice(rules: &[Rule]) -> Result<(), Mistake> {
    let mut seen: HashMap<&Match, &Place> = HashMap::new();
    if let Some(entry) = rules.iter().flat_map(|rule| &rule.matches).nth(MOST_ENTRIES) {
        let what = format!("there are more than {MOST_ENTRIES} match entries");
        return Err(Mistake { place: entry.place.clone(), what, hint: None });
    }
    for entry in rules.iter().flat_map(|rule| &rule.matches) {
        if let Some(first) = seen.insert(&entry.matches, &entry.place) {
            let what = format!("{:?} is matched already, at {first}: the first match wins", entry.text);
            return Err(Mistake {
                place: entry.place.clone(),
                what,
                hint: Some("remove one of the two".into()),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
