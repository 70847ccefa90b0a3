//! Processes of others: what they have open; and processes to be, before they begin.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::libc;

use super::{checked, owned};

/// A copy of a process's descriptor (pidfd_getfd(2), Linux 5.6).
///
/// # Errors
/// EBADF when it has none of that number, EPERM for who may not trace it, ESRCH when it is gone.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes three integers.
    #[expect(unsafe_code)]
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    owned(copy)
}

/// What accept4(2) of nix returned, as a descriptor of one's own.
pub fn accepted(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just opened it for the caller, who has it from nix as a number.
    #[expect(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

/// Has programs that this process runs inherit no descriptor but the first three, whatever this one was started with
/// (close_range(2), Linux 5.11).
///
/// # Errors
/// ENOSYS or EINVAL on older kernels.
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: takes integers; no descriptor is closed here.
    #[expect(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(done).map(drop)
}

/// Has a program start in a session of its own, with at least so many descriptors allowed where the hard limit can be
/// raised. With `shared_memory` it has a mount namespace of its own, where that directory is at /dev/shm.
///
/// # Errors
/// When the path has a zero in it.
pub fn detach(command: &mut Command, descriptors: u64, shared_memory: Option<&Path>) -> io::Result<()> {
    let shared_memory = shared_memory.map(|path| CString::new(path.as_os_str().as_bytes())).transpose()?;
    let prepare = move || {
        // SAFETY: takes nothing.
        #[expect(unsafe_code)]
        checked(unsafe { libc::setsid() }.into())?;
        allow_descriptors(descriptors)?;
        shared_memory.as_deref().map_or(Ok(()), mount_at_dev_shm)
    };
    // SAFETY: between fork and exec it makes system calls alone: what it needs was allocated before.
    #[expect(unsafe_code)]
    unsafe {
        command.pre_exec(prepare)
    };
    Ok(())
}

fn allow_descriptors(wanted: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit.
    #[expect(unsafe_code)]
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }.into())?;
    if limit.rlim_cur >= wanted {
        return Ok(());
    }
    let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max.max(wanted) };
    // SAFETY: `raised` is a live rlimit, which is only read.
    #[expect(unsafe_code)]
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    if done == 0 {
        return Ok(());
    }
    // Not root: as many as there may be.
    let most = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: as above.
    #[expect(unsafe_code)]
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) }.into()).map(drop)
}

fn mount_at_dev_shm(source: &CStr) -> io::Result<()> {
    let nothing = std::ptr::null();
    // SAFETY: takes an integer.
    #[expect(unsafe_code)]
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())?;
    for (source, target, flags) in [
        // The machine's later mounts show, and this one does not show on the machine.
        (nothing, c"/", libc::MS_REC | libc::MS_SLAVE),
        (source.as_ptr(), c"/dev/shm", libc::MS_BIND),
    ] {
        // SAFETY: the paths are strings with their zeros that outlive the call; type and data may be null here.
        #[expect(unsafe_code)]
        checked(unsafe { libc::mount(source, target.as_ptr(), nothing, flags, nothing.cast()) }.into())?;
    }
    Ok(())
}
