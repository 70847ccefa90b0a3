//! Step 4: the one pass over a container's root before its first program runs: links for the driver's libraries, and the
//! loader told where they are.
//!
//! Everything is written only where it differs, under fixed names, so that a restart changes nothing and leaves nothing
//! behind. What a user's volume hides is left alone with a warning, which
//! engines drop when the container starts; any other failure stops the container's start, since a
//! program that finds half a driver fails later and in stranger ways. It talks to no daemon.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::args::{self, CreateContainer, Library, Link};
use crate::ldcache::{self, Cache, Entry};
use crate::rootfs::{self, Change, Root};

const CACHE: &str = "/etc/ld.so.cache";
const CONFIG: &str = "/etc/ld.so.conf";
/// Sorts before an image's own, and keeps the driver in the cache when the user runs ldconfig in the container.
const CONFIG_PART: &str = "/etc/ld.so.conf.d/00-divvy.conf";
const CONFIG_INCLUDE: &[u8] = b"include /etc/ld.so.conf.d/*.conf\n";
/// Far more than our own file can come to, in bytes.
const CONFIG_LIMIT: usize = 1 << 20;
/// More directories than two specs bring.
const CONFIG_LINES: usize = 64;

#[cfg(target_arch = "x86_64")]
const GLIBC_LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
#[cfg(target_arch = "x86_64")]
const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";
#[cfg(target_arch = "aarch64")]
const GLIBC_LOADER: &str = "/lib/ld-linux-aarch64.so.1";
#[cfg(target_arch = "aarch64")]
const MUSL_LOADER: &str = "/lib/ld-musl-aarch64.so.1";

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
    /// The image's cache is one that the loader ignores as well; the new one holds the driver's libraries alone.
    CacheReplaced {
        /// Why it is unusable.
        why: String,
    },
    /// A link for a device could not be made. Programs find the device by its own name.
    DeviceLink {
        /// The link, in the container.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The image has musl's loader and not glibc's, which knows neither cache nor configuration of this form.
    Musl,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hidden { path } => write!(f, "{path:?} is not in the container; a volume may hide it"),
            Self::ForeignMount { path } => {
                write!(f, "left {path:?} alone: a volume is mounted at or above it")
            }
            Self::CacheReplaced { why } => write!(f, "replaced {CACHE:?} of the image: {why}"),
            Self::DeviceLink { path, why } => write!(f, "cannot link {path:?}: {why}"),
            Self::Musl => write!(f, "the image's loader is musl's, so there is no library cache to write"),
        }
    }
}

/// Does what `request` says below `root`.
///
/// # Errors
/// At the first thing that cannot be done, [`rootfs::Error::ForeignMount`] excepted: that is noted.
pub fn run(root: &Root, request: &CreateContainer) -> Result<Report, Error> {
    let mut pass = Pass { root, report: Report::default() };
    let mut places = Vec::new();
    for library in &request.libraries {
        if let Some(place) = pass.library(library)? {
            places.push((library.soname.as_str(), place));
        }
    }
    for link in &request.links {
        pass.link(&link.target, &link.path)?;
    }
    pass.device_links(&request.device_links);
    let loads_by_cache =
        pass.loads_by_cache().map_err(|source| Error::Loader { path: CACHE.into(), source })?;
    if !loads_by_cache {
        pass.report.notes.push(Note::Musl);
    } else if !places.is_empty() {
        pass.loader(Path::new(CACHE), |pass| pass.cache(&places))?;
        pass.loader(Path::new(CONFIG_PART), |pass| pass.config_part(request))?;
        pass.loader(Path::new(CONFIG), Pass::config)?;
    }
    Ok(pass.report)
}

struct Pass<'a> {
    root: &'a Root,
    report: Report,
}

