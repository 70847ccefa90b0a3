//! Writing below the root: each change is made under another name in the handle of its directory and renamed into
//! place, so that a container never sees half of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::resolve::{MOST_LINKS, Mounts, create, find};
use super::{Change, Error, Root, errno_of, failed, kind};

const TEMPORARY_NAMES: u32 = 64;
const STALE_SECONDS: u64 = 60;
/// What is written is `ld.so.cache` and `ld.so.conf`, which everyone reads.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o644);
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

impl Root {
    /// Puts a symbolic link to `target` at `path`, in the place of a file or another link, and makes the directories
    /// above it.
    ///
    /// # Errors
    /// [`Error::Directory`]; [`Error::ForeignMount`]; what the calls said.
    pub fn symlink(&self, target: &str, path: &Path) -> Result<Change, Error> {
        let place = self.place(path)?;
        let present = match symlinkat(target, &*place.directory, place.name) {
            Ok(()) => return Ok(Change::Made),
            Err(Errno::EEXIST) => place.in_the_way()?,
            Err(errno) => return Err(failed("symlinkat", path, errno)),
        };
        if present.is_some_and(|present| readlinkat(&present, "").is_ok_and(|present| present == target)) {
            return Ok(Change::Unchanged);
        }
        let create = |name: &OsStr| symlinkat(target, &*place.directory, name);
        let (temporary, ()) = place.create("symlinkat", create)?;
        place.rename_here(&temporary)?;
        Ok(Change::Made)
    }

    /// Removes the symbolic link at `path`; anything else that stands there stays.
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; what the calls said.
    pub fn remove_link(&self, path: &Path) -> Result<Change, Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Change::Unchanged);
        };
        let directory = match self.find(parent, OFlag::O_DIRECTORY, Mounts::Stay) {
            Err(Error::Call { source: Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP, .. }) => {
                return Ok(Change::Unchanged);
            }
            directory => directory?,
        };
        match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if kind(&stat) == SFlag::S_IFLNK => {}
            _ => return Ok(Change::Unchanged),
        }
        match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(Change::Made),
            Err(Errno::ENOENT) => Ok(Change::Unchanged),
            Err(errno) => Err(failed("unlinkat", path, errno)),
        }
    }

    /// Puts a file of mode 0644 that holds `content` at `path`, in the place of whatever file or link is there, and
    /// makes the directories above it. It is not synced: after a crash the next start writes it again.
    ///
    /// # Errors
    /// [`Error::Directory`]; [`Error::ForeignMount`]; what the calls said.
    pub fn replace(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let place = self.place(path)?;
        place.in_the_way()?;
        let new = |name: &OsStr| create(&*place.directory, name, FILE_MODE);
        let (temporary, handle) = place.create("openat2", new)?;
        if let Err((call, errno)) = write(handle, content) {
            place.discard(&temporary);
            return Err(failed(call, path, errno));
        }
        place.rename_here(&temporary)
    }

    fn place<'a>(&self, path: &'a Path) -> Result<Place<'a>, Error> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed("openat2", path, Errno::EINVAL));
        };
        let last =
            self.last.borrow().as_ref().filter(|(last, _)| last == parent).map(|(_, at)| Rc::clone(at));
        let directory = match last {
            Some(directory) => directory,
            None => Rc::new(self.directory(parent, MOST_LINKS).map_err(|error| match error {
                Error::ForeignMount { .. } => Error::ForeignMount { path: path.to_owned() },
                error => error,
            })?),
        };
        *self.last.borrow_mut() = Some((parent.to_owned(), Rc::clone(&directory)));
        Ok(Place { directory, name, path })
    }

    /// Opens the directory `path`, making what is missing of it: also where a link of the image points to nothing yet. As
    /// many links and missing directories are followed as the kernel would links.
    pub(super) fn directory(&self, path: &Path, steps: usize) -> Result<OwnedFd, Error> {
        let find = || self.find(path, OFlag::O_DIRECTORY, Mounts::Stay);
        match find() {
            Err(Error::Call { source: Errno::ENOENT, .. }) => {}
            result => return result,
        }
        let steps = steps.checked_sub(1).ok_or_else(|| failed("openat2", path, Errno::ELOOP))?;
        let (parent, name) = split(path).ok_or_else(|| failed("openat2", path, Errno::ENOENT))?;
        let directory = self.directory(parent, steps)?;
        match mkdirat(&directory, name, DIRECTORY_MODE) {
            Ok(()) => find(),
            Err(Errno::EEXIST) => match readlinkat(&directory, name) {
                // An absolute target takes the place of the whole path, as it does for the kernel.
                Ok(target) => self.directory(&parent.join(target), steps),
                Err(_) => find(),
            },
            Err(errno) => Err(failed("mkdirat", path, errno)),
        }
    }
}

