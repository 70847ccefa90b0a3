//! Who connects to MPS: a client, in the words of NVIDIA's protocol, one who goes on talking to the control daemon, and one
//! who says nothing.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, connect, recv, recvmsg, send, sendmsg, socket,
};

/// A process that is connected as long as this lives.
pub struct Peer {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Peer {
    /// A client of the server, of a user.
    pub fn client(front: &Path, uid: u32) -> Self {
        Self::start(front, "client", uid)
    }

    /// A client that does not leave the control daemon alone when it has its server.
    pub fn lingering(front: &Path) -> Self {
        Self::start(front, "lingering", 0)
    }

    /// One that says nothing.
    pub fn silent(front: &Path) -> Self {
        Self::start(front, "silent", 0)
    }

    /// One that connects again and again, and says nothing.
    pub fn crowd(front: &Path) -> Self {
        Self::start(front, "crowd", 0)
    }

    fn start(front: &Path, kind: &str, uid: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["as-client", kind]).arg(front.join("control"));
        command.uid(uid).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        Self { child, said }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Leaves, and says whether it was still connected.
    pub fn leave(mut self) -> bool {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line == "still connected\n"
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `as-client KIND SOCKET`: stays until its standard input ends.
pub fn client(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let [kind, path] = &words[..] else { return ExitCode::FAILURE };
    let greeted = greeted(Path::new(path)).unwrap();
    let _crowd = (kind == "crowd").then(|| crowd(Path::new(path)));
    let connection = match kind.as_str() {
        "silent" | "crowd" => greeted.as_raw_fd(),
        _ => served(&greeted).unwrap(),
    };
    let _held = (kind != "client").then_some(greeted);
    println!("connected");
    let _ = io::stdin().read(&mut [0]);
    let is_connected = recv(connection, &mut [0], MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN);
    println!("{}", if is_connected { "still connected" } else { "alone" });
    ExitCode::SUCCESS
}

/// Connects, and is greeted by a control daemon, or by a tombstone.
pub fn greeted(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut greeting = [0; 64];
    let length = recv(fd.as_raw_fd(), &mut greeting, MsgFlags::empty())?;
    assert_eq!(&greeting[..length], b"OUTBHELL\0");
    Ok(fd)
}

/// As many connections as wait to be accepted, and for longer than a supervisor needs to find out whom the daemon hears.
fn crowd(path: &Path) -> Vec<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let address = UnixAddr::new(path).unwrap();
    let connected = |_| {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(fd.as_raw_fd(), &address).is_ok().then_some(fd)
    };
    (0..40).map_while(connected).collect()
}

/// Whether who greeted hangs up by itself.
pub fn is_turned_away(path: &Path) -> bool {
    let fd = greeted(path).unwrap();
    recv(fd.as_raw_fd(), &mut [0], MsgFlags::empty()) == Ok(0)
}

/// A connection to the server, which the control daemon hands over; it serves nobody else until it is left alone. It is
/// open until this process ends.
fn served(control: &OwnedFd) -> io::Result<RawFd> {
    const CLIENT: u32 = 2;
    introduce(control.as_raw_fd())?;
    send(control.as_raw_fd(), &CLIENT.to_ne_bytes(), MsgFlags::empty())?;
    let mut bytes = [0; 64];
    let mut space = cmsg_space!(UnixCredentials, [RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let server = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let server = server.ok_or_else(|| io::Error::other("no server was handed over"))?;
    recv(server, &mut [0; 64], MsgFlags::empty())?;
    introduce(server)?;
    Ok(server)
}

/// Says who this is.
fn introduce(fd: RawFd) -> io::Result<()> {
    let own = [ControlMessage::ScmCredentials(&UnixCredentials::new())];
    sendmsg::<()>(fd, &[IoSlice::new(b"OUTBCRED\0")], &own, MsgFlags::empty(), None)?;
    Ok(())
}
