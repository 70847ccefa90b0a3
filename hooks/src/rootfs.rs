//! The container's root directory, held open: the one way by which the hook reads and writes inside a container.
//!
//! Links of the image resolve inside the root, absolute ones too, and never lead out of it. Writing stays on the root's
//! own file system, so that a volume which the user put in the way (`-v /etc:/etc`) is never written to: that is
//! [`Error::ForeignMount`]. A name is always looked up in the handle of its directory, never by a path from outside.
//! What NVIDIA's hooks taught: CVE-2024-0134, CVE-2025-23267 (links followed out of the root).

mod bind;
mod dev;
mod mounts;
mod proc;
mod resolve;
mod write;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};
use thiserror::Error;

use resolve::{Mounts, find};
pub(crate) use resolve::{fd_path, mount_id};

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
    /// Something else stands where a device node was to be removed.
    #[error("{path:?} in the container is no device")]
    NotADevice {
        /// The path that was to be removed.
        path: PathBuf,
    },
    /// What would be mounted there would show in other mount namespaces, the host's among them.
    #[error("what is mounted at {path:?} in the container shows on the host")]
    Shared {
        /// The path in the container.
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
    /// Whether it only says that nothing is there.
    fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Call { source: Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG, .. }
        )
    }

    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        let source = match self {
            Self::Call { source, .. } => source,
            Self::Directory { .. } => {
                return Some("the image has a directory there: remove it from the image");
            }
            _ => return None,
        };
        match source {
            Errno::EROFS => Some(
                "the root is read-only before the container starts: crun 1.26 and newer, and runc, make it so afterwards",
            ),
            Errno::ENOSPC | Errno::EDQUOT => Some("free some space where the engine keeps its containers"),
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
    /// The directory that was written in last: most links lie in one, and to look it up for each would be another third
    /// of all calls.
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
}

/// Whether something had to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was written.
    Made,
    /// It was there already.
    Unchanged,
}

/// What is to be seen of a place without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Nothing is there, or a link that leads nowhere.
    Nothing,
    /// A regular file that holds something.
    File,
    /// An empty regular file.
    Empty,
    /// A directory, device, FIFO or socket.
    Other,
    /// Something on another file system.
    Foreign,
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
        Ok(Self { handle, owner: (ours.st_uid, ours.st_gid), last: RefCell::default() })
    }

    /// User and group that own the root directory, as numbers of this process's user namespace.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    /// Whether `path` leads to a regular file that holds something. Mounts count, being how the driver's libraries come;
    /// what engines leave where something was mounted is empty.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn is_full_file(&self, path: &Path) -> Result<bool, Error> {
        Ok(self.look(path, Mounts::Cross)?.is_some_and(|(_, stat)| is_full(&stat)))
    }

    /// What `path` leads to, on the root's own file system: what lies in a volume is not asked after, whose server may
    /// never answer.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn sight(&self, path: &Path) -> Result<Sight, Error> {
        match self.look(path, Mounts::Stay) {
            Ok(None) => Ok(Sight::Nothing),
            Ok(Some((_, stat))) if is_full(&stat) => Ok(Sight::File),
            Ok(Some((_, stat))) if kind(&stat) == SFlag::S_IFREG => Ok(Sight::Empty),
            Ok(Some(_)) => Ok(Sight::Other),
            Err(Error::ForeignMount { .. }) => Ok(Sight::Foreign),
            Err(error) => Err(error),
        }
    }

    /// The content of the regular file that `path` leads to, or `None` if there is nothing. Only on the root's own file
    /// system: a volume is shared with others, whose files could fail this container's start, and /proc and /sys are
    /// not yet masked when hooks run.
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; [`Error::NotRegular`]; [`Error::TooLarge`] above `limit` bytes; what the calls said.
    pub fn read(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let Some((file, size)) = self.file(path)? else { return Ok(None) };
        let too_large = || Error::TooLarge { path: path.to_owned(), limit };
        let size = usize::try_from(size).ok().filter(|&size| size <= limit).ok_or_else(too_large)?;
        let mut bytes = Vec::with_capacity(size + 1);
        file.take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed("read", path, errno_of(&error)))?;
        if bytes.len() > limit { Err(too_large()) } else { Ok(Some(bytes)) }
    }

    /// The regular file that `path` leads to, open for reading, and its size in bytes; or `None` if there is nothing.
    /// Only on the root's own file system, as with [`Self::read`].
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; [`Error::NotRegular`]; what the calls said.
    pub fn file(&self, path: &Path) -> Result<Option<(File, u64)>, Error> {
        let Some((handle, stat)) = self.look(path, Mounts::Stay)? else { return Ok(None) };
        if kind(&stat) != SFlag::S_IFREG {
            return Err(Error::NotRegular { path: path.to_owned() });
        }
        // It is this very file that is opened: to open a device of the image instead could do harm of its own.
        let file =
            OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(fd_path(&handle));
        let file = file.map_err(|error| failed("open", path, errno_of(&error)))?;
        Ok(Some((file, u64::try_from(stat.st_size).unwrap_or_default())))
    }

    /// The names in the directory that `path` leads to, in no order and `limit` of them at most; none if there is no
    /// directory. Only on the root's own file system, as with [`Self::read`].
    ///
    /// # Errors
    /// [`Error::ForeignMount`]; what the calls said.
    pub fn names(&self, path: &Path, limit: usize) -> Result<Vec<OsString>, Error> {
        let Some((handle, stat)) = self.look(path, Mounts::Stay)? else { return Ok(Vec::new()) };
        if kind(&stat) != SFlag::S_IFDIR {
            return Ok(Vec::new());
        }
        let names = fs::read_dir(fd_path(&handle))
            .and_then(|entries| entries.take(limit).map(|entry| Ok(entry?.file_name())).collect());
        names.map_err(|error| failed("getdents", path, errno_of(&error)))
    }

    /// What `path` leads to, without opening it.
    fn look(&self, path: &Path, mounts: Mounts) -> Result<Option<(OwnedFd, FileStat)>, Error> {
        match self.find(path, OFlag::empty(), mounts) {
            Ok(handle) => {
                let stat = fstat(&handle).map_err(|errno| failed("fstat", path, errno))?;
                Ok(Some((handle, stat)))
            }
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn find(&self, path: &Path, flags: OFlag, mounts: Mounts) -> Result<OwnedFd, Error> {
        find(&self.handle, path.as_os_str(), flags, mounts).map_err(|errno| match errno {
            Errno::EXDEV => Error::ForeignMount { path: path.to_owned() },
            errno => failed("openat2", path, errno),
        })
    }
}

fn is_full(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFREG && stat.st_size > 0
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
