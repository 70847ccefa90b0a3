//! Messages as they go over the wire: a packet each, numbers in the machine's order.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, connect, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

const GREETING: &[u8] = b"OUTBHELL\0";
const CREDENTIALS: &[u8] = b"OUTBCRED\0";

/// One packet, and what came with it.
pub struct Packet {
    pub bytes: Vec<u8>,
    pub fd: Option<OwnedFd>,
    pub credentials: Option<UnixCredentials>,
}

/// Connects, waits to be greeted, and says who this is.
pub fn call(path: &str) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    receive(&fd)?;
    let own = [ControlMessage::ScmCredentials(&UnixCredentials::new())];
    sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(CREDENTIALS)], &own, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(fd)
}

/// Greets a client.
pub fn greet(fd: &OwnedFd) -> io::Result<()> {
    setsockopt(fd, sockopt::PassCred, &true)?;
    send(fd, GREETING)
}

pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// The next packet; an empty one is the end.
pub fn receive(fd: &OwnedFd) -> io::Result<Packet> {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!(UnixCredentials, [RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let (mut received, mut credentials) = (None, None);
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(fds) => received = fds.first().map(|fd| owned(*fd)),
            ControlMessageOwned::ScmCredentials(found) => credentials = Some(found),
            _ => {}
        }
    }
    let length = message.bytes;
    Ok(Packet { bytes: bytes[..length].to_vec(), fd: received, credentials })
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this process, and nobody else here has it.
    #[expect(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

pub fn u32_of(bytes: &[u8]) -> io::Result<u32> {
    let bytes =
        bytes.try_into().map_err(|_| io::Error::other(format!("{bytes:?} is no number of 32 bits")))?;
    Ok(u32::from_ne_bytes(bytes))
}

pub fn u64_of(bytes: &[u8]) -> io::Result<u64> {
    let bytes =
        bytes.try_into().map_err(|_| io::Error::other(format!("{bytes:?} is no number of 64 bits")))?;
    Ok(u64::from_ne_bytes(bytes))
}
