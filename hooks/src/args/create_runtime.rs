//! The command line of `create-runtime`: what a leased device or pool of the spec adds, once for each name.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Error, host_path, version::number};
use crate::lease::DeviceName;

/// Where the daemon keeps its socket and leases unless it is told otherwise.
pub const STATE_DIR: &str = "/run/divvy";
/// How long a start waits for the daemon unless the spec says otherwise, in seconds.
pub const START_TIMEOUT: u32 = 10;
/// The longest that it may be told to wait, in seconds.
pub const LONGEST_START_TIMEOUT: u32 = 3600;

/// What the hook does at `createRuntime`; one per leased name that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CreateRuntime {
    /// The daemon's state directory on the host
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, value_parser = host_path)]
    pub state_dir: PathBuf,
    /// How long the daemon may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = START_TIMEOUT, value_parser = seconds)]
    pub start_timeout: u32,
    /// A device or pool that the container asks for
    #[arg(long = "device", value_name = "CLASS=NAME", required = true)]
    pub devices: Vec<DeviceName>,
}

impl CreateRuntime {
    /// A request for these with the defaults.
    pub fn new(devices: Vec<DeviceName>) -> Self {
        Self { state_dir: STATE_DIR.into(), start_timeout: START_TIMEOUT, devices }
    }

    /// The words that follow the program's name, as they stand in a CDI hook's `args` after the first. Defaults are left
    /// out: a spec may have a thousand of these.
    pub fn to_args(&self) -> Vec<String> {
        let state_dir = (self.state_dir != Path::new(STATE_DIR))
            .then(|| format!("--state-dir={}", self.state_dir.display()));
        let start_timeout =
            (self.start_timeout != START_TIMEOUT).then(|| format!("--start-timeout={}", self.start_timeout));
        let devices = self.devices.iter().map(|device| format!("--device={device}"));
        std::iter::once("create-runtime".to_owned())
            .chain(state_dir)
            .chain(start_timeout)
            .chain(devices)
            .collect()
    }
}

fn seconds(word: &str) -> Result<u32, Error> {
    let seconds = number(word).filter(|seconds| *seconds <= LONGEST_START_TIMEOUT);
    seconds.ok_or_else(|| Error::Seconds { word: word.to_owned() })
}
