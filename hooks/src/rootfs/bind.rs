//! A directory of the host's in the container: mounted over whatever lies at its place, in this mount namespace alone. A
//! place is made only where nobody else's files are: in the root's own file system, or in a tmpfs of the container's.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::dev::is_own_tmpfs;
use super::mounts::is_shared;
use super::proc::{NOTHING_SPECIAL, bind};
use super::resolve::{MOST_LINKS, Mounts, fd_path, find, mount_id};
use super::{Change, Error, Root, failed, kind};

const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

impl Root {
    /// Mounts the directory `source` at `path`, without programs, device nodes and other users' rights, and `read_only` or
    /// not. What is mounted in it does not come along.
    ///
    /// # Errors
    /// [`Error::ForeignMount`] where there is no directory and a volume would have to be written to; [`Error::Shared`];
    /// what the calls said.
    pub fn mount(&self, source: &OwnedFd, path: &Path, read_only: bool) -> Result<Change, Error> {
        let call = |call: &'static str| move |errno| failed(call, path, errno);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed("mount", path, Errno::EINVAL));
        };
        let parent = match self.find(parent, OFlag::O_DIRECTORY, Mounts::Cross) {
            Err(Error::Call { source: Errno::ENOENT, .. }) => self.directory(parent, MOST_LINKS)?,
            found => found?,
        };
        let place = self.place_to_mount(&parent, name, path)?;
        let options = if read_only { NOTHING_SPECIAL | MsFlags::MS_RDONLY } else { NOTHING_SPECIAL };
        if is_same(&place, source)
            .and_then(|same| Ok(same && has(&place, options)?))
            .map_err(call("fstat"))?
        {
            return Ok(Change::Unchanged);
        }
        let below = mount_id(place.as_fd()).map_err(call("read"))?;
        if is_shared(below).map_err(call("read"))? {
            return Err(Error::Shared { path: path.to_owned() });
        }
        bind(source, &place).map_err(call("mount"))?;
        let top = find(&parent, name, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mounts::Cross);
        let top = top.map_err(call("openat2"))?;
        // Else something of the container's would be changed, or unmounted.
        if mount_id(top.as_fd()).map_err(call("read"))? == below
            || !is_same(&top, source).map_err(call("fstat"))?
        {
            return Err(failed("mount", path, Errno::EBUSY));
        }
        let change = |flags| mount(None::<&str>, fd_path(&top).as_str(), None::<&str>, flags, None::<&str>);
        let changed = change(MsFlags::MS_PRIVATE)
            .and_then(|()| change(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | options));
        changed.map_err(|errno| {
            // The failure that led here is the one to report.
            let _ = umount2(fd_path(&top).as_str(), MntFlags::MNT_DETACH);
            failed("mount", path, errno)
        })?;
        Ok(Change::Made)
    }

    /// The directory to mount over, made where it is missing or a file or link is in its place.
    fn place_to_mount(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, Error> {
        let call = |call: &'static str| move |errno| failed(call, path, errno);
        let found = || find(parent, name, OFlag::O_NOFOLLOW, Mounts::Cross);
        let in_the_way = match found() {
            Ok(place) => {
                if kind(&fstat(&place).map_err(call("fstat"))?) == SFlag::S_IFDIR {
                    return Ok(place);
                }
                Some(place)
            }
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(failed("openat2", path, errno)),
        };
        let id = |handle: &OwnedFd| mount_id(handle.as_fd()).map_err(call("read"));
        let mount = id(parent)?;
        let is_own = mount == id(&self.handle)?
            || is_own_tmpfs(parent).map_err(|(call, errno)| failed(call, path, errno))?;
        let is_mounted = in_the_way.as_ref().map(id).transpose()?.is_some_and(|id| id != mount);
        if !is_own || is_mounted {
            return Err(Error::ForeignMount { path: path.to_owned() });
        }
        if in_the_way.is_some() {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(call("unlinkat"))?;
        }
        match mkdirat(parent, name, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed("mkdirat", path, errno)),
        }
        find(parent, name, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mounts::Cross).map_err(call("openat2"))
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Whether the mount on which a directory lies has all of these options.
fn has(place: &OwnedFd, options: MsFlags) -> Result<bool, Errno> {
    Ok(fstatvfs(place)?.flags().bits() & options.bits() == options.bits())
}
