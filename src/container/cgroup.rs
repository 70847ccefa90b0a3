//! Which cgroup is a container's own, whether it still has processes, and how to end those. A cgroup that anybody else is
//! in is nobody's own: what is denied there, is denied to them, and what is still there says nothing of the container.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
use thiserror::Error;

use crate::container::process::{self, Namespace};
use crate::sys;

/// More directories and processes than any container has when it starts: a user may have made as many as there can be.
const MOST_DIRECTORIES: usize = 1024;
const MOST_PROCESSES: usize = 1024;

/// The two kinds of cgroups. A host may have both, and then only one of them a given controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The device controller's hierarchy.
    V1,
    /// The one hierarchy of all controllers.
    V2,
}

/// Why a container has no cgroup of its own.
#[derive(Debug, Error)]
pub enum NotOwn {
    /// There is no such hierarchy, or it is mounted nowhere.
    #[error("no hierarchy of cgroups is mounted that it is in")]
    NoHierarchy,
    /// It is in the uppermost one, or in one that this process does not see.
    #[error("it is in the cgroup {path}, which is above this host's or all of it")]
    Outside {
        /// From /proc/PID/cgroup.
        path: String,
    },
    /// It is in that of the daemon or of the caller, or in one above.
    #[error("{of} is in its cgroup {path} too")]
    With {
        /// `divvy serve`, or `the hook`.
        of: &'static str,
        /// From /proc/PID/cgroup.
        path: String,
    },
    /// Somebody may move processes out of it.
    #[error("{path:?} belongs to user {uid}")]
    Owner {
        /// Directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It has other processes.
    #[error("process {pid}, which is not the container's, is in {path:?} too")]
    Shared {
        /// The other process.
        pid: i32,
        /// Directory.
        path: PathBuf,
    },
    /// It does not have the container's.
    #[error("{path:?} is another one than it is in")]
    Another {
        /// Directory.
        path: PathBuf,
    },
    /// It could not be looked at.
    #[error("cannot look at {path:?}")]
    Unreadable {
        /// Directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Of which kind the cgroup of an open directory is.
///
/// # Errors
/// When it is no cgroup's.
pub fn version(directory: BorrowedFd<'_>) -> io::Result<Version> {
    match fstatfs(directory)?.filesystem_type() {
        CGROUP2_SUPER_MAGIC => Ok(Version::V2),
        CGROUP_SUPER_MAGIC => Ok(Version::V1),
        _ => Err(Errno::ENOTDIR.into()),
    }
}

/// A process whose cgroup is asked for.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// A container's first process.
    pub pid: i32,
    /// The user who started the container.
    pub uid: u32,
    /// The process that asks, if it is in sight.
    pub caller: Option<i32>,
}

/// Where hierarchies are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    mounts: Vec<Mount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// Which cgroup is seen at its uppermost directory.
    root: PathBuf,
    point: PathBuf,
}

impl Hierarchies {
    /// As this process sees them.
    ///
    /// # Errors
    /// Without /proc.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// proc_pid_mountinfo(5).
    fn parse(mountinfo: &str) -> Self {
        let mount = |line: &str| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (root, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
            let mut file_system = file_system.split(' ');
            let version = match (file_system.next()?, file_system.nth(1)?) {
                ("cgroup2", _) => Version::V2,
                ("cgroup", options) if options.split(',').any(|option| option == "devices") => Version::V1,
                _ => return None,
            };
            Some(Mount { version, root, point })
        };
        Self { mounts: mountinfo.lines().filter_map(mount).collect() }
    }

    /// Mount and directory of a cgroup.
    fn place(&self, version: Version, path: &str) -> Option<(&Path, PathBuf)> {
        self.mounts.iter().filter(|mount| mount.version == version).find_map(|mount| {
            let below = Path::new(path).strip_prefix(&mount.root).ok()?;
            Some((mount.point.as_path(), mount.point.join(below)))
        })
    }

