//! Record locks (fcntl(2)): the supervisor's own, and the one by which an MPS control daemon is known. They end with
//! their process, in whatever way, and tell its id; no child inherits them.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Takes the lock of a file, which is made where it is missing; none if another process has it. It is held as long as what
/// is returned, and as this process opens the file no second time.
///
/// # Errors
/// Those of open(2) and fcntl(2).
pub fn take(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    // Who can open it could hold it up.
    file.set_permissions(Permissions::from_mode(0o600))?;
    match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whose lock is on a file, as a process id; none if it is nobody's, or there is no file. 0 is a process of a pid namespace
/// that cannot be seen from here.
///
/// # Errors
/// Those of open(2) and fcntl(2).
pub fn holder(path: &Path) -> io::Result<Option<i32>> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lock = whole_file();
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    let is_free = i32::from(lock.l_type) == libc::F_UNLCK;
    Ok((!is_free).then_some(lock.l_pid))
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
