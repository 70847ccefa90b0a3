//! What a daemon stands on: a state directory with a plan, and a /dev that has the nodes of eight GPUs, since the daemon
//! looks up the numbers of what it denies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hooks::lease::{Answer, DeviceName, LEASES, Labels, Lease, Request, SOCKET, VERSION};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Call;
use crate::container::Container;
pub use crate::support::wait::{PATIENCE, wait_until};
use crate::support::{divvy, run};

/// Major number of the driver's nodes.
const NVIDIA: u64 = 195;

/// 32 shares on eight GPUs.
pub const SHARES: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 4\n";

/// A directory that every user can enter, with a state directory and a plan in it.
#[derive(Debug)]
pub struct Ground {
    dir: TempDir,
    /// Nodes of GPUs that the spec's devices bring, by device.
    nodes: Mutex<BTreeMap<String, Vec<PathBuf>>>,
}

impl Ground {
    /// With the plan of eight GPUs under a configuration.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("divvy-leases-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let ground = Self { dir, nodes: Mutex::default() };
        fs::create_dir(ground.state()).unwrap();
        fs::set_permissions(ground.state(), Permissions::from_mode(0o755)).unwrap();
        ground.plan(config);
        ground
    }

    /// Makes a plan, anew where there is one.
    pub fn plan(&self, config: &str) {
        let file = self.path("config.toml");
        fs::write(&file, config).unwrap();
        let mut generate = divvy(&["generate", "--quiet", "--host=sim:h100x8", "--hook-path=/bin/true"]);
        generate.arg("--config").arg(file).arg("--state-dir").arg(self.state());
        generate.arg("--output").arg(self.path("divvy.json"));
        let (status, _, errors) = run(&mut generate);
        assert_eq!(status, 0, "{errors}");
        *self.nodes.lock().unwrap() = nodes(&fs::read(self.path("divvy.json")).unwrap());
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Where callers come in.
    pub fn socket(&self) -> PathBuf {
        self.state().join(SOCKET)
    }

    /// What a container's hook would ask: for devices or pools, each written `gpu=shared-0`. The nodes are those that the
    /// spec brings with them.
    pub fn request(&self, container: &Container, devices: &[&str]) -> Request {
        let devices: Vec<DeviceName> = devices.iter().map(|name| name.parse().unwrap()).collect();
        let nodes = self.nodes.lock().unwrap();
        let of_gpus = devices.iter().flat_map(|device| nodes.get(&device.name).into_iter().flatten());
        let nodes: BTreeSet<PathBuf> = of_gpus.cloned().collect();
        Request {
            version: VERSION,
            pid: container.pid(),
            start_time: container.start_time(),
            id: container.id.clone(),
            bundle: self.path("bundles").join(&container.id),
            devices,
            user: 0,
            nodes: nodes.into_iter().collect(),
            unbound: None,
            labels: Labels::default(),
        }
    }

    /// Asks a daemon that is there.
    #[track_caller]
    pub fn ask(&self, container: &Container, devices: &[&str]) -> Answer {
        let request = self.request(container, devices);
        Call::new(&self.socket(), &request).unwrap().last()
    }

    /// The leases on disk.
    #[track_caller]
    pub fn leases(&self) -> Vec<Lease> {
        let mut leases = Vec::new();
        for entry in fs::read_dir(self.state().join(LEASES)).unwrap() {
            let path = entry.unwrap().path();
            // What is not in its place yet, or was never to be.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path) {
                Ok(bytes) => leases.push(Lease::parse(&bytes).unwrap()),
                // It was removed since the directory was read.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{path:?}"),
            }
        }
        leases
    }

    /// Waits until that many leases are on disk.
    #[track_caller]
    pub fn wait_for_leases(&self, count: usize) {
        wait_until(&format!("{count} leases"), || self.leases().len() == count);
    }
}

fn nodes(spec: &[u8]) -> BTreeMap<String, Vec<PathBuf>> {
    let spec: Value = serde_json::from_slice(spec).unwrap();
    let devices = spec["devices"].as_array().unwrap().iter().map(|device| {
        let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
        let paths = nodes.iter().map(|node| PathBuf::from(node["path"].as_str().unwrap()));
        (device["name"].as_str().unwrap().to_owned(), paths.collect())
    });
    devices.collect()
}

/// Leaves the machine's mount namespace, and covers /dev.
pub fn enter_mount_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=1m")).unwrap();
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("random", 1, 8), ("urandom", 1, 9), ("nvidiactl", NVIDIA, 255)]
    {
        node(&dir.path().join(name), major, minor);
    }
    (0..8).for_each(|gpu| node(&dir.path().join(format!("nvidia{gpu}")), NVIDIA, gpu));
    symlink("/proc/self/fd", dir.path().join("fd")).unwrap();
    fs::create_dir(dir.path().join("shm")).unwrap();
    mount(Some("tmpfs"), &dir.path().join("shm"), Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
    mount(Some(dir.path()), "/dev", nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing).unwrap();
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn node(path: &Path, major: u64, minor: u64) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
}

/// Where cgroups of containers can be made, one directory for each hierarchy that has a say over devices: those of v2
/// and of v1's device controller. Empty where this machine lets nobody make any.
pub fn cgroup_roots() -> Vec<PathBuf> {
    static ROOTS: Mutex<Option<Vec<PathBuf>>> = Mutex::new(None);
    let mut roots = ROOTS.lock().unwrap();
    roots.get_or_insert_with(find_cgroup_roots).clone()
}

fn find_cgroup_roots() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let is_of_devices = |kind: &str, options: &str| {
        kind == "cgroup2" || kind == "cgroup" && options.split(',').any(|option| option == "devices")
    };
    let found = mounts.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, kind, options, ..] if is_of_devices(kind, options) => Some(PathBuf::from(path)),
        _ => None,
    });
    let can_make = |root: &PathBuf| {
        let probe = root.join(format!("divvy-probe-{}", std::process::id()));
        fs::create_dir(&probe).is_ok() && fs::remove_dir(probe).is_ok()
    };
    found.filter(can_make).collect()
}
