//! Who keeps a control daemon busy: it listens to one peer at a time, for as long as that one takes to say something, or
//! as its guard waits for that. Found by the system call that the daemon is in, on which descriptor, and who is at the
//! other end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::foreign::named;
use super::reason::Reason;
use crate::sys::{pidfd_getfd, pidfd_open};

/// As often it is looked.
const LOOKS: u32 = 20;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Says why a control daemon does not answer.
pub fn reason(what: &str, uuid: &str, control: i32, server: Option<i32>) -> Reason {
    match found(control) {
        Some((pid, _)) if Some(pid) == server => Reason::not_now(
            format!("{what}: the MPS server, {}, does not answer its control daemon", named(pid)),
            format!("where that lasts, `divvy mps restart {uuid} --force` ends the work of all its clients"),
        ),
        Some((pid, uid)) => Reason::not_now(
            format!(
                "{what}: {} of user {uid} connected to MPS and says nothing, so nobody else can",
                named(pid)
            ),
            format!("end it: kill {pid}"),
        ),
        None => Reason::not_now(
            format!("{what}: the MPS control daemon, process {control}, does not answer"),
            format!("where that lasts, `divvy mps restart {uuid} --force` ends the work of all its clients"),
        ),
    }
}

/// Process and user whom a control daemon listens to. Between two of them there is a moment with none.
fn found(control: i32) -> Option<(i32, u32)> {
    (0..LOOKS).find_map(|look| {
        if look > 0 {
            thread::sleep(PAUSE);
        }
        peer(control)
    })
}

/// Process and user at the other end of the socket that a process waits for, as this machine counts both.
fn peer(pid: i32) -> Option<(i32, u32)> {
    let pidfd = pidfd_open(pid).ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    let fds: Vec<i32> = calls.filter_map(|call| waited_for(&call)?.descriptor(pid)).collect();
    // Whoever listens is the other end of the socket on which they do.
    let is_other = |peer: i32| peer > 0 && peer != pid;
    fds.into_iter().find_map(|fd| credentials(pidfd.as_fd(), fd).ok().filter(|(peer, _)| is_other(*peer)))
}

fn credentials(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<(i32, u32)> {
    let copy = pidfd_getfd(pidfd, fd)?;
    let peer = getsockopt(&copy, PeerCredentials)?;
    Ok((peer.pid(), peer.uid()))
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitedFor {
    /// The descriptor that it reads from.
    Descriptor(i32),
    /// The only one that it polls, which stands in its memory, in a struct pollfd at this address.
    Polled(u64),
}

impl WaitedFor {
    fn descriptor(self, pid: i32) -> Option<i32> {
        match self {
            Self::Descriptor(fd) => Some(fd),
            Self::Polled(address) => {
                let mut first = [0; size_of::<i32>()];
                let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
                memory.read_exact_at(&mut first, address).ok()?;
                Some(i32::from_ne_bytes(first))
            }
        }
    }
}

/// By the call that it is in: proc_pid_syscall(5).
fn waited_for(call: &str) -> Option<WaitedFor> {
    let mut words = call.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    if [libc::SYS_recvmsg, libc::SYS_recvfrom, libc::SYS_read].contains(&number) {
        // The kernel takes the lower half of the register.
        Some(WaitedFor::Descriptor(argument()? as i32))
    } else if POLLS.contains(&number) {
        let address = argument()?;
        (argument()? == 1).then_some(WaitedFor::Polled(address))
    } else {
        None
    }
}

/// What the C library's poll(3) calls.
#[cfg(target_arch = "x86_64")]
const POLLS: [i64; 2] = [libc::SYS_poll, libc::SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const POLLS: [i64; 1] = [libc::SYS_ppoll];

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_thread_waits_for() {
        let call =
            |number: i64, second: &str| format!("{number} 0x5 {second} 0x0 0x0 0x0 0x0 0x7ffd 0x7f12\n");
        for (text, expected) in [
            (call(libc::SYS_recvmsg, "0x7ffd"), Some(WaitedFor::Descriptor(5))),
            (call(libc::SYS_ppoll, "0x1"), Some(WaitedFor::Polled(5))),
            (call(POLLS[0], "0x1"), Some(WaitedFor::Polled(5))),
            (call(POLLS[0], "0x2"), None),
            (call(libc::SYS_accept, "0x1"), None),
            (format!("{}\n", POLLS[0]), None),
            ("running\n".into(), None),
            ("-1 0x7ffd 0x7f12\n".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(waited_for(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_polled_is_read_from_memory() {
        let (here, _there) = UnixStream::pair().unwrap();
        let polled = libc::pollfd { fd: here.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let own = i32::try_from(std::process::id()).unwrap();
        let address = (&raw const polled).addr() as u64;
        assert_eq!(WaitedFor::Polled(address).descriptor(own), Some(here.as_raw_fd()));
        assert_eq!(WaitedFor::Polled(0).descriptor(own), None);
    }
}