    /// The directories of a process's cgroups, of both versions, as far as /proc tells.
    pub fn of(&self, pid: u32) -> Vec<PathBuf> {
        let of = |version| {
            let path = cgroup_of(&pid.to_string(), version).ok()??;
            self.place(version, &path).map(|(_, directory)| directory)
        };
        [Version::V2, Version::V1].into_iter().filter_map(of).collect()
    }

    /// The directory of the cgroup that is a container's own. Of v2 if it has one there, even if its engine is told by
    /// v1: the kernel asks v2's device programs in either case.
    ///
    /// # Errors
    /// When it has none, and why.
    pub fn own(&self, first: First) -> Result<PathBuf, NotOwn> {
        // The reason that tells most is that of the hierarchy in which its engine put it somewhere.
        let tells = |why: &NotOwn| match why {
            NotOwn::NoHierarchy => 0,
            NotOwn::Outside { .. } => 1,
            NotOwn::With { .. } => 2,
            _ => 3,
        };
        self.own_of(Version::V2, first).or_else(|v2| {
            self.own_of(Version::V1, first).map_err(|v1| if tells(&v1) > tells(&v2) { v1 } else { v2 })
        })
    }

    fn own_of(&self, version: Version, first: First) -> Result<PathBuf, NotOwn> {
        let path = cgroup_of(&first.pid.to_string(), version)?.ok_or(NotOwn::NoHierarchy)?;
        if path == "/" || Path::new(&path).components().any(|part| part == Component::ParentDir) {
            return Err(NotOwn::Outside { path });
        }
        let caller = first.caller.map(|pid| pid.to_string());
        for (of, pid) in [("divvy serve", Some("self")), ("the hook", caller.as_deref())] {
            // A caller that is gone is in no cgroup.
            let other = pid.and_then(|pid| cgroup_of(pid, version).ok().flatten());
            if other.is_some_and(|other| Path::new(&other).starts_with(&path)) {
                return Err(NotOwn::With { of, path });
            }
        }
        let (mount, directory) = self.place(version, &path).ok_or(NotOwn::NoHierarchy)?;
        check_owners(mount, &directory, first)?;
        check_processes(&directory, first.pid)?;
        Ok(directory)
    }
}

/// `\040` and its like are characters in mountinfo.
fn unescaped(path: &str) -> PathBuf {
    let mut parts = path.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => text.extend([char::from(code)].into_iter().chain(part[3..].chars())),
            None => text.extend(['\\'].into_iter().chain(part.chars())),
        }
    }
    text.into()
}

fn cgroup_of(pid: &str, version: Version) -> Result<Option<String>, NotOwn> {
    let file = format!("/proc/{pid}/cgroup");
    match fs::read_to_string(&file) {
        Ok(text) => Ok(parse_cgroup(&text, version)),
        Err(source) => Err(NotOwn::Unreadable { path: file.into(), source }),
    }
}

/// Lines are `0::/path` for v2 and `5:devices:/path` for v1 (proc_pid_cgroup(5)).
fn parse_cgroup(text: &str, version: Version) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V2 => number == "0" && controllers.is_empty(),
            Version::V1 => controllers.split(',').any(|controller| controller == "devices"),
        };
        is_it.then(|| path.to_owned())
    })
}

/// Whoever owns a cgroup above may move processes out of it. So above one of root's all have to be root's. A runtime may
/// give the container's own to root in the container's user namespace: that cannot reach what is above.
fn check_owners(mount: &Path, directory: &Path, first: First) -> Result<(), NotOwn> {
    let uid_of = |path: &Path| match path.metadata() {
        Ok(metadata) => Ok(metadata.uid()),
        Err(source) => Err(NotOwn::Unreadable { path: path.to_owned(), source }),
    };
    let uid = uid_of(directory)?;
    let map = process::text(first.pid, "uid_map").unwrap_or_default();
    let has_namespace = Namespace::of(first.pid, "user").ok() != Namespace::own("user").ok();
    if uid != 0 && uid != first.uid && !(has_namespace && is_mapped(&map, uid)) {
        return Err(NotOwn::Owner { path: directory.to_owned(), uid });
    }
    if first.uid != 0 {
        return Ok(());
    }
    for above in directory.ancestors().skip(1).take_while(|above| above.starts_with(mount)) {
        let uid = uid_of(above)?;
        if uid != 0 {
            return Err(NotOwn::Owner { path: above.to_owned(), uid });
        }
    }
    Ok(())
}

