//! Descriptors that others made and gave to this process.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The most that the kernel lets one message bring (SCM_MAX_FD, linux/net/scm.h).
const MOST_AT_ONCE: usize = 253;

/// Reads what a stream socket has, at most `buffer`'s length, with the descriptors that came along (unix(7),
/// SCM_RIGHTS). They are closed on exec.
///
/// # Errors
/// What recvmsg(2) says; `InvalidData` where this process can have no more descriptors.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    // Of a message that does not fit, those descriptors that do are open all the same, and nobody would close them.
    let mut space = cmsg_space!([i32; MOST_AT_ONCE]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this message, and nobody else knows of them.
            #[expect(unsafe_code)]
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
    }
    Ok((message.bytes, descriptors))
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
