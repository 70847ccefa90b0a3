//! The container's root directory, held open: the one way by which the hook reads and writes inside a container.
//!
//! Links of the image resolve inside the root, absolute ones too, and never lead out of it. Writing stays on the root's
//! own file system, so that a volume which the user put in the way (`-v /etc:/etc`) is never written to: that is
//! [`Error::ForeignMount`]. A name is always looked up in the handle of its directory, never by a path from outside.
//! What NVIDIA's hooks taught: CVE-2024-0134, CVE-2025-23267 (links followed out of the root).

mod dev;
mod write;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};
use thiserror::Error;

/// openat2(2) fails with EAGAIN when something, anywhere on the machine, is renamed or mounted at the same moment. Where
/// that goes on it is waited for, a second in all, so that one container's renames cannot fail another's start.
const ATTEMPTS: usize = 16;
const SLOW_ATTEMPTS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// What went wrong below a container's root. Paths are those in the container.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory is the host's own root.
    #[error("{path:?} is the host's root directory, not a container's")]
    HostRoot {
        /// The path on the host.
        path: PathBuf,
    },
    /// The root directory itself cannot be opened.
    #[error("cannot open the container's root {path:?}")]
    Root {
        /// The path on the host.
        path: PathBuf,
        /// What open(2) said.
        source: Errno,
    },
    /// Something mounted there, or above it, is not the root's own file system.
    #[error("another file system is mounted at or above {path:?} in the container")]
    ForeignMount {
        /// The path that was to be written.
        path: PathBuf,
    },
    /// A directory stands where a file or link belongs.
    #[error("a directory stands in the place of {path:?} in the container")]
    Directory {
        /// The path that was to be written.
        path: PathBuf,
    },
    /// A device, FIFO or socket, which is never opened, or a directory.
    #[error("{path:?} in the container is no regular file")]
    NotRegular {
        /// The path that was to be read.
        path: PathBuf,
    },
    /// A file longer than its reader can have use for.
    #[error("{path:?} in the container is longer than {limit} bytes")]
    TooLarge {
        /// The path that was to be read.
        path: PathBuf,
        /// In bytes.
        limit: usize,
    },
    /// Any other failure.
    #[error("{call} failed for {path:?} in the container")]
    Call {
        /// The system call, as its man page is named.
        call: &'static str,
        /// The path in the container.
        path: PathBuf,
        /// What the call said.
        source: Errno,
    },
}

impl Error {
    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Call { source, .. } = self else { return None };
        match source {
            Errno::ENOSYS => Some("this needs openat2(2), which Linux has since 5.6"),
            Errno::EROFS => {
                Some("the driver's libraries can only be linked in a root that is writable before the start")
            }
            Errno::EOVERFLOW => {
                Some("the owner of the container's root has no number in this user namespace")
            }
            _ => None,
        }
    }
}

/// The root directory of a container.
#[derive(Debug)]
pub struct Root {
    handle: OwnedFd,
    owner: (u32, u32),
}

/// Whether something had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Made,
    /// It was there already.
    Unchanged,
}

impl Root {
    /// Opens the root directory at `path` on the host.
    ///
    /// # Errors
    /// When it cannot be opened, or is the host's own.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Root { path: path.to_owned(), source };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let handle = open(path, flags, Mode::empty()).map_err(failed)?;
        let (ours, host) = (fstat(&handle).map_err(failed)?, stat("/").map_err(failed)?);
        if (ours.st_dev, ours.st_ino) == (host.st_dev, host.st_ino) {
            return Err(Error::HostRoot { path: path.to_owned() });
        }
        Ok(Self { handle, owner: (ours.st_uid, ours.st_gid) })
    }

    /// User and group that own the root directory, as numbers of this process's user namespace.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Whether `path` leads to a regular file. Mounts count, being how the driver's libraries come.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn is_file(&self, path: &Path) -> Result<bool, Error> {
        let found = self.look(path, anywhere())?;
        Ok(found.is_some_and(|(_, stat)| kind(&stat) == SFlag::S_IFREG))
    }

    /// Whether `path` leads to anything.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn exists(&self, path: &Path) -> Result<bool, Error> {
        self.look(path, anywhere()).map(|found| found.is_some())
    }

    /// The content of the regular file that `path` leads to, or `None` if there is nothing. Only on the root's own file
    /// system: a volume is shared with others, whose files could fail this container's start, and /proc and /sys are
    /// not yet masked when hooks run.
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; [`Error::NotRegular`]; [`Error::TooLarge`] above `limit` bytes; what the calls said.
    pub fn read(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        // Looked at before it is opened: opening a device of the image can do harm of its own, or never return.
        let Some((_, seen)) = self.look(path, own_file_system())? else { return Ok(None) };
        if kind(&seen) != SFlag::S_IFREG {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC);
        let handle = self.openat2(path, how.resolve(own_file_system()))?;
        let stat = fstat(&handle).map_err(|errno| failed("fstat", path, errno))?;
        if (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino) {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        let too_large = || Error::TooLarge { path: path.to_owned(), limit };
        let size = usize::try_from(stat.st_size).ok().filter(|&size| size <= limit).ok_or_else(too_large)?;
        let mut bytes = Vec::with_capacity(size + 1);
        File::from(handle)
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read", path, errno_of(&error)))?;
        if bytes.len() > limit { Err(too_large()) } else { Ok(Some(bytes)) }
    }

    /// What `path` leads to, without opening it.
    fn look(&self, path: &Path, resolve: ResolveFlag) -> Result<Option<(OwnedFd, FileStat)>, Error> {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        match self.openat2(path, how) {
            Ok(handle) => {
                let stat = fstat(&handle).map_err(|errno| failed("fstat", path, errno))?;
                Ok(Some((handle, stat)))
            }
            Err(Error::Call { source: Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn openat2(&self, path: &Path, how: OpenHow) -> Result<OwnedFd, Error> {
        open_in(&self.handle, path.as_os_str(), how).map_err(|errno| match errno {
            Errno::EXDEV => Error::ForeignMount { path: path.to_owned() },
            errno => failed("openat2", path, errno),
        })
    }
}

fn open_in(directory: impl AsFd, name: &OsStr, how: OpenHow) -> Result<OwnedFd, Errno> {
    let mut result = Err(Errno::EAGAIN);
    for attempt in 0..ATTEMPTS + SLOW_ATTEMPTS {
        if attempt >= ATTEMPTS {
            thread::sleep(PAUSE);
        }
        result = openat2(&directory, name, how);
        if !matches!(result, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    result
}

/// Finding out what is there crosses mounts; what is read or written is the root's own.
fn anywhere() -> ResolveFlag {
    ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

fn own_file_system() -> ResolveFlag {
    anywhere() | ResolveFlag::RESOLVE_NO_XDEV
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn failed(call: &'static str, path: &Path, source: Errno) -> Error {
    Error::Call { call, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
