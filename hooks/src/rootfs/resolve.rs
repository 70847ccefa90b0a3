//! From a path in the container to a handle: openat2(2) with `RESOLVE_IN_ROOT`, and where the kernel has no such call,
//! or a filter takes it away, a walk that keeps the same promises. Both resolve every link inside the root, `..` at the
//! top stays there, magic links are refused, and [`Mounts::Stay`] never leaves the mount where it began.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::kind;

/// openat2(2) fails with EAGAIN when something, anywhere on the machine, is renamed or mounted at the same moment. Where
/// that goes on it is waited for, a second in all, so that one container's renames cannot fail another's start.
const ATTEMPTS: usize = 16;
const SLOW_ATTEMPTS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// As many links as are followed in one path: the kernel's limit (path_resolution(7)).
pub const MOST_LINKS: usize = 40;

/// Whether a path may lead through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// Finding out what is there crosses mounts, being how the driver's files come.
    Cross,
    /// What is read or written lies on the mount where the path begins: else EXDEV.
    Stay,
}

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A handle of what is there (`O_PATH`), for these flags besides.
    There(OFlag),
    /// A new file to write, of this mode.
    New(Mode),
}

/// A handle (`O_PATH`) of what `path` leads to below `directory`. Of `flags`, `O_DIRECTORY` and `O_NOFOLLOW` have a
/// meaning.
///
/// # Errors
/// Those of openat2(2).
pub fn find(directory: impl AsFd, path: &OsStr, flags: OFlag, mounts: Mounts) -> Result<OwnedFd, Errno> {
    open(directory.as_fd(), path, What::There(flags), mounts)
}

/// A new file named `name` in `directory`, open for writing.
///
/// # Errors
/// EEXIST; those of openat2(2).
pub fn create(directory: impl AsFd, name: &OsStr, mode: Mode) -> Result<OwnedFd, Errno> {
    open(directory.as_fd(), name, What::New(mode), Mounts::Stay)
}

