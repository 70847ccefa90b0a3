//! Leases as files, one for each container, the last refusals, and who waits. A file is whole at any time: written beside its
//! place and renamed into it. Everybody may read them; the state directory is root's alone.
//!
//! ```text
//! <state directory>/
//!   leases/<mount namespace>.json              found by the container's own hook, by its own namespace
//!   leases/<mount namespace>-<start time>.json a container that ends while its namespace's number is in use again
//!   refused.json                               the last refusals
//!   waiting.json                               who waits, while somebody does
//! ```

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::refused::{self, Refusals};
use super::waiting::{self, Waiting};
use crate::failure::Failure;
use anyhow::{Context, Result};
use hooks::lease::{DeniedBy, LEASE_LIMIT, LEASES, Lease};

/// Where it all lies.
#[derive(Debug)]
pub struct Store {
    state_dir: PathBuf,
    leases: PathBuf,
}

impl Store {
    /// Opens a state directory, and makes it where it is missing. Refuses one that others may change: who can write
    /// there can give himself a lease.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let leases = state_dir.join(LEASES);
        for dir in [state_dir, &leases] {
            match fs::DirBuilder::new().mode(0o755).create(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot make {}", dir.display()));
                }
                _ => {}
            }
            let found = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
            if !found.is_dir() || found.uid() != 0 || found.mode() & 0o022 != 0 {
                let error = anyhow::anyhow!("others than root may write to {}", dir.display());
                let hint = format!("chown root:root {0} && chmod 755 {0}", dir.display());
                return Err(Failure::new(error).hint(hint).into());
            }
        }
        Ok(Self { state_dir: state_dir.to_owned(), leases })
    }

    /// Every lease that was left behind. One that cannot be read may be of a container that runs, so that its devices must
    /// not be given to another: then nobody gets any. What a killed writer did not put in its place is removed.
    pub fn read(&self) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        let entries = fs::read_dir(&self.leases)
            .with_context(|| format!("cannot read the directory {}", self.leases.display()))?;
        for entry in entries {
            let path =
                entry.with_context(|| format!("cannot read the directory {}", self.leases.display()))?.path();
            if path.extension() == Some(OsStr::new("tmp")) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                continue;
            }
            let lease = read_lease(&path).map_err(|error| {
                let error = anyhow::Error::new(error).context(format!("cannot read the lease {}", path.display()));
                Failure::new(error).hint(
                    "serve with the release that wrote it until its container has ended, or remove it if that has",
                )
            })?;
            leases.push(lease);
        }
        leases.sort_by_key(|lease| (lease.since, lease.container.pid));
        Ok(leases)
    }

    /// Whether a lease is on disk, and what denies the rest according to it.
    pub fn find(&self, lease: &Lease) -> Option<Option<DeniedBy>> {
        let present = read_lease(&Lease::path(&self.leases, lease.container.mount_namespace)).ok()?;
        let denied_by = present.denied_by;
        (Lease { denied_by: None, ..present } == Lease { denied_by: None, ..lease.clone() })
            .then_some(denied_by)
    }

    /// Writes a lease, or writes it anew.
    pub fn write(&self, lease: &Lease) -> io::Result<()> {
        let path = Lease::path(&self.leases, lease.container.mount_namespace);
        if let Ok(present) = read_lease(&path)
            && !is_same(&present, lease)
        {
            fs::rename(&path, self.aside(&present))?;
        }
        self.put(&path, &serde_json::to_vec(lease)?)
    }

    /// Removes a lease.
    pub fn remove(&self, lease: &Lease) -> io::Result<()> {
        let paths = [Lease::path(&self.leases, lease.container.mount_namespace), self.aside(lease)];
        for path in paths {
            if read_lease(&path).is_ok_and(|present| is_same(&present, lease)) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Writes the last refusals.
    pub fn write_refused(&self, refused: &Refusals) -> io::Result<()> {
        self.put(&self.state_dir.join(refused::FILE), &serde_json::to_vec(refused)?)
    }

    /// Writes who waits.
    pub fn write_waiting(&self, waiting: &Waiting) -> io::Result<()> {
        self.put(&self.state_dir.join(waiting::FILE), &serde_json::to_vec(waiting)?)
    }

    /// Removes the file of who waits, if there is one.
    pub fn remove_waiting(&self) -> io::Result<()> {
        match fs::remove_file(self.state_dir.join(waiting::FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn aside(&self, lease: &Lease) -> PathBuf {
        let container = &lease.container;
        self.leases.join(format!("{}-{}.json", container.mount_namespace, container.start_time))
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(path.parent().unwrap_or(&self.state_dir))?;
        file.write_all(bytes)?;
        // tempfile's permissions are less the umask.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn is_same(one: &Lease, other: &Lease) -> bool {
    let key = |lease: &Lease| (lease.container.pid, lease.container.start_time);
    key(one) == key(other) && one.container.boot_id == other.container.boot_id
}

fn read_lease(path: &Path) -> io::Result<Lease> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LEASE_LIMIT).read_to_end(&mut bytes)?;
    Ok(Lease::parse(&bytes)?)
}
