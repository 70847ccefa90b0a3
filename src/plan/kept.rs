//! The plan file (plan.json) as the daemon, `ps` and `list` read it back: which devices are leased, what they consist
//! of, and what the configuration says about who may have them.

use std::path::PathBuf;

use serde::Deserialize;

use super::pools::{Pool, UserCap};
use super::{Kind, Limits, Share};
use crate::config::Mode;
use crate::mps::settings::Settings;
use crate::time_slices::Wanted;

/// The part of plan.json that matters while containers run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Tells one plan from another.
    pub generation: String,
    /// In the plan's order, which is that of the GPUs.
    pub devices: Vec<KeptDevice>,
    /// Names under which any free device can be had.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// What users may hold.
    #[serde(default)]
    pub users: Vec<UserCap>,
    /// MPS control daemons, one for each device that is shared in mode mps.
    #[serde(default)]
    pub mps: Vec<Settings>,
    /// How long the driver is to let GPUs work for one process.
    #[serde(default)]
    pub time_slices: Vec<Wanted>,
}

/// A device of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeptDevice {
    /// Its name; of a whole device, the one by index.
    pub name: String,
    /// CDI classes in which it has that name.
    pub classes: Vec<String>,
    /// UUID; of a share, that of the device that it is a part of.
    pub uuid: String,
    /// GPU, MIG device or share.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Whole, or how it is shared.
    pub mode: Mode,
    /// NVML index of the GPU.
    pub gpu: u32,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors.
    pub sms: Option<u32>,
    /// What holds the two.
    pub limits: Limits,
    /// What a share is a part of.
    pub share: Option<Share>,
    /// Nodes of its own.
    pub nodes: Vec<KeptNode>,
    /// Nodes for drawing.
    #[serde(default)]
    pub dri_nodes: Vec<KeptNode>,
    /// It belongs to one container at a time.
    #[serde(default)]
    pub leased: bool,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeptNode {
    /// In the container.
    pub path: PathBuf,
    /// On the host, where that differs.
    #[serde(default)]
    pub host_path: Option<PathBuf>,
}
