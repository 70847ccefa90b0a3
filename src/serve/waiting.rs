//! Who waits, as a file: the daemon writes it whenever its queue changes, `divvy ps` shows it to whoever asks, and where
//! nobody waits there is none. A queue dies with its daemon, so the file says which process wrote it, and what another one
//! left behind counts for nothing.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::leases::queue::Place;
use crate::container::process::{Stat, boot_id};
use crate::publish::read_regular;

/// The file in the state directory.
pub const FILE: &str = "waiting.json";

const VERSION: u32 = 1;

/// Names that one request is shown with. It may name a pool many times.
const MOST_NAMES: usize = 16;
/// Characters of what a container says of itself: an id, a name.
const MOST_CHARACTERS: usize = 128;
/// The longest file that is read, bytes: as many as there may be connections, each at its longest.
const LIMIT: u64 = 16 << 20;

/// Those who wait, the first in turn first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    version: u32,
    daemon: Daemon,
    waiting: Vec<Waits>,
}

/// The process whose queue it is, for good: process ids come again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    pid: i32,
    start_time: u64,
    boot_id: String,
}

/// A start that waits for a device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// When it asked, in seconds since the epoch.
    pub since: u64,
    /// When it is refused if it got nothing, in seconds since the epoch.
    pub until: u64,
    /// What it asks for, each as `gpu=shared`; the first of them, where it names many.
    pub asked: Vec<String>,
    /// How many wait before it for what it lacks.
    pub ahead: u32,
    /// The container's id.
    pub id: String,
    /// Its engine, if known.
    pub engine: Option<String>,
    /// Its name in the engine, if known.
    pub name: Option<String>,
    /// The user who started it.
    pub uid: u32,
}

impl Daemon {
    /// This process.
    ///
    /// # Errors
    /// Without /proc.
    pub fn this() -> io::Result<Self> {
        let pid = nix::unistd::getpid().as_raw();
        Ok(Self { pid, start_time: Stat::read(pid)?.start_time, boot_id: boot_id()? })
    }

    fn runs(&self) -> bool {
        let is_it = match Stat::read(self.pid) {
            Ok(stat) => stat.start_time == self.start_time,
            // A process that may not be looked at is one that is there (proc(5), hidepid).
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        };
        is_it && boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
    }
}

impl Waits {
    /// What is shown of a place in the queue.
    pub fn of(place: &Place<'_>) -> Self {
        let container = &place.ask.container;
        let cut = |text: &String| text.chars().take(MOST_CHARACTERS).collect::<String>();
        Self {
            since: place.ask.wall,
            until: place.until,
            asked: place.ask.request.devices.iter().take(MOST_NAMES).map(ToString::to_string).collect(),
            ahead: place.ahead,
            id: cut(&container.id),
            engine: container.engine.as_ref().map(cut),
            name: container.name.as_ref().map(cut),
            uid: container.uid,
        }
    }
}

impl Waiting {
    /// The queue of a daemon.
    pub fn new(daemon: Daemon, waiting: Vec<Waits>) -> Self {
        Self { version: VERSION, daemon, waiting }
    }

    /// Who waits for the daemon of a state directory; nobody where there is no file, or none of a daemon that runs.
    ///
    /// # Errors
    /// When there is a file and it is not one of these.
    pub fn read(state_dir: &Path) -> Result<Vec<Waits>> {
        let path = state_dir.join(FILE);
        let cannot = || format!("cannot read who waits in {}", path.display());
        let read = match read_regular(&path, LIMIT) {
            Ok(text) => Self::parse(&text).with_context(cannot)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(cannot),
        };
        Ok(if read.daemon.runs() { read.waiting } else { Vec::new() })
    }

    fn parse(text: &str) -> Result<Self> {
        let read: Self = serde_json::from_str(text)?;
        if read.version == VERSION {
            return Ok(read);
        }
        anyhow::bail!("it is of version {}, and this divvy reads version {VERSION}", read.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits() -> Waits {
        Waits {
            since: 1,
            until: 61,
            asked: vec!["gpu=shared".into()],
            ahead: 0,
            id: "3f2a".into(),
            engine: None,
            name: None,
            uid: 0,
        }
    }

    #[test]
    fn what_a_running_daemon_wrote_counts() {
        let dir = tempfile::tempdir().unwrap();
        let read = || Waiting::read(dir.path());
        assert_eq!(read().unwrap(), []);
        let write = |waiting: &Waiting| {
            std::fs::write(dir.path().join(FILE), serde_json::to_string(waiting).unwrap()).unwrap();
        };
        let this = Waiting::new(Daemon::this().unwrap(), vec![waits()]);
        write(&this);
        assert_eq!(read().unwrap(), [waits()]);
        for another in [
            Daemon { start_time: this.daemon.start_time + 1, ..this.daemon.clone() },
            Daemon { boot_id: "another".into(), ..this.daemon.clone() },
            Daemon { pid: i32::MAX, ..this.daemon.clone() },
        ] {
            write(&Waiting::new(another, vec![waits()]));
            assert_eq!(read().unwrap(), []);
        }
        write(&Waiting { version: 2, ..this });
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.ends_with("it is of version 2, and this divvy reads version 1"), "{error}");
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(read().is_err());
    }
}
