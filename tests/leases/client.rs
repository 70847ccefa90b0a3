//! A caller that speaks the socket's protocol by itself, as the hook does: one line of JSON, and lines back.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hooks::lease::{Answer, DeviceName, Request};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::ground::PATIENCE;

/// A request as it goes over the socket.
pub fn line(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    line
}

/// Sends bytes with descriptors, as no hook does.
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let with = [ControlMessage::ScmRights(&raw)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &with, flags, None)?;
    (&*stream).write_all(&bytes[sent..])
}

/// One connection: what was asked, and what comes back.
#[derive(Debug)]
pub struct Call {
    answers: BufReader<UnixStream>,
}

impl Call {
    /// Connects and asks.
    pub fn new(socket: &Path, request: &Request) -> io::Result<Self> {
        Self::say(socket, &line(request))
    }

    /// Connects and says something.
    pub fn say(socket: &Path, bytes: &[u8]) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        (&stream).write_all(bytes)?;
        Self::over(stream)
    }

    /// Listens on a connection.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { answers: BufReader::new(stream) })
    }

    /// The next answer; none if the connection ends without.
    pub fn next(&mut self) -> io::Result<Option<Answer>> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            Err(error) => Err(error),
        }
    }

    /// The answer that comes last.
    #[track_caller]
    pub fn last(&mut self) -> Answer {
        loop {
            match self.next().unwrap() {
                Some(Answer::Queued { .. }) => {}
                Some(answer) => return answer,
                None => panic!("the connection ended without an answer"),
            }
        }
    }

    /// Whether nothing has come since the last answer.
    pub fn is_silent(&self) -> bool {
        let stream = self.answers.get_ref();
        stream.set_nonblocking(true).unwrap();
        let peeked = nix::sys::socket::recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK);
        stream.set_nonblocking(false).unwrap();
        self.answers.buffer().is_empty() && peeked == Err(nix::errno::Errno::EAGAIN)
    }
}

/// Asks until there is an answer, as the hook does while a daemon is away; and tells how often there was none.
#[track_caller]
pub fn ask_until_answered(socket: &Path, request: &Request) -> (Answer, usize) {
    let began = Instant::now();
    let mut retried = 0;
    loop {
        let call = Call::new(socket, request);
        let answer = call.and_then(|mut call| {
            loop {
                match call.next()? {
                    Some(Answer::Queued { .. }) => {}
                    last => return Ok(last),
                }
            }
        });
        match answer {
            Ok(Some(answer)) => return (answer, retried),
            Ok(None) => {}
            Err(error) => assert!(is_of_one_who_is_away(&error), "{error}"),
        }
        assert!(began.elapsed() < PATIENCE, "no answer");
        retried += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_of_one_who_is_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound)
}

/// The devices of an answer that grants.
#[track_caller]
pub fn granted(answer: Answer) -> Vec<DeviceName> {
    match answer {
        Answer::Granted { devices } => devices,
        other => panic!("not granted: {other:?}"),
    }
}

/// Status and message of an answer that refuses.
#[track_caller]
pub fn refused(answer: Answer) -> (u8, String) {
    match answer {
        Answer::Refused { status, message, .. } => (status, message),
        other => panic!("not refused: {other:?}"),
    }
}
