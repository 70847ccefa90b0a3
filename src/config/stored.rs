//! The configuration as a file: its text, read with care for what it may be instead, and replaced in one step. What it
//! means is not known here.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Config, Place, line_starts};
use crate::failure::{Failure, Status};

/// Where the configuration is, unless `--config` says otherwise. It need not be there.
pub const DEFAULT_PATH: &str = "/etc/divvy/config.toml";

/// A configuration is a page of text; what is longer is another file.
const SIZE_LIMIT: u64 = 1 << 20;

/// A configuration's text and where it is from.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The file; none for what a simulated or recorded host brings.
    pub path: Option<PathBuf>,
    /// For messages; its ending says of which form it is.
    pub name: String,
    /// Empty where there is no file yet.
    pub text: String,
    /// There is a file, or a host brought it.
    pub is_there: bool,
}

impl Stored {
    /// A file that has to be there.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read(path)?;
        Ok(Self { path: Some(path.into()), name: path.display().to_string(), text, is_there: true })
    }

    /// A file that may be missing, which is the empty configuration.
    pub fn read_if_there(path: &Path) -> Result<Self> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self {
                path: Some(path.into()),
                name: path.display().to_string(),
                text: String::new(),
                is_there: false,
            }),
            _ => Self::read(path),
        }
    }

    /// What a simulated or recorded host brings: its name for messages and its text.
    pub fn brought(config: Option<(String, String)>) -> Self {
        let is_there = config.is_some();
        let (name, text) = config.unwrap_or_else(|| ("the host's configuration".into(), String::new()));
        Self { path: None, name, text, is_there }
    }

    /// What it says.
    pub fn parse(&self) -> Result<Config> {
        Ok(Config::parse(&self.name, &self.text).map_err(Failure::from)?)
    }

    /// Replaces the file in one step, with the owner and mode that it has; a link is followed to the file that the
    /// administrator keeps elsewhere. What changed since it was read is not overwritten.
    pub fn replace(&self, text: &str) -> Result<()> {
        let Some(path) = &self.path else { anyhow::bail!("{} is no file", self.name) };
        replace(path, &self.text, text).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run as root, or name a file of your own with --config",
                io::ErrorKind::NotFound => "make the directory first",
                _ => "the file that was there is untouched",
            };
            let failure = anyhow::Error::new(error).context(format!("cannot write {}", self.name));
            Failure::new(failure).hint(hint).into()
        })
    }
}

fn replace(path: &Path, before: &str, after: &str) -> io::Result<()> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = match real.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if !dir.exists() {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    let mut new = tempfile::Builder::new().prefix(".config.").tempfile_in(dir)?;
    new.write_all(after.as_bytes())?;
    match real.metadata() {
        Ok(old) => {
            std::os::unix::fs::fchown(new.as_file(), Some(old.uid()), Some(old.gid()))?;
            new.as_file().set_permissions(old.permissions())?;
        }
        Err(_) => new.as_file().set_permissions(fs::Permissions::from_mode(0o644))?,
    }
    new.as_file().sync_all()?;
    let now = match fs::read_to_string(&real) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    if now != before {
        return Err(io::Error::other("somebody else changed it meanwhile: try again"));
    }
    new.persist(&real).map_err(|error| error.error)?;
    // It is in place; a directory that cannot be synced makes it neither better nor worse.
    let _ = fs::File::open(dir).and_then(|dir| dir.sync_all());
    Ok(())
}

/// A configuration's text, or why it cannot be one.
fn read(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read the configuration {}", path.display());
    let refuse =
        |what: String, hint: &str| Failure::new(anyhow::anyhow!(what)).hint(hint).status(Status::Usage);
    // Not a FIFO, which would wait for its writer.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as root, or let your user read it",
            io::ErrorKind::NotFound => "check the name that --config gives",
            _ => "check the path and its permissions",
        };
        Failure::new(anyhow::Error::new(error).context(cannot())).hint(hint).status(Status::Usage)
    })?;
    let metadata = file.metadata().with_context(cannot)?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "no regular file" };
        return Err(refuse(format!("the configuration {} is {what}", path.display()), "name a file").into());
    }
    let mut bytes = Vec::new();
    file.take(SIZE_LIMIT + 1).read_to_end(&mut bytes).with_context(cannot)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        let what = format!("the configuration {} is larger than 1 MiB", path.display());
        return Err(refuse(what, "this is some other file").into());
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        let place = Place::in_text(&path.display().to_string(), &text, &line_starts(&text), valid);
        refuse(format!("{place}: the configuration is not UTF-8 from here on"), "save it as UTF-8").into()
    })
}
