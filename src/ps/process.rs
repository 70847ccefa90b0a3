//! What /proc says of a process, as far as everybody may read it. Everything but the process id may be unknown: it ended
//! meanwhile, or /proc hides it (proc(5), hidepid).

use std::fs;
use std::path::PathBuf;

use hooks::lease::Container;

use crate::container::cgroup::Hierarchies;
use crate::container::process::{Namespace, Stat, text};

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
    /// The directories of its cgroup v2, and of that of v1's device controller.
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
    /// Reads what there is.
    pub fn read(pid: u32, machine: &Machine) -> Self {
        let Ok(id) = i32::try_from(pid) else { return Self { pid, ..Self::default() } };
        let stat = Stat::read(id).ok();
        let status = text(id, "status").unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let started = stat.zip(machine.boot_time);
        Self {
            pid,
            command: text(id, "comm").ok().map(|name| name.trim_end_matches('\n').to_owned()),
            uid: uid.and_then(|uids| uids.split_whitespace().next()?.parse().ok()),
            started: started.map(|(stat, boot)| boot + stat.start_time / TICKS_PER_SECOND),
            cgroups: machine.hierarchies.as_ref().map(|of| of.of(pid)).unwrap_or_default(),
            ancestors: ancestors(id, stat),
            mount_namespace: Namespace::of(id, "mnt").ok().map(|namespace| namespace.inode),
        }
    }

    /// Whether it runs in a container: in the cgroup that is the container's own, else in its mount namespace or begot by
    /// its first process.
    pub fn is_in(&self, container: &Container) -> bool {
        if let Some(own) = &container.cgroup {
            return self.cgroups.iter().any(|cgroup| cgroup.starts_with(own));
        }
        let first = Ancestor { pid: container.pid, start_time: container.start_time };
        self.mount_namespace == Some(container.mount_namespace) || self.ancestors.contains(&first)
    }
}

/// The process itself and those above it.
fn ancestors(pid: i32, stat: Option<Stat>) -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut next = stat.map(|stat| (pid, stat));
    while let Some((pid, stat)) = next.take().filter(|_| found.len() < MOST_ANCESTORS) {
        found.push(Ancestor { pid, start_time: stat.start_time });
        next = Stat::read(stat.parent).ok().map(|above| (stat.parent, above));
    }
    found
}

/// What is the same for all processes.
#[derive(Debug)]
pub struct Machine {
    /// Seconds since the epoch at which it started, by its clock of today.
    boot_time: Option<u64>,
    hierarchies: Option<Hierarchies>,
}

impl Machine {
    /// Reads what there is.
    pub fn read() -> Self {
        Self { boot_time: boot_time(), hierarchies: Hierarchies::read().ok() }
    }
}

/// proc_stat(5), btime.
fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cgroup: Option<&str>) -> Container {
        Container {
            mount_namespace: 1,
            pid: i32::try_from(std::process::id()).unwrap(),
            start_time: 0,
            boot_id: String::new(),
            cgroup: cgroup.map(PathBuf::from),
            uid: 0,
            process_uid: Some(0),
            id: "3f2a".into(),
            bundle: PathBuf::new(),
            engine: None,
            name: None,
        }
    }

    #[test]
    fn a_cgroup_holds_those_below_and_no_namesake() {
        let with = |cgroup: &str| Process { cgroups: vec![cgroup.into()], ..Process::default() };
        let container = container(Some("/sys/fs/cgroup/docker-3f2a.scope"));
        assert!(with("/sys/fs/cgroup/docker-3f2a.scope").is_in(&container));
        assert!(with("/sys/fs/cgroup/docker-3f2a.scope/init.scope").is_in(&container));
        assert!(!with("/sys/fs/cgroup/docker-3f2a.scope2").is_in(&container));
        assert!(!with("/sys/fs/cgroup").is_in(&container));
    }

    #[test]
    fn without_a_cgroup_of_its_own_kinship_tells() {
        let me = Process::read(std::process::id(), &Machine::read());
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
