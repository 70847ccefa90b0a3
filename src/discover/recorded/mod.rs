//! Recorded hosts: all that discovery read on one machine, as a directory that another machine replays. Recording
//! wraps the reads, so that a reader which is added later is recorded without code here. A recorded host may come
//! from a stranger: nothing outside its directory is read, and nothing in it is believed but as an answer.
//!
//! ```text
//! DIR/host.json      NVML's facts and the answers about nodes, directories, links and libraries (`Answers`)
//! DIR/text/PATH      text files, as they were: /proc/devices is text/proc/devices
//! DIR/config.toml    the configuration in use, if there was one (config.yaml if it was NVIDIA's)
//! ```
//!
//! Paths are as containers see them, without the driver root and device root. What is absent from the record was
//! absent, or could not be read, on the machine.
//!
//! - `recorder`: notes the answers while discovery runs
//! - `mask`: takes UUIDs out
//! - `replay`: answers from a directory

mod mask;
mod recorder;
mod replay;

pub use recorder::{Recorder, Recording};
pub use replay::Recorded;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::engines::Engine;
use super::files::Node;
use crate::nvml::facts::Facts;

/// What this divvy writes and reads; another number is refused. It stays where a new field may be missing.
const FORMAT: u32 = 1;

/// More than any machine has; what follows is not made for more.
const MOST_GPUS: usize = 256;
const MOST_MIG: usize = 64;
const MOST_ENGINES: usize = 8;
/// Names and paths are far shorter (PATH_MAX).
const LONGEST_STRING: usize = 4096;

const HOST: &str = "host.json";
const TEXT: &str = "text";
/// Names of the configuration: divvy's own form, and NVIDIA's.
pub const CONFIGS: [&str; 2] = ["config.toml", "config.yaml"];

/// host.json. Roots are as in `Files`: nodes in the device root, directories of the host itself, the rest in the
/// driver root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    format: u32,
    /// The version that recorded it.
    divvy: String,
    nvml: Facts,
    #[serde(default)]
    nodes: BTreeMap<PathBuf, NodeAnswer>,
    #[serde(default)]
    directories: BTreeMap<PathBuf, Vec<String>>,
    #[serde(default)]
    device_directories: BTreeMap<PathBuf, Vec<String>>,
    #[serde(default)]
    driver_directories: BTreeMap<PathBuf, Vec<String>>,
    #[serde(default)]
    real_paths: BTreeMap<PathBuf, PathBuf>,
    #[serde(default)]
    sockets: BTreeMap<PathBuf, SocketAnswer>,
    #[serde(default)]
    sonames: BTreeMap<PathBuf, SonameAnswer>,
    #[serde(default)]
    engines: Vec<Engine>,
    #[serde(default)]
    libraries: BTreeMap<String, Vec<PathBuf>>,
}

/// What stood at a node's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "neither major, minor and mode, nor what is wrong")]
enum NodeAnswer {
    Device(Node),
    Wrong { wrong: String },
}

/// Where a daemon's socket lies, or why containers do not get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "neither a path nor why it is closed")]
enum SocketAnswer {
    At(PathBuf),
    Closed { closed: String },
}

/// What a library said its SONAME is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "neither a SONAME, null, 32 bits, nor what is wrong")]
enum SonameAnswer {
    Read(Option<String>),
    /// 32, of a library that 64-bit containers do not get.
    Bits {
        bits: u32,
    },
    Wrong {
        wrong: String,
    },
}

impl Answers {
    /// Something that no machine answers, in words. Discovery and specs go on with these paths and names, whereas
    /// what a path is found by is only ever compared.
    fn impossible(&self) -> Option<String> {
        let mig = self.nvml.gpus.iter().filter_map(|gpu| gpu.mig.as_ref());
        let most_mig = mig.map(|mig| mig.devices.len() + mig.failed.len()).max().unwrap_or(0);
        let gpus = self.nvml.gpus.len() + self.nvml.failed.len();
        for (count, most, what) in [(gpus, MOST_GPUS, "GPUs"), (most_mig, MOST_MIG, "MIG devices on one GPU")]
        {
            if count > most {
                return Some(format!("it has {count} {what}"));
            }
        }
        let modes = self.nodes.iter().filter_map(|(path, node)| match node {
            NodeAnswer::Device(node) if node.mode > 0o7777 || node.gid == u32::MAX => Some(path),
            _ => None,
        });
        if let Some(path) = modes.into_iter().next() {
            return Some(format!("{} has a mode or group that no file has", path.display()));
        }
        if self.engines.len() > MOST_ENGINES || !self.engines.iter().all(Engine::is_possible) {
            return Some("its engines are none".into());
        }
        let sockets = self.sockets.values().filter_map(|socket| match socket {
            SocketAnswer::At(path) => Some(path),
            SocketAnswer::Closed { .. } => None,
        });
        if let Some(path) = self.real_paths.values().chain(sockets).find(|path| !is_plain(path)) {
            return Some(format!("{} is no absolute path without ..", path.display()));
        }
        let names = self.directories.values().chain(self.device_directories.values());
        let names = names.chain(self.driver_directories.values()).flatten();
        let bad =
            names.into_iter().find(|name| name.contains('/') || [".", "..", ""].contains(&name.as_str()));
        bad.map(|name| format!("{name:?} is no file name"))
    }
}

/// Absolute, without `..`: it can be put below a root.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}
