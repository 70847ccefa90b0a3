//! One connection: one request, its answers, and the end. Callers are anybody on this machine: what they send is bounded
//! in length, number and time, and they may go away at any moment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hooks::lease::{Answer, DeviceName, LINE_LIMIT, Request, VERSION};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::leases::Ticket;
use super::message::{Asked, Message};
use crate::container::caller::{self, Peer};
use crate::failure::printable;
use crate::sys;

/// How long a caller may take to say what it wants, and to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Devices and nodes that one request may name.
const MOST_DEVICES: usize = 256;
const MOST_NODES: usize = 4096;
/// The longest name of a device with its class, in bytes.
const MOST_NAME: usize = 512;

/// Why a connection came to nothing before there was a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not in time.
    #[error("no whole request came within {} seconds", PATIENCE.as_secs())]
    Silent,
    /// The caller said nothing and left: it looked whether somebody is here.
    #[error("the caller left without a word")]
    Nothing,
    /// The caller closed before the newline.
    #[error("the caller left in the middle of its request")]
    Half,
    /// More bytes than a request has.
    #[error("the request is longer than {LINE_LIMIT} bytes")]
    TooLong,
    /// No or several descriptors.
    #[error("a request comes with one descriptor, and this one came with {found}")]
    Descriptors {
        /// How many came.
        found: usize,
    },
    /// Not JSON, or not of a request.
    #[error("the request is malformed")]
    Malformed(#[from] serde_json::Error),
    /// Of another protocol.
    #[error("the request is of version {found}, and this divvy serves version {VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
    /// What it asks for is no name.
    #[error("the request asks for what no device is called")]
    Name,
    /// It names more than any container has.
    #[error("the request names more than {MOST_DEVICES} devices or {MOST_NODES} nodes")]
    TooMany,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

impl Error {
    /// The answer that such a caller gets, if it can still read one.
    pub fn answer(&self) -> Answer {
        let hint = match self {
            Self::Version { .. } => Some("install divvy and divvy-hook from one release".to_owned()),
            _ => None,
        };
        Answer::Refused { status: 1, message: self.to_string(), hint }
    }
}

/// Who is at the other end.
pub fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(&stream.as_fd(), PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

/// One connection from beginning to end.
pub async fn converse(mut stream: UnixStream, ticket: Ticket, peer: Peer, to: UnboundedSender<Message>) {
    match receive(&stream).await {
        Ok((request, descriptor)) => {
            let user = user_name(peer.uid).await;
            let (answers, mut answered) = mpsc::unbounded_channel();
            let _ =
                to.send(Message::Asked(Box::new(Asked { ticket, peer, request, descriptor, user, answers })));
            loop {
                tokio::select! {
                    answer = answered.recv() => match answer {
                        Some(answer) => {
                            write(&mut stream, &answer).await;
                            if !matches!(answer, Answer::Queued { .. }) {
                                break;
                            }
                        }
                        None => break,
                    },
                    () = left(&stream) => break,
                }
            }
        }
        Err(Error::Nothing) => {
            debug!(uid = peer.uid, pid = peer.pid, "a caller left without a word")
        }
        Err(error) => {
            let answer = error.answer();
            let why = printable(&format!("{:#}", anyhow::Error::new(error)));
            warn!(uid = peer.uid, pid = peer.pid, "turned a caller away: {why}");
            write(&mut stream, &answer).await;
        }
    }
    let _ = to.send(Message::Closed(ticket));
}

/// The user database may be on another machine: who comes from there waits for it, and nobody else.
async fn user_name(uid: u32) -> Result<Option<String>, caller::Error> {
    if uid == 0 {
        return Ok(None);
    }
    let asked = tokio::task::spawn_blocking(move || caller::name_of(uid)).await;
    asked.unwrap_or_else(|error| Err(caller::Error::User { uid, source: io::Error::other(error) }))
}

/// Reads the one request of a connection and the descriptor that came with it.
async fn receive(stream: &UnixStream) -> Result<(Request, OwnedFd), Error> {
    let (line, mut descriptors) = timeout(PATIENCE, read_line(stream)).await.map_err(|_| Error::Silent)??;
    let request = parse(&line)?;
    match (descriptors.pop(), descriptors.len()) {
        (Some(descriptor), 0) => Ok((request, descriptor)),
        (Some(_), others) => Err(Error::Descriptors { found: others + 1 }),
        (None, _) => Err(Error::Descriptors { found: 0 }),
    }
}

async fn read_line(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let received =
            stream.async_io(Interest::READABLE, || sys::receive(stream.as_fd(), &mut buffer)).await;
        let (read, more) = received?;
        descriptors.extend(more);
        let part = buffer.get(..read).unwrap_or_default();
        let end = part.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(part.get(..end.unwrap_or(read)).unwrap_or_default());
        match (end, read) {
            _ if line.len() >= LINE_LIMIT => return Err(Error::TooLong),
            _ if descriptors.len() > 1 => return Err(Error::Descriptors { found: descriptors.len() }),
            (Some(_), _) => return Ok((line, descriptors)),
            (None, 0) if line.is_empty() => return Err(Error::Nothing),
            (None, 0) => return Err(Error::Half),
            (None, _) => {}
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, Error> {
    #[derive(serde::Deserialize)]
    struct AnyVersion {
        version: u64,
    }
    let AnyVersion { version } = serde_json::from_slice(line)?;
    if version != u64::from(VERSION) {
        return Err(Error::Version { found: version });
    }
    let request: Request = serde_json::from_slice(line)?;
    // They come back in words, on terminals too.
    let is_name = |device: &DeviceName| {
        let word = device.to_string();
        word.len() <= MOST_NAME && word.parse().is_ok_and(|parsed: DeviceName| parsed == *device)
    };
    if !request.devices.iter().all(is_name) {
        return Err(Error::Name);
    }
    if request.devices.len() > MOST_DEVICES || request.nodes.len() > MOST_NODES {
        return Err(Error::TooMany);
    }
    Ok(request)
}

/// Writes an answer; whether somebody reads it changes nothing.
async fn write(stream: &mut UnixStream, answer: &Answer) {
    let Ok(mut line) = serde_json::to_vec(answer) else { return };
    line.push(b'\n');
    let _ = timeout(PATIENCE, stream.write_all(&line)).await;
}

/// Returns when the caller has closed its end. What it says after its request is read and forgotten, a little of it:
/// who goes on has left too.
async fn left(stream: &UnixStream) {
    let mut buffer = [0; 512];
    for _ in 0..16 {
        let received =
            stream.async_io(Interest::READABLE, || sys::receive(stream.as_fd(), &mut buffer)).await;
        if !matches!(received, Ok((1.., _))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_told_why() {
        let request = |rest: &str| {
            format!(
                "{{\"version\":1,\"id\":\"c\",\"bundle\":\"/b\",\"labels\":{{}},\"unbound\":null,{rest}}}"
            )
        };
        let nodes = vec!["\"/dev/nvidia0\""; MOST_NODES + 1].join(",");
        for (line, said) in [
            (String::new(), "the request is malformed"),
            ("[]".into(), "the request is malformed"),
            ("{\"version\":2}".into(), "the request is of version 2, and this divvy serves version 1"),
            ("{\"version\":1}".into(), "the request is malformed"),
            (
                request(&format!("\"devices\":[],\"nodes\":[{nodes}]")),
                "the request names more than 256 devices or 4096 nodes",
            ),
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().to_string(), said, "{line:.80}");
        }
        for name in ["\\u001b[2J", "../0", "", &"x".repeat(MOST_NAME)] {
            let named =
                request(&format!("\"devices\":[{{\"class\":\"gpu\",\"name\":\"{name}\"}}],\"nodes\":[]"));
            assert!(matches!(parse(named.as_bytes()), Err(Error::Name)), "{name}");
        }
        let whole = request("\"devices\":[{\"class\":\"gpu\",\"name\":\"shared\"}],\"nodes\":[]");
        assert_eq!(parse(whole.as_bytes()).unwrap().devices.len(), 1);
    }
}
