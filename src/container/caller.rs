//! Which container a request is about, and whether who asks may: as the kernel tells it. Of what the caller says only the
//! labels are taken over, by which nothing is decided.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hooks::lease::{Container, Request};
use nix::libc;
use nix::unistd::{Uid, User};
use thiserror::Error;
use tracing::{info, warn};

use crate::container::cgroup::{First, Hierarchies};
use crate::container::names;
use crate::container::process::{self, Namespace, Stat};
use crate::sys;

/// More user namespaces than can lie in one another (user_namespaces(7): 32).
const MOST_NAMESPACES: usize = 64;

/// Who is at the other end of a connection (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user, as this process counts users.
    pub uid: u32,
    /// Its process, as this process counts those; 0 where it is out of sight.
    pub pid: i32,
}

/// What the kernel says of a container.
#[derive(Debug)]
pub struct Facts {
    /// The container.
    pub container: Container,
    /// Of its first process.
    pub pidfd: OwnedFd,
}

/// Why a caller gets nothing.
#[derive(Debug, Error)]
pub enum Error {
    /// It ended, or the caller counts processes differently.
    #[error("there is no process {pid} that started when the caller says")]
    Ended {
        /// What the caller calls the container's first process.
        pid: i32,
    },
    /// Something of it could not be read.
    #[error("cannot read {what} of process {pid}")]
    Unreadable {
        /// In words.
        what: &'static str,
        /// The container's first process.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// It is in the mount namespace of the host, the daemon or the caller.
    #[error("process {pid} is in no container: it has no mount namespace of its own")]
    NoContainer {
        /// That process.
        pid: i32,
    },
    /// A user asks for a container that only root starts.
    #[error("user {uid} asks for a container without a user namespace of the user's: process {pid}")]
    RootsContainer {
        /// Who asks.
        uid: u32,
        /// The container's first process.
        pid: i32,
    },
    /// A user asks for the container of another.
    #[error("user {uid} asks for a container of user {owner}: process {pid}")]
    OthersContainer {
        /// Who asks.
        uid: u32,
        /// The container's first process.
        pid: i32,
        /// Whose it is.
        owner: u32,
    },
    /// Its user namespace is beside or above the daemon's.
    #[error("the user namespace of process {pid} is not below that of divvy serve")]
    ForeignUsers {
        /// The container's first process.
        pid: i32,
    },
    /// The user database does not answer.
    #[error("cannot look up the name of user {uid}")]
    User {
        /// Whose.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Ended { .. } => {
                "see the engine's log: the container ended while it started, or the engine runs in another pid namespace"
            }
            Self::Unreadable { .. } => "run divvy serve as root, in the host's namespaces",
            Self::NoContainer { .. } => "ask for a container: process and caller must not share their mounts",
            Self::RootsContainer { .. } | Self::OthersContainer { .. } => {
                "let the engine of the container's own user start it"
            }
            Self::ForeignUsers { .. } => "run divvy serve in the host's user namespace",
            Self::User { .. } => "see that the host's user database answers: getent passwd",
        }
    }
}

/// What the daemon is itself, and where it is: everything else is compared with it.
#[derive(Debug)]
pub struct Daemon {
    boot_id: String,
    mounts: Namespace,
    /// Those of the host, from which its unit keeps the daemon apart; none where that may not look at process 1.
    hosts_mounts: Option<Namespace>,
    users: Namespace,
    hierarchies: Hierarchies,
}

impl Daemon {
    /// Reads it once, at the start.
    ///
    /// # Errors
    /// Without /proc.
    pub fn read() -> io::Result<Self> {
        let hosts_mounts = Namespace::of(1, "mnt").inspect_err(|error| {
            warn!("a process among the host's mounts may pass for a container: {error}")
        });
        Ok(Self {
            boot_id: process::boot_id()?,
            mounts: Namespace::own("mnt")?,
            hosts_mounts: hosts_mounts.ok(),
            users: Namespace::own("user")?,
            hierarchies: Hierarchies::read()?,
        })
    }

    /// The container that a request is about, if this peer may ask for it. Reads a dozen small files.
    ///
    /// # Errors
    /// When it is no container's, or the peer may not.
    pub fn facts(&self, peer: Peer, request: &Request) -> Result<Facts, Error> {
        let pid = request.pid;
        let pidfd = sys::pidfd_open(pid).map_err(unreadable("the process itself", pid))?;
        let container = self.container(peer, pid, request);
        // Whatever was read, is of the process that had this id at the time. If the pidfd's is there still, it was that.
        if sys::has_ended(pidfd.as_fd()).map_err(unreadable("the pidfd", pid))? {
            return Err(Error::Ended { pid });
        }
        Ok(Facts { container: container?, pidfd })
    }

