//! One file of the container's own /proc, covered by another: what a hook has to say there, it can only mount. The
//! cover is a file of a small read-only tmpfs that is mounted nowhere else, so nothing is left in the image; it goes with
//! the container's mounts. mount(2) takes handles by their place in /proc/self/fd, so no path of the image is walked
//! twice, and no newer call is needed.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};

use super::mounts::is_shared;
use super::resolve::{Mounts, create, fd_path, find, mount_id};
use super::{Change, Error, Root, errno_of, failed, kind};

const PROC: &str = "/proc";
pub(super) const NOTHING_SPECIAL: MsFlags =
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Room for one small file.
const TMPFS: &str = "size=64k,nr_inodes=4,mode=755";

impl Root {
    /// Covers the file `path`, relative to /proc and in a directory there, with one that holds `content` and cannot be
    /// written.
    ///
    /// # Errors
    /// [`Error::ForeignMount`] if /proc is not procfs, something else lies over the file, or the mount would reach
    /// another mount namespace; what the calls said, ENOENT where there is no such file.
    pub fn cover_in_proc(&self, path: &Path, content: &[u8]) -> Result<Change, Error> {
        let shown = Path::new(PROC).join(path);
        let foreign = || Error::ForeignMount { path: shown.clone() };
        let call = |call: &'static str| {
            let shown = shown.clone();
            move |errno| failed(call, &shown, errno)
        };
        let proc = self.find(Path::new(PROC), OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mounts::Cross)?;
        let is_proc = fstatfs(&proc).map_err(call("fstatfs"))?.filesystem_type() == PROC_SUPER_MAGIC;
        let mount = mount_id(proc.as_fd()).map_err(call("read"))?;
        if !is_proc || is_shared(mount).map_err(call("read"))? {
            return Err(foreign());
        }
        let file = match find(&proc, path.as_os_str(), OFlag::O_NOFOLLOW, Mounts::Stay) {
            Err(Errno::EXDEV) if is_covered(&proc, path, content) => return Ok(Change::Unchanged),
            Err(Errno::EXDEV) => return Err(foreign()),
            file => file.map_err(call("openat2"))?,
        };
        let above = path.parent().unwrap_or(path);
        let directory = find(&proc, above.as_os_str(), OFlag::O_DIRECTORY, Mounts::Stay);
        let scratch = Scratch::over(&proc, directory.map_err(call("openat2"))?, above);
        let scratch = scratch.map_err(call("mount"))?;
        let cover = scratch.file(content).map_err(|(name, errno)| call(name)(errno))?;
        bind(&cover, &file).map_err(call("mount"))?;
        Ok(Change::Made)
    }
}

/// Whether an earlier run of the hook covered the file: with a file of the same content, on a tmpfs.
fn is_covered(proc: &OwnedFd, path: &Path, content: &[u8]) -> bool {
    let found = find(proc, path.as_os_str(), OFlag::O_NOFOLLOW, Mounts::Cross);
    let may_be = |found: &OwnedFd| {
        let is_tmpfs = fstatfs(found).is_ok_and(|of| of.filesystem_type() == TMPFS_MAGIC);
        let length = |stat: FileStat| usize::try_from(stat.st_size) == Ok(content.len());
        is_tmpfs && fstat(found).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG && length(stat))
    };
    let found = found.ok().filter(may_be);
    found.is_some_and(|found| std::fs::read(fd_path(&found)).is_ok_and(|present| present == content))
}

/// A tmpfs that is mounted for the time of one call. mount(2) knows no other way to a file system: it lies over a
/// directory of the container's /proc, which no process of the container can look into yet.
struct Scratch {
    root: OwnedFd,
}

impl Scratch {
    fn over(proc: &OwnedFd, directory: OwnedFd, above: &Path) -> Result<Self, Errno> {
        mount(Some("tmpfs"), fd_path(&directory).as_str(), Some("tmpfs"), NOTHING_SPECIAL, Some(TMPFS))?;
        let lowest = mount_id(directory.as_fd())?;
        let root = find(proc, above.as_os_str(), OFlag::O_DIRECTORY, Mounts::Cross)?;
        // Else a container's own directory would be unmounted at the end.
        if mount_id(root.as_fd())? == lowest { Err(Errno::EXDEV) } else { Ok(Self { root }) }
    }

    fn file(&self, content: &[u8]) -> Result<OwnedFd, (&'static str, Errno)> {
        let name = PathBuf::from("cover");
        let handle = create(&self.root, name.as_os_str(), Mode::from_bits_truncate(0o444));
        let mut file = File::from(handle.map_err(|errno| ("openat2", errno))?);
        file.write_all(content).map_err(|error| ("write", errno_of(&error)))?;
        drop(file);
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | NOTHING_SPECIAL;
        mount(None::<&str>, fd_path(&self.root).as_str(), None::<&str>, flags, None::<&str>)
            .map_err(|errno| ("mount", errno))?;
        find(&self.root, name.as_os_str(), OFlag::O_NOFOLLOW, Mounts::Stay)
            .map_err(|errno| ("openat2", errno))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The cover, if it was mounted, keeps the file system alive.
        let _ = umount2(fd_path(&self.root).as_str(), MntFlags::MNT_DETACH);
    }
}

pub(super) fn bind(source: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let (source, target) = (fd_path(source), fd_path(target));
    mount(Some(source.as_str()), target.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
}
