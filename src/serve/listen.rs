//! The socket: systemd's, which stays open while the daemon is away, or one of our own.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hooks::lease::SOCKET;
use tracing::debug;

use crate::failure::Failure;
use crate::sys;

const LOCK: &str = "serve.lock";

/// The socket, and what keeps a second daemon off the same state directory.
#[derive(Debug)]
pub struct Listener {
    /// Where callers come in.
    pub socket: UnixListener,
    /// A socket that this daemon made, and removes.
    own: Option<PathBuf>,
    _lock: File,
}

impl Listener {
    /// Takes systemd's socket (sd_listen_fds(3)), or makes one in the state directory.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let lock = lock(state_dir)?;
        let passed: Vec<_> =
            sd_notify::listen_fds().context("cannot ask for the sockets of systemd")?.collect();
        let (socket, own) = match passed[..] {
            [] => {
                let path = state_dir.join(SOCKET);
                (bind(&path)?, Some(path))
            }
            [fd] => (UnixListener::from(sys::passed(fd)), None),
            _ => bail!("systemd passed {} sockets, and divvy has one", passed.len()),
        };
        socket.local_addr().context("what systemd passed is no UNIX socket")?;
        if let Err(error) = sys::refuse_descriptors(socket.as_fd()) {
            // Before Linux 6.16. They are closed by the threads that read requests.
            debug!("callers may send descriptors: {error}");
        }
        socket.set_nonblocking(true).context("cannot set up the socket")?;
        Ok(Self { socket, own, _lock: lock })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

/// Held until this process ends, in whatever way: two daemons would each give out the same share.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join(LOCK);
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    // Nobody else may hold it up.
    file.set_permissions(Permissions::from_mode(0o600))
        .with_context(|| format!("cannot close {} to others", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            let error = anyhow::anyhow!("another divvy serve has {}", state_dir.display());
            Err(Failure::new(error).hint("`systemctl status divvy` shows the one that systemd runs").into())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    match fs::symlink_metadata(path) {
        // The lock says that nobody listens there.
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).with_context(|| format!("cannot remove the old {}", path.display()))?;
        }
        Ok(_) => bail!("{} is no socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    let socket = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o666))
        .with_context(|| format!("cannot open {} to all users", path.display()))?;
    Ok(socket)
}
