//! What /proc says of a process, as far as everybody may read it. Everything but the process id may be unknown: it ended
//! meanwhile, or /proc hides it (proc(5), hidepid).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hooks::lease::Container;

/// A process that uses a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// As this process counts.
    pub pid: u32,
    /// Its name, which it chose itself.
    pub command: Option<String>,
    /// Real user.
    pub uid: Option<u32>,
    /// When it started, in seconds since the epoch.
    pub started: Option<u64>,
    /// Its cgroup v2, and that of v1's device controller, as /proc/PID/cgroup has them.
    pub cgroups: Vec<PathBuf>,
    /// Its parent, that one's parent, and so on.
    ancestors: Vec<Ancestor>,
    /// Inode of its mount namespace: only its own user and root may see that.
    mount_namespace: Option<u64>,
}

/// A process by what does not come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ancestor {
    pid: i32,
    /// Clock ticks since boot.
    start_time: u64,
}

/// USER_HZ, in which /proc counts: 100 on every architecture that has a driver of NVIDIA's.
const TICKS_PER_SECOND: u64 = 100;

/// More generations than any process has: a chain that is longer changed while it was read.
const MOST_ANCESTORS: usize = 4096;

impl Process {
    /// Reads what there is; `boot_time` in seconds since the epoch.
    pub fn read(pid: u32, boot_time: Option<u64>) -> Self {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let stat = Stat::read(&dir);
        let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let started = stat.as_ref().zip(boot_time);
        Self {
            pid,
            uid: uid.and_then(|uids| uids.split_whitespace().next()?.parse().ok()),
            started: started.map(|(stat, boot)| boot + stat.start_time / TICKS_PER_SECOND),
            cgroups: parse_cgroups(&fs::read_to_string(dir.join("cgroup")).unwrap_or_default()),
            ancestors: ancestors(pid, stat.as_ref()),
            mount_namespace: fs::metadata(dir.join("ns/mnt")).ok().map(|namespace| namespace.ino()),
            command: stat.map(|stat| stat.command),
        }
    }

    /// Whether it runs in a container: in the cgroup that is the container's own, else in its mount namespace or begot by
    /// its first process.
    pub fn is_in(&self, container: &Container) -> bool {
        if let Some(own) = &container.cgroup {
            return self.cgroups.iter().any(|cgroup| below_root(cgroup).starts_with(below_root(own)));
        }
        let first = Ancestor { pid: container.pid, start_time: container.start_time };
        self.mount_namespace == Some(container.mount_namespace) || self.ancestors.contains(&first)
    }
}

fn below_root(cgroup: &Path) -> &Path {
    cgroup.strip_prefix("/").unwrap_or(cgroup)
}

/// The process itself and those above it.
fn ancestors(pid: u32, stat: Option<&Stat>) -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut next = stat.cloned().zip(i32::try_from(pid).ok());
    while let Some((stat, pid)) = next.take().filter(|(_, pid)| *pid > 0 && found.len() < MOST_ANCESTORS) {
        found.push(Ancestor { pid, start_time: stat.start_time });
        next = Stat::read(Path::new(&format!("/proc/{}", stat.parent))).map(|above| (above, stat.parent));
    }
    found
}

/// proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    command: String,
    parent: i32,
    start_time: u64,
}

impl Stat {
    fn read(dir: &Path) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&fs::read(dir.join("stat")).ok()?))
    }

    /// Fields 2, 4 and 22; the name may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let (head, fields) = text.rsplit_once(')')?;
        let (_, command) = head.split_once('(')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let (parent, start_time) = (fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
        Some(Self { command: command.to_owned(), parent, start_time })
    }
}

/// Seconds since the epoch at which this machine started, by its clock of today (proc_stat(5), btime).
pub fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// cgroups(7), `hierarchy:controllers:path`.
fn parse_cgroups(text: &str) -> Vec<PathBuf> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let counts = hierarchy == "0" || controllers.split(',').any(|name| name == "devices");
        counts.then(|| PathBuf::from(path))
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_hold_anything() {
        let stat = "7 (a) R 1 (b) S 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let parsed = Stat::parse(stat).unwrap();
        assert_eq!(parsed, Stat { command: "a) R 1 (b".into(), parent: 1, start_time: 4711 });
        for damaged in ["", "7 (a", "7 (a) S", "7 (a) S x 7", ")("] {
            assert_eq!(Stat::parse(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn cgroups_of_both_versions() {
        let text = "13:devices:/docker/3f2a\n12:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c:d\nnonsense\n";
        assert_eq!(parse_cgroups(text), [Path::new("/docker/3f2a"), Path::new("/c:d")]);
    }

    fn container(cgroup: Option<&str>) -> Container {
        Container {
            mount_namespace: 1,
            pid: i32::try_from(std::process::id()).unwrap(),
            start_time: 0,
            boot_id: String::new(),
            cgroup: cgroup.map(PathBuf::from),
            uid: 0,
            id: "3f2a".into(),
            bundle: PathBuf::new(),
            engine: None,
            name: None,
        }
    }

    #[test]
    fn a_cgroup_holds_those_below_and_no_namesake() {
        let with = |cgroup: &str| Process { cgroups: vec![cgroup.into()], ..Process::default() };
        let container = container(Some("system.slice/docker-3f2a.scope"));
        assert!(with("/system.slice/docker-3f2a.scope").is_in(&container));
        assert!(with("/system.slice/docker-3f2a.scope/init.scope").is_in(&container));
        assert!(!with("/system.slice/docker-3f2a.scope2").is_in(&container));
        assert!(!with("/system.slice").is_in(&container));
    }

    #[test]
    fn without_a_cgroup_of_its_own_kinship_tells() {
        let me = Process::read(std::process::id(), boot_time());
        let mut container = container(None);
        assert!(!me.is_in(&container), "a process that started at another time");
        container.start_time = me.ancestors[0].start_time;
        assert!(me.is_in(&container));
        container.pid = me.ancestors[1].pid;
        container.start_time = me.ancestors[1].start_time;
        assert!(me.is_in(&container), "its parent's");
        assert!(me.started.unwrap() > boot_time().unwrap() && me.uid.is_some());
    }
}
