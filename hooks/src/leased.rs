//! What a container that must have a lease may keep: its lease is read from the host, which is still in sight, and the
//! device nodes that the spec brought for the choice of a pool's devices, and that are not this container's, go from its
//! own /dev. A start without a lease, or with a node that cannot be taken away, fails.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat, stat};
use thiserror::Error;

use crate::args::{Link, is_plain_path};
use crate::create_container::destination;
use crate::lease::{LEASE_LIMIT, Lease, LeasedMps, VERSION};
use crate::rootfs::{self, Root};
use crate::state::{self, Container};
use crate::tree::Tree;
use crate::user_namespace::UserIds;

/// This process's mount namespace, which is the container's (namespaces(7)).
const NAMESPACE: &str = "/proc/self/ns/mnt";
/// Mode bits by which others than the owner write.
pub(crate) const OTHERS_WRITE: u32 = 0o022;

/// Why the container must not start.
#[derive(Debug, Error)]
pub enum Error {
    /// The state does not say whose lease it should be.
    #[error("the container's lease cannot be looked for")]
    State {
        /// What is missing.
        source: state::Error,
    },
    /// The namespace, the directory or the lease cannot be looked at.
    #[error("{call} failed for {path:?}")]
    Call {
        /// The system call, as its man page is named.
        call: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// What the call said.
        source: Errno,
    },
    /// There is none.
    #[error("this container has no lease: there is no {path:?}")]
    Missing {
        /// Where it should be, on the host.
        path: PathBuf,
    },
    /// It is not the daemon's.
    #[error("{path:?} is not root's alone, as what the daemon writes is")]
    Untrusted {
        /// The lease or a directory, on the host.
        path: PathBuf,
    },
    /// It is too long to be one.
    #[error("{path:?} is longer than {LEASE_LIMIT} bytes")]
    TooLarge {
        /// The lease, on the host.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("the lease {path:?} is malformed, or of another version than {VERSION}")]
    Malformed {
        /// The lease, on the host.
        path: PathBuf,
    },
    /// It is another's: the kernel uses numbers of namespaces again.
    #[error("the lease {path:?} is of another container, {id:?}")]
    Foreign {
        /// The lease, on the host.
        path: PathBuf,
        /// Whose it is.
        id: String,
    },
    /// It says to remove what is no device's.
    #[error("the lease says to remove {path:?}, which is not below /dev")]
    NotADevice {
        /// The path in the container.
        path: PathBuf,
    },
    /// What lies beside an MPS server's socket would reach it past the limits.
    #[error("there is more in {path:?} than the socket for containers: {name:?}")]
    Front {
        /// The directory on the host.
        path: PathBuf,
        /// What else is in it.
        name: OsString,
    },
    /// What containers of an MPS server share is of a bounded size.
    #[error("no file system of its own is mounted at {path:?}")]
    SharedMemory {
        /// The directory on the host.
        path: PathBuf,
    },
    /// A directory of an MPS server cannot be mounted.
    #[error("cannot mount the MPS server's directory at {path:?} in the container")]
    Mount {
        /// The directory in the container.
        path: PathBuf,
        /// Why.
        source: rootfs::Error,
    },
    /// A node stays.
    #[error("cannot take away {path:?}, which this container was not granted")]
    Node {
        /// The node, in the container.
        path: PathBuf,
        /// Why.
        source: rootfs::Error,
    },
}

impl Error {
    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing { .. } | Self::Foreign { .. } => Some(
                "the engine runs divvy's createRuntime hook before, which asks the daemon for a lease: start the container \
                 again, and if that fails too, run `sudo divvy generate`",
            ),
            Self::Malformed { .. } => {
                Some("install hook and daemon from one release, and restart the daemon")
            }
            Self::Node { source: rootfs::Error::ForeignMount { .. }, .. } => {
                Some("start the container without a volume over /dev or in it")
            }
            Self::Mount { source: rootfs::Error::ForeignMount { .. }, .. } => Some(
                "give the container a tmpfs at that very path: --tmpfs /tmp/nvidia-mps, or a volume of its own (emptyDir)",
            ),
            Self::Mount { source: rootfs::Error::Shared { .. }, .. } => Some(
                "start the container without rshared volumes there, and without shared propagation of its root",
            ),
            Self::Node { source, .. } | Self::Mount { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// What a lease says to its container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Nodes that are not this container's, by their paths in it.
    remove: Vec<PathBuf>,
    /// Directories of the host's that are mounted in it.
    pub mps: Option<LeasedMps>,
}

/// Whose a lease is.
#[derive(Debug, PartialEq, Eq)]
struct Owner<'a> {
    id: &'a str,
    bundle: &'a Path,
    mount_namespace: u64,
}

/// The lease of this container, in whose mount namespace this process is.
///
/// # Errors
/// [`Error`], but for the last two.
pub fn read(leases: &Path, container: &Container) -> Result<Own, Error> {
    let state = |source| Error::State { source };
    let (id, bundle) = (container.id().map_err(state)?, container.bundle().map_err(state)?);
    let namespace = stat(NAMESPACE).map_err(|errno| failed("stat", Path::new(NAMESPACE), errno))?.st_ino;
    let path = Lease::path(leases, namespace);
    let lease = Tree::parse(&content(leases, &path)?).unwrap_or_default();
    let Some((owner, own)) = parts(&lease) else { return Err(Error::Malformed { path }) };
    if owner == (Owner { id, bundle, mount_namespace: namespace }) {
        return Ok(own);
    }
    Err(Error::Foreign { path, id: owner.id.to_owned() })
}

/// Of a [`Lease`], what the hook needs.
fn parts(lease: &Tree) -> Option<(Owner<'_>, Own)> {
    let container = lease.get("container");
    let owner = Owner {
        id: container.get("id").text()?,
        bundle: Path::new(container.get("bundle").text()?),
        mount_namespace: container.get("mount_namespace").count()?,
    };
    let remove = lease.get("remove").list()?.iter();
    let remove = remove.map(|path| path.text().map(PathBuf::from)).collect::<Option<_>>()?;
    let is_known = lease.get("version").count() == Some(VERSION.into());
    is_known.then_some((owner, Own { remove, mps: mps(lease.get("mps"))? }))
}

fn mps(mps: &Tree) -> Option<Option<LeasedMps>> {
    if *mps == Tree::Other {
        return Some(None);
    }
    let front = mps.get("front").text()?.into();
    Some(Some(LeasedMps { front, shared_memory: mps.get("shared_memory").text().map(PathBuf::from) }))
}

/// What stands in a file that is root's alone, in a directory that is.
fn content(directory: &Path, path: &Path) -> Result<Vec<u8>, Error> {
    let missing = |errno, call, of: &Path| match errno {
        Errno::ENOENT => Error::Missing { path: path.to_owned() },
        // A link.
        Errno::ELOOP => Error::Untrusted { path: path.to_owned() },
        errno => failed(call, of, errno),
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let leases = open(directory, flags, Mode::empty()).map_err(|errno| missing(errno, "open", directory))?;
    is_roots(&leases, directory, SFlag::S_IFDIR, OTHERS_WRITE)?;
    let name = path.file_name().unwrap_or_default();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = openat(&leases, name, flags, Mode::empty()).map_err(|errno| missing(errno, "openat", path))?;
    is_roots(&file, path, SFlag::S_IFREG, OTHERS_WRITE)?;
    let mut bytes = Vec::new();
    let read = File::from(file).take(LEASE_LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed("read", path, Errno::from_raw(error.raw_os_error().unwrap_or_default())))?;
    if bytes.len() as u64 > LEASE_LIMIT { Err(Error::TooLarge { path: path.to_owned() }) } else { Ok(bytes) }
}

/// Takes the nodes that are not this container's from its /dev, and `links` to them. Does nothing where they are gone.
///
/// # Errors
/// [`Error::NotADevice`], [`Error::Node`]: then some may be gone.
pub fn take_away(root: &Root, lease: &Own, links: &[Link]) -> Result<(), Error> {
    let mut there = Vec::new();
    for path in &lease.remove {
        let below = path.strip_prefix("/dev").ok().filter(|_| is_plain_path(path));
        let below = below.filter(|below| !below.as_os_str().is_empty());
        let below = below.ok_or_else(|| Error::NotADevice { path: path.clone() })?;
        if root.has(path).map_err(|source| Error::Node { path: path.clone(), source })? {
            there.push((path, Path::new("/").join(below)));
        }
    }
    let Some((first, _)) = there.first() else { return Ok(()) };
    let devices = root.devices().map_err(|source| Error::Node { path: first.to_path_buf(), source })?;
    for (path, below) in &there {
        let removed = devices.remove_node(below);
        removed.map_err(|source| Error::Node { path: path.to_path_buf(), source })?;
    }
    // A hook of another spec may have made them before.
    for link in links.iter().filter(|link| lease.remove.contains(&destination(link))) {
        let below = Path::new("/").join(link.path.strip_prefix("/dev").unwrap_or(&link.path));
        let removed = devices.remove_link(&below);
        removed.map_err(|source| Error::Node { path: link.path.clone(), source })?;
    }
    Ok(())
}

/// Refuses what is not root's, is of another kind, or has one of the mode bits `never`.
pub(crate) fn is_roots(handle: &OwnedFd, of: &Path, kind: SFlag, never: u32) -> Result<(), Error> {
    let stat = fstat(handle).map_err(|errno| failed("fstat", of, errno))?;
    let is_kept = UserIds::read().may_be_root(stat.st_uid) && stat.st_mode & never == 0;
    let is_it = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind;
    if is_kept && is_it { Ok(()) } else { Err(Error::Untrusted { path: of.to_owned() }) }
}

pub(crate) fn failed(call: &'static str, path: &Path, source: Errno) -> Error {
    Error::Call { call, path: path.to_owned(), source }
}