/// The path by which this process, and nobody else, reaches what a handle stands for: also what is mounted over, renamed
/// or removed meanwhile.
pub fn fd_path(handle: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

fn open(directory: BorrowedFd<'_>, path: &OsStr, what: What, mounts: Mounts) -> Result<OwnedFd, Errno> {
    match by_kernel(directory, path, what, mounts) {
        // EPERM is what older engines' filters answer to a call that they do not know.
        Err(Errno::ENOSYS | Errno::EPERM) => walk(directory, path, what, mounts),
        result => result,
    }
}

fn by_kernel(directory: BorrowedFd<'_>, path: &OsStr, what: What, mounts: Mounts) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if mounts == Mounts::Stay {
        resolve |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    let how = OpenHow::new().flags(what.flags()).mode(what.mode()).resolve(resolve);
    let mut result = Err(Errno::EAGAIN);
    for attempt in 0..ATTEMPTS + SLOW_ATTEMPTS {
        if attempt >= ATTEMPTS {
            thread::sleep(PAUSE);
        }
        result = openat2(directory, path, how);
        if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    result
}

/// Goes name by name with a handle of each directory on the way, and never follows a link or `..` but by what it holds
/// itself: whatever is renamed meanwhile, it cannot come out above `directory`.
fn walk(directory: BorrowedFd<'_>, path: &OsStr, what: What, mounts: Mounts) -> Result<OwnedFd, Errno> {
    let mount = match mounts {
        Mounts::Stay => Some(mount_id(directory)?),
        Mounts::Cross => None,
    };
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut names = Names::default();
    names.push(path)?;
    let mut links = 0;
    while let Some(name) = names.next() {
        let here = above.last().map_or(directory, AsFd::as_fd);
        let is_last = names.rest.is_empty();
        match (name.as_bytes(), what) {
            (b".", _) => continue,
            (b"..", _) => {
                above.pop();
                continue;
            }
            (_, What::New(mode)) if is_last => return openat(here, name.as_os_str(), what.flags(), mode),
            _ => {}
        }
        let found = openat(
            here,
            name.as_os_str(),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        if let Some(mount) = mount
            && mount_id(found.as_fd())? != mount
        {
            return Err(Errno::EXDEV);
        }
        let kind = kind(&fstat(&found)?);
        if kind == SFlag::S_IFLNK {
            if is_last && what.flags().contains(OFlag::O_NOFOLLOW) {
                return Ok(found);
            }
            links += 1;
            // The magic ones among those of /proc do not lead where they say.
            if links > MOST_LINKS || fstatfs(&found)?.filesystem_type() == PROC_SUPER_MAGIC {
                return Err(Errno::ELOOP);
            }
            let target = readlinkat(&found, "")?;
            if target.as_bytes().starts_with(b"/") {
                above.clear();
            }
            names.push(&target)?;
        } else if kind == SFlag::S_IFDIR {
            above.push(found);
        } else if is_last && !what.flags().contains(OFlag::O_DIRECTORY) {
            return Ok(found);
        } else {
            return Err(Errno::ENOTDIR);
        }
    }
    match above.pop() {
        Some(found) => Ok(found),
        None => openat(directory, ".", what.flags() | OFlag::O_DIRECTORY, Mode::empty()),
    }
}

/// The names of a path that are still to be walked, the next one last.
#[derive(Default)]
struct Names {
    rest: Vec<OsString>,
}

impl Names {
    fn next(&mut self) -> Option<OsString> {
        self.rest.pop()
    }

    fn push(&mut self, path: &OsStr) -> Result<(), Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let names = path.as_bytes().split(|byte| *byte == b'/');
        // A slash at the end stands for a directory, as `.` does.
        let names = names.map(|name| if name.is_empty() { b"." } else { name }).rev();
        self.rest.extend(names.map(|name| OsStr::from_bytes(name).to_owned()));
        Ok(())
    }
}

impl What {
    fn flags(self) -> OFlag {
        let flags = match self {
            Self::There(flags) => OFlag::O_PATH | flags,
            Self::New(_) => OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW,
        };
        flags | OFlag::O_CLOEXEC
    }

    fn mode(self) -> Mode {
        match self {
            Self::There(_) => Mode::empty(),
            Self::New(mode) => mode,
        }
    }
}

/// The id of the mount that a handle lies on (proc_pid_fdinfo(5)).
///
/// # Errors
/// Those of open(2) and read(2).
pub fn mount_id(handle: BorrowedFd<'_>) -> Result<u64, Errno> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()));
    let text = text.map_err(|error| super::errno_of(&error))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or(Errno::EPROTO)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const STAY: Mounts = Mounts::Stay;
    const CROSS: Mounts = Mounts::Cross;

    /// A path, what is asked for, and what comes out: the place in the root, or an error.
    type Case = (&'static str, OFlag, Mounts, Result<&'static str, Errno>);

    #[test]
    fn kernel_and_walk_come_to_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "").unwrap();
        fs::write(directory.path().join("secret"), "").unwrap();
        for (link, target) in [
            ("up", "../../secret"),
            ("out", "/secret"),
            ("abs", "/a/b"),
            ("rel", "a/./b/../b"),
            ("slash", "a/file/"),
            ("dirslash", "a/"),
            ("loop", "loop"),
            ("chain", "abs/../../rel"),
            ("top", "/"),
            ("dangling", "a/none"),
            ("a/back", ".."),
            ("a/b/far", "../../../../../../a/file"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let none = OFlag::empty();
        let (dir, nofollow) = (OFlag::O_DIRECTORY, OFlag::O_NOFOLLOW);
        let cases: &[Case] = &[
            ("/", none, STAY, Ok("")),
            (".", none, STAY, Ok("")),
            ("..", none, STAY, Ok("")),
            ("../../a", none, STAY, Ok("a")),
            ("/a/../..", none, STAY, Ok("")),
            ("a/b", dir, STAY, Ok("a/b")),
            ("//a///b//", none, STAY, Ok("a/b")),
            ("a/file", none, STAY, Ok("a/file")),
            ("a/file", dir, STAY, Err(Errno::ENOTDIR)),
            ("a/file/", none, STAY, Err(Errno::ENOTDIR)),
            ("a/file/..", none, STAY, Err(Errno::ENOTDIR)),
            ("a/none", none, STAY, Err(Errno::ENOENT)),
            ("none/a", none, STAY, Err(Errno::ENOENT)),
            ("", none, STAY, Err(Errno::ENOENT)),
            ("up", none, CROSS, Err(Errno::ENOENT)),
            ("out", none, CROSS, Err(Errno::ENOENT)),
            ("up", nofollow, STAY, Ok("up")),
            ("abs", none, STAY, Ok("a/b")),
            ("abs", dir, STAY, Ok("a/b")),
            ("rel", none, STAY, Ok("a/b")),
            ("slash", none, STAY, Err(Errno::ENOTDIR)),
            ("dirslash", none, STAY, Ok("a")),
            ("loop", none, STAY, Err(Errno::ELOOP)),
            ("chain", none, STAY, Ok("a/b")),
            ("top/a", none, STAY, Ok("a")),
            ("dangling", none, STAY, Err(Errno::ENOENT)),
            ("a/back/a/file", none, STAY, Ok("a/file")),
            ("a/b/far", none, STAY, Ok("a/file")),
        ];
        let handle = fs::File::open(&root).unwrap();
        for &(path, flags, mounts, ref expected) in cases {
            let expected = expected.map(|place| root.join(place).as_os_str().to_owned());
            let name = OsStr::new(path);
            let ways =
                [find(&handle, name, flags, mounts), walk(handle.as_fd(), name, What::There(flags), mounts)];
            for (way, found) in ways.into_iter().enumerate() {
                let found = found.map(|found| fs::read_link(fd_path(&found)).unwrap().into_os_string());
                // A path to the root itself ends in a slash here.
                let tidy = |path: &OsString| Path::new(path).components().collect::<std::path::PathBuf>();
                assert_eq!(found.as_ref().map(tidy), expected.as_ref().map(tidy), "{path} {flags:?} {way}");
            }
        }
    }

    #[test]
    fn the_walk_stays_on_its_mount_and_off_magic_links() {
        let handle = fs::File::open("/").unwrap();
        let walked = |path: &str, mounts| {
            walk(handle.as_fd(), OsStr::new(path), What::There(OFlag::empty()), mounts).map(drop)
        };
        assert_eq!(walked("proc/version", CROSS), Ok(()));
        assert_eq!(walked("proc/version", STAY), Err(Errno::EXDEV));
        assert_eq!(walked("proc/../etc/passwd", STAY), Err(Errno::EXDEV));
        let own = std::process::id();
        assert_eq!(walked(&format!("proc/{own}/root/etc/passwd"), CROSS), Err(Errno::ELOOP));
        assert_eq!(walked(&format!("proc/{own}/cwd"), CROSS), Err(Errno::ELOOP));
    }

    #[test]
    fn the_walk_makes_new_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let handle = fs::File::open(directory.path()).unwrap();
        let new = || walk(handle.as_fd(), OsStr::new("x"), What::New(Mode::from_bits_truncate(0o600)), STAY);
        new().unwrap();
        assert_eq!(new().map(drop), Err(Errno::EEXIST));
        fs::remove_file(directory.path().join("x")).unwrap();
        symlink("y", directory.path().join("x")).unwrap();
        assert_eq!(new().map(drop), Err(Errno::EEXIST));
    }
}
