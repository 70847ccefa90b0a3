//! What is replaced in the daemon, and what the kernel is asked: recvmsg(2), and what is found out about a connection. All
//! unsafe code of the guard. Nothing here may panic: the daemon, and with it all clients, would end.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::io::{Error, ErrorKind};
use std::mem::{MaybeUninit, size_of, size_of_val};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;

use super::admitted::{Admitted, Connection};
use super::judge::{Said, TYPE_BYTES, is_child, is_for_strangers, lives, said};
use super::silence::{Origin, Silences, mount_namespace};

/// Room for the credentials that the kernel puts first, and for no descriptors (SCM_RIGHTS, unix(7)): it says MSG_CTRUNC
/// where some were sent, and keeps them.
// SAFETY: the macro computes a number.
const CREDENTIALS_SPACE: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;

static ADMITTED: Admitted = Admitted::new();
static SILENCES: Silences = Silences::new();

/// The user whose clients are heard; [`EVERYBODY`], where the server serves all.
static USER: AtomicU64 = AtomicU64::new(EVERYBODY);
const EVERYBODY: u64 = u64::MAX;
/// No user, and so nobody's clients are heard: what the variable says was not understood.
const NOBODY: u64 = u64::MAX - 1;
/// Where the supervisor says who that is, as a number.
const USER_VARIABLE: &CStr = c"DIVVY_MPS_USER";

/// Run as the library is loaded, before the daemon's main function.
#[used]
// SAFETY: the section holds functions that are called once with no argument that they need (System V ABI, "Initialization
// and Termination Functions"), and this is one.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = read_and_leave_the_environment;

/// The MPS server, which the daemon starts with its own environment, shall not have the guard.
extern "C" fn read_and_leave_the_environment() {
    // SAFETY: the names are C strings, and no other thread is there yet that could read or change the environment; what is
    // found there is a C string.
    let user = unsafe {
        libc::unsetenv(c"LD_PRELOAD".as_ptr());
        let value = libc::getenv(USER_VARIABLE.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    };
    if let Some(user) = user {
        let user = user.to_str().ok().and_then(|user| user.parse::<u32>().ok());
        USER.store(user.map_or(NOBODY, u64::from), Ordering::Relaxed);
    }
}

/// recvmsg(2), for the daemon.
///
/// # Safety
/// That of recvmsg(2): `message` and what it points to are the caller's to be written.
// SAFETY: the name is the C library's, and replacing that function with this one, of the same type, is the purpose.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(
    fd: libc::c_int,
    message: *mut libc::msghdr,
    flags: libc::c_int,
) -> libc::ssize_t {
    if message.is_null() || !is_strangers_socket(fd) {
        // SAFETY: the caller's promise.
        return unsafe { receive(fd, message, flags) };
    }
    // SAFETY: it is not null, and the caller's promise.
    let message = unsafe { &mut *message };
    guarded(fd, message, flags)
}

fn guarded(fd: libc::c_int, message: &mut libc::msghdr, flags: libc::c_int) -> libc::ssize_t {
    let Some(connection) = connection(fd) else { return refuse(fd, message) };
    if !ADMITTED.holds(fd, connection) && is_server(fd) {
        ADMITTED.admit(fd, connection);
    }
    if ADMITTED.holds(fd, connection) {
        // SAFETY: recvmsg's caller promised that the message is good.
        return unsafe { receive(fd, message, flags) };
    }
    if !option::<libc::ucred>(fd, libc::SO_PEERCRED).is_some_and(|peer| is_served(peer.uid)) {
        return refuse(fd, message);
    }
    match first_message(fd, message, flags) {
        Some((said, received)) if said == Said::Client || comes_a_client(fd) => {
            if said == Said::Client {
                ADMITTED.admit(fd, connection);
            }
            received
        }
        _ => refuse(fd, message),
    }
}

/// Has the daemon read one of the messages that a stranger may say, and returns the kernel's answer to it too.
fn first_message(
    fd: libc::c_int,
    message: &mut libc::msghdr,
    flags: libc::c_int,
) -> Option<(Said, libc::ssize_t)> {
    let &mut libc::msghdr { msg_iov: parts, msg_iovlen: 1, .. } = message else { return None };
    if !is_readable(fd, 0) && !speaks_in_time(fd) {
        return None;
    }
    message.msg_controllen = message.msg_controllen.min(CREDENTIALS_SPACE);
    // SAFETY: recvmsg's caller promised that the message is good.
    let received = unsafe { receive(fd, message, flags | libc::MSG_DONTWAIT) };
    let length = usize::try_from(received).ok()?;
    // SAFETY: there is one part, and its room is the caller's.
    let room = unsafe { *parts };
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 || length > room.iov_len {
        return None;
    }
    // SAFETY: the kernel has just written as many bytes to it.
    let bytes = unsafe { std::slice::from_raw_parts(room.iov_base.cast::<u8>(), length) };
    // Who may be another user may also say so, and it is what they say that the daemon goes by.
    if credentials(message).is_some_and(|peer| !is_served(peer.uid)) {
        return None;
    }
    Some((said(bytes, room.iov_len)?, received))
}

/// Whether a user's clients are served at all.
fn is_served(user: libc::uid_t) -> bool {
    let only = USER.load(Ordering::Relaxed);
    only == EVERYBODY || only == u64::from(user)
}

/// Those that came with a message (SCM_CREDENTIALS, unix(7)).
fn credentials(message: &libc::msghdr) -> Option<libc::ucred> {
    // SAFETY: the kernel has just filled the message in, and room for one header and credentials is all that it had.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        let is_it = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_CREDENTIALS;
        is_it.then(|| libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned())
    }
}

