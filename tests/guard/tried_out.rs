//! What the supervisor finds out about a control daemon before it opens it to containers.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send, socket,
};

use crate::ground::{Daemon, Named, PATIENCE, Server, library, wait};
use crate::guard::{Unguarded, check};
use crate::stranger::{CREDENTIALS, Stranger};
use crate::support::mps::MpsFiles;

pub const TRIALS: [Named; 3] = [
    ("a_guarded_daemon_is_found_so", a_guarded_daemon_is_found_so),
    ("a_daemon_without_the_guard_is_not_used", a_daemon_without_the_guard_is_not_used),
    ("a_daemon_that_somebody_holds_up_is_tried_out_all_the_same", one_that_is_held_up),
];
pub const WITHOUT_NVIDIAS: [(&str, fn()); 2] = [
    ("a_daemon_that_waits_for_the_silent_is_not_used", a_daemon_that_waits_for_the_silent_is_not_used),
    ("where_nothing_listens_nothing_is_found_out", where_nothing_listens_nothing_is_found_out),
];

fn a_guarded_daemon_is_found_so(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let before = daemon.descriptors();
    for socket in ["pipe/control", "front/control"] {
        check(&daemon.path(socket), PATIENCE).unwrap();
    }
    assert_eq!(daemon.descriptors(), before);
}

fn a_daemon_without_the_guard_is_not_used(files: &MpsFiles) {
    let daemon = Daemon::unguarded(files, Server::StandIn);
    let found = check(&daemon.front(), PATIENCE);
    assert!(matches!(found, Err(Unguarded::Heard { .. })), "{found:?}");
    // Nor one whose socket is called as none of a container's is.
    let daemon = Daemon::guarded(files, Server::StandIn);
    let found = check(&daemon.path("pipe/control_privileged"), PATIENCE);
    assert!(matches!(found, Err(Unguarded::Heard { .. })), "{found:?}");
}

fn one_that_is_held_up(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let silent: Vec<_> = (0..3).map(|_| Stranger::connected(&daemon.front()).unwrap()).collect();
    silent.iter().for_each(|stranger| stranger.say(CREDENTIALS));
    check(&daemon.front(), PATIENCE).unwrap();
    // Without the guard it is never known.
    let daemon = Daemon::unguarded(files, Server::StandIn);
    let _silent = Stranger::greeted(&daemon.front());
    let found = check(&daemon.front(), Duration::from_secs(1));
    assert!(matches!(found, Err(Unguarded::Untried { .. })), "{found:?}");
}

/// It greets, hangs up on whoever says anything at all, and waits for everybody else.
fn a_daemon_that_waits_for_the_silent_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listener = listener(&path);
    thread::spawn(move || {
        loop {
            let caller = accept(listener.as_raw_fd()).unwrap();
            // Whoever only looked whether it listens is gone by now.
            let _ = send(caller, b"OUTBHELL\0", MsgFlags::MSG_NOSIGNAL);
            let _ = recv(caller, &mut [0; 16], MsgFlags::empty());
            nix::unistd::close(caller).unwrap();
        }
    });
    wait("it listens", || Stranger::connected(&path).is_some());
    let found = check(&path, Duration::from_secs(2));
    assert!(matches!(found, Err(Unguarded::Waits { .. })), "{found:?}");
}

fn where_nothing_listens_nothing_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("control");
    assert!(matches!(check(&missing, PATIENCE), Err(Unguarded::Untried { .. })));
    let long = PathBuf::from(format!("/{}", "x".repeat(200)));
    assert!(matches!(check(&long, PATIENCE), Err(Unguarded::Untried { .. })));
    // The library is where `find` looks.
    assert!(library().is_file());
}

fn listener(path: &Path) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    listener
}
