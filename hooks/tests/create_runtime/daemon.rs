//! A daemon that says what a test has it say, and keeps what it was told.

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hooks::lease::{Request, SOCKET};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// What a caller said, and how many descriptors it sent.
pub struct Asked {
    pub request: Request,
    pub descriptors: usize,
}

pub struct Daemon {
    asked: Receiver<Asked>,
}

impl Daemon {
    /// Listens in this state directory and has each connection served by the next of `turns`; the last one serves all
    /// that come after.
    pub fn start<T>(directory: &Path, turns: Vec<T>) -> Self
    where
        T: Fn(UnixStream) + Send + 'static,
    {
        let listener = UnixListener::bind(directory.join(SOCKET)).unwrap();
        let (told, asked) = channel();
        thread::spawn(move || {
            let mut turns = turns.into_iter().peekable();
            let mut turn = turns.next().unwrap();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(heard) = hear(&mut stream) else { continue };
                if told.send(heard).is_err() {
                    return;
                }
                turn(stream);
                if turns.peek().is_some() {
                    turn = turns.next().unwrap();
                }
            }
        });
        Self { asked }
    }

    /// All that was asked until now.
    pub fn heard(&self) -> Vec<Asked> {
        self.asked.try_iter().collect()
    }
}

/// Says these lines and closes.
pub fn says(lines: &'static [&'static str]) -> Box<dyn Fn(UnixStream) + Send> {
    Box::new(move |mut stream| {
        for line in lines {
            stream.write_all(line.as_bytes()).unwrap();
        }
    })
}

/// Says this line and then nothing, until the caller goes.
pub fn says_and_stays(line: &'static str) -> Box<dyn Fn(UnixStream) + Send> {
    Box::new(move |mut stream| {
        stream.write_all(line.as_bytes()).unwrap();
        let _ = stream.read(&mut [0]);
    })
}

/// A request to its newline, with the descriptors that come with its first byte.
fn hear(stream: &mut UnixStream) -> Option<Asked> {
    let mut bytes = vec![0; 1 << 20];
    let mut space = nix::cmsg_space!([i32; 2]);
    let (length, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        let descriptors = message.cmsgs().unwrap().map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.len(),
            _ => 0,
        });
        (message.bytes, descriptors.sum())
    };
    bytes.truncate(length);
    while !bytes.ends_with(b"\n") {
        let mut more = [0; 65536];
        match stream.read(&mut more) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend(&more[..length]),
        }
    }
    Some(Asked { request: serde_json::from_slice(&bytes).unwrap(), descriptors })
}
