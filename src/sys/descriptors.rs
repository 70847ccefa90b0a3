//! Descriptors that others made and gave to this process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has a socket, and what it accepts, take no descriptors (SO_PASSRIGHTS, Linux 6.16): whoever sends some is told so.
/// Older kernels do not know it.
///
/// # Errors
/// ENOPROTOOPT on those.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> io::Result<()> {
    // asm-generic/socket.h
    const SO_PASSRIGHTS: libc::c_int = 83;
    let no: libc::c_int = 0;
    let size = size_of_val(&no) as libc::socklen_t;
    // SAFETY: the option is an int, and `no` is one, of the size that is said.
    #[expect(unsafe_code)]
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const no).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A pidfd that any number of tasks can wait for. It is given to the kernel once, which takes no descriptor twice.
///
/// # Errors
/// What epoll_ctl(2) says.
pub fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open as long as what is returned, which holds it and gives it to nobody.
    #[expect(unsafe_code)]
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// The socket that systemd passed as descriptor `fd` (sd_listen_fds(3)).
pub fn passed(fd: i32) -> OwnedFd {
    // SAFETY: sd_listen_fds(3) gives it to this process alone, and this is called once for each.
    #[expect(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}
