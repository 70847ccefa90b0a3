//! Stands in for the supervisor of one MPS server: it has the lock, listens on the socket, and answers as it is told to.
//! What the real one does, tests/mps shows.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::{Value, json};

use crate::ground::{Ground, wait_until};

/// How it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// The server runs.
    Ready,
    /// Not with this status and these words.
    Refuses(u8, String),
    /// Not until it is in another mood.
    Silent,
}

#[derive(Debug)]
struct Shared {
    mood: Mutex<Mood>,
    changed: Condvar,
    heard: Mutex<Vec<Value>>,
    front: PathBuf,
}

/// A supervisor that was asked nothing yet. Its threads end with this process.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    _lock: File,
}

impl StandIn {
    /// For the device with this UUID.
    pub fn start(ground: &Ground, uuid: &str) -> Self {
        let directory = ground.state().join("mps").join(uuid);
        fs::create_dir_all(directory.join("front")).unwrap();
        let lock = lock(&directory.join("supervisor.lock"));
        let listener = UnixListener::bind(directory.join("supervisor.sock")).unwrap();
        let shared = Arc::new(Shared {
            mood: Mutex::new(Mood::Ready),
            changed: Condvar::new(),
            heard: Mutex::default(),
            front: directory.join("front"),
        });
        let listening = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&listening);
                std::thread::spawn(move || shared.answer(&stream));
            }
        });
        Self { shared, _lock: lock }
    }

    /// Answers so from now on, also who was asked before and waits.
    pub fn is(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
        self.shared.changed.notify_all();
    }

    /// Writes how its server is, as everybody may read it.
    pub fn says(&self, state: &str, why: Option<&str>) {
        let status = json!({"version": 1, "state": state, "why": why, "hint": null, "control_pid": null,
            "supervisor_pid": std::process::id(), "server_pid": null, "clients": [], "failures": 0, "since": 1});
        fs::write(self.shared.front.with_file_name("status.json"), status.to_string()).unwrap();
    }

    /// What it was asked so far.
    pub fn heard(&self) -> Vec<Value> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// Waits until it was asked so often.
    #[track_caller]
    pub fn wait_for(&self, count: usize) {
        wait_until(&format!("{count} questions"), || self.heard().len() >= count);
    }

    /// User and whether the device is idle, of each time that a server was asked for.
    pub fn ensured(&self) -> Vec<(u64, bool)> {
        let heard = self.heard();
        let ensured = heard.iter().filter(|request| request["request"] == "ensure");
        ensured
            .map(|request| (request["uid"].as_u64().unwrap(), request["is_idle"].as_bool().unwrap()))
            .collect()
    }
}

impl Shared {
    fn answer(&self, stream: &UnixStream) {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        // A daemon that was killed says nothing.
        let Ok(request) = serde_json::from_str::<Value>(&line) else { return };
        let (stops, terminates) = (request["request"] == "stop", request["request"] == "terminate");
        let pids = request["pids"].clone();
        if request["request"] == "ensure" {
            let mut kept = request["settings"].clone();
            kept["uid"] = request["uid"].clone();
            fs::write(self.front.with_file_name("settings.json"), kept.to_string()).unwrap();
        }
        self.heard.lock().unwrap().push(request);
        let mood = self.mood.lock().unwrap();
        let mood = self.changed.wait_while(mood, |mood| *mood == Mood::Silent).unwrap();
        let answer = match &*mood {
            Mood::Refuses(status, message) => {
                json!({"answer": "refused", "status": status, "message": message, "hint": "wait"})
            }
            _ if stops => json!({"answer": "stopped"}),
            _ if terminates => json!({"answer": "terminated", "pids": pids}),
            _ => json!({"answer": "ready", "front": self.front, "shared_memory": null}),
        };
        let mut stream = stream;
        // Whoever asked may be gone.
        let _ = stream.write_all(format!("{answer}\n").as_bytes());
    }
}

/// A record lock, as a supervisor has.
fn lock(path: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&whole)).unwrap();
    file
}
