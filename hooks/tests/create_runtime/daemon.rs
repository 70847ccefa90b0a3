//! A daemon that says what a test has it say, and keeps what it was told.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hooks::lease::{Request, SOCKET};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// What a caller said, and of which process.
pub struct Asked {
    pub request: Request,
    /// The process that the descriptor stands for, as the kernel says it.
    pub process: Option<i32>,
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

/// A request to its newline, with the descriptor that comes with the first byte.
fn hear(stream: &mut UnixStream) -> Option<Asked> {
    let mut bytes = vec![0; 1 << 20];
    let mut space = nix::cmsg_space!([i32; 2]);
    let (length, handle) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        let handle = message.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::ScmRights(handles) => handles.first().copied(),
            _ => None,
        });
        (message.bytes, handle)
    };
    bytes.truncate(length);
    while !bytes.ends_with(b"\n") {
        let mut more = [0; 65536];
        match stream.read(&mut more) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend(&more[..length]),
        }
    }
    let process = handle.map(|handle| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{handle}")).unwrap();
        nix::unistd::close(handle).unwrap();
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
        pid.trim().parse().unwrap()
    });
    Some(Asked { request: serde_json::from_slice(&bytes).unwrap(), process })
}