/// Lines of a uid_map are: first number inside, first number outside, how many (user_namespaces(7)).
fn is_mapped(uid_map: &str, uid: u32) -> bool {
    uid_map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [_, outside, count] if (outside..outside + count).contains(&uid.into()))
    })
}

/// Nobody but the container's first process, and who is in a pid namespace of the container's with it.
fn check_processes(directory: &Path, first: i32) -> Result<(), NotOwn> {
    let unreadable = |source| NotOwn::Unreadable { path: directory.to_owned(), source };
    let namespace = Namespace::of(first, "pid").map_err(unreadable)?;
    let is_own_namespace = namespace != Namespace::own("pid").map_err(unreadable)?;
    let pids = processes(directory, MOST_DIRECTORIES).map_err(unreadable)?;
    if !pids.contains(&first) {
        return Err(NotOwn::Another { path: directory.to_owned() });
    }
    if pids.len() > MOST_PROCESSES {
        return Err(unreadable(Errno::E2BIG.into()));
    }
    for pid in pids.into_iter().filter(|&pid| pid != first) {
        let is_the_containers = match Namespace::of(pid, "pid") {
            Ok(of_it) => is_own_namespace && of_it == namespace,
            Err(error) => is_gone(&error) && pid != 0,
        };
        if !is_the_containers {
            return Err(NotOwn::Shared { pid, path: directory.to_owned() });
        }
    }
    Ok(())
}

/// The processes of a cgroup and of those below it, `most` directories at most; 0 for one in no pid namespace that this
/// process sees into.
fn processes(directory: &Path, most: usize) -> io::Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        seen += 1;
        if seen > most {
            return Err(Errno::E2BIG.into());
        }
        let text = match fs::read_to_string(directory.join("cgroup.procs")) {
            Ok(text) => text,
            // A threaded cgroup: its processes are listed in the one above (cgroups(7)).
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        match fs::read_dir(&directory) {
            Ok(entries) => {
                let below =
                    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                directories.extend(below.map(|entry| entry.path()));
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pids)
}

/// A cgroup that is removed while a file of it is open gives ENODEV; a process, ESRCH.
fn is_gone(error: &io::Error) -> bool {
    let is = |number| error.raw_os_error() == Some(number);
    is(libc::ENOENT) || is(libc::ENODEV) || is(libc::ESRCH)
}

/// Whether a cgroup and those below it have no process any more, or are gone.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_to_string(directory.join("cgroup.events")) {
        // Of those below too (Documentation/admin-guide/cgroup-v2.rst).
        Ok(events) => Ok(events.lines().any(|line| line == "populated 0")),
        // v1 has no such file.
        Err(error) if is_gone(&error) => Ok(processes(directory, usize::MAX)?.is_empty()),
        Err(error) => Err(error),
    }
}

/// All processes of a container's cgroup, by ids that may be others' at any time.
///
/// # Errors
/// When it cannot be read.
pub fn members(directory: &Path) -> io::Result<Vec<i32>> {
    Ok(processes(directory, usize::MAX)?.into_iter().collect())
}

/// Sends SIGKILL to the processes of a cgroup and of those below it. On v2 from Linux 5.14 on none escapes; else one that
/// is forked meanwhile does, so that whoever asks has to ask again until [`is_empty`].
///
/// # Errors
/// When it cannot be looked at, or one may not be killed.
pub fn kill(directory: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(directory.join("cgroup.kill"));
    match file.and_then(|mut file| io::Write::write_all(&mut file, b"1")) {
        Err(error) if is_gone(&error) => kill_each(directory),
        done => done,
    }
}

