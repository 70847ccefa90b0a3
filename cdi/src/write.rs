//! Puts a spec file into a spec directory: whole or not at all, readable by every engine, one writer at a time.
//! The file is made beside its place and renamed over it, because Docker sees only renames inside the directory.
//!
//! The lock closes two races: a writer that clears away another's temporary file as stale, and two writers of which
//! the one that compared first replaces the other's newer file. It is a flock(2) on a file that only its owner can
//! open: one on the directory could be held by anybody who may read it. The lock file goes away with the writer.
//! Whatever goes wrong before the rename, the old file stays as it was.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use tempfile::NamedTempFile;
use thiserror::Error;

/// Engines, rootless ones too, must be able to read what was written.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;
const LOCK_MODE: u32 = 0o600;
/// How long another writer is waited for. A write takes milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);
/// Engines read hidden files too, if they end in `.json` or `.yaml`.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What [`write()`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was no such file.
    Created,
    /// There was one, and it has given way.
    Replaced,
    /// There was the same one; it was left alone, so that no engine reads it again.
    Unchanged,
}

/// Why a spec file was not written. Only with [`WriteError::SyncDirectory`] is the new file in place.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Engines read nothing but `*.json` and `*.yaml`.
    #[error("no engine reads {}: the name of a spec file ends in .json or .yaml", path.display())]
    FileName {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The directory is missing, and so is the one it belongs in; only one is ever made.
    #[error("{} does not exist, so {} cannot be made in it", parent.display(), path.display())]
    ParentMissing {
        /// The spec directory.
        path: PathBuf,
        /// The directory above it.
        parent: PathBuf,
    },
    /// The directory is missing and could not be made.
    #[error("cannot make the directory {}", path.display())]
    CreateDirectory {
        /// The spec directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is there and could not be opened or read.
    #[error("cannot open the directory {}", path.display())]
    OpenDirectory {
        /// The spec directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock file could not be made or locked.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody has held the lock for ten seconds.
    #[error("another writer is at work on {}", path.display())]
    Busy {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// In the file's place is something that is not a file.
    #[error("{} is a {found} and will not be replaced", path.display())]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
        /// What it is: `symbolic link`, `directory` and so on.
        found: &'static str,
    },
    /// The file could not be looked at.
    #[error("cannot examine {}", path.display())]
    Examine {
        /// The path that was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A temporary file that a killed writer left could not be removed.
    #[error("cannot remove the stale {}", path.display())]
    RemoveStale {
        /// The temporary file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new file could not be made beside its place.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path that was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The new file could not be put in its place.
    #[error("cannot replace {}", path.display())]
    Rename {
        /// The path that was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is in place, but may be gone after a power cut.
    #[error("{} is written, but cannot be made safe on disk", path.display())]
    SyncDirectory {
        /// The path that was asked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl WriteError {
    /// The kind of the underlying error, where there is one: `ReadOnlyFilesystem`, `StorageFull`, `QuotaExceeded`
    /// and `PermissionDenied` each ask for another hint.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        let source = std::error::Error::source(self)?;
        source.downcast_ref::<io::Error>().map(io::Error::kind)
    }
}

/// Makes `contents` the spec file at `path`, mode 0644, in one step for every reader, and safe on disk.
///
/// A missing directory is made, mode 0755 whatever the umask, but not the one above it. A file that already has
/// these contents and this mode is left alone. Waits up to ten seconds for another writer.
///
/// # Errors
/// See [`WriteError`]. The old file is untouched and no temporary file stays.
pub fn write(path: &Path, contents: &[u8]) -> Result<Written, WriteError> {
    prepare(path, contents)?.commit()
}

/// Does all of [`write()`] that can fail for want of room or rights, and leaves the old file as it is until
/// [`Prepared::commit`]: several files can be prepared before the first of them changes.
///
/// # Errors
/// See [`WriteError`]. The old file is untouched and no temporary file stays.
pub fn prepare(path: &Path, contents: &[u8]) -> Result<Prepared, WriteError> {
    let file_name = spec_file_name(path)?;
    let directory_path = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = open_directory(directory_path)?;
    let lock = Lock::take(directory_path, file_name, LOCK_TIMEOUT)?;

    let written = compare(path, contents)?;
    remove_stale(directory_path, file_name)?;
    let temporary = match written {
        Written::Unchanged => None,
        _ => Some(temporary(path, directory_path, file_name, contents)?),
    };
    Ok(Prepared { path: path.to_owned(), written, temporary, directory, _lock: lock })
}

/// A spec file that only has to be put in its place. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    written: Written,
    /// None where the file in place is the same.
    temporary: Option<NamedTempFile>,
    directory: File,
    _lock: Lock,
}

impl Prepared {
    /// What the commit will do.
    pub fn will(&self) -> Written {
        self.written
    }

    /// Where the file goes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place, in one step for every reader, and makes it safe on disk.
    ///
    /// # Errors
    /// [`WriteError::Rename`]; [`WriteError::SyncDirectory`].
    pub fn commit(self) -> Result<Written, WriteError> {
        let Self { path, written, temporary, directory, _lock } = self;
        if let Some(temporary) = temporary {
            if let Err(error) = temporary.persist(&path) {
                return Err(WriteError::Rename { path, source: error.error });
            }
            directory.sync_all().map_err(|source| WriteError::SyncDirectory { path, source })?;
        }
        Ok(written)
    }
}

fn spec_file_name(path: &Path) -> Result<&OsStr, WriteError> {
    // "dir/x.json/" and "dir/x.json/." have the file name x.json, but ask for a directory.
    let is_plain = |name: &OsStr| path.as_os_str().as_bytes().ends_with(name.as_bytes());
    match (path.file_name(), path.extension().and_then(OsStr::to_str)) {
        (Some(name), Some("json" | "yaml")) if is_plain(name) => Ok(name),
        _ => Err(WriteError::FileName { path: path.to_owned() }),
    }
}

fn open_directory(path: &Path) -> Result<File, WriteError> {
    let open = || OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create_directory(path)?,
        opened => {
            return opened.map_err(|source| WriteError::OpenDirectory { path: path.to_owned(), source });
        }
    }
    open().map_err(|source| WriteError::OpenDirectory { path: path.to_owned(), source })
}

fn create_directory(path: &Path) -> Result<(), WriteError> {
    let failed = |source| WriteError::CreateDirectory { path: path.to_owned(), source };
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => {}
        // Another writer was faster, and sets the mode.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(source) => {
            return Err(match path.parent() {
                Some(parent) if source.kind() == io::ErrorKind::NotFound && !parent.exists() => {
                    WriteError::ParentMissing { path: path.to_owned(), parent: parent.to_owned() }
                }
                _ => failed(source),
            });
        }
    }
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    let made = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    made.set_permissions(Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)
}

/// The right to write one spec file; given back, and its file removed, when dropped.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Open and locked.
    _file: File,
}

