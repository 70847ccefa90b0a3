//! Who is heard on a control socket, and what a stranger may say before. The daemon greets, reads nine bytes with the
//! peer's credentials, and then four that say what the peer is: 1 and 10 a server (ready, or failed), 2 a client, 3 a
//! debuggee, 4 somebody with commands.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What comes with the peer's credentials.
const CREDENTIALS: &[u8] = b"OUTBCRED\0";
/// A CUDA client, as the daemon reads it: in the byte order of the machine.
const CLIENT: [u8; 4] = 2_u32.to_ne_bytes();
/// The socket that is in no container.
const PRIVILEGED: &[u8] = b"control_privileged";

/// A message that a stranger may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Their credentials, which the daemon checks by itself.
    Credentials,
    /// That they are a CUDA client.
    Client,
}

/// The room that the daemon has for the type.
pub const TYPE_BYTES: usize = CLIENT.len();

/// What the message says, for which the daemon had `wanted` bytes of room. Only what the daemon takes for a type is one:
/// four bytes in the place of the credentials are not. Nothing, for what nobody may say.
pub fn said(message: &[u8], wanted: usize) -> Option<Said> {
    if wanted == TYPE_BYTES && message == CLIENT {
        Some(Said::Client)
    } else if wanted == CREDENTIALS.len() && message == CREDENTIALS {
        Some(Said::Credentials)
    } else {
        None
    }
}

/// Whether whoever connects to the socket at this path is judged: everybody does, but on `control_privileged`.
pub fn is_for_strangers(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_bytes() != PRIVILEGED)
}

/// Whether a process is a child of this one, as the MPS server is, and nobody else. `peer` stands for whoever connected.
pub fn is_child(pid: i32, peer: Option<OwnedFd>) -> bool {
    // Orphans are children of process 1, whoever they are.
    std::process::id() != 1 && parent(pid) == Some(std::process::id()) && lives(peer.as_ref())
}

/// Whether whoever connected is still there: so long no other process has its id, and what was found out by that is true.
/// Linux before 6.5 has nothing that stands for it; there another process could come to have the id.
pub fn lives(peer: Option<&OwnedFd>) -> bool {
    peer.is_none_or(|peer| !super::kernel::is_readable(peer.as_raw_fd(), 0))
}

fn parent(pid: i32) -> Option<u32> {
    let mut text = [0; 1024];
    let read = File::open(format!("/proc/{pid}/status")).ok()?.read(&mut text).ok()?;
    parent_in(text.get(..read)?)
}

/// The line `PPid:` of /proc/PID/status (proc_pid_status(5)). A name in the line `Name:` has no newline.
fn parent_in(status: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"PPid:\t"))?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_credentials_and_the_type_of_a_client_may_be_said() {
        for (message, wanted, is) in [
            (&b"OUTBCRED\0"[..], 9, Some(Said::Credentials)),
            (&[2, 0, 0, 0], 4, Some(Said::Client)),
            // In the place of the credentials it is no type.
            (&[2, 0, 0, 0], 9, None),
            (&[2, 0, 0, 0], 8, None),
            (&[4, 0, 0, 0], 4, None),
            (&[1, 0, 0, 0], 4, None),
            (&[3, 0, 0, 0], 4, None),
            (&[10, 0, 0, 0], 4, None),
            (&[2, 0, 0, 1], 4, None),
            (&[2, 0, 0], 4, None),
            (&[], 4, None),
            (b"OUTBCRED", 9, None),
            (b"OUTBCUFD\0", 9, None),
            (b"OUTBCRED\0", 4, None),
        ] {
            assert_eq!(said(message, wanted), is, "{message:?} of {wanted}");
        }
    }

    #[test]
    fn only_the_privileged_socket_is_not_for_strangers() {
        assert!(is_for_strangers(Path::new("/run/divvy/mps/GPU-1/pipe/control")));
        assert!(is_for_strangers(Path::new("control")));
        assert!(is_for_strangers(Path::new("/x/control_privileged/control")));
        assert!(!is_for_strangers(Path::new("/run/divvy/mps/GPU-1/pipe/control_privileged")));
    }

    #[test]
    fn a_parent_is_read_from_its_line_alone() {
        assert_eq!(parent_in(b"Name:\tPPid:\t7\nPid:\t3\nPPid:\t12\nUid:\t0\n"), Some(12));
        assert_eq!(parent_in(b"Name:\tx\n"), None);
        assert_eq!(parent_in(b""), None);
        assert_eq!(parent(std::process::id().cast_signed()), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(0), None);
    }
}
