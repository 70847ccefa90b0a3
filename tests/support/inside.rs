//! A test program that runs as the first process of a pid namespace, with mounts of its own: when it ends, so does all that
//! it started, and it meets nobody else's processes.

use std::process::{Command, ExitCode};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Set in the process that is inside.
const INSIDE: &str = "DIVVY_TESTS_INSIDE";

/// Whether this is it already, or cannot be, for want of root.
pub fn is_inside() -> bool {
    !nix::unistd::geteuid().is_root() || std::env::var_os(INSIDE).is_some()
}

/// Leaves the machine's mounts. What a caller mounts next is seen inside alone.
pub fn leave_mounts() {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
}

/// Runs this program once more, inside, after [`leave_mounts`].
pub fn run() -> ExitCode {
    // /proc is mounted by a process of the namespace that it shall show.
    let mut command = Command::new("sh");
    command.args(["-c", "mount -t proc proc /proc && exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = command.status().unwrap();
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