fn kill_each(directory: &Path) -> io::Result<()> {
    let open = |pid| sys::pidfd_open(pid).ok().map(|pidfd| (pid, pidfd));
    let pidfds: Vec<_> = processes(directory, usize::MAX)?.into_iter().filter_map(open).collect();
    // What a pidfd is of now may be another process than was listed, unless it is listed still.
    let still = processes(directory, usize::MAX)?;
    for (_, pidfd) in pidfds.iter().filter(|(pid, _)| still.contains(pid)) {
        match sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:21 / /sys/fs/cgroup rw,relatime shared:5 - tmpfs tmpfs rw,mode=755
30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 24 0:27 / /sys/fs/cgroup/devices rw,relatime shared:9 master:2 - cgroup cgroup rw,devices
32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 24 0:29 / /mnt/cgroup2\\040x rw - tmpfs cgroup2 rw,devices
";

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let hybrid = Hierarchies::parse(HYBRID);
        let (v1, v2) = ("/sys/fs/cgroup/devices", "/sys/fs/cgroup/unified");
        let place = |version, path| hybrid.place(version, path).map(|(_, directory)| directory);
        assert_eq!(place(Version::V1, "/docker/3f").unwrap(), Path::new(v1).join("docker/3f"));
        assert_eq!(place(Version::V2, "/a b/c").unwrap(), Path::new(v2).join("a b/c"));
        // In a container, where the mount shows a part of it.
        let part = Hierarchies::parse("9 8 0:28 /docker/3f /sys/fs/cgroup\\040x ro - cgroup2 cgroup rw\n");
        let (mount, directory) = part.place(Version::V2, "/docker/3f/inner").unwrap();
        assert_eq!(
            (mount, directory.as_path()),
            (Path::new("/sys/fs/cgroup x"), Path::new("/sys/fs/cgroup x/inner"))
        );
        assert_eq!(part.place(Version::V2, "/docker/3f2"), None);
        assert_eq!(part.place(Version::V1, "/docker/3f"), None);
    }

    #[test]
    fn the_cgroups_of_a_process() {
        let hybrid = "9:name=systemd:/a\n5:cpu,devices:/docker/3f\n4:memory:/m\n0::/user.slice/x:y\n";
        for (text, v1, v2) in [
            (hybrid, Some("/docker/3f"), Some("/user.slice/x:y")),
            ("0::/\n", None, Some("/")),
            ("10:devices:/../other\n", Some("/../other"), None),
            ("3:name=devices:/a\n", None, None),
            ("", None, None),
        ] {
            assert_eq!(parse_cgroup(text, Version::V1).as_deref(), v1, "{text}");
            assert_eq!(parse_cgroup(text, Version::V2).as_deref(), v2, "{text}");
        }
    }

    #[test]
    fn who_is_mapped_into_a_user_namespace() {
        let map = "         0     100000      65536\n     65536       5000          1\n";
        for (uid, expected) in
            [(100_000, true), (165_535, true), (165_536, false), (5000, true), (5001, false), (0, false)]
        {
            assert_eq!(is_mapped(map, uid), expected, "{uid}");
        }
        assert!(!is_mapped("garbage\n1 2\n", 1));
    }

    #[test]
    fn paths_in_mountinfo_are_unescaped() {
        for (escaped, path) in
            [("/a", "/a"), ("/a\\040b\\134", "/a b\\"), ("/\\1", "/\\1"), ("/\\x40é", "/\\x40é")]
        {
            assert_eq!(unescaped(escaped), Path::new(path), "{escaped}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_is_empty() {
        assert!(is_empty(Path::new("/sys/fs/cgroup/there-is-none")).unwrap());
        assert!(version(File::open("/proc").unwrap().as_fd()).is_err());
    }
}
