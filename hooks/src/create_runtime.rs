//! createRuntime: asks the daemon for the leased devices of a container, before the container has any of them. It runs in
//! the engine's namespaces, as root or as the root of a rootless engine's user namespace, and touches nothing but the
//! socket. A daemon that is away is waited for; what it says is bounded, in length and in time, and only statuses that it
//! may give are believed.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;

use crate::ancestry;
use crate::args::CreateRuntime;
use crate::lease::{Answer, DeviceName, LINE_LIMIT, Request, SOCKET, VERSION};
use crate::state::{self, Asked, Container};
use crate::tree::Tree;

/// Between two attempts to reach a daemon that is just starting.
const PAUSE: Duration = Duration::from_millis(50);
/// Even a start that shall not wait gives a daemon that is there this long to answer.
const SHORTEST: Duration = Duration::from_secs(1);
/// No queue is believed to be longer than a week, in seconds.
const LONGEST_QUEUE: u64 = 7 * 24 * 3600;
/// As much of a daemon's words is repeated, in characters.
const LONGEST_MESSAGE: usize = 4096;
/// Statuses that a daemon may refuse with.
const STATUSES: [u8; 4] = [1, 3, 5, 6];

/// Why the container has no lease.
#[derive(Debug, Error)]
pub enum Error {
    /// The daemon did not answer in time.
    #[error("divvy's daemon does not answer at {socket:?}")]
    Away {
        /// Its socket on the host.
        socket: PathBuf,
        /// What happened last.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// Exit status.
        status: u8,
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// What the daemon said is no answer.
    #[error("divvy's daemon at {socket:?} gave an answer that this release does not understand")]
    Answer {
        /// Its socket on the host.
        socket: PathBuf,
    },
    /// The daemon does not come to an end.
    #[error("divvy's daemon at {socket:?} gave an answer longer than {LINE_LIMIT} bytes")]
    LongAnswer {
        /// Its socket on the host.
        socket: PathBuf,
    },
    /// There is too much to say of this container.
    #[error("the request for this container has {length} bytes, of which the daemon takes {LINE_LIMIT}")]
    LongRequest {
        /// In bytes.
        length: usize,
    },
    /// The request cannot be written as JSON.
    #[error("the request for this container cannot be written")]
    Request {
        /// Why.
        source: serde_json::Error,
    },
}

impl Error {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Away { .. } => 4,
            Self::Refused { status, .. } if STATUSES.contains(status) => *status,
            _ => 1,
        }
    }

    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Away { .. } => {
                Some("start the daemon: systemctl start divvy.socket (or divvy serve as root)")
            }
            Self::Refused { hint, .. } => hint.as_deref(),
            Self::Answer { .. } | Self::LongAnswer { .. } => {
                Some("install hook and daemon from one release, and restart the daemon")
            }
            Self::LongRequest { .. } => Some("ask for fewer devices in one container"),
            Self::Request { .. } => None,
        }
    }
}

/// What the daemon is asked for a container whose bundle and configuration are these.
///
/// # Errors
/// When the state does not say which container it is.
pub fn request(
    container: &Container,
    start_time: u64,
    bundle: PathBuf,
    asked: Asked,
) -> Result<Request, state::Error> {
    let mut labels = asked.labels;
    labels.podman_name = ancestry::podman_name(container.id()?);
    for (name, text) in container.annotations() {
        labels.annotations.entry(name.clone()).or_insert_with(|| text.clone());
    }
    Ok(Request {
        version: VERSION,
        pid: container.pid()?,
        start_time,
        id: container.id()?.to_owned(),
        bundle,
        devices: asked.devices,
        user: asked.user,
        nodes: asked.nodes,
        unbound: asked.unbound,
        labels,
    })
}

/// How long [`ask`] may take, unless it is told to queue.
pub fn patience(words: &CreateRuntime) -> Duration {
    Duration::from_secs(words.start_timeout.into()).max(SHORTEST)
}

/// Asks the daemon and gives what it granted. Where the container queues, `queues` is told how long from now on this may take at most.
///
/// # Errors
/// [`Error`].
pub fn ask(
    words: &CreateRuntime,
    request: &Request,
    queues: impl FnMut(Duration),
) -> Result<Vec<DeviceName>, Error> {
    let mut line = serde_json::to_vec(request).map_err(|source| Error::Request { source })?;
    line.push(b'\n');
    if line.len() > LINE_LIMIT {
        return Err(Error::LongRequest { length: line.len() });
    }
    let patience = patience(words);
    let socket = words.state_dir.join(SOCKET);
    let mut asking = Asking {
        socket: &socket,
        line: &line,
        patience,
        until: Instant::now() + patience,
        queue: None,
        queues,
    };
    loop {
        match asking.attempt() {
            Err(Broken::Away(source)) if asking.is_over() => return Err(Error::Away { socket, source }),
            Err(Broken::Away(_)) => thread::sleep(PAUSE),
            Err(Broken::Final(error)) => return Err(error),
            Ok(devices) => return Ok(devices),
        }
    }
}

struct Asking<'a, F> {
    socket: &'a Path,
    line: &'a [u8],
    patience: Duration,
    /// When a daemon that has not answered is given up.
    until: Instant,
    /// When the daemon that had it queue first should have said yes or no.
    queue: Option<Instant>,
    queues: F,
}

