//! A connection to a control socket, that says what it likes.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::sockopt::{PassCred, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, connect, recv, recvmsg, sendmsg, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use nix::unistd::close;

use crate::ground::PATIENCE;

pub const CREDENTIALS: &[u8] = b"OUTBCRED\0";
pub const CLIENT: &[u8] = &2_u32.to_ne_bytes();
pub const COMMANDS: &[u8] = &4_u32.to_ne_bytes();
/// A question, after its length.
pub const QUESTION: [&[u8]; 2] = [&38_u64.to_ne_bytes(), b"get_default_active_thread_percentage\n\0"];

/// A connection.
pub struct Stranger(RawFd);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = close(self.0);
    }
}

impl Stranger {
    /// One, if the daemon listens.
    pub fn connected(path: &Path) -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        setsockopt(&socket, PassCred, &true).unwrap();
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs().cast_signed(), 0)).unwrap();
        let stranger = Self(socket.into_raw_fd());
        connect(stranger.0, &UnixAddr::new(path).unwrap()).is_ok().then_some(stranger)
    }

    /// One that was greeted.
    pub fn greeted(path: &Path) -> Self {
        let stranger = Self::connected(path).unwrap();
        stranger.is_greeted();
        stranger
    }

    /// Demands that the other end greets.
    pub fn is_greeted(&self) {
        assert_eq!(self.hears(), b"OUTBHELL\0");
    }

    /// Says something, if only to who has hung up.
    pub fn say(&self, message: &[u8]) {
        self.send(message, &[]);
    }

    /// Says one thing after the other.
    pub fn say_all(&self, messages: &[&[u8]]) {
        messages.iter().for_each(|message| self.say(message));
    }

    /// Sends a message with descriptors.
    pub fn pass(&self, message: &[u8], descriptors: &[RawFd]) {
        self.send(message, &[ControlMessage::ScmRights(descriptors)]);
    }

    /// Says to be another process.
    pub fn claim(&self, pid: u32) {
        let credentials = libc::ucred { pid: pid.cast_signed(), uid: 0, gid: 0 };
        self.send(CREDENTIALS, &[ControlMessage::ScmCredentials(&UnixCredentials::from(credentials))]);
    }

    fn send(&self, message: &[u8], with: &[ControlMessage<'_>]) {
        let message = [IoSlice::new(message)];
        let sent = sendmsg::<()>(self.0, &message, with, MsgFlags::MSG_NOSIGNAL, None);
        // A message that is too long for the socket's buffer is no message.
        let is_so = |error| matches!(error, Errno::EPIPE | Errno::ECONNRESET | Errno::EMSGSIZE);
        assert!(sent.is_ok() || sent.is_err_and(is_so), "{sent:?}");
    }

    /// The next message; an empty one at the end.
    pub fn hears(&self) -> Vec<u8> {
        let mut message = [0; 4096];
        match recv(self.0, &mut message, MsgFlags::empty()) {
            Ok(length) => message[..length].to_vec(),
            Err(Errno::ECONNRESET) => Vec::new(),
            Err(error) => panic!("neither word nor end: {error}"),
        }
    }

    /// As a client, the connection to the server that the daemon hands over.
    pub fn is_handed_over(&self) -> Self {
        // That the daemon left something unread is said once, before what it sent.
        let passed = self.passed().or_else(|error| match error {
            Errno::ECONNRESET => self.passed(),
            other => Err(other),
        });
        Self(passed.unwrap().unwrap())
    }

    fn passed(&self) -> nix::Result<Option<RawFd>> {
        let mut message = [0; 64];
        let (mut parts, mut space) =
            ([IoSliceMut::new(&mut message)], nix::cmsg_space!(RawFd, UnixCredentials));
        let received = recvmsg::<()>(self.0, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        Ok(received.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        }))
    }

    /// Demands that the daemon says no more.
    pub fn is_hung_up_on(&self, why: &str) {
        assert_eq!(self.hears(), b"", "{why}");
    }
}

/// Another process, which says that it has commands and is gone before it is looked at.
pub fn passer_by(path: &Path) {
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).arg("as-passer-by").env("SOCKET", path).status().unwrap();
    assert!(status.success());
}

/// That process.
pub fn pass_by() -> ExitCode {
    let path = std::env::var_os("SOCKET").unwrap();
    // It does not wait for the greeting, which the daemon is stopped for.
    let stranger = Stranger::connected(Path::new(&path)).unwrap();
    stranger.say_all(&[CREDENTIALS, COMMANDS, QUESTION[0], QUESTION[1]]);
    ExitCode::SUCCESS
}

/// A container of its own that connects so often, and says nothing. Returns whether it was hung up on each time, and then
/// heard as a client who speaks at once.
pub fn silent_container(path: &Path, times: u32) -> bool {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE.as_secs().to_string()).arg(std::env::current_exe().unwrap());
    command.arg("as-silent-container").env("SOCKET", path).env("TIMES", times.to_string());
    command.status().unwrap().success()
}

/// That container.
pub fn say_nothing() -> ExitCode {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let path = std::env::var_os("SOCKET").unwrap();
    let path = Path::new(&path);
    let times: u32 = std::env::var("TIMES").unwrap().parse().unwrap();
    let silent: Vec<_> = (0..times).map(|_| Stranger::connected(path).unwrap()).collect();
    for stranger in silent {
        stranger.is_greeted();
        stranger.is_hung_up_on("silence");
    }
    let client = Stranger::connected(path).unwrap();
    // Before it is greeted: with that the guard's patience would count.
    client.say_all(&[CREDENTIALS, CLIENT]);
    client.is_greeted();
    client.is_handed_over().is_greeted();
    ExitCode::SUCCESS
}
