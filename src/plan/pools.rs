//! Pools: interchangeable leased devices that are asked for by the pool's name: shares of one name, whole GPUs, MIG devices
//! of one profile. And what users may hold. Who has what at the moment is the daemon's part.

use serde::{Deserialize, Serialize};

pub use crate::config::Order;
use crate::config::value::WHOLE;
use crate::config::{Config, PoolRule, UserRule};

use super::{Device, Kind, Plan, Problem};

/// A name under which any free device of several can be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// CDI class of its name.
    pub class: String,
    /// Its name: that of its shares, `whole`, or `mig-<profile>`.
    pub name: String,
    /// Names of its devices in that class, in the plan's order.
    pub devices: Vec<String>,
    /// How long a start may queue for one; 0: not at all.
    pub wait_seconds: u64,
    /// Which free one is taken.
    pub order: Order,
    /// How many of them one container may have, by whatever name; none: any number.
    pub per_container: Option<u32>,
}

/// What a user may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCap {
    /// User name, uid, or `*` for whoever is not listed.
    pub user: String,
    /// How many leased devices at once, in all containers together; none: any number.
    pub shares: Option<u32>,
    /// Names of pools whose devices the user may have, by whatever name; none: all.
    pub pools: Option<Vec<String>>,
}

/// A whole device as the configuration has it leased. What is leased only because shares stand beside it is in no pool:
/// `whole` would take all shares of a GPU away that somebody cut.
pub fn whole(device: Device, leased: bool, in_pool: bool) -> Device {
    let pool = Some(&device).filter(|_| in_pool).and_then(pool_of_whole);
    Device { leased, pool, ..device }
}

fn pool_of_whole(device: &Device) -> Option<String> {
    match (device.kind, &device.mig) {
        (Kind::Gpu, _) => Some(WHOLE.to_owned()),
        (Kind::Mig, Some(mig)) => {
            let name = format!("mig-{}", mig.profile.as_ref()?.replace('+', "."));
            // A profile that nobody has heard of may hold anything.
            name.parse::<cdi::DeviceName>().is_ok().then_some(name)
        }
        _ => None,
    }
}

/// Why a pool of the configuration is a problem.
pub const NO_DEVICE: &str = "has no device on this machine";

/// Collects the plan's pools, and takes over what the configuration says about them and about users.
pub fn plan(config: &Config, plan: &mut Plan) {
    for device in &plan.devices {
        let Some(name) = &device.pool else { continue };
        for class in &device.classes {
            let rule = config.pools.iter().find(|rule| rule.name == *name);
            match plan.pools.iter_mut().find(|pool| (&pool.class, &pool.name) == (class, name)) {
                Some(pool) => pool.devices.push(device.name.clone()),
                None => plan.pools.push(pool(class, name, device, rule)),
            }
        }
    }
    of_mps(plan);
    plan.users.extend(config.users.iter().map(cap));
    in_vain(config, plan);
}

fn pool(class: &str, name: &str, first: &Device, rule: Option<&PoolRule>) -> Pool {
    let by_default = (first.kind == Kind::Share).then_some(1);
    Pool {
        class: class.to_owned(),
        name: name.to_owned(),
        devices: vec![first.name.clone()],
        wait_seconds: rule.map_or(0, |rule| rule.wait_seconds),
        order: rule.map_or_else(Order::default, |rule| rule.order),
        per_container: rule.and_then(|rule| rule.per_container).or(by_default),
    }
}

/// A process has one MPS server, so a container has one share of that sort. What it is told of its limits stands with the
/// pool's name, before anybody knows which share it gets.
fn of_mps(plan: &mut Plan) {
    for pool in &mut plan.pools {
        let is_member = |device: &&Device| {
            device.pool.as_ref() == Some(&pool.name) && device.classes.contains(&pool.class)
        };
        let members = || plan.devices.iter().filter(is_member);
        let unlimited: Vec<&str> =
            members().filter(|device| device.mps.is_none()).map(|device| device.name.as_str()).collect();
        let members: Vec<_> = members().map(|device| device.mps).collect();
        let shares = || members.iter().flatten();
        let percentage = shares().map(|share| share.active_thread_percentage).max();
        let memory = shares().map(|share| share.memory_mib).max();
        let (Some(percentage), Some(memory)) = (percentage, memory) else { continue };
        if pool.per_container != Some(1) {
            pool.per_container = Some(1);
            plan.warnings.push(format!(
                "pool {:?} has shares in mode mps, of which a container can have one: per_container is 1",
                pool.name
            ));
        }
        if !unlimited.is_empty() {
            plan.warnings.push(format!(
                "pool {:?} has shares in mode mps and shares without limits ({}), and who asks for any may get one of these: give them a name of their own",
                pool.name,
                unlimited.join(", ")
            ));
        } else if members.iter().any(|other| Some(other) != members.first()) {
            plan.notes.push(format!(
                "shares of pool {:?} differ: who asks for any of them asks MPS for the most that one has, {memory}MiB and {percentage} % of the SMs, and is held to what the server of the granted one allows",
                pool.name
            ));
        }
    }
}

fn cap(rule: &UserRule) -> UserCap {
    let names = |pools: &Vec<(String, _)>| pools.iter().map(|(name, _)| name.clone()).collect();
    UserCap { user: rule.user.clone(), shares: rule.shares, pools: rule.pools.as_ref().map(names) }
}

/// Pools that the configuration names and that have no device.
fn in_vain(config: &Config, plan: &mut Plan) {
    let tables = config.pools.iter().filter_map(|rule| Some((&rule.name, rule.place.as_ref()?)));
    let users = config.users.iter().filter_map(|rule| rule.pools.as_ref()).flatten();
    for (name, place) in tables.chain(users.map(|(name, place)| (name, place))) {
        // Shares that a rule makes, and that are not there, are missed there.
        let is_made = config.rules.iter().flat_map(|rule| &rule.shares).any(|share| share.name == *name);
        if is_made || plan.pools.iter().any(|pool| pool.name == *name) {
            continue;
        }
        let hint = match name.as_str() {
            WHOLE => "it is of whole GPUs with exclusive = true",
            name if name.starts_with("mig-") => "it is of MIG devices of that profile with exclusive = true",
            _ => "a pool of shares has the name of the shares: `divvy list` shows what there is",
        };
        plan.problems.push(Problem {
            place: Some(place.to_string()),
            what: format!("pool {name:?}"),
            why: NO_DEVICE.into(),
            hint: hint.into(),
        });
    }
}
