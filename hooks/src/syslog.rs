//! One line in the system's log (syslog(3)), since some runtimes show a hook's exit status and nothing else. It is never
//! waited for, and a log that takes no line is no failure.

use std::os::unix::net::UnixDatagram;

const LOG: &str = "/dev/log";
/// Facility daemon (3), severity error (3): RFC 3164, section 4.1.1.
const PRIORITY: u8 = 3 << 3 | 3;
/// In characters; log daemons of today take lines of 8 KiB and more.
const LONGEST: usize = 2000;

/// Writes that the container with this id, if one is known, does not start.
pub fn failure(container: Option<&str>, why: &str) {
    let text = format!("container {}: {why}", container.unwrap_or("without an id"));
    let characters = text.chars().take(LONGEST);
    let text: String = characters.map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = format!("<{PRIORITY}>divvy-hook[{}]: {text}", std::process::id());
    let Ok(socket) = UnixDatagram::unbound() else { return };
    if socket.set_nonblocking(true).is_ok() {
        let _ = socket.send_to(line.as_bytes(), LOG);
    }
}
