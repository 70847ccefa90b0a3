//! The one system call that neither std nor nix has.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;

/// A descriptor that stands for a process (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// ESRCH when there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this call, so nobody else has it.
    #[expect(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned)
}
