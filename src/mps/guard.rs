//! The guard (guard/), which is preloaded into a control daemon so that containers are heard as CUDA clients alone: where
//! it lies, and whether it does its work in the daemon that runs. What cannot be shown to work is not used.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::trust;

/// Named as cargo names it.
const LIBRARY: &str = "libdivvy_mps_guard.so";
/// Where it is installed, from the directory of divvy.
const INSTALLED: &str = "../lib/divvy";
/// What the daemon greets with, what a peer answers, and what somebody with commands is (the daemon's protocol, as seen
/// with the programs of drivers 535 to 555).
const GREETING: &[u8] = b"OUTBHELL\0";
const CREDENTIALS: &[u8] = b"OUTBCRED\0";
const COMMANDS: u32 = 4;
/// A command that changes nothing, as nvidia-cuda-mps-control sends it, after its length.
const COMMAND: &[u8] = b"get_default_active_thread_percentage\n\0";

/// Why a control daemon is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unguarded {
    /// There is no library.
    #[error("the guard for MPS is missing: it is neither {} nor {}", beside.display(), installed.display())]
    Missing {
        /// In the directory of divvy.
        beside: PathBuf,
        /// Where it is installed.
        installed: PathBuf,
    },
    /// Whoever changes the library becomes root.
    #[error("the guard for MPS, {}, is not root's alone: {weakness}", library.display())]
    Weak {
        /// The library.
        library: PathBuf,
        /// Who may change it, as `trust` says.
        weakness: String,
    },
    /// It answers commands that come from a container.
    #[error("the MPS control daemon would obey root of a container: it takes commands on {}", socket.display())]
    Heard {
        /// The socket that containers have.
        socket: PathBuf,
    },
    /// It waits for a peer that says nothing, and hears nobody else.
    #[error("any container could hold up MPS: the control daemon waits for who says nothing on {}", socket.display())]
    Waits {
        /// The socket that containers have.
        socket: PathBuf,
    },
    /// It could not be found out.
    #[error("the guard of the MPS control daemon cannot be tried out on {}", socket.display())]
    Untried {
        /// The socket that containers have.
        socket: PathBuf,
        /// What came between.
        source: io::Error,
    },
}

impl Unguarded {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "install it where divvy is: make install",
            Self::Weak { .. } => "let root own it and the directories above it, writable by nobody else",
            Self::Heard { .. } | Self::Waits { .. } => {
                "if divvy did not start it, end it; else this driver's MPS cannot be guarded: use mode time-slice"
            }
            Self::Untried { .. } => {
                "see whether the control daemon answers: echo get_server_list | nvidia-cuda-mps-control"
            }
        }
    }
}

/// The library: beside divvy, or in `../lib/divvy`. It is root's alone, for root's daemon loads it.
///
/// # Errors
/// It is not there, or others may change it.
pub fn find() -> Result<PathBuf, Unguarded> {
    // Without /proc nothing is beside a program that is not known.
    find_for(&std::env::current_exe().unwrap_or_default())
}

fn find_for(divvy: &Path) -> Result<PathBuf, Unguarded> {
    let directory = divvy.parent().unwrap_or(Path::new("/"));
    let (beside, installed) = (directory.join(LIBRARY), directory.join(INSTALLED).join(LIBRARY));
    let Some(library) = [&beside, &installed].into_iter().find_map(|library| library.canonicalize().ok())
    else {
        return Err(Unguarded::Missing { beside, installed });
    };
    match trust::weakness(&library) {
        Some(weakness) => Err(Unguarded::Weak { library, weakness }),
        None => Ok(library),
    }
}

/// Tries the guard of a control daemon out, as a stranger who has commands and as one who says nothing, on the socket
/// that containers have. It takes about as long as the guard waits for the latter, and at most `limit`.
///
/// # Errors
/// It does not hang up on both, or could not be asked in time.
pub fn check(control_socket: &Path, limit: Duration) -> Result<(), Unguarded> {
    let until = Instant::now() + limit;
    let socket = control_socket.to_path_buf();
    let untried = |source| Unguarded::Untried { socket: socket.clone(), source };
    let commander = Stranger::greeted(control_socket, until).map_err(untried)?;
    let length = COMMAND.len() as u64;
    for message in [CREDENTIALS, &COMMANDS.to_ne_bytes(), &length.to_ne_bytes(), COMMAND] {
        commander.say(message).map_err(untried)?;
    }
    match commander.hears(until).map_err(untried)? {
        Heard::End => {}
        Heard::Word => return Err(Unguarded::Heard { socket }),
        Heard::Nothing => return Err(Unguarded::Waits { socket }),
    }
    let silent = Stranger::greeted(control_socket, until).map_err(untried)?;
    match silent.hears(until).map_err(untried)? {
        Heard::End => Ok(()),
        Heard::Word | Heard::Nothing => Err(Unguarded::Waits { socket }),
    }
}

/// What came from the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Word,
    End,
    Nothing,
}

/// A connection as a container makes it.
struct Stranger(OwnedFd);

impl Stranger {
    /// One that the daemon has greeted.
    fn greeted(path: &Path, until: Instant) -> io::Result<Self> {
        let stranger = Self(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?);
        // It is for connect(2) too, which waits for a place in the queue (socket(7)).
        let left = left(until).as_micros().max(1);
        let limit = TimeVal::new((left / 1_000_000) as i64, (left % 1_000_000) as i64);
        setsockopt(&stranger.0, SendTimeout, &limit)?;
        connect(stranger.0.as_raw_fd(), &UnixAddr::new(path)?)?;
        let mut greeting = [0; 64];
        let length = stranger.hear(&mut greeting, until)?.ok_or(ErrorKind::TimedOut)?;
        if greeting.get(..length) != Some(GREETING) {
            return Err(io::Error::new(ErrorKind::InvalidData, "it greets in an unknown way"));
        }
        Ok(stranger)
    }

    /// Says something, if only to somebody who has hung up.
    fn say(&self, message: &[u8]) -> io::Result<()> {
        match send(self.0.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn hears(&self, until: Instant) -> io::Result<Heard> {
        Ok(match self.hear(&mut [0; 64], until)? {
            None => Heard::Nothing,
            Some(0) => Heard::End,
            Some(_) => Heard::Word,
        })
    }

    /// The length of the next message; 0 at the end, and nothing if none comes in time.
    fn hear(&self, message: &mut [u8], until: Instant) -> io::Result<Option<usize>> {
        loop {
            let wait = PollTimeout::try_from(left(until)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match recv(self.0.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            // Said by the kernel where it was hung up on with something unread.
            Err(Errno::ECONNRESET) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_library_is_beside_divvy_or_where_it_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, lib) = (dir.path().join("bin"), dir.path().join("lib/divvy"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&lib).unwrap();
        let found = || find_for(&bin.join("divvy")).map_err(|error| error.to_string());
        assert!(found().unwrap_err().contains("bin/libdivvy_mps_guard.so nor "), "{:?}", found());
        fs::write(lib.join(LIBRARY), "").unwrap();
        assert_eq!(found(), Ok(lib.join(LIBRARY).canonicalize().unwrap()));
        fs::write(bin.join(LIBRARY), "").unwrap();
        assert_eq!(found(), Ok(bin.join(LIBRARY).canonicalize().unwrap()));
    }

    #[test]
    fn a_library_that_others_may_change_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LIBRARY), "").unwrap();
        fs::set_permissions(dir.path().join(LIBRARY), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(find_for(&dir.path().join("divvy")), Err(Unguarded::Weak { .. })));
    }
}
