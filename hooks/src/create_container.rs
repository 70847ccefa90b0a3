//! Step 4: the one pass over a container's root before its first program runs: links for the driver's libraries, the
//! loader told where they are, and what else a program needs to find the driver.
//!
//! Everything is written only where it differs, under fixed names, so that a restart changes nothing and leaves nothing
//! behind. What a user's volume hides is left alone with a warning, which engines drop when the container starts; any
//! other failure stops the start, since a program that finds half a driver fails later and in stranger ways. It talks to
//! no daemon.
//!
//! - `compat`: libraries of the image's that go before the driver's
//! - `loader`: library cache and configuration
//! - `profile`: what EGL is told

mod compat;
mod loader;
mod profile;

use std::fmt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::args::{CreateContainer, Library, Link};
use crate::rootfs::{self, Change, Root};
use loader::Libraries;

/// Directories in /dev in which the driver's nodes lie.
const DEVICE_DIRECTORIES: [&str; 4] =
    ["/dev/dri", "/dev/nvidia-caps", "/dev/nvidia-caps-imex-channels", "/dev/infiniband"];

/// What could not be done.
#[derive(Debug, Error)]
pub enum Error {
    /// A link for a library.
    #[error("cannot link {path:?}")]
    Link {
        /// The link, in the container.
        path: PathBuf,
        /// Why.
        source: rootfs::Error,
    },
    /// The loader's cache or configuration.
    #[error("cannot enter the driver's libraries in {path:?}")]
    Loader {
        /// The file, in the container.
        path: PathBuf,
        /// Why.
        source: rootfs::Error,
    },
}

impl Error {
    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        let (Self::Link { source, .. } | Self::Loader { source, .. }) = self;
        source.hint()
    }
}

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The links and files that were written, in the container. Empty when the container starts again.
    pub written: Vec<PathBuf>,
    /// What was left alone, and why.
    pub notes: Vec<Note>,
}

/// Something that a person looking for a missing library would like to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The spec mounts a library that is not there.
    Hidden {
        /// The library, in the container.
        path: PathBuf,
    },
    /// A volume is in the way of a link or file.
    ForeignMount {
        /// The link or file, in the container.
        path: PathBuf,
    },
    /// What the image's loader reads is unusable, and the new file holds the driver's libraries alone.
    Replaced {
        /// The file, in the container.
        path: PathBuf,
        /// Why it is unusable.
        why: String,
    },
    /// A link to a device could not be made, or the directory of one not opened to all users.
    Device {
        /// The link or directory, in the container.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The image's libraries for CUDA forward compatibility are not used.
    Compat {
        /// Why.
        why: String,
    },
    /// EGL is not told which GPUs are there.
    Profile {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden { path } => write!(f, "{path:?} is not in the container; a volume may hide it"),
            Self::ForeignMount { path } => {
                write!(f, "left {path:?} alone: a volume is mounted at or above it")
            }
            Self::Replaced { path, why } => write!(f, "replaced {path:?} of the image: {why}"),
            Self::Device { path, why } => write!(f, "left {path:?} as it is: {why}"),
            Self::Compat { why } => {
                write!(f, "the image's {:?} is not used: {why}", compat::DIRECTORY)
            }
            Self::Profile { why } => write!(f, "EGL is not told which GPUs there are: {why}"),
        }
    }
}

/// Does what `request` says below `root`.
///
/// # Errors
/// At the first thing that cannot be done, [`rootfs::Error::ForeignMount`] excepted: that is noted.
pub fn run(root: &Root, request: &CreateContainer) -> Result<Report, Error> {
    let generation = request.generation.clone();
    let mut pass = Pass { root, generation, report: Report::default() };
    let mut libraries = Libraries::default();
    pass.compat(request, &mut libraries);
    let of_image = libraries.places.len();
    for library in &request.libraries {
        if let Some(place) = pass.library(library)? {
            libraries.places.push((library.soname.clone(), place));
        }
    }
    for link in &request.links {
        pass.link(&link.target, &link.path)?;
    }
    pass.devices(&request.device_links);
    if libraries.places.len() > of_image {
        for directory in request.libraries.iter().map(Library::directory) {
            if !libraries.directories.iter().any(|listed| listed == directory) {
                libraries.directories.push(directory.to_owned());
            }
        }
        loader::tell(&mut pass, &libraries).map_err(|(path, source)| Error::Loader { path, source })?;
    }
    if request.application_profile
        && let Err(error) = profile::write(&mut pass)
    {
        pass.report.notes.push(Note::Profile { why: why(&error) });
    }
    Ok(pass.report)
}

struct Pass<'a> {
    root: &'a Root,
    generation: Option<String>,
    report: Report,
}

