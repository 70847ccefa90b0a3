//! Starts a control daemon, in a session and an environment of its own, and nothing of a caller's.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::place::{LONGEST_PIPE_DIRECTORY, Place};
use super::reason::Reason;
use super::settings::Settings;
use super::shared_memory;
use super::{guard, log};
use crate::sys;

/// NVIDIA's advice: with fewer, a server cannot serve as many clients as it may.
const DESCRIPTORS: u64 = 16384;
/// The pipe directory is root's and its group's: in it a control daemon leaves files that all may write, and whoever wrote
/// to them could stop it. A server of another user has root's group as the daemon has.
const PIPE_MODE: u32 = 0o710;
/// Where a driver root has libcuda, below it.
const LIBRARIES: [&str; 5] = [
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu",
];

/// Starts it, with the option that has it serve several users at once, or for one user. It listens a little later.
pub fn control_daemon(
    settings: &Settings,
    uid: u32,
    place: &Place,
    option: Option<&str>,
) -> Result<Child, Reason> {
    let guard = guard::find().map_err(|error| Reason::unguarded(&settings.what, &error))?;
    let pipe = place.pipe();
    if pipe.as_os_str().len() > LONGEST_PIPE_DIRECTORY {
        return Err(Reason::failed(
            format!("{} is longer than the {LONGEST_PIPE_DIRECTORY} bytes that MPS takes", pipe.display()),
            "choose a shorter --state-dir",
        ));
    }
    let failed = |error: io::Error| {
        let daemon = settings.control.display();
        Reason::failed(format!("{}: {daemon} cannot be started: {error}", settings.what), "as root it can be")
    };
    prepare(place).map_err(failed)?;
    let shared_memory = shared_memory::mount(settings, place).map_err(failed)?;
    let output = log::open(place).map_err(failed)?;
    let mut command = command(settings, place, option, &guard, output).map_err(failed)?;
    if !settings.multi_user {
        // For the guard.
        command.env("DIVVY_MPS_USER", uid.to_string());
    }
    sys::detach(&mut command, DESCRIPTORS, shared_memory.as_deref()).map_err(failed)?;
    command.spawn().map_err(failed)
}

/// The directories, and nothing of the last daemon in them. A new one that opens the last one's FIFO `log` hangs when it is
/// ended; the file with the process id is written without being emptied.
fn prepare(place: &Place) -> io::Result<()> {
    let pipe = place.pipe();
    for (directory, mode) in [(&pipe, PIPE_MODE), (&place.log(), 0o755)] {
        match DirBuilder::new().mode(mode).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => fs::set_permissions(directory, Permissions::from_mode(mode))?,
        }
    }
    for stale in ["log", "nvidia-cuda-mps-control.pid", "control", "control_privileged", "control_lock"] {
        match fs::remove_file(pipe.join(stale)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn command(
    settings: &Settings,
    place: &Place,
    option: Option<&str>,
    guard: &Path,
    output: File,
) -> io::Result<Command> {
    let mut command = Command::new(&settings.control);
    command
        .arg("-f")
        .args(option)
        .env_clear()
        .env("PATH", path(&settings.server))
        .env("CUDA_VISIBLE_DEVICES", &settings.uuid)
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .env("CUDA_MPS_PIPE_DIRECTORY", place.pipe())
        .env("CUDA_MPS_LOG_DIRECTORY", place.log())
        .env("LD_PRELOAD", guard)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output);
    if settings.driver_root != Path::new("/") {
        command.env("LD_LIBRARY_PATH", library_path(&settings.driver_root));
    }
    Ok(command)
}

/// The daemon looks for the server there.
fn path(server: &Path) -> String {
    let directory = server.parent().unwrap_or(Path::new("/usr/bin"));
    format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", directory.display())
}

fn library_path(driver_root: &Path) -> String {
    let directories = LIBRARIES.iter().map(|directory| driver_root.join(directory));
    let there: Vec<PathBuf> = directories.filter(|directory| directory.is_dir()).collect();
    there.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
}
