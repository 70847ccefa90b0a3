//! The built `divvy serve`: started, killed, started again; on a socket of its own, or on one that is held for it as
//! systemd does (sd_listen_fds(3)).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::{Ground, wait_until};

/// A daemon that runs.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    state: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    notified: PathBuf,
    held: Option<UnixListener>,
    environment: Vec<(String, String)>,
}

impl Daemon {
    /// Starts one that makes its own socket.
    #[track_caller]
    pub fn start(ground: &Ground) -> Self {
        Self::start_with(ground, None, &[])
    }

    /// Starts one on a socket that stays while it is away.
    #[track_caller]
    pub fn start_on_held_socket(ground: &Ground) -> Self {
        let _ = fs::remove_file(ground.socket());
        let held = UnixListener::bind(ground.socket()).unwrap();
        Self::start_with(ground, Some(held), &[])
    }

    /// Starts one with variables in its environment.
    #[track_caller]
    pub fn start_with(ground: &Ground, held: Option<UnixListener>, environment: &[(&str, &str)]) -> Self {
        let mut daemon = Self {
            child: Command::new("true").spawn().unwrap(),
            state: ground.state(),
            socket: ground.socket(),
            log: ground.path("daemon.log"),
            notified: ground.path("notify"),
            held,
            environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        };
        daemon.start_again();
        daemon
    }

    /// Starts it again, once it has ended, and returns when it says that it serves.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.child.wait().unwrap();
        let _ = fs::remove_file(&self.notified);
        let notified = UnixDatagram::bind(&self.notified).unwrap();
        notified.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let log = File::options().append(true).create(true).open(&self.log).unwrap();
        let program = std::env::var_os("DIVVY").unwrap_or_else(|| env!("CARGO_BIN_EXE_divvy").into());
        let mut command = Command::new("sh");
        // Whom the socket is for is told by process id (sd_listen_fds(3)), which is the shell's and stays.
        let script = if self.held.is_some() {
            "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\""
        } else {
            "exec \"$@\""
        };
        command.args(["-c", script, "sh"]).arg(program).arg("serve").arg("--state-dir").arg(&self.state);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("NOTIFY_SOCKET", &self.notified).stdout(Stdio::null()).stderr(log);
        command.stdin(match &self.held {
            Some(held) => Stdio::from(OwnedFd::from(held.try_clone().unwrap())),
            None => Stdio::null(),
        });
        self.child = command.spawn().unwrap();
        wait_until("the daemon", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended: {status}");
            }
            let mut said = [0; 64];
            match notified.recv(&mut said) {
                Ok(length) => said[..length].starts_with(b"READY=1"),
                // A machine that is stopped and goes on interrupts a wait that has a limit (signal(7)).
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    false
                }
                Err(error) => panic!("{error}"),
            }
        });
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Ends it as nobody can resist, and returns when it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc_sigkill()), "the daemon had ended before: {status}");
    }

    /// Asks it to leave, and returns when it has.
    pub fn stop(&mut self) -> ExitStatus {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    /// A number in its /proc/PID/status: kilobytes, or a count.
    pub fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn libc_sigkill() -> i32 {
    Signal::SIGKILL as i32
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(30);
            eprintln!("the daemon at {} said last:\n{}", self.socket.display(), lines[last..].join("\n"));
        }
    }
}