/// Why an attempt came to nothing.
enum Broken {
    /// The daemon may be there a moment later.
    Away(io::Error),
    /// Nothing will change.
    Final(Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Away(error)
    }
}

impl<F: FnMut(Duration)> Asking<'_, F> {
    fn is_over(&self) -> bool {
        Instant::now() + PAUSE >= self.until
    }

    fn attempt(&mut self) -> Result<Vec<DeviceName>, Broken> {
        let mut stream = self.connect()?;
        // A daemon may refuse before it has read all, and close: then its answer is there all the same.
        match stream.write_all(self.line) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        let mut lines = Lines { stream, bytes: Vec::new() };
        let mut until = self.until;
        loop {
            let line = match lines.next(until) {
                Ok(Some(line)) => line,
                Ok(None) => return Err(Broken::Final(Error::LongAnswer { socket: self.socket.to_owned() })),
                Err(error) => {
                    self.lost_its_place(until);
                    return Err(error.into());
                }
            };
            match answer(&line) {
                Some(Answer::Granted { devices }) => return Ok(devices),
                Some(Answer::Queued { seconds, .. }) => until = self.queue(seconds),
                Some(Answer::Refused { status, message, hint }) => {
                    let hint = hint.map(|hint| plain(&hint));
                    let error = Error::Refused { status, message: plain(&message), hint };
                    return Err(Broken::Final(error));
                }
                None => return Err(Broken::Final(Error::Answer { socket: self.socket.to_owned() })),
            }
        }
    }

    /// Until when the queue lasts at most. A daemon that starts anew, or says it again, does not make it longer.
    fn queue(&mut self, seconds: u64) -> Instant {
        *self.queue.get_or_insert_with(|| {
            let wait = Duration::from_secs(seconds.min(LONGEST_QUEUE)) + self.patience;
            (self.queues)(wait);
            Instant::now() + wait
        })
    }

    /// Sets when to give up a daemon that was there until now, and had the container queue `until` then.
    fn lost_its_place(&mut self, until: Instant) {
        if self.queue == Some(until) {
            self.until = until.min(Instant::now() + self.patience);
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let address = UnixAddr::new(self.socket)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let handle: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // It holds for connect(2) too, which waits for a daemon that has more callers than it takes.
        setsockopt(&handle, SendTimeout, &timeval(self.until))?;
        connect(handle.as_raw_fd(), &address)?;
        Ok(handle.into())
    }
}

/// An answer, if a line is one.
fn answer(line: &[u8]) -> Option<Answer> {
    let tree = Tree::parse(line).ok()?;
    Some(match tree.get("answer").text()? {
        "queued" => Answer::Queued {
            seconds: tree.get("seconds").count()?,
            ahead: tree.get("ahead").count()?.try_into().ok()?,
        },
        "granted" => {
            let device = |device: &Tree| {
                let text = |name| device.get(name).text().map(str::to_owned);
                Some(DeviceName { class: text("class")?, name: text("name")? })
            };
            Answer::Granted {
                devices: tree.get("devices").list()?.iter().map(device).collect::<Option<_>>()?,
            }
        }
        "refused" => Answer::Refused {
            status: tree.get("status").count()?.try_into().ok()?,
            message: tree.get("message").text()?.to_owned(),
            hint: tree.get("hint").text().map(str::to_owned),
        },
        _ => return None,
    })
}

/// The lines of a daemon's answer.
struct Lines {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Lines {
    /// The next one, without its end; none if it is longer than [`LINE_LIMIT`].
    fn next(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.bytes.len() >= LINE_LIMIT {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(ErrorKind::TimedOut, "it is silent"));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it ended the connection")),
                Ok(length) => self.bytes.extend(&chunk[..length]),
                // At the next turn there is no time left.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The time left, and never none, which would stand for no end.
fn timeval(until: Instant) -> TimeVal {
    let left = until.saturating_duration_since(Instant::now()).as_millis();
    TimeVal::milliseconds(left.try_into().unwrap_or(i64::MAX).max(1))
}

/// Another program's words, without what a terminal would obey or turn around.
fn plain(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let characters = text.chars().take(LONGEST_MESSAGE);
    characters.map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_the_daemon_writes_them() {
        for given in [
            Answer::Queued { seconds: 1800, ahead: 2 },
            Answer::Granted { devices: vec!["gpu=shared-2".parse().unwrap(), "gpu=0:1".parse().unwrap()] },
            Answer::Granted { devices: Vec::new() },
            Answer::Refused { status: 3, message: "a \"b\"\n".into(), hint: Some("c".into()) },
            Answer::Refused { status: 255, message: String::new(), hint: None },
        ] {
            assert_eq!(answer(&serde_json::to_vec(&given).unwrap()), Some(given));
        }
        for odd in [
            r#"{"answer":"granted","devices":[{"class":"gpu"}]}"#,
            r#"{"answer":"granted","devices":["gpu=0"]}"#,
            r#"{"answer":"granted"}"#,
            r#"{"answer":"queued","seconds":-1,"ahead":0}"#,
            r#"{"answer":"queued","seconds":1.5,"ahead":0}"#,
            r#"{"answer":"refused","status":256,"message":"a"}"#,
            r#"{"answer":"refused","status":3}"#,
            r#"{"answer":["granted"],"devices":[]}"#,
        ] {
            assert_eq!(answer(odd.as_bytes()), None, "{odd}");
        }
    }
}