impl Lock {
    fn take(directory: &Path, file_name: &OsStr, timeout: Duration) -> Result<Self, WriteError> {
        let mut name = temporary_prefix(file_name);
        name.push("lock");
        let path = directory.join(name);
        let failed = |source| WriteError::Lock { path: path.clone(), source };
        let deadline = Instant::now() + timeout;
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .mode(LOCK_MODE)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
                .open(&path)
                // A directory that takes no lock file takes no spec either, which is what the user asked for.
                .map_err(|source| WriteError::Write { path: directory.join(file_name), source })?;
            // Where others may write, one of them can have made it, and may hold it for ever.
            let owner = file.metadata().map_err(failed)?.uid();
            if owner != geteuid().as_raw() {
                return Err(failed(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("it belongs to user {owner}"),
                )));
            }
            let late = Instant::now() >= deadline;
            match file.try_lock() {
                // The last holder may have removed this file between our open and our lock: then it locks nothing.
                Ok(()) if is_still_there(&file, &path) => return Ok(Self { path, _file: file }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                _ if late => return Err(WriteError::Busy { path: directory.join(file_name) }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody can have taken it meanwhile. One that stays does no harm.
        // Docker reads the directory again when a file in it goes away, also where the spec is unchanged: it keeps the
        // device numbers that it saw with the spec, so a new `generate` is what renews them.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_still_there(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let found = fs::symlink_metadata(path).map(identity);
    found.is_ok_and(|found| file.metadata().map(identity).is_ok_and(|held| held == found))
}

/// What a write is going to do to the file. One that belongs to another is replaced even if it says the same: its owner
/// could change it later.
fn compare(path: &Path, contents: &[u8]) -> Result<Written, WriteError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Written::Created),
        Err(source) => return Err(WriteError::Examine { path: path.to_owned(), source }),
    };
    if let Some(found) = not_a_file(metadata.file_type()) {
        return Err(WriteError::NotAFile { path: path.to_owned(), found });
    }
    let same = metadata.uid() == geteuid().as_raw()
        && metadata.permissions().mode() & 0o7777 == FILE_MODE
        && metadata.len() == contents.len() as u64
        // What cannot be read is not known to be the same; replacing it does not need reading it.
        && read_at_most(path, contents.len()).is_ok_and(|old| old == contents);
    Ok(if same { Written::Unchanged } else { Written::Replaced })
}

