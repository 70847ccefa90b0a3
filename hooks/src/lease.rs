//! What the hook and the daemon say to each other, and the lease that the daemon writes: defined once for all who read
//! them, which are both, `divvy ps`, `divvy list` and `divvy generate`. ARCHITECTURE.md, "Leases", is the authority.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::args;

/// Version of request, answers and lease files. A reader refuses any other.
pub const VERSION: u32 = 1;
/// The longest request and the longest answer, in bytes, newline included.
pub const LINE_LIMIT: usize = 256 << 10;
/// The longest lease file that is read, in bytes.
pub const LEASE_LIMIT: u64 = 1 << 20;
/// The daemon's socket in the state directory.
pub const SOCKET: &str = "divvy.sock";
/// The directory of leases in the state directory.
pub const LEASES: &str = "leases";

/// A device or pool by its CDI class and name, written `gpu=shared-0`. The vendor is always nvidia.com.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceName {
    /// CDI class, `gpu` for the kind nvidia.com/gpu.
    pub class: String,
    /// CDI device name, as `shared-0` or `shared`.
    pub name: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.class, self.name)
    }
}

impl FromStr for DeviceName {
    type Err = args::Error;

    fn from_str(word: &str) -> Result<Self, args::Error> {
        let (class, name) =
            word.split_once('=').ok_or_else(|| args::Error::DeviceName { word: word.to_owned() })?;
        let is_plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
        };
        if !is_plain(class) || !is_plain(name) {
            return Err(args::Error::DeviceName { word: word.to_owned() });
        }
        Ok(Self { class: class.to_owned(), name: name.to_owned() })
    }
}

/// What the hook asks at createRuntime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// The container's first process, as hook and daemon count processes.
    pub pid: i32,
    /// When that started, in clock ticks since boot (proc_pid_stat(5), field 22): the id may be another's by now.
    pub start_time: u64,
    /// The container's id in the OCI state.
    pub id: String,
    /// The bundle in the OCI state, absolute.
    pub bundle: PathBuf,
    /// What is asked for, in the order of the configuration's hooks; a pool as often as it is named.
    pub devices: Vec<DeviceName>,
    /// The user id of its first program, as the container counts users.
    #[serde(default)]
    pub user: u32,
    /// Paths in the container of the character devices that the bundle's configuration gives it.
    pub nodes: Vec<PathBuf>,
    /// Why a share would bind nothing in this container, if the configuration says so.
    pub unbound: Option<Unbound>,
    /// What names it for a person. Nothing is decided by it.
    pub labels: Labels,
}

/// Why a container has devices past what it asks divvy for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unbound {
    /// Its device cgroup allows every device: `--privileged`.
    Privileged,
    /// The host's /dev, or a GPU's node at another path than its own, is mounted in it and no device cgroup stands behind.
    HostDev,
    /// NVIDIA's hook runs and is told of devices.
    NvidiaHook,
}

/// What names a container for a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Annotations of the state and the configuration that engines set, as `io.kubernetes.cri.container-name`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// On the host, what is mounted at /etc/hostname: beside it Docker keeps the container's name.
    #[serde(default)]
    pub hostname_file: Option<PathBuf>,
    /// What Podman calls it.
    #[serde(default)]
    pub podman_name: Option<String>,
}

/// What the daemon says. `Queued` may come first; one of the others is the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The container waits for a device of a pool, or for the end of one that is ending.
    Queued {
        /// For so long at most.
        seconds: u64,
        /// So many wait before it.
        ahead: u32,
    },
    /// It has them all, and the lease is on disk.
    Granted {
        /// The devices, pools replaced by what was taken.
        devices: Vec<DeviceName>,
    },
    /// It has nothing.
    Refused {
        /// Exit status of the hook: 3 nothing free, 5 a limit cannot be held, 1 anything else.
        status: u8,
        /// For a person, without `error:`.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// A container's hold on devices: the file `leases/<mount namespace>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// [`VERSION`].
    pub version: u32,
    /// Who.
    pub container: Container,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// What it asked for.
    pub asked: Vec<DeviceName>,
    /// What it has.
    pub devices: Vec<LeasedDevice>,
    /// Nodes that pools brought and that are not its own, by their paths in the container.
    pub remove: Vec<PathBuf>,
    /// What denies those beside.
    pub denied_by: Option<DeniedBy>,
    /// What it is given of an MPS server, if its device is a share of one.
    #[serde(default)]
    pub mps: Option<LeasedMps>,
}

/// A container, by what the kernel says of it. Id, engine and name are labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Inode of its first process's mount namespace; reused once that is gone.
    pub mount_namespace: u64,
    /// Its first process, as the daemon counts processes.
    pub pid: i32,
    /// When that started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The kernel's boot id (/proc/sys/kernel/random/boot_id).
    pub boot_id: String,
    /// The cgroup that is its own, as the daemon sees its directory, of v2 if it has one there, else of v1's device
    /// controller; none if it shares one.
    pub cgroup: Option<PathBuf>,
    /// The user who started it: 0, or the owner of its outermost user namespace.
    pub uid: u32,
    /// The user of its first program, as the daemon counts users; none if that has no number there.
    #[serde(default)]
    pub process_uid: Option<u32>,
    /// Id in the OCI state.
    pub id: String,
    /// Bundle in the OCI state.
    pub bundle: PathBuf,
    /// `docker`, `podman`, `containerd`, `nerdctl`, `kubernetes`.
    pub engine: Option<String>,
    /// Its name in the engine.
    pub name: Option<String>,
}

/// A device that a container holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedDevice {
    /// Its name; of a whole device, the one by index.
    #[serde(flatten)]
    pub name: DeviceName,
    /// The GPU or MIG device that it is or is a part of.
    pub uuid: String,
    /// It is a part of that.
    pub is_share: bool,
    /// The pool it was taken from.
    pub pool: Option<String>,
}

/// Directories of the host's that are mounted into a container with a share of an MPS server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedMps {
    /// The one with the server's socket, at [`crate::mps::FRONT`] and read-only.
    pub front: PathBuf,
    /// A tmpfs that all containers of the device share, at [`crate::mps::SHARED_MEMORY`].
    #[serde(default)]
    pub shared_memory: Option<PathBuf>,
}

/// What keeps a container from devices of a pool that were not granted, beside that their nodes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeniedBy {
    /// A device program on its cgroup.
    CgroupV2,
    /// devices.deny of its cgroup, which an engine may write anew.
    CgroupV1,
}

impl Lease {
    /// Where the lease of the container with this mount namespace lies in a directory of leases.
    pub fn path(leases: &Path, mount_namespace: u64) -> PathBuf {
        leases.join(format!("{mount_namespace}.json"))
    }

    /// Reads a lease.
    ///
    /// # Errors
    /// When it is not the JSON of one, or of another version.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let lease: Self = serde_json::from_slice(text)?;
        if lease.version == VERSION {
            return Ok(lease);
        }
        let what = format!("it is of version {}, and this divvy reads version {VERSION}", lease.version);
        Err(serde::de::Error::custom(what))
    }
}
