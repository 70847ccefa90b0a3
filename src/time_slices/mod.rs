//! Step 5, for whole GPUs whose shares take turns: how long a turn is, which the driver keeps for each GPU and forgets at
//! reboot. `divvy serve` has it set when a plan says so, and set back when no plan does. NVML has no call for it, so
//! NVIDIA's own program is run.
//!
//! - `smi`: that program, and what it says
//! - `kept`: what was set and what was there before, on disk

pub mod kept;
mod smi;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};

use serde::{Deserialize, Serialize};
use tracing::error;

use crate::config::TimeSlice;

/// What the driver is to be told of a GPU: in the plan, and in the file of what was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The GPU, `GPU-...`.
    pub uuid: String,
    /// It as people call it: `GPU 0`.
    pub what: String,
    /// How long turns are to be.
    pub length: TimeSlice,
    /// nvidia-smi on this machine.
    pub program: PathBuf,
    /// Where it finds libnvidia-ml.so.1, if that is not where the loader looks.
    pub libraries: Option<PathBuf>,
}

/// Sees to it on a thread of its own, one plan after the other: the program may take its time, or hang with the driver.
#[derive(Debug)]
pub struct Keeper {
    plans: Sender<Vec<Wanted>>,
}

impl Keeper {
    /// That of a state directory.
    pub fn start(state_dir: &Path) -> Self {
        let (plans, received) = channel::<Vec<Wanted>>();
        let state_dir = state_dir.to_owned();
        std::thread::spawn(move || {
            while let Ok(mut wanted) = received.recv() {
                // The last one is in force.
                while let Ok(newer) = received.try_recv() {
                    wanted = newer;
                }
                if let Err(error) = kept::keep(&state_dir, &wanted) {
                    error!("the time slices of GPUs are not set: {error:#}");
                }
            }
        });
        Self { plans }
    }

    /// A plan is in force.
    pub fn has(&self, wanted: &[Wanted]) {
        // The thread ends with the daemon.
        let _ = self.plans.send(wanted.to_vec());
    }
}
