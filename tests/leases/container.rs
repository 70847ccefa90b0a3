//! A container as the daemon sees one: a first process in a mount namespace of its own, in a cgroup of its own. It ends
//! with whoever started it, however that ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use hooks::ancestry::start_time;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::cgroup_roots;

/// How a container differs from most.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// The user whose user namespace it has; none: the host's, and root's.
    pub user: Option<u32>,
    /// It stays in the cgroup of who started it.
    pub no_cgroup: bool,
    /// It joins the cgroup of this name.
    pub cgroup: Option<String>,
    /// It stays in the mount namespace of who started it.
    pub no_mount_namespace: bool,
}

/// A running container.
#[derive(Debug)]
pub struct Container {
    /// What its engine would call it.
    pub id: String,
    child: Child,
    start_time: u64,
    cgroups: Vec<PathBuf>,
}

impl Container {
    /// Starts one of root's.
    pub fn start() -> Self {
        Self::start_as(&Made::default())
    }

    /// Starts one that is made otherwise.
    pub fn start_as(made: &Made) -> Self {
        Self::spawn(made).until_ready()
    }

    /// Starts several at once.
    pub fn start_many(count: usize) -> Vec<Self> {
        // No more at a time than there can be pipes to them.
        let mut containers = Vec::with_capacity(count);
        while containers.len() < count {
            let batch: Vec<Self> =
                (containers.len()..count).take(64).map(|_| Self::spawn(&Made::default())).collect();
            containers.extend(batch.into_iter().map(Self::until_ready));
        }
        containers
    }

    fn spawn(made: &Made) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let id = format!("leases-{}-{number}", std::process::id());
        let mut command = helper("as-container");
        if made.no_mount_namespace {
            command.arg("--no-mount-namespace");
        }
        if let Some(uid) = made.user {
            command.arg("--user-namespace").uid(uid).gid(uid);
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let name = made.cgroup.clone().unwrap_or_else(|| id.clone());
        let roots = if made.no_cgroup { Vec::new() } else { cgroup_roots() };
        let cgroups = roots.into_iter().map(|root| root.join(&name)).collect();
        let container = Self { id, child, start_time: start_time(pid).unwrap(), cgroups };
        container.cgroups.iter().for_each(|cgroup| join(cgroup, pid));
        container
    }

    fn until_ready(mut self) -> Self {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a container did not start");
        self
    }

    /// Process id of its first process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Inode of its mount namespace.
    pub fn mount_namespace(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/proc/{}/ns/mnt", self.pid())).unwrap().ino()
    }

    /// When its first process started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Has another process in its cgroup.
    pub fn take_in(&self, pid: u32) {
        self.cgroups
            .iter()
            .for_each(|cgroup| fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap());
    }

    /// Has its first process end. It is this process's child and not waited for, so its id is nobody else's.
    pub fn end(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGKILL).unwrap();
    }

    /// Ends its first process, and returns when that is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
        for cgroup in &self.cgroups {
            // Others may be in it.
            let _ = fs::remove_dir(cgroup);
        }
    }
}

fn join(cgroup: &Path, pid: i32) {
    match fs::create_dir(cgroup) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => panic!("{cgroup:?}: {error}"),
        _ => fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap(),
    }
}

/// This program as another. By its link in /proc, which every user can follow.
pub fn helper(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(role);
    command
}