impl Pass<'_> {
    /// Links a library's soname to it. Gives the path that the cache shall name: the link, as ldconfig has it, which
    /// stays the same from driver to driver; or the file itself where no link can be made.
    fn library(&mut self, library: &Library) -> Result<Option<PathBuf>, Error> {
        let there = self.root.is_file(&library.path);
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

    /// Links to devices that this container has. Nothing in a start depends on one.
    fn device_links(&mut self, links: &[Link]) {
        let is_there = |link: &&Link| {
            let found = self.root.is_device(&destination(link));
            found.unwrap_or(false)
        };
        let wanted: Vec<&Link> = links.iter().filter(is_there).collect();
        let Some(first) = wanted.first() else { return };
        let devices = match self.root.devices() {
            Ok(devices) => devices,
            Err(error) => return self.no_device_link(&first.path, &error),
        };
        for link in wanted {
            let below = link.path.strip_prefix("/dev").unwrap_or(&link.path);
            match devices.symlink(&link.target, &Path::new("/").join(below)) {
                Ok(Change::Made) => self.report.written.push(link.path.clone()),
                Ok(Change::Unchanged) => {}
                Err(error) => self.no_device_link(&link.path, &error),
            }
        }
    }

    fn no_device_link(&mut self, path: &Path, error: &rootfs::Error) {
        self.report.notes.push(Note::DeviceLink { path: path.to_owned(), why: error.to_string() });
    }

    fn loads_by_cache(&self) -> Result<bool, rootfs::Error> {
        // Debian's package musl and Alpine's gcompat put one beside the other.
        Ok(self.root.is_file(Path::new(GLIBC_LOADER))? || !self.root.is_file(Path::new(MUSL_LOADER))?)
    }

    /// Runs one step on one of the loader's files.
    fn loader(
        &mut self,
        path: &Path,
        step: impl FnOnce(&mut Self) -> Result<(), rootfs::Error>,
    ) -> Result<(), Error> {
        match step(self) {
            Err(rootfs::Error::ForeignMount { path }) => {
                self.report.notes.push(Note::ForeignMount { path });
                Ok(())
            }
            result => result.map_err(|source| Error::Loader { path: path.to_owned(), source }),
        }
    }

    fn cache(&mut self, places: &[(&str, PathBuf)]) -> Result<(), rootfs::Error> {
        let path = Path::new(CACHE);
        let (present, unread) = match self.root.read(path, ldcache::LIMIT) {
            Ok(present) => (present, None),
            // The rename tells whether a directory is in the way.
            Err(error @ (rootfs::Error::NotRegular { .. } | rootfs::Error::TooLarge { .. })) => {
                (None, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let present = present.unwrap_or_default();
        let mut why = unread;
        let mut cache = Cache::default();
        if !present.is_empty() {
            match Cache::parse(&present) {
                Ok(parsed) => cache = parsed,
                Err(error) => why = Some(error.to_string()),
            }
        }
        let ours: Vec<_> = places.iter().map(|(soname, place)| Entry::new(soname, place)).collect();
        cache.merge(&ours);
        let mut wanted = cache.to_bytes();
        // What the next start would not read again, it would replace.
        if wanted.len() > ldcache::LIMIT {
            why = Some(format!("with the driver's libraries it is longer than {} bytes", ldcache::LIMIT));
            cache = Cache::default();
            cache.merge(&ours);
            wanted = cache.to_bytes();
        }
        self.put(path, &present, &wanted)?;
        self.report.notes.extend(why.map(|why| Note::CacheReplaced { why }));
        Ok(())
    }

    /// Keeps the directories of an earlier run: a container may have devices of two specs, and each has a run.
    fn config_part(&mut self, request: &CreateContainer) -> Result<(), rootfs::Error> {
        let path = Path::new(CONFIG_PART);
        let present = match self.root.read(path, CONFIG_LIMIT) {
            Ok(present) => present.unwrap_or_default(),
            Err(rootfs::Error::NotRegular { .. } | rootfs::Error::TooLarge { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let earlier = String::from_utf8(present.clone()).unwrap_or_default();
        let earlier: BTreeSet<&Path> = earlier.lines().map(Path::new).collect();
        // More, or something else, is nothing that this hook wrote.
        let is_ours = earlier.len() <= CONFIG_LINES && earlier.iter().all(|line| args::is_plain_path(line));
        let mut directories = if is_ours { earlier } else { BTreeSet::new() };
        directories.extend(request.libraries.iter().map(Library::directory));
        let lines: String =
            directories.iter().map(|directory| format!("{}\n", directory.display())).collect();
        self.put(path, &present, lines.as_bytes())
    }

    /// Only where the image has none: one that does not include the directory is the image's decision.
    fn config(&mut self) -> Result<(), rootfs::Error> {
        let path = Path::new(CONFIG);
        if self.root.exists(path)? { Ok(()) } else { self.put(path, b"", CONFIG_INCLUDE) }
    }

    fn put(&mut self, path: &Path, present: &[u8], wanted: &[u8]) -> Result<(), rootfs::Error> {
        if present != wanted {
            self.root.replace(path, wanted)?;
            self.report.written.push(path.to_owned());
        }
        Ok(())
    }
}

/// Where a link leads, by the names alone: its directory need not be there yet.
fn destination(link: &Link) -> PathBuf {
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
