//! A process that is watched, whoever started it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;

use nix::libc::c_int;

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

impl AsFd for Process {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