    fn container(&self, peer: Peer, pid: i32, request: &Request) -> Result<Container, Error> {
        let stat = Stat::read(pid).map_err(unreadable("the start time", pid))?;
        if stat.start_time != request.start_time {
            return Err(Error::Ended { pid });
        }
        let uid = self.allowed(peer, pid)?;
        let mounts = Namespace::of(pid, "mnt").map_err(unreadable("the mount namespace", pid))?;
        let caller = (peer.pid > 0).then_some(peer.pid);
        // A caller that went away shares nothing any more.
        let callers_mounts = caller.and_then(|caller| Namespace::of(caller, "mnt").ok());
        if [Some(self.mounts), self.hosts_mounts, callers_mounts].contains(&Some(mounts)) {
            return Err(Error::NoContainer { pid });
        }
        let cgroup = self.hierarchies.own(First { pid, uid, caller });
        if let Err(why) = &cgroup {
            let why: &dyn std::error::Error = why;
            info!(pid, why, "the container has no cgroup of its own");
        }
        let process_uid = process::user_id(pid, request.user).map_err(unreadable("the user ids", pid))?;
        let names = names::find(request, peer.uid);
        let container = Container {
            mount_namespace: mounts.inode,
            pid,
            start_time: stat.start_time,
            boot_id: self.boot_id.clone(),
            cgroup: cgroup.ok(),
            uid,
            process_uid,
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            engine: names.engine,
            name: names.name,
        };
        Ok(container)
    }

    /// Whose container it is, if this peer may ask for it.
    fn allowed(&self, peer: Peer, pid: i32) -> Result<u32, Error> {
        let owner = self.owner(pid)?;
        match owner {
            _ if peer.uid == 0 => Ok(owner.unwrap_or(0)),
            None => Err(Error::RootsContainer { uid: peer.uid, pid }),
            Some(owner) if owner == peer.uid => Ok(owner),
            Some(owner) => Err(Error::OthersContainer { uid: peer.uid, pid, owner }),
        }
    }

    /// Who made the outermost user namespace that a process is in, below the daemon's. None if it is in the daemon's.
    fn owner(&self, pid: i32) -> Result<Option<u32>, Error> {
        let failed = || unreadable("the user namespace", pid);
        let mut namespace = File::open(format!("/proc/{pid}/ns/user")).map_err(failed())?;
        if Namespace::of_file(&namespace).map_err(failed())? == self.users {
            return Ok(None);
        }
        for _ in 0..MOST_NAMESPACES {
            let above = match sys::namespace_above(namespace.as_fd()) {
                Ok(above) => File::from(above),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
                Err(error) => return Err(failed()(error)),
            };
            if Namespace::of_file(&above).map_err(failed())? == self.users {
                return sys::namespace_owner(namespace.as_fd()).map(Some).map_err(failed());
            }
            namespace = above;
        }
        Err(Error::ForeignUsers { pid })
    }

    /// Whether a container that was leased before was started since the machine was: what its cgroup was called says
    /// nothing if not.
    pub fn is_of_this_boot(&self, container: &Container) -> bool {
        container.boot_id == self.boot_id
    }

    /// The first process of a container that was leased before, if it still runs.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn still_runs(&self, container: &Container) -> io::Result<Option<OwnedFd>> {
        if !self.is_of_this_boot(container) {
            return Ok(None);
        }
        let is_gone = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EINVAL))
        };
        let found = sys::pidfd_open(container.pid).and_then(|pidfd| {
            let stat = Stat::read(container.pid)?;
            // In this order: the id was this process's all the time.
            let runs = stat.start_time == container.start_time && !sys::has_ended(pidfd.as_fd())?;
            Ok(runs.then_some(pidfd))
        });
        match found {
            Err(error) if is_gone(&error) => Ok(None),
            found => found,
        }
    }
}

fn unreadable(what: &'static str, pid: i32) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL) => Error::Ended { pid },
        _ => Error::Unreadable { what, pid, source },
    }
}

/// The name of a user, who may have none. The host's user database may take its time, or not answer at all.
///
/// # Errors
/// When it does not: what may not be known is not what is nobody's.
pub fn name_of(uid: u32) -> Result<Option<String>, Error> {
    let user = User::from_uid(Uid::from_raw(uid));
    let user = user.map_err(|errno| Error::User { uid, source: errno.into() })?;
    Ok(user.map(|user| user.name))
}