/// Splits off the last name of a path, be it `..`, which a link's target may hold and only the kernel can resolve.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let mut components = path.components();
    let name = components.next_back()?.as_os_str();
    let parent = components.as_path();
    if parent.as_os_str().is_empty() { None } else { Some((parent, name)) }
}

/// A name in a directory that is held open.
struct Place<'a> {
    directory: Rc<OwnedFd>,
    name: &'a OsStr,
    /// What both come from, for messages.
    path: &'a Path,
}

impl Place<'_> {
    /// The file or link that a rename would replace, if there is one and it may be replaced.
    fn in_the_way(&self) -> Result<Option<OwnedFd>, Error> {
        let present = match find(&*self.directory, self.name, OFlag::O_NOFOLLOW, Mounts::Stay) {
            Ok(present) => present,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::EXDEV) => return Err(self.foreign_mount()),
            Err(errno) => return Err(failed("openat2", self.path, errno)),
        };
        let stat = fstat(&present).map_err(|errno| failed("fstat", self.path, errno))?;
        if kind(&stat) == SFlag::S_IFDIR {
            return Err(Error::Directory { path: self.path.to_owned() });
        }
        Ok(Some(present))
    }

    /// Runs `create` with names beside this one until one is free: two hooks may be at work in a root that containers
    /// share.
    fn create<T>(
        &self,
        call: &'static str,
        create: impl Fn(&OsStr) -> Result<T, Errno>,
    ) -> Result<(OsString, T), Error> {
        for number in 0..TEMPORARY_NAMES {
            let mut name = OsString::from(".");
            name.push(self.name);
            name.push(format!(".divvy-{number}"));
            let mut made = create(&name);
            if matches!(made, Err(Errno::EEXIST)) && self.is_stale(&name) {
                self.discard(&name);
                made = create(&name);
            }
            match made {
                Ok(made) => return Ok((name, made)),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(call, self.path, errno)),
            }
        }
        Err(failed(call, self.path, Errno::EEXIST))
    }

    /// Whether a temporary name is that of a hook which was killed: none takes so long.
    fn is_stale(&self, name: &OsStr) -> bool {
        let found = fstatat(&*self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        found.is_ok_and(|found| {
            let age = now.saturating_sub(found.st_mtime.try_into().unwrap_or_default());
            kind(&found) != SFlag::S_IFDIR && age > STALE_SECONDS
        })
    }

    fn rename_here(&self, temporary: &OsStr) -> Result<(), Error> {
        renameat(&*self.directory, temporary, &*self.directory, self.name).map_err(|errno| {
            self.discard(temporary);
            match errno {
                // Mounted there since it was looked at.
                Errno::EBUSY => self.foreign_mount(),
                errno => failed("renameat", self.path, errno),
            }
        })
    }

    fn discard(&self, temporary: &OsStr) {
        // The failure that led here is the one to report.
        let _ = unlinkat(&*self.directory, temporary, UnlinkatFlags::NoRemoveDir);
    }

    fn foreign_mount(&self) -> Error {
        Error::ForeignMount { path: self.path.to_owned() }
    }
}

fn write(handle: OwnedFd, content: &[u8]) -> Result<(), (&'static str, Errno)> {
    // The caller's umask or a default ACL may have taken bits away.
    fchmod(&handle, FILE_MODE).map_err(|errno| ("fchmod", errno))?;
    File::from(handle).write_all(content).map_err(|error| ("write", errno_of(&error)))
}
