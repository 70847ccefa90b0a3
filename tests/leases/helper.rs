//! This program as a container's first process, or as a caller of another user.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};

/// Takes namespaces of its own, says so, and stays until its standard input ends, which is when who started it does.
pub fn container(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let is_said = |word: &str| words.iter().any(|other| other == word);
    let mut namespaces = CloneFlags::CLONE_NEWNS;
    namespaces.set(CloneFlags::CLONE_NEWNS, !is_said("--no-mount-namespace"));
    namespaces.set(CloneFlags::CLONE_NEWUSER, is_said("--user-namespace"));
    if let Err(error) = unshare(namespaces) {
        println!("no namespaces: {error}");
        return ExitCode::FAILURE;
    }
    println!("ready");
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

/// `as-caller SOCKET`: passes on what standard input says, and prints what comes back.
/// `as-caller SOCKET COUNT`: makes so many connections, and once a line comes in says how many of them were not
/// turned away; stays until its standard input ends.
pub fn caller(words: impl Iterator<Item = String>) -> ExitCode {
    let words: Vec<String> = words.collect();
    let [socket, count @ ..] = &words[..] else { return ExitCode::FAILURE };
    let Some(count) = count.first() else {
        let mut said = Vec::new();
        io::stdin().read_to_end(&mut said).unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        (&stream).write_all(&said).unwrap();
        for line in BufReader::new(stream).lines() {
            println!("{}", line.unwrap());
        }
        return ExitCode::SUCCESS;
    };
    let count: usize = count.parse().unwrap();
    let streams: Vec<UnixStream> = (0..count).map(|_| UnixStream::connect(socket).unwrap()).collect();
    println!("connected");
    let is_closed = |stream: &&UnixStream| {
        stream.set_nonblocking(true).unwrap();
        matches!((&**stream).read(&mut [0]), Ok(0))
    };
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    println!("{}", streams.iter().filter(|stream| !is_closed(stream)).count());
    io::stdout().flush().unwrap();
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}
