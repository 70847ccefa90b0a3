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

use super::files::Node;
use crate::nvml::facts::Facts;

/// What this divvy writes and reads; another number is refused. It stays where a new field may be missing.
const FORMAT: u32 = 1;

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
    driver_directories: BTreeMap<PathBuf, Vec<String>>,
    #[serde(default)]
    real_paths: BTreeMap<PathBuf, PathBuf>,
    #[serde(default)]
    sonames: BTreeMap<PathBuf, SonameAnswer>,
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
        if let Some(path) = self.real_paths.values().find(|path| !is_plain(path)) {
            return Some(format!("{} is no absolute path without ..", path.display()));
        }
        let names = self.directories.values().chain(self.driver_directories.values()).flatten();
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
