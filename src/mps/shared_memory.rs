//! The tmpfs that the containers of a device share with its MPS server at /dev/shm, where the configuration wants one. The
//! machine's own is never theirs.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount_it, umount2};

use super::place::Place;
use super::settings::Settings;

/// Mounts it, where it is wanted and not there yet, or of another size. Returns where.
///
/// # Errors
/// Those of mount(2).
pub fn mount(settings: &Settings, place: &Place) -> io::Result<Option<PathBuf>> {
    let path = place.shared_memory();
    let Some(bytes) = settings.shared_memory_bytes else {
        unmount(place)?;
        return Ok(None);
    };
    match DirBuilder::new().mode(0o755).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let again = if is_mounted(place)? { MsFlags::MS_REMOUNT } else { MsFlags::empty() };
    let options = format!("mode=1777,size={bytes}");
    mount_it(Some("divvy-mps"), &path, Some("tmpfs"), flags | again, Some(options.as_str()))?;
    Ok(Some(path))
}

/// Takes it away again; containers that have it keep it.
///
/// # Errors
/// Those of umount2(2).
pub fn unmount(place: &Place) -> io::Result<()> {
    if !is_mounted(place)? {
        return Ok(());
    }
    match umount2(&place.shared_memory(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether something is mounted there: it is of another file system than the directory above.
fn is_mounted(place: &Place) -> io::Result<bool> {
    let device = |path: &std::path::Path| std::fs::symlink_metadata(path).map(|found| found.dev());
    match device(&place.shared_memory()) {
        Ok(found) => Ok(found != device(place.directory())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
