//! A directory that is made whole or not at all: filled beside its place and renamed at the end, so that a half-made
//! host is never taken for a whole one. Never touches what is there already.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::failure::{Failure, Status};
use crate::trust;

/// The directory while it is filled. Dropped, it is gone.
pub struct NewDirectory {
    scratch: TempDir,
    place: PathBuf,
}

impl NewDirectory {
    /// Begins a directory that only this user can open. `purpose` is for messages, after `cannot`.
    pub fn begin(place: &Path, purpose: &str) -> Result<Self> {
        let place = std::path::absolute(place)?;
        require_empty(&place)?;
        let parent = place.parent().context("the directory needs a name")?;
        if let Some(weakness) = trust::weakness(parent) {
            return Err(Failure::new(anyhow::anyhow!(
                "cannot {purpose} in {}: {weakness}",
                parent.display()
            ))
            .hint("choose a directory below one that only you can change: links in it could lead anywhere")
            .into());
        }
        let scratch = tempfile::Builder::new().prefix(".divvy.").tempdir_in(parent);
        let scratch = scratch.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        Ok(Self { scratch, place })
    }

    /// Where to put its files for now.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Puts it in its place, and says where that is.
    pub fn finish(self) -> Result<PathBuf> {
        let Self { scratch, place } = self;
        fs::rename(scratch.path(), &place).with_context(|| format!("cannot make {}", place.display()))?;
        // It is gone from there: nothing is left to remove.
        let _ = scratch.keep();
        Ok(place)
    }
}

fn require_empty(dir: &Path) -> Result<()> {
    let count = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        entries => entries.with_context(|| format!("cannot look into {}", dir.display()))?.count(),
    };
    if count == 0 {
        return Ok(());
    }
    Err(Failure::new(anyhow::anyhow!("{} is not empty", dir.display()))
        .hint("name a directory that is empty or not there yet")
        .status(Status::Usage)
        .into())
}

/// The directories above `path` and below `root`, 0755 whatever the umask, as on a host.
pub fn make_parents(path: &Path, root: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent.exists() || parent == root {
        return Ok(());
    }
    make_parents(parent, root)?;
    fs::create_dir(parent)?;
    fs::set_permissions(parent, Permissions::from_mode(0o755))
}

/// A file with exactly this mode.
pub fn write_file(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    fs::write(path, contents)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}
