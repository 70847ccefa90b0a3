//! Where an MPS control daemon's directories lie: below `mps/<uuid>` in the state directory.

use std::path::{Path, PathBuf};

/// The directory of all in the state directory.
pub const DIRECTORY: &str = "mps";
/// The longest pipe directory, in bytes: with `/control_privileged` it has to fit into sun_path (unix(7)).
pub const LONGEST_PIPE_DIRECTORY: usize = 88;
/// Where containers find the front: MPS's default, which needs no environment.
pub const IN_CONTAINER: &str = hooks::mps::FRONT;

/// The directories of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// Those of the device with this UUID.
    pub fn new(state_dir: &Path, uuid: &str) -> Self {
        Self { directory: state_dir.join(DIRECTORY).join(uuid) }
    }

    /// All of them; root's, 0755.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The control daemon's own, in no container.
    pub fn pipe(&self) -> PathBuf {
        self.directory.join("pipe")
    }

    /// What containers see: the socket `control` alone. It stays the same directory as long as anybody has it.
    pub fn front(&self) -> PathBuf {
        self.directory.join("front")
    }

    /// A tmpfs that containers share at /dev/shm, where that is wanted.
    pub fn shared_memory(&self) -> PathBuf {
        self.directory.join("shm")
    }

    /// What it and the supervisor say, where there is no journal.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Where the supervisor listens, for root alone.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("supervisor.sock")
    }

    /// Held by the supervisor.
    pub fn lock(&self) -> PathBuf {
        self.directory.join("supervisor.lock")
    }

    /// What it keeps to, in JSON.
    pub fn settings(&self) -> PathBuf {
        self.directory.join("settings.json")
    }

    /// How it is, in JSON, for all to read.
    pub fn status(&self) -> PathBuf {
        self.directory.join("status.json")
    }

    /// There while MPS was ended under containers that have shares.
    pub fn closed(&self) -> PathBuf {
        self.directory.join("closed")
    }

    /// The compute mode that was there before, while it is another.
    pub fn compute_mode(&self) -> PathBuf {
        self.directory.join("compute-mode.json")
    }
}
