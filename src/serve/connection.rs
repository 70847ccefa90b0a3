//! One connection: one request, its answers, and the end. Callers are anybody on this machine: what they send is bounded
//! in length, number and time, and they may go away at any moment.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hooks::lease::{Answer, DeviceName, LINE_LIMIT, Request, VERSION};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{MsgFlags, getsockopt, send};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::spawn_blocking;
use tracing::{debug, error, warn};

use super::leases::Ticket;
use super::message::{Asked, Message};
use crate::container::caller::{self, Peer};
use crate::failure::printable;
use crate::sys;

/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// Devices and nodes that one request may name.
const MOST_DEVICES: usize = 256;
const MOST_NODES: usize = 4096;
/// Bytes of a path (PATH_MAX), and of all annotations of a container.
const MOST_PATH: usize = 4096;
const MOST_ANNOTATIONS: usize = 16 << 10;
/// Of a thread that only closes, in bytes.
const CLOSING_STACK: usize = 64 << 10;
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
    /// Its labels are no labels.
    #[error("the request's {what} is longer than {most} bytes")]
    Long {
        /// In words.
        what: &'static str,
        /// In bytes.
        most: usize,
    },
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

/// One connection from beginning to end. `person` is whose it is.
///
/// On kernels before 6.16 a caller can send descriptors, which nobody here takes and whose last reference may be this
/// process's: to let one go can take as long as its owner likes (a socket that lingers). So whatever reads from a connection
/// or closes it does so on a thread of its own, and the connection counts until then.
pub async fn converse(
    stream: UnixStream,
    ticket: Ticket,
    peer: Peer,
    person: u32,
    to: UnboundedSender<Message>,
) {
    let received = spawn_blocking(move || {
        let received = receive(&stream);
        (stream, received)
    });
    if let Ok((stream, received)) = received.await {
        match received {
            Ok(request) => {
                let user = user_name(person).await;
                serve(stream, ticket, peer, request, user, &to).await;
            }
            Err(error) => {
                if matches!(error, Error::Nothing) {
                    debug!(uid = peer.uid, pid = peer.pid, "a caller left without a word");
                } else {
                    write(stream.as_fd(), &error.answer());
                    let why = printable(&format!("{:#}", anyhow::Error::new(error)));
                    warn!(uid = peer.uid, pid = peer.pid, "turned a caller away: {why}");
                }
                close(stream.into()).await;
            }
        }
    }
    let _ = to.send(Message::Closed(ticket));
}

async fn serve(
    stream: UnixStream,
    ticket: Ticket,
    peer: Peer,
    request: Request,
    user: Result<Option<String>, caller::Error>,
    to: &UnboundedSender<Message>,
) {
    let (answers, mut answered) = mpsc::unbounded_channel();
    let _ = to.send(Message::Asked(Box::new(Asked { ticket, peer, request, user, answers })));
    let stream = match sys::watched(stream.into()) {
        Ok(stream) => stream,
        Err(error) => return error!("a caller gets no answer: {error}"),
    };
    loop {
        tokio::select! {
            answer = answered.recv() => match answer {
                Some(answer) => {
                    write(stream.as_fd(), &answer);
                    if !matches!(answer, Answer::Queued { .. }) {
                        break;
                    }
                }
                None => break,
            },
            // It has left, or says more than a request: who goes on has left too.
            _ = stream.readable() => break,
        }
    }
    close(stream.into_inner()).await;
}

async fn close(stream: OwnedFd) {
    let _ = spawn_blocking(move || drop(stream)).await;
}

/// Closes the connection of a caller who is not listened to.
pub fn turn_away(stream: UnixStream) {
    let closing = thread::Builder::new().stack_size(CLOSING_STACK).spawn(move || drop(stream));
    if let Err(error) = closing {
        error!("cannot turn a caller away: {error}");
    }
}

/// The user database may be on another machine: who comes from there waits for it, and nobody else.
async fn user_name(uid: u32) -> Result<Option<String>, caller::Error> {
    if uid == 0 {
        return Ok(None);
    }
    let asked = spawn_blocking(move || caller::name_of(uid)).await;
    asked.unwrap_or_else(|error| Err(caller::Error::User { uid, source: io::Error::other(error) }))
}

/// Reads the one request of a connection.
fn receive(mut stream: &UnixStream) -> Result<Request, Error> {
    let until = Instant::now() + PATIENCE;
    let mut line = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Silent);
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error.into()),
        };
        let part = buffer.get(..read).unwrap_or_default();
        let end = part.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(part.get(..end.unwrap_or(read)).unwrap_or_default());
        match (end, read) {
            _ if line.len() >= LINE_LIMIT => return Err(Error::TooLong),
            (Some(_), _) => return parse(&line),
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
    short_labels(&request)?;
    Ok(request)
}

/// They are written down with the lease, and into the log.
fn short_labels(request: &Request) -> Result<(), Error> {
    let labels = &request.labels;
    let annotations = labels.annotations.iter().map(|(name, text)| name.len() + text.len()).sum();
    let path = |path: &Path| path.as_os_str().len();
    for (what, length, most) in [
        ("id", request.id.len(), MOST_NAME),
        ("bundle", path(&request.bundle), MOST_PATH),
        ("hostname_file", labels.hostname_file.as_deref().map_or(0, path), MOST_PATH),
        ("podman_name", labels.podman_name.as_ref().map_or(0, String::len), MOST_NAME),
        ("annotations", annotations, MOST_ANNOTATIONS),
    ] {
        if length > most {
            return Err(Error::Long { what, most });
        }
    }
    Ok(())
}

/// Writes an answer; whether somebody reads it changes nothing. It is shorter than what a socket holds.
fn write(stream: BorrowedFd<'_>, answer: &Answer) {
    let Ok(mut line) = serde_json::to_vec(answer) else { return };
    line.push(b'\n');
    if let Err(error) = send(stream.as_raw_fd(), &line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        debug!("an answer was not read: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_told_why() {
        let request = |rest: &str| {
            format!(
                "{{\"version\":1,\"pid\":1,\"start_time\":1,\"id\":\"c\",\"bundle\":\"/b\",\"labels\":{{}},\"unbound\":null,{rest}}}"
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
