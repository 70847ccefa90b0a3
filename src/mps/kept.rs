//! What a supervisor keeps to, on disk, so that the next one goes on with it.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::place::Place;
use super::protocol::LINE_LIMIT;
use super::settings::Settings;
use crate::publish::read_regular;

/// `mps/<uuid>/settings.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What the control daemon and its server shall be.
    #[serde(flatten)]
    pub settings: Settings,
    /// The user of this machine whom the server serves, where it serves one at a time.
    pub uid: u32,
}

impl Kept {
    /// Reads it; none where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is of another version's shape.
    pub fn read(place: &Place) -> io::Result<Option<Self>> {
        match read_regular(&place.settings(), LINE_LIMIT as u64) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the disk is full, and the like.
    pub fn write(&self, place: &Place) -> io::Result<()> {
        write(&place.settings(), self)
    }
}

/// Writes a file that is whole at any time, and that everybody may read.
///
/// # Errors
/// When the disk is full, and the like.
pub fn write(path: &Path, what: &impl Serialize) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mode = Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .permissions(mode.clone())
        .tempfile_in(directory)?;
    file.write_all(&serde_json::to_vec(what)?)?;
    // tempfile's permissions are less the umask.
    file.as_file().set_permissions(mode)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