fn read_at_most(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut contents = Vec::with_capacity(length + 1);
    file.take(length as u64 + 1).read_to_end(&mut contents)?;
    Ok(contents)
}

fn not_a_file(found: fs::FileType) -> Option<&'static str> {
    match found {
        found if found.is_file() => None,
        found if found.is_symlink() => Some("symbolic link"),
        found if found.is_dir() => Some("directory"),
        found if found.is_fifo() => Some("FIFO"),
        found if found.is_socket() => Some("socket"),
        _ => Some("device node"),
    }
}

fn temporary_prefix(file_name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(file_name);
    prefix.push(".");
    prefix
}

/// Removes what writers of this file left that were killed: under the lock, no living one has any.
fn remove_stale(directory: &Path, file_name: &OsStr) -> Result<(), WriteError> {
    let prefix = temporary_prefix(file_name);
    let unreadable = |source| WriteError::OpenDirectory { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let is_ours = name.as_bytes().starts_with(prefix.as_bytes())
            && name.as_bytes().ends_with(TEMPORARY_SUFFIX.as_bytes())
            && entry.file_type().is_ok_and(|found| found.is_file());
        if is_ours {
            let path = entry.path();
            fs::remove_file(&path).map_err(|source| WriteError::RemoveStale { path, source })?;
        }
    }
    Ok(())
}

fn temporary(
    path: &Path,
    directory: &Path,
    file_name: &OsStr,
    contents: &[u8],
) -> Result<NamedTempFile, WriteError> {
    let failed = |source| WriteError::Write { path: path.to_owned(), source };
    // Dropped on any error below, it removes itself.
    let mut temporary = tempfile::Builder::new()
        .prefix(&temporary_prefix(file_name))
        .suffix(TEMPORARY_SUFFIX)
        .tempfile_in(directory)
        .map_err(failed)?;
    let file = temporary.as_file_mut();
    file.write_all(contents).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_engines_read_are_taken() {
        for (path, good) in [
            ("x.json", true),
            ("/etc/cdi/x.yaml", true),
            ("a/.hidden.json", true),
            ("a/x.y.json", true),
            ("x", false),
            ("x.yml", false),
            ("x.JSON", false),
            ("x.json.tmp", false),
            (".json", false),
            ("x.json/", false),
            ("x.json/.", false),
            ("x.json/..", false),
            ("", false),
            ("/", false),
        ] {
            assert_eq!(spec_file_name(Path::new(path)).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn a_held_lock_is_waited_for_and_then_named() {
        let directory = tempfile::tempdir().unwrap();
        let take = || Lock::take(directory.path(), OsStr::new("x.json"), Duration::from_millis(30));
        let holder = take().unwrap();
        let mode = fs::metadata(&holder.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others can open and hold it");

        let error = take().unwrap_err();
        let message = format!("another writer is at work on {}/x.json", directory.path().display());
        assert_eq!((error.to_string(), error.io_kind()), (message, None));

        drop(holder);
        drop(take().unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_file_that_was_removed_locks_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let file = File::create(&path).unwrap();
        assert!(is_still_there(&file, &path));
        fs::remove_file(&path).unwrap();
        assert!(!is_still_there(&file, &path));
        File::create(&path).unwrap();
        assert!(!is_still_there(&file, &path));
    }
}
