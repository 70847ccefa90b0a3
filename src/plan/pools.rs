//! Pools: interchangeable leased devices that are asked for by the pool's name. And what users may hold.

use serde::{Deserialize, Serialize};

pub use crate::config::Order;

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
