//! Callers that send descriptors with what they say (unix(7), SCM_RIGHTS): the daemon gets none from Linux 6.16 on, and
//! keeps none before. Closing one can take as long as its owner likes, so nobody else may have to wait for that.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use hooks::lease::Request;
use nix::libc::linger;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::client::{Call, granted, line, send};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::{Ground, SHARES, wait_until};
use crate::hostile::{is_unharmed, open_at_rest};

pub const TRIALS: [(&str, fn()); 2] = [
    ("descriptors_are_left_out", || descriptors_are_left_out(&[])),
    ("sockets_that_linger", || sockets_that_linger(&[])),
];

/// These need a compiler: the daemon is told that its kernel is of before.
pub const ON_OLD_KERNELS: [(&str, fn()); 2] = [
    ("descriptors_are_left_out_on_old_kernels", || on_an_old_kernel(descriptors_are_left_out)),
    ("sockets_that_linger_on_old_kernels", || on_an_old_kernel(sockets_that_linger)),
];

type Environment<'a> = &'a [(&'a str, &'a str)];

fn on_an_old_kernel(test: fn(Environment<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("old-kernel.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leases/old-kernel.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&library).arg(source);
    assert!(cc.status().unwrap().success());
    test(&[("LD_PRELOAD", library.to_str().unwrap())]);
}

/// Whether senders are told that nobody takes descriptors.
fn are_refused(environment: Environment<'_>) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    environment.is_empty() && (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

/// Says this, with descriptors if anybody takes them.
#[track_caller]
fn push(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>], are_refused: bool) {
    match send(stream, bytes, descriptors) {
        Ok(()) => assert!(!are_refused, "the daemon takes descriptors"),
        Err(error) => {
            assert_eq!((error.kind(), are_refused), (ErrorKind::PermissionDenied, true), "{error}");
            let mut stream = stream;
            stream.write_all(bytes).unwrap();
        }
    }
}

fn descriptors_are_left_out(environment: Environment<'_>) {
    let are_refused = are_refused(environment);
    for is_held in [false, true] {
        let ground = Ground::new(SHARES);
        let held = is_held.then(|| UnixListener::bind(ground.socket()).unwrap());
        let daemon = Daemon::start_with(&ground, held, environment);
        let open = open_at_rest(&ground, &daemon);
        let container = Container::start();
        let request = line(&ground.request(&container, &["gpu=shared-0"]));
        let to_itself = UnixStream::connect(ground.socket()).unwrap();
        let files =
            ["/dev/null", "/", "/proc/self/ns/mnt", "/proc/self/mem"].map(|path| File::open(path).unwrap());
        let one_of_each: Vec<BorrowedFd<'_>> =
            files.iter().map(AsFd::as_fd).chain([to_itself.as_fd()]).collect();
        // As many as the kernel lets pass at once (SCM_MAX_FD).
        let many = vec![files[0].as_fd(); 253];
        for descriptors in [&one_of_each[..1], &one_of_each, &many] {
            let (first, second) = request.split_at(request.len() / 2);
            for (before, with) in [(&b""[..], &request[..]), (first, second)] {
                let stream = UnixStream::connect(ground.socket()).unwrap();
                (&stream).write_all(before).unwrap();
                push(&stream, with, descriptors, are_refused);
                assert_eq!(granted(Call::over(stream).unwrap().last()).len(), 1);
            }
            // And leaves without a whole request.
            let stream = UnixStream::connect(ground.socket()).unwrap();
            push(&stream, b"x", descriptors, are_refused);
        }
        drop((to_itself, container));
        ground.wait_for_leases(0);
        is_unharmed(&ground, &daemon, open);
    }
}

/// A connection within this machine whose last owner waits an hour for what the other end does not read.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    while (&near).write(&[b'x'; 1 << 16]).is_ok() {}
    near.set_nonblocking(false).unwrap();
    linger_for(&near, 3600);
    (near, far)
}

fn linger_for(socket: &TcpStream, seconds: i32) {
    setsockopt(socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: seconds }).unwrap();
}

fn sockets_that_linger(environment: Environment<'_>) {
    const SOCKETS: usize = 16;
    let are_refused = are_refused(environment);
    let ground = Ground::new(SHARES);
    let daemon = Daemon::start_with(&ground, None, environment);
    let open = open_at_rest(&ground, &daemon);
    let signal = |signal| kill(Pid::from_raw(daemon.pid()), signal).unwrap();
    let container = Container::start();
    let wrong = line(&Request { start_time: 0, ..ground.request(&container, &["gpu=shared"]) });
    // Stopped, until this process has none of them any more: who closes one last is the one who waits.
    signal(Signal::SIGSTOP);
    let mut far_ends = Vec::new();
    // With what is no request, with one that is refused, and with one that is not whole.
    for bytes in [&b"{}\n"[..], &wrong, b"{"].into_iter().cycle().take(SOCKETS) {
        let (near, far) = lingering();
        far_ends.push(far);
        let stream = UnixStream::connect(ground.socket()).unwrap();
        push(&stream, bytes, &[near.as_fd()], are_refused);
        if are_refused {
            linger_for(&near, 0);
        }
        drop((stream, near));
    }
    signal(Signal::SIGCONT);
    granted(ground.ask(&container, &["gpu=shared-0"]));
    if !are_refused {
        // Each holds up a thread, or this would try nothing.
        wait_until("all to linger", || daemon.status("Threads") > SOCKETS as u64);
    }
    drop(container);
    ground.wait_for_leases(0);
    granted(ground.ask(&Container::start(), &["gpu=shared-0"]));
    ground.wait_for_leases(0);
    drop(far_ends);
    is_unharmed(&ground, &daemon, open);
}
