//! Starts a supervisor that outlives whoever asked for it: as a unit of systemd's, or in a session of its own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::log;
use super::place::Place;
use crate::publish::STATE_DIR;

/// Where systemd is the machine's init (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Starts one, and does not wait until it listens. That one runs already is no error.
///
/// # Errors
/// When the program or systemctl cannot be run, or systemctl fails.
pub fn supervisor(state_dir: &Path, uuid: &str) -> io::Result<()> {
    if is_systemds(state_dir, uuid) {
        return run(Command::new("systemctl").args(["--no-block", "start", &unit(uuid)]));
    }
    let place = Place::new(state_dir, uuid);
    fs::DirBuilder::new().mode(0o755).recursive(true).create(place.directory())?;
    let output = log::open(&place)?;
    // It leaves this process's session, starts the one that stays, and ends: so that one is nobody's child here.
    let mut command = supervise(state_dir, uuid)?;
    run(command
        .arg("--background")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output))
}

/// What shows more of it.
pub fn hint(uuid: &str) -> String {
    match is_systemds(Path::new(STATE_DIR), uuid) {
        true => format!("`journalctl -u {}` has its last words", unit(uuid)),
        false => format!("`divvy mps` shows its state, and its last words are in mps/{uuid}/log"),
    }
}

/// The command line of a supervisor.
///
/// # Errors
/// When this program cannot be found any more.
pub fn supervise(state_dir: &Path, uuid: &str) -> io::Result<Command> {
    let mut command = Command::new(this_program()?);
    command.args(["mps", "supervise", uuid, "--state-dir"]).arg(state_dir);
    Ok(command)
}

/// Whether its unit is to be started. By a service always: what that starts by itself would end with it. By who types
/// `divvy mps restart`, where there is such a unit: of a supervisor beside it `systemctl restart 'divvy-mps@*'` knows nothing.
fn is_systemds(state_dir: &Path, uuid: &str) -> bool {
    let is_service = || std::env::var_os("INVOCATION_ID").is_some();
    state_dir == Path::new(STATE_DIR) && Path::new(SYSTEMD).exists() && (is_service() || has_unit(uuid))
}

/// Where divvy was installed without its units there is none. Asked for an instance, systemctl asks systemd.
fn has_unit(uuid: &str) -> bool {
    run(Command::new("systemctl").args(["--quiet", "cat", &unit(uuid)])).is_ok()
}

fn unit(uuid: &str) -> String {
    format!("divvy-mps@{uuid}.service")
}

/// This program's file; the one in its place, where it was upgraded.
fn this_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    Ok(match name.strip_suffix(" (deleted)") {
        Some(name) => path.with_file_name(name),
        None => path,
    })
}

fn run(command: &mut Command) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program} ended with {}: {said}", output.status)))
}

/// Leaves the session of whoever started it, and starts the supervisor that stays.
///
/// # Errors
/// When there can be no session, or no process.
pub fn in_background(state_dir: &Path, uuid: &str) -> io::Result<()> {
    nix::unistd::setsid()?;
    supervise(state_dir, uuid)?.current_dir("/").spawn().map(drop)
}
