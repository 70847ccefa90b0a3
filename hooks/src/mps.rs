//! What a container gets of its device's MPS server: the host's directory with the one socket that obeys nobody, where
//! CUDA looks for it unless it is told otherwise, and, where the device has one, the tmpfs that its containers share. The
//! lease says which; a container whose lease says so and that cannot have them does not start, since CUDA would run
//! without MPS, and without limits.

use std::ffi::OsStr;
use std::fs::read_dir;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag};

use crate::lease::LeasedMps;
use crate::leased::{Error, OTHERS_WRITE, failed, is_roots};
use crate::rootfs::{Root, fd_path, mount_id};

/// Where the directory with the socket is in the container: MPS's default (nvidia-cuda-mps-control(1)).
pub const FRONT: &str = "/tmp/nvidia-mps";
/// Where the shared tmpfs is (shm_overview(7)).
pub const SHARED_MEMORY: &str = "/dev/shm";
/// The only file in the front, as MPS names it.
pub const SOCKET: &str = "control";

/// Mounts the directories of a lease.
///
/// # Errors
/// [`Error`]: then some may be mounted, and the container must not start.
pub fn mount(root: &Root, directories: &LeasedMps) -> Result<(), Error> {
    let at = |path: &'static str| move |source| Error::Mount { path: path.into(), source };
    let front = directory(&directories.front, OTHERS_WRITE)?;
    only_the_socket(&front, &directories.front)?;
    root.mount(&front, Path::new(FRONT), true).map_err(at(FRONT))?;
    let Some(path) = &directories.shared_memory else { return Ok(()) };
    // All may write to it.
    let shared = directory(path, 0)?;
    let id = |handle: &OwnedFd| mount_id(handle.as_fd()).map_err(|errno| failed("read", path, errno));
    if id(&shared)? == id(&front)? {
        return Err(Error::SharedMemory { path: path.clone() });
    }
    root.mount(&shared, Path::new(SHARED_MEMORY), false).map_err(at(SHARED_MEMORY)).map(drop)
}

fn directory(path: &Path, never: u32) -> Result<OwnedFd, Error> {
    if !path.is_absolute() {
        return Err(failed("open", path, Errno::EINVAL));
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = open(path, flags, Mode::empty()).map_err(|errno| failed("open", path, errno))?;
    is_roots(&handle, path, SFlag::S_IFDIR, never)?;
    Ok(handle)
}

fn only_the_socket(front: &OwnedFd, path: &Path) -> Result<(), Error> {
    let unread = |error: std::io::Error| {
        failed("getdents", path, Errno::from_raw(error.raw_os_error().unwrap_or_default()))
    };
    for entry in read_dir(fd_path(front)).map_err(unread)? {
        let name = entry.map_err(unread)?.file_name();
        if name != OsStr::new(SOCKET) {
            return Err(Error::Front { path: path.to_owned(), name });
        }
    }
    Ok(())
}