/// Whether the next message will be the type of a client. It is only looked at: the daemon forgets descriptors of peers
/// who leave, or say another type, after their credentials were taken, but closes those of who leave before.
fn comes_a_client(fd: libc::c_int) -> bool {
    let mut bytes = [0_u8; TYPE_BYTES];
    let mut control = [0_u64; CREDENTIALS_SPACE / size_of::<u64>()];
    let mut room = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zeros is a header that points to nothing.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut room;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CREDENTIALS_SPACE;
    first_message(fd, &mut message, libc::MSG_PEEK).is_some_and(|(said, _)| said == Said::Client)
}

/// As if the peer had hung up, which it is made to see.
fn refuse(fd: libc::c_int, message: &mut libc::msghdr) -> libc::ssize_t {
    message.msg_controllen = 0;
    message.msg_namelen = 0;
    message.msg_flags = 0;
    // SAFETY: takes two integers.
    unsafe {
        libc::shutdown(fd, libc::SHUT_RDWR);
    }
    0
}

fn connection(fd: libc::c_int) -> Option<Connection> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the kernel writes one stat, for which there is room; all zeros is one too.
    let (done, status) = unsafe { (libc::fstat(fd, status.as_mut_ptr()), status.assume_init()) };
    let cookie = option::<u64>(fd, libc::SO_COOKIE)?;
    (done == 0).then_some(Connection { cookie, inode: status.st_ino })
}

/// Whether whoever connected is the daemon's own server.
fn is_server(fd: libc::c_int) -> bool {
    peer(fd).is_some_and(|(peer, process)| is_child(peer.pid, process))
}

/// Waits for a word of whoever connected, as long as they may take for it.
fn speaks_in_time(fd: libc::c_int) -> bool {
    let origin = origin(fd);
    let speaks = is_readable(fd, SILENCES.patience(origin, now_ms()));
    if !speaks {
        SILENCES.note(origin, now_ms());
    }
    speaks
}

fn origin(fd: libc::c_int) -> Origin {
    let Some((peer, process)) = peer(fd) else { return Origin::Gone };
    let found = mount_namespace(peer.pid.unsigned_abs());
    if !lives(process.as_ref()) {
        return Origin::Gone;
    }
    match found {
        Ok(own) if peer.uid == 0 && mount_namespace(std::process::id()).is_ok_and(|here| here == own) => {
            Origin::Machine
        }
        Ok(namespace) => Origin::Container(namespace),
        Err(error) if error.kind() == ErrorKind::NotFound && peer.pid > 0 => Origin::Gone,
        Err(_) => Origin::Unknown,
    }
}

/// Whoever connected, and what stands for that process: nothing before Linux 6.5, which does not know the option. Any other
/// error is of a process that is gone.
fn peer(fd: libc::c_int) -> Option<(libc::ucred, Option<OwnedFd>)> {
    let peer = option::<libc::ucred>(fd, libc::SO_PEERCRED)?;
    match option::<libc::c_int>(fd, libc::SO_PEERPIDFD) {
        // SAFETY: the kernel has just made the descriptor for this call.
        Some(process) => Some((peer, Some(unsafe { OwnedFd::from_raw_fd(process) }))),
        None if Error::last_os_error().raw_os_error() == Some(libc::ENOPROTOOPT) => Some((peer, None)),
        None => None,
    }
}

/// The time since the machine started, in milliseconds.
fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec; without an answer it stays zero.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now);
    }
    now.tv_sec.unsigned_abs().saturating_mul(1000).saturating_add(now.tv_nsec.unsigned_abs() / 1_000_000)
}

/// Whether there is something to read within this time, in milliseconds, or the end.
pub fn is_readable(fd: RawFd, limit_ms: i32) -> bool {
    let end = Instant::now() + Duration::from_millis(limit_ms.unsigned_abs().into());
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let mut asked = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: there is one entry, and one is given.
        let found = unsafe { libc::poll(&raw mut asked, 1, i32::try_from(left).unwrap_or(0)) };
        let is_interrupted = || Error::last_os_error().kind() == ErrorKind::Interrupted;
        if found >= 0 || !is_interrupted() {
            return found > 0;
        }
    }
}

/// Whether it is a UNIX socket that is bound in the file system, or was accepted by one that is, where strangers connect.
fn is_strangers_socket(fd: libc::c_int) -> bool {
    // SAFETY: all zeros is an address of no family.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel writes no more than the length that is given.
    let done = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) };
    if done != 0 || libc::c_int::from(address.sun_family) != libc::AF_UNIX {
        return false;
    }
    // A C character is signed on some processors.
    let bytes = address.sun_path.map(|character| character.to_ne_bytes()[0]);
    let path = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    !path.is_empty() && is_for_strangers(Path::new(OsStr::from_bytes(path)))
}

/// A socket's option (getsockopt(2)), which the kernel has to fill whole.
fn option<T: Copy>(fd: libc::c_int, name: libc::c_int) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than the length that is given; the types asked for are integers, and structs of
    // them, for which all bits are good.
    let done =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: it is zeroed, if not written.
    (done == 0 && length as usize == size_of::<T>()).then(|| unsafe { value.assume_init() })
}

/// The kernel's recvmsg(2): the C library's is what this replaces.
///
/// # Safety
/// That of recvmsg(2).
unsafe fn receive(fd: libc::c_int, message: *mut libc::msghdr, flags: libc::c_int) -> libc::ssize_t {
    // SAFETY: the caller's promise; the call sets errno as recvmsg does.
    unsafe { libc::syscall(libc::SYS_recvmsg, fd, message, flags) as libc::ssize_t }
}
