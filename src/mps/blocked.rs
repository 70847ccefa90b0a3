//! Who keeps a control daemon busy: it listens to one peer at a time, for as long as that one takes to say something. Found
//! by the system call that the daemon is in, on which descriptor, and who is at the other end.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::foreign::named;
use super::reason::Reason;
use crate::sys::{pidfd_getfd, pidfd_open};

/// Says why a control daemon does not answer.
pub fn reason(what: &str, uuid: &str, control: i32, server: Option<i32>) -> Reason {
    match peer(control) {
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

/// Process and user at the other end of the socket that a process reads from, as this machine counts both.
fn peer(pid: i32) -> Option<(i32, u32)> {
    let pidfd = pidfd_open(pid).ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    let fds: Vec<i32> = calls.filter_map(|call| read_from(&call)).collect();
    fds.into_iter().find_map(|fd| credentials(pidfd.as_fd(), fd).ok().filter(|(peer, _)| *peer > 0))
}

fn credentials(pidfd: std::os::fd::BorrowedFd<'_>, fd: i32) -> io::Result<(i32, u32)> {
    let copy = pidfd_getfd(pidfd, fd)?;
    let peer = getsockopt(&copy, PeerCredentials)?;
    Ok((peer.pid(), peer.uid()))
}

/// The descriptor that a thread reads from: proc_pid_syscall(5).
fn read_from(call: &str) -> Option<i32> {
    let mut words = call.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let reads = [libc::SYS_recvmsg, libc::SYS_recvfrom, libc::SYS_read];
    if !reads.contains(&number) {
        return None;
    }
    i32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_reads_from() {
        let call = |number: i64| format!("{number} 0x5 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd 0x7f12\n");
        for (text, expected) in [
            (call(libc::SYS_recvmsg), Some(5)),
            (call(libc::SYS_poll), None),
            ("running\n".into(), None),
            ("-1 0x7ffd 0x7f12\n".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(read_from(&text), expected, "{text:?}");
        }
    }
}