impl Pass<'_> {
    /// Libraries of the image that go before the driver's. Without them a program that needs them says so itself.
    fn compat(&mut self, request: &CreateContainer, libraries: &mut Libraries) {
        let Some(driver) = &request.driver else { return };
        let found = compat::find(self.root, driver, request.cuda);
        let found =
            found.unwrap_or_else(|error| compat::Compat { odd: Some(why(&error)), ..Default::default() });
        self.report.notes.extend(found.odd.map(|why| Note::Compat { why }));
        if !found.libraries.is_empty() {
            libraries.directories.push(compat::DIRECTORY.into());
            libraries.places.extend(found.libraries);
        }
    }

    /// Links a library's soname to it. Gives the path that the cache shall name: the link, as ldconfig has it, which
    /// stays the same from driver to driver; or the file itself where no link can be made.
    fn library(&mut self, library: &Library) -> Result<Option<PathBuf>, Error> {
        let there = self.root.is_full_file(&library.path);
        if !there.map_err(|source| Error::Link { path: library.path.clone(), source })? {
            self.report.notes.push(Note::Hidden { path: library.path.clone() });
            return Ok(None);
        }
        if library.soname == library.file_name() {
            return Ok(Some(library.path.clone()));
        }
        let link = library.directory().join(&library.soname);
        let linked = self.link(library.file_name(), &link)?;
        Ok(Some(if linked { link } else { library.path.clone() }))
    }

    /// Makes a link; false if a volume is in the way.
    fn link(&mut self, target: &str, path: &Path) -> Result<bool, Error> {
        match self.root.symlink(target, path) {
            Ok(Change::Made) => self.report.written.push(path.to_owned()),
            Ok(Change::Unchanged) => {}
            Err(rootfs::Error::ForeignMount { path }) => {
                self.report.notes.push(Note::ForeignMount { path });
                return Ok(false);
            }
            Err(source) => return Err(Error::Link { path: path.to_owned(), source }),
        }
        Ok(true)
    }

    /// Links to devices that this container has, and the way to all its devices open to every user of it. Nothing in a
    /// start depends on either.
    fn devices(&mut self, links: &[Link]) {
        let is_there = |link: &&Link| {
            let minor = self.root.device_minor(&destination(link));
            minor.is_ok_and(|minor| minor.is_some())
        };
        let links: Vec<&Link> = links.iter().filter(is_there).collect();
        let closed = DEVICE_DIRECTORIES.map(Path::new).into_iter();
        let closed: Vec<&Path> =
            closed.filter(|path| self.root.is_closed(path).is_ok_and(|closed| closed)).collect();
        if links.is_empty() && closed.is_empty() {
            return;
        }
        let devices = match self.root.devices() {
            Ok(devices) => devices,
            Err(error) => return self.no_device(Path::new("/dev"), &error),
        };
        let below = |path: &Path| Path::new("/").join(path.strip_prefix("/dev").unwrap_or(path));
        for link in links {
            self.device(&link.path, devices.symlink(&link.target, &below(&link.path)));
        }
        for path in closed {
            self.device(path, devices.open_to_all(&below(path)));
        }
    }

    fn device(&mut self, path: &Path, done: Result<Change, rootfs::Error>) {
        match done {
            Ok(Change::Made) => self.report.written.push(path.to_owned()),
            Ok(Change::Unchanged) => {}
            Err(error) => self.no_device(path, &error),
        }
    }

    fn no_device(&mut self, path: &Path, error: &rootfs::Error) {
        self.report.notes.push(Note::Device { path: path.to_owned(), why: why(error) });
    }

    /// What stands at `path`, to be made to say something else. Nothing, and why, where what stands there is no file or
    /// longer than `limit` bytes: it is replaced then, but for a directory, which the rename finds in its way.
    fn present_or_why(&self, path: &Path, limit: usize) -> Result<(Vec<u8>, Option<String>), rootfs::Error> {
        match self.root.read(path, limit) {
            Ok(present) => Ok((present.unwrap_or_default(), None)),
            Err(error @ (rootfs::Error::NotRegular { .. } | rootfs::Error::TooLarge { .. })) => {
                Ok((Vec::new(), Some(error.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// The same for a file that is this hook's alone.
    fn present(&self, path: &Path, limit: usize) -> Result<Vec<u8>, rootfs::Error> {
        self.present_or_why(path, limit).map(|(present, _)| present)
    }

    fn put(&mut self, path: &Path, present: &[u8], wanted: &[u8]) -> Result<(), rootfs::Error> {
        if present != wanted {
            self.root.replace(path, wanted)?;
            self.report.written.push(path.to_owned());
        }
        Ok(())
    }
}

/// An error and its cause, in one line.
fn why(error: &rootfs::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Where a link leads, by the names alone: its directory need not be there yet.
pub(crate) fn destination(link: &Link) -> PathBuf {
    let mut path = link.path.parent().unwrap_or(Path::new("/")).to_owned();
    for part in Path::new(&link.target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

#[cfg(test)]
mod tests;
