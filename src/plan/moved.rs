//! Names beside themselves: those that meant another device in the plan before, and those that are gone. Who starts a
//! container by an old note or script should know; and what a running container holds must not become another's.

use std::collections::BTreeSet;

use hooks::lease::Lease;

use crate::discover::host::Host;
use crate::held;

use super::earlier::Earlier;
use super::names::{kind_of, listed};
use super::{Device, Plan};

/// Says which names mean another device than in the plan before. Who starts a container by an old note or script
/// should know.
pub fn moved(earlier: &Earlier, plan: &mut Plan) {
    let mut runs: Vec<Moved<'_>> = Vec::new();
    for device in &plan.devices {
        for class in &device.classes {
            let Some(before) = earlier.names.get(&(class.clone(), device.name.clone())) else { continue };
            if *before == device.uuid {
                continue;
            }
            let share = device.share.as_ref().map(|share| share.name.as_str());
            let moved =
                Moved { class, share, first: &device.name, last: &device.name, before, now: &device.uuid };
            match runs.last_mut() {
                Some(run)
                    if (run.before, run.now) == (moved.before, moved.now)
                        && (run.class, run.share) == (moved.class, moved.share) =>
                {
                    run.last = moved.last;
                }
                _ => runs.push(moved),
            }
        }
    }
    let warnings: Vec<String> = runs.iter().map(|run| run.warning(plan)).collect();
    plan.warnings.extend(warnings);
    gone(earlier, plan);
}

/// Says which names of a device that is still there are no names any more. What is not there keeps its names for itself.
fn gone(earlier: &Earlier, plan: &mut Plan) {
    let there: BTreeSet<&str> = plan.devices.iter().map(|device| device.uuid.as_str()).collect();
    let named = |device: &'_ Device| {
        let name = device.name.clone();
        device.classes.iter().map(move |class| (class.clone(), name.clone())).collect::<Vec<_>>()
    };
    let names: BTreeSet<(String, String)> = plan.devices.iter().flat_map(named).collect();
    let mut gone: Vec<(&String, &String, Vec<&str>)> = Vec::new();
    for (key @ (class, name), uuid) in &earlier.names {
        if !there.contains(uuid.as_str()) || names.contains(key) {
            continue;
        }
        match gone.iter_mut().find(|(of, in_class, _)| (*of, *in_class) == (uuid, class)) {
            Some((_, _, names)) => names.push(name),
            None => gone.push((uuid, class, vec![name])),
        }
    }
    let notes: Vec<String> = gone
        .iter()
        .filter_map(|(uuid, class, names)| {
            let names = listed(&kind_of(class), names)?;
            Some(format!("no longer a name of {}: {names}", in_full(plan, uuid)))
        })
        .collect();
    plan.notes.extend(notes);
}

/// What running containers hold and would lose the name of: it would mean another device, or none. A device that is not
/// there any more is lost already.
pub fn from_under(leases: &[Lease], earlier: &Earlier, host: &Host, plan: &Plan) -> Vec<Held> {
    let names = earlier.then(plan).names;
    let gpus = host.gpus.iter().map(|gpu| gpu.uuid.as_str());
    let mig = host.gpus.iter().flat_map(|gpu| &gpu.mig_devices).map(|mig| mig.uuid.as_str());
    let there: BTreeSet<&str> = gpus.chain(mig).collect();
    let devices = leases.iter().flat_map(|lease| lease.devices.iter().map(move |device| (lease, device)));
    let held = devices.filter_map(|(lease, device)| {
        let now = names.get(&(device.name.class.clone(), device.name.name.clone()));
        let is_kept = now == Some(&device.uuid) || now.is_none() && !there.contains(device.uuid.as_str());
        (!is_kept).then(|| Held {
            name: format!("{}={}", kind_of(&device.name.class), device.name.name),
            by: held::who(&lease.container),
            is: in_full(plan, &device.uuid),
            would_be: now.map(|uuid| in_full(plan, uuid)),
        })
    });
    held.collect()
}

/// A name that a running container holds and that would move.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    name: String,
    by: String,
    is: String,
    would_be: Option<String>,
}

impl Held {
    /// What is so once the name has moved.
    pub fn moved(&self) -> String {
        let Self { name, by, is, would_be } = self;
        match would_be {
            Some(other) => format!("{by} goes on using {is}; {name} is {other} from now on"),
            None => format!("{by} goes on using {is}; {name} is no name any more"),
        }
    }

    /// The container.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// What it holds, as `--device` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A GPU or MIG device of the plan by its index: `GPU 6`, `MIG device 0:1`.
pub fn called(plan: &Plan, uuid: &str) -> Option<String> {
    let device = plan.devices.iter().find(|device| device.uuid == uuid)?;
    let whole = device.share.as_ref().map_or(&device.name, |share| &share.of);
    let kind = if device.mig.is_some() { "MIG device" } else { "GPU" };
    Some(format!("{kind} {whole}"))
}

/// By its index where it has one, and by UUID.
fn in_full(plan: &Plan, uuid: &str) -> String {
    called(plan, uuid).map_or_else(|| uuid.to_owned(), |called| format!("{called} ({uuid})"))
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, by, is, .. } = self;
        match &self.would_be {
            Some(other) => write!(f, "{name}, held by {by}, would mean {other} and means {is}"),
            None => write!(f, "{name}, held by {by}, would go; it means {is}"),
        }
    }
}

/// Names in a row that moved from one device to another.
struct Moved<'a> {
    class: &'a str,
    share: Option<&'a str>,
    first: &'a str,
    last: &'a str,
    before: &'a str,
    now: &'a str,
}

impl Moved<'_> {
    fn warning(&self, plan: &Plan) -> String {
        let Self { class, first, last, .. } = self;
        let (before, now) = (in_full(plan, self.before), in_full(plan, self.now));
        let names = if first == last { format!("{first} means") } else { format!("{first} to {last} mean") };
        format!("{}={names} {now} now, and meant {before} before", kind_of(class))
    }
}
