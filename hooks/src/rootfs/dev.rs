//! The container's own /dev. Runtimes mount a tmpfs there, which is another file system than the root's; a user may have
//! put the host's there instead (`-v /dev:/dev`), or a volume, and both can be tmpfs too. What tells them apart is where
//! else they are mounted: when a hook runs, the host's mounts are still in sight.

use std::cell::RefCell;
use std::fs::{Permissions, read_link, set_permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::mounts::is_mounted_there_alone;
use super::resolve::{Mounts, fd_path, find, mount_id};
use super::{Change, Error, Root, errno_of, failed, kind};

const DEV: &str = "/dev";
/// To look into a directory and go through it.
const ENTER: u32 = 0o555;
/// As many as could lie over a node: an engine mounts it once for each time that it is asked for.
const MOST_MOUNTS: usize = 1024;

impl Root {
    /// The minor number of the character device that `path` leads to, if it leads to one. Mounts count, being how
    /// rootless containers get theirs.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn device_minor(&self, path: &Path) -> Result<Option<u64>, Error> {
        let found = self.look(path, Mounts::Cross)?.map(|(_, stat)| stat);
        Ok(found.filter(|stat| kind(stat) == SFlag::S_IFCHR).map(|stat| minor(stat.st_rdev)))
    }

    /// Whether `path` leads to a directory that not every user may enter.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn is_closed(&self, path: &Path) -> Result<bool, Error> {
        let found = self.look(path, Mounts::Cross)?;
        Ok(found.is_some_and(|(_, stat)| kind(&stat) == SFlag::S_IFDIR && stat.st_mode & ENTER != ENTER))
    }

    /// Lets every user into the directory `path`, if there is one.
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; what the calls said.
    pub fn open_to_all(&self, path: &Path) -> Result<Change, Error> {
        let Some((handle, stat)) = self.look(path, Mounts::Stay)? else { return Ok(Change::Unchanged) };
        if kind(&stat) != SFlag::S_IFDIR || stat.st_mode & ENTER == ENTER {
            return Ok(Change::Unchanged);
        }
        let mode = Permissions::from_mode(stat.st_mode & 0o7777 | ENTER);
        set_permissions(fd_path(&handle), mode).map_err(|error| failed("chmod", path, errno_of(&error)))?;
        Ok(Change::Made)
    }

    /// Whether anything stands at `path`, a link that leads nowhere among it.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn has(&self, path: &Path) -> Result<bool, Error> {
        match self.find(path, OFlag::O_NOFOLLOW, Mounts::Cross) {
            Ok(_) => Ok(true),
            Err(error) if error.is_absence() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the device node `path`, which may be a node of this file system or one of the host's that is mounted over
    /// an empty file of it, as it is where the container may make none. A link in its place goes too, and not what it
    /// leads to.
    ///
    /// # Errors
    /// [`Error::NotADevice`]; [`Error::ForeignMount`] if the directory is not this file system's; what the calls said.
    pub fn remove_node(&self, path: &Path) -> Result<Change, Error> {
        let call = |call: &'static str| move |errno| failed(call, path, errno);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed("unlinkat", path, Errno::EINVAL));
        };
        let directory = match self.find(parent, OFlag::O_DIRECTORY, Mounts::Stay) {
            Err(error) if error.is_absence() => return Ok(Change::Unchanged),
            directory => directory?,
        };
        let mount = mount_id(directory.as_fd()).map_err(call("read"))?;
        for _ in 0..MOST_MOUNTS {
            let found = match find(&directory, name, OFlag::O_NOFOLLOW, Mounts::Cross) {
                Err(Errno::ENOENT) => return Ok(Change::Unchanged),
                found => found.map_err(call("openat2"))?,
            };
            let stat = fstat(&found).map_err(call("fstat"))?;
            let is_mounted = mount_id(found.as_fd()).map_err(call("read"))? != mount;
            let may_go = match kind(&stat) {
                SFlag::S_IFCHR => true,
                SFlag::S_IFLNK => !is_mounted,
                SFlag::S_IFREG => !is_mounted && stat.st_size == 0,
                _ => false,
            };
            if !may_go {
                return Err(Error::NotADevice { path: path.to_owned() });
            }
            if !is_mounted {
                unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir).map_err(call("unlinkat"))?;
                return Ok(Change::Made);
            }
            // By the handle: whatever is mounted or renamed here meanwhile, only this one goes.
            umount2(fd_path(&found).as_str(), MntFlags::MNT_DETACH).map_err(call("umount2"))?;
        }
        Err(failed("umount2", path, Errno::ELOOP))
    }

    /// The directory /dev, as a root of its own: paths in it are without `/dev`.
    ///
    /// # Errors
    /// [`Error::ForeignMount`] if it is not a tmpfs that this container alone has; what the calls said.
    pub fn devices(&self) -> Result<Self, Error> {
        let dev = Path::new(DEV);
        let foreign = || Error::ForeignMount { path: dev.to_owned() };
        let handle = self.find(dev, OFlag::O_DIRECTORY, Mounts::Cross)?;
        if !is_own_tmpfs(&handle).map_err(|(call, errno)| failed(call, dev, errno))? {
            return Err(foreign());
        }
        Ok(Self { handle, owner: self.owner, last: RefCell::default() })
    }
}

/// Whether a directory is that of a tmpfs which is mounted there and nowhere else, as runtimes make them for a container.
pub(super) fn is_own_tmpfs(handle: &OwnedFd) -> Result<bool, (&'static str, Errno)> {
    let stat = fstat(handle).map_err(|errno| ("fstat", errno))?;
    if fstatfs(handle).map_err(|errno| ("fstatfs", errno))?.filesystem_type() != TMPFS_MAGIC {
        return Ok(false);
    }
    let place = read_link(fd_path(handle)).map_err(|error| ("readlink", errno_of(&error)))?;
    let number = format!("{}:{}", major(stat.st_dev), minor(stat.st_dev));
    is_mounted_there_alone(&number, &place).map_err(|errno| ("read", errno))
}
