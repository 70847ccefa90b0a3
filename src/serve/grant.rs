//! A grant carried out: the lease on disk, and what it does not have denied to the container's cgroup. All of it, or none.

use std::io;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use hooks::lease::Lease;
use tracing::warn;

use super::leases::refusal::No;
use super::plan_file::PlanFile;
use super::store::Store;
use crate::container::deny;

/// On disk first: a daemon that dies in between finds the container again, whose hook asks once more.
pub fn make_good(store: &Store, plan: &PlanFile, lease: &mut Lease) -> Result<(), No> {
    let numbers = numbers(plan, lease)?;
    // Asked for again: it is there, and needs no room on the disk.
    if let Some(denied_by) = store.find(lease)
        && denied_by.is_none() == numbers.is_empty()
    {
        lease.denied_by = denied_by;
        return Ok(());
    }
    let not_written = |error: io::Error| No {
        status: 1,
        message: format!("the lease cannot be written: {error}"),
        hint: Some("see with `df /run` whether there is room".into()),
    };
    store.write(lease).map_err(not_written)?;
    let Some(cgroup) = lease.container.cgroup.as_deref() else { return Ok(()) };
    if numbers.is_empty() {
        if let Err(error) = deny::lift(cgroup) {
            warn!(cgroup = %cgroup.display(), "an earlier container's device program may be there: {error}");
        }
        return Ok(());
    }
    match deny::deny(cgroup, &numbers) {
        Ok(by) => lease.denied_by = Some(by),
        // What a user's container was brought are mounts, which its hook takes away for good.
        Err(error) if lease.container.uid != 0 => {
            warn!(container = lease.container.id, "no device program: {:#}", anyhow::Error::new(error));
        }
        Err(error) => {
            let hint = error.hint().map(str::to_owned);
            return Err(No { status: 5, message: format!("{:#}", anyhow::Error::new(error)), hint });
        }
    }
    store.write(lease).map_err(not_written)
}

/// Undoes it, for a container that may be granted something else.
pub fn take_back(store: &Store, plan: &PlanFile, lease: &Lease) -> anyhow::Result<()> {
    store.remove(lease).context("its file cannot be removed")?;
    let Some(cgroup) = lease.container.cgroup.as_deref() else { return Ok(()) };
    let numbers = numbers(plan, lease).map_err(|no| anyhow!(no.message))?;
    deny::allow(cgroup, &numbers).context("what it denied cannot be allowed again")
}

/// The numbers of what was brought and not granted.
fn numbers(plan: &PlanFile, lease: &Lease) -> Result<Vec<(u32, u32)>, No> {
    let number = |path: &PathBuf| {
        plan.numbers(path).map_err(|error| No {
            status: 5,
            message: format!("{} cannot be denied, since its number is not known: {error}", path.display()),
            hint: Some("sudo divvy generate --create-device-nodes".into()),
        })
    };
    lease.remove.iter().map(number).collect()
}
