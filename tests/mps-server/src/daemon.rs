//! The conversation with the control daemon, and with clients, whose connections it hands over.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::wire::{call, greet, receive, send, u32_of, u64_of};

/// What a server is to the daemon.
const READY: u32 = 1;

/// One server.
struct Server {
    directory: PathBuf,
    daemon: OwnedFd,
    percentage: f64,
    limits: Vec<u64>,
    clients: Vec<Client>,
}

struct Client {
    pid: i32,
    connection: OwnedFd,
}

/// Serves until the daemon has it end, or is gone.
pub fn serve() -> io::Result<()> {
    let program = std::env::current_exe()?;
    let directory = program.parent().map(PathBuf::from).unwrap_or_default();
    let behaviour = Behaviour(directory.join("behaviour"));
    while behaviour.has("stuck") {
        thread::sleep(Duration::from_millis(50));
    }
    if behaviour.has("broken") {
        return Err(io::Error::other("no CUDA-capable device is detected"));
    }
    let pipe = std::env::var("CUDA_MPS_PIPE_DIRECTORY").unwrap_or_else(|_| "/tmp/nvidia-mps".into());
    let daemon = call(&format!("{pipe}/control"))?;
    send(&daemon, &READY.to_ne_bytes())?;
    send(&daemon, &0_u32.to_ne_bytes())?;
    let percentage = f64::from_bits(u64_of(&receive(&daemon)?.bytes)?);
    let count = u64_of(&receive(&daemon)?.bytes)?;
    let limits = (0..count).map(|_| u64_of(&receive(&daemon)?.bytes)).collect::<io::Result<Vec<_>>>()?;
    let priority = u32_of(&receive(&daemon)?.bytes)?;
    let server = Server { directory, daemon, percentage, limits, clients: Vec::new() };
    server.note(&json!({
        "event": "ready",
        "pid": std::process::id(),
        "uid": nix::unistd::getuid().as_raw(),
        "percentage": percentage,
        "memory": server.limits.first(),
        "other_memory": server.limits.iter().skip(1).filter(|limit| **limit > 0).count(),
        "priority": priority,
        "visible": std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        "order": std::env::var("CUDA_DEVICE_ORDER").ok(),
        "descriptors": fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0),
    }));
    server.run(&behaviour)
}

struct Behaviour(PathBuf);

impl Behaviour {
    fn has(&self, word: &str) -> bool {
        fs::read_to_string(&self.0).is_ok_and(|words| words.split_whitespace().any(|other| other == word))
    }
}

impl Server {
    fn note(&self, event: &Value) {
        let file = File::options().append(true).open(self.directory.join("received"));
        let _ = file.and_then(|mut file| file.write_all(format!("{event}\n").as_bytes()));
    }

    fn run(mut self, behaviour: &Behaviour) -> io::Result<()> {
        loop {
            if self.wait_for_daemon()? {
                let packet = receive(&self.daemon)?;
                if packet.bytes.is_empty() {
                    self.note(&json!({"event": "alone"}));
                    return Ok(());
                }
                while behaviour.has("silent") {
                    thread::sleep(Duration::from_millis(50));
                }
                if !self.obey(u32_of(&packet.bytes)?, behaviour)? {
                    return Ok(());
                }
            }
            self.part_with_leavers();
        }
    }

    /// Whether the daemon said something; else a client did, or left.
    fn wait_for_daemon(&self) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.daemon.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.clients.iter().map(|client| PollFd::new(client.connection.as_fd(), PollFlags::POLLIN)),
        );
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(fds[0].any().unwrap_or(false))
    }

    fn part_with_leavers(&mut self) {
        let has_left = |client: &Client| {
            let mut fds = [PollFd::new(client.connection.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => false,
                _ => receive(&client.connection).map_or(true, |packet| packet.bytes.is_empty()),
            }
        };
        let (left, here) = std::mem::take(&mut self.clients).into_iter().partition(has_left);
        self.clients = here;
        left.iter().for_each(|client| self.note(&json!({"event": "left", "pid": client.pid})));
    }

    /// Does what the daemon wants; false at the end.
    fn obey(&mut self, order: u32, behaviour: &Behaviour) -> io::Result<bool> {
        let next = || Ok::<_, io::Error>(receive(&self.daemon)?.bytes);
        match order {
            2 => {
                if let Some(connection) = receive(&self.daemon)?.fd {
                    self.take(connection)?;
                }
            }
            5 => {
                self.note(&json!({"event": "end"}));
                // 535 does not wait to hear it.
                let _ = send(&self.daemon, &0_u32.to_ne_bytes());
                return Ok(false);
            }
            6 | 7 => {
                send(&self.daemon, &(self.clients.len() as u64).to_ne_bytes())?;
                for client in &self.clients {
                    send(&self.daemon, &client.pid.to_ne_bytes())?;
                }
            }
            8 => send(&self.daemon, &self.percentage.to_ne_bytes())?,
            9 => {
                self.percentage = f64::from_bits(u64_of(&next()?)?);
                self.note(&json!({"event": "percentage", "percentage": self.percentage}));
            }
            11 => {
                let device = u32_of(&next()?)? as usize;
                send(&self.daemon, &self.limits.get(device).copied().unwrap_or(0).to_ne_bytes())?;
            }
            12 => {
                let device = u32_of(&next()?)? as usize;
                let limit = u64_of(&next()?)?;
                if let Some(place) = self.limits.get_mut(device) {
                    *place = limit;
                }
                self.note(&json!({"event": "memory", "device": device, "memory": limit}));
            }
            13 => {
                let pid = u32_of(&next()?)?;
                self.note(&json!({"event": "terminate", "pid": pid}));
                self.clients.retain(|client| u32::try_from(client.pid) != Ok(pid));
                send(&self.daemon, &0_u32.to_ne_bytes())?;
            }
            17 => {
                let is_active = !behaviour.has("fault");
                send(&self.daemon, &u32::from(is_active).to_ne_bytes())?;
            }
            other => self.note(&json!({"event": "unknown", "order": other})),
        }
        Ok(true)
    }

    /// A client says who it is, in the way that the daemon's peers do.
    fn take(&mut self, connection: OwnedFd) -> io::Result<()> {
        greet(&connection)?;
        let packet = receive(&connection)?;
        let Some(credentials) = packet.credentials else { return Ok(()) };
        self.note(&json!({"event": "client", "pid": credentials.pid(), "uid": credentials.uid()}));
        self.clients.push(Client { pid: credentials.pid(), connection });
        Ok(())
    }
}
