//! A process that is watched, whoever started it, and whose a process is.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;

use nix::libc::c_int;

use crate::container::process::{Namespace, text};
use crate::sys;

/// A control daemon or a server.
#[derive(Debug)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    pidfd: OwnedFd,
    /// One that this process started, and has to wait for.
    child: Option<Child>,
}

impl Process {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub fn find(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, pidfd: sys::pidfd_open(pid)?, child: None })
    }

    /// Takes hold of one that was just started.
    ///
    /// # Errors
    /// Those of pidfd_open(2).
    pub fn of(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self { pid, pidfd: sys::pidfd_open(pid)?, child: Some(child) })
    }

    /// Whether it has ended. One's own leaves nothing behind then.
    pub fn has_ended(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            return true;
        }
        sys::has_ended(self.pidfd.as_fd()).unwrap_or(false)
    }

    /// Sends a signal; it may have ended meanwhile.
    pub fn signal(&self, signal: c_int) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), signal);
    }
}

/// Whether a process is of this machine as this one is: in its user and pid namespaces and below its root, so in no
/// container.
pub fn is_here(pid: i32) -> bool {
    let is_same =
        |kind| matches!((Namespace::of(pid, kind), Namespace::own(kind)), (Ok(its), Ok(own)) if its == own);
    let root = Path::new("/proc");
    is_same("user")
        && is_same("pid")
        && is_same_file(&root.join(pid.to_string()).join("root"), Path::new("/"))
}

/// Its real and its effective user, as this process counts them; none if it is gone.
pub fn users(pid: i32) -> Option<[u32; 2]> {
    let status = text(pid, "status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_ascii_whitespace().map(str::parse);
    Some([users.next()?.ok()?, users.next()?.ok()?])
}

/// Whether it runs this file, or did so until another was put in its place, as an upgrade does.
pub fn runs(pid: i32, file: &Path) -> bool {
    let program = Path::new("/proc").join(pid.to_string()).join("exe");
    if is_same_file(&program, file) {
        return true;
    }
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.into());
    let mut replaced = file.into_os_string();
    replaced.push(" (deleted)");
    fs::read_link(program).is_ok_and(|program| program == Path::new(&replaced))
}

/// One file under two names, with the links that they are followed.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

impl AsFd for Process {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
