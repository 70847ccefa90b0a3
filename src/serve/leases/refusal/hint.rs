//! What to do about a refusal: the flag, the key of the configuration or the command that would change it.

use std::path::Path;

use hooks::lease::Unbound;

use super::{FreeIn, Full, Held, Reason, Unserved, Way};

/// Where the configuration is, unless `generate --config` says otherwise: the daemon does not read it.
const CONFIG: &str = "/etc/divvy/config.toml";
const WHO_HAS_WHAT: &str = "`divvy ps` shows who has what";

impl Reason {
    /// What to do; none if nothing can be done.
    pub(super) fn hint(&self) -> Option<String> {
        let hint = match self {
            Reason::NoPlan { file } => return Some(no_plan(file)),
            Reason::Unknown(_) => "run `divvy generate`, then start the container again",
            Reason::Nothing => "name a share or a pool: `divvy list` shows what there is",
            Reason::Unbound(Unbound::Privileged) => "start it without --privileged",
            Reason::Unbound(Unbound::HostDev) => {
                "start it without --privileged, --device /dev/nvidia* and volumes of /dev"
            }
            Reason::Unbound(Unbound::NvidiaHook) => "start it without --gpus and NVIDIA_VISIBLE_DEVICES",
            Reason::WholeAndShare { .. } => "ask for one of the two",
            Reason::MpsAlone { .. } => "ask for one share alone, and start another container for the rest",
            Reason::MpsBeside { .. } => "leave that device out, or use another mode than mps",
            Reason::PastShares { .. } => "leave that device out, or ask for it by its name in `divvy list`",
            Reason::PerContainer { pool, asked, most } => return Some(per_container(pool, *asked, *most)),
            Reason::TooMany { .. } => "ask for fewer: `divvy list` shows what there is",
            Reason::NotForUser { .. } | Reason::CapBelow { .. } => {
                "[users] in the configuration says who may hold what"
            }
            Reason::CapReached { .. } => {
                "end one of that user's containers, which `divvy ps` shows: no start waits for a cap"
            }
            Reason::NoCgroup { .. } => {
                "give the container a cgroup of its own, or ask for a device by its name"
            }
            Reason::AsksAnother { .. } => "start another container for them",
            Reason::Taken { held, free, .. } => return Some(taken(free) + several_users(held)),
            Reason::Full(pools) => return Some(full(pools)),
            Reason::Unserved { tried, held, .. } => return unserved(tried, held),
            Reason::Waited { last, .. } if matches!(**last, Reason::Unserved { .. }) => return last.hint(),
            Reason::NotTogether { .. } | Reason::Waited { .. } => WHO_HAS_WHAT,
            Reason::ContainerGone => return None,
        };
        Some(hint.into())
    }
}

/// A simulated host's plan goes to where it is told to.
fn no_plan(file: &Path) -> String {
    let state_dir = file.parent().unwrap_or(file).display();
    format!(
        "run `sudo divvy generate` (with --host, add --state-dir {state_dir}), then start the container again"
    )
}

fn per_container(pool: &str, asked: u32, most: u32) -> String {
    let fewer = if most == 1 { "one".to_owned() } else { most.to_string() };
    format!(
        "ask for {fewer}, or set per_container = {asked} in {} of {CONFIG} and run `sudo divvy generate`",
        table(pool)
    )
}

fn taken(free: &[FreeIn]) -> String {
    let pool = free.iter().find(|free| !free.devices.is_empty()).map(|free| &free.pool);
    let instead = pool.map(|pool| format!("ask for {pool} to get any that is free; ")).unwrap_or_default();
    format!("{instead}{WHO_HAS_WHAT}")
}

fn full(pools: &[Full]) -> String {
    let tables: Vec<_> = pools.iter().filter(|full| !full.can_queue).map(|full| table(&full.pool)).collect();
    let users = pools.iter().map(|full| several_users(&full.held)).max().unwrap_or_default();
    if tables.is_empty() {
        return format!("{WHO_HAS_WHAT}{users}");
    }
    format!("{WHO_HAS_WHAT}; with `wait` in {} starts queue{users}", tables.join(" and "))
}

/// With the first of them there would be a share; who has the others may end.
fn unserved(tried: &[Unserved], held: &[Held]) -> Option<String> {
    let first = tried.first().and_then(|first| first.no.hint.clone());
    let others = (!held.is_empty()).then(|| WHO_HAS_WHAT.to_owned());
    let hints: Vec<_> = first.into_iter().chain(others).collect();
    (!hints.is_empty()).then(|| hints.join("; "))
}

/// What would let containers of different users share a GPU.
fn several_users(held: &[Held]) -> &'static str {
    let is_in_the_way = held.iter().any(|held| matches!(held.way, Way::OtherUser(_)));
    if is_in_the_way { "; MPS of drivers from 555 on serves several users at once" } else { "" }
}

/// A pool's table in the configuration. A name with a dot would be two keys (TOML 1.0, "Keys").
fn table(pool: &str) -> String {
    let is_bare = pool.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if is_bare { format!("[pool.{pool}]") } else { format!("[pool.\"{pool}\"]") }
}
