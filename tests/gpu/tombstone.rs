//! A socket that greets as NVIDIA's control daemon does, and hangs up: CUDA fails, where it would run without MPS if
//! nobody listened.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv, send, socket,
};
use nix::unistd::close;

use super::process::{TICK, until};

/// The control daemon's first word.
const GREETING: &[u8] = b"OUTBHELL\0";
/// How long a client may take to say its kind.
const PATIENCE: Duration = Duration::from_secs(2);

/// Greets until it is dropped.
#[derive(Debug)]
pub struct Tombstone {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tombstone {
    /// Listens at a path where nothing is.
    pub fn listen(path: &Path) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("cannot bind {}", path.display()))?;
        listen(&listener, Backlog::new(16)?)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = spawn(move || serve(&listener, &told));
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Tombstone {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &OwnedFd, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(client) => greet(client),
            Err(_) => sleep(TICK),
        }
    }
}

fn greet(client: RawFd) {
    let _ = send(client, GREETING, MsgFlags::MSG_NOSIGNAL);
    // Credentials first, then its kind in four bytes.
    let mut word = [0; 64];
    until(PATIENCE, || match recv(client, &mut word, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => length == 0 || length == 4,
        Err(error) => error != Errno::EAGAIN,
    });
    let _ = close(client);
}
