//! What is said to a supervisor, over `mps/<uuid>/supervisor.sock` (SOCK_STREAM, root's alone): one request a connection,
//! a line of JSON, and one line of JSON in answer, which may take as long as an MPS server takes to start.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// Version of requests and answers. A supervisor refuses any other: it is to be replaced then, which harms no client.
pub const VERSION: u32 = 1;
/// The longest request and the longest answer, in bytes, newline included.
pub const LINE_LIMIT: usize = 256 << 10;

/// A request, of [`VERSION`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What is wanted.
    #[serde(flatten)]
    pub what: What,
}

/// What a supervisor is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum What {
    /// That a server runs with these settings, for a container that is about to start.
    Ensure {
        /// What it shall be.
        settings: Box<Settings>,
        /// The user of the machine who will connect, where the server serves one at a time.
        uid: u32,
        /// No other container has a share of the device: other settings and another user may be taken up.
        is_idle: bool,
    },
    /// That these processes' work on the device ends, before they are killed.
    Terminate {
        /// Process ids of the machine.
        pids: Vec<i32>,
    },
    /// That MPS ends here and begins anew, with nobody let past meanwhile. Refused while it has clients.
    Restart {
        /// Also with clients, whose work is lost.
        force: bool,
        /// What it shall be from then on; none: what it was.
        #[serde(default)]
        settings: Option<Box<Settings>>,
    },
    /// That MPS ends here, and the compute mode of before is restored. Refused while it has clients, or a container a share.
    Stop {
        /// Also with those, whose work is lost. The device stays closed to them until the last share is given back.
        force: bool,
    },
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The server runs, and its limits were read back.
    Ready {
        /// The directory for the container, on the host.
        front: PathBuf,
        /// What the container gets at /dev/shm, on the host.
        shared_memory: Option<PathBuf>,
    },
    /// Those of them that were clients are none any more.
    Terminated {
        /// Process ids of the machine.
        pids: Vec<i32>,
    },
    /// It has ended, and so does the supervisor, when nobody has a share any more.
    Stopped,
    /// It is not done.
    Refused {
        /// Exit status of the hook: 3 not now, 5 a limit cannot be held, 1 anything else.
        status: u8,
        /// For a person, without `error:`.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// How one control daemon is: `mps/<uuid>/status.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// What is there, and what is missing.
    pub state: State,
    /// For a person, where `state` does not say it all: why it is not ready, who blocks it.
    pub why: Option<String>,
    /// What to do about that.
    pub hint: Option<String>,
    /// The supervisor.
    pub supervisor_pid: i32,
    /// The control daemon, while it runs.
    pub control_pid: Option<i32>,
    /// The server, while it runs.
    pub server_pid: Option<i32>,
    /// Clients of the server, as process ids of the machine.
    pub clients: Vec<i32>,
    /// Starts after a failure, since the last that held for ten seconds.
    pub failures: u32,
    /// Seconds since the epoch when this state began.
    pub since: u64,
}

/// What is there of MPS on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing runs; a tombstone answers, and CUDA fails with 805.
    Down,
    /// It is being started; a tombstone answers until the limits are read back.
    Starting,
    /// A server runs with the limits.
    Ready,
    /// A client's fault ended all clients' work, and the server takes no new one until all have left.
    Fault,
    /// Somebody connected and says nothing, and nobody else can connect; `why` names the process.
    Blocked,
}
