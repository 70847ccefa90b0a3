//! The command line of `divvy-hook`, defined once for both ends: `divvy generate` writes it into the CDI spec, the
//! hook reads it when a container starts. Writing and reading are exact inverses.
//! A spec is written by the administrator, yet it lives longer than the hook that came with it: whatever does not
//! parse is refused by name, and nothing is guessed.

mod create_runtime;
mod version;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
pub use create_runtime::{CreateRuntime, LONGEST_START_TIMEOUT, START_TIMEOUT, STATE_DIR};
use thiserror::Error;
pub use version::{CudaVersion, DriverVersion};

/// PATH_MAX (limits.h), in bytes.
const LONGEST_PATH: usize = 4096;

/// Why a word of the command line is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// A path in the container does not begin with `/`.
    #[error("{path:?} is not an absolute path")]
    Relative {
        /// What was given.
        path: PathBuf,
    },
    /// A path in the container holds `..`, or names no file.
    #[error("{path:?} does not name a file without .. on the way")]
    NotPlain {
        /// What was given.
        path: PathBuf,
    },
    /// A character that would break the command line, a link or a line of `ld.so.conf`.
    #[error("{word:?} holds a control character or is not UTF-8")]
    Character {
        /// What was given.
        word: String,
    },
    /// A name or a link's target is empty.
    #[error("{word:?} leaves out a name")]
    Empty {
        /// What was given.
        word: String,
    },
    /// A soname, library file name or link target with a character that it may not have.
    #[error("{name:?} may not hold {character:?}")]
    Separator {
        /// The name.
        name: String,
        /// The character.
        character: char,
    },
    /// A device link somewhere else.
    #[error("{path:?} is not below /dev")]
    NotADevice {
        /// What was given.
        path: PathBuf,
    },
    /// Not numbers with dots between.
    #[error("{word:?} is not a version like 580.126.09 or 13.0")]
    Version {
        /// What was given.
        word: String,
    },
    /// Not `CLASS=NAME`.
    #[error("{word:?} is not of the form CLASS=NAME")]
    DeviceName {
        /// What was given.
        word: String,
    },
    /// Not as many seconds as a start may wait.
    #[error("{word:?} is not a number of seconds up to {LONGEST_START_TIMEOUT}")]
    Seconds {
        /// What was given.
        word: String,
    },
    /// A link without `=`.
    #[error("{word:?} is not of the form TARGET=PATH")]
    Form {
        /// What was given.
        word: String,
    },
}

/// Makes an NVIDIA driver findable in a container that is being started. Engines run this as a CDI spec says.
#[derive(Debug, Parser)]
#[command(name = "divvy-hook", version, max_term_width = 100)]
pub struct Command {
    /// The phase of the container's start.
    #[command(subcommand)]
    pub phase: Phase,
}

/// The phases, by the names that OCI gives them.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Phase {
    /// Ask the daemon for the leased devices of the container
    CreateRuntime(CreateRuntime),
    /// Make the driver findable in the container: links, library cache, settings
    CreateContainer(CreateContainer),
}

/// What the hook does at `createContainer`; one per spec, whatever the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CreateContainer {
    /// A library file in the container, and the soname to find it by if that is not the file's name
    #[arg(long = "library", value_name = "PATH[=SONAME]")]
    pub libraries: Vec<Library>,
    /// A further symbolic link to make in the container
    #[arg(long = "link", value_name = "TARGET=PATH")]
    pub links: Vec<Link>,
    /// A link below /dev, to be made where the device that it names is there
    #[arg(long = "device-link", value_name = "TARGET=PATH", value_parser = device_link)]
    pub device_links: Vec<Link>,
    /// The driver that the spec was made for: another one running is an error
    #[arg(long, value_name = "VERSION")]
    pub driver: Option<DriverVersion>,
    /// The newest CUDA version that the driver serves
    #[arg(long, value_name = "VERSION")]
    pub cuda: Option<CudaVersion>,
    /// The plan that the spec was made from
    #[arg(long, value_name = "ID")]
    pub generation: Option<String>,
    /// A file on the host that says which plan is in force: another one there is an error
    #[arg(long, value_name = "PATH", value_parser = host_path)]
    pub plan: Option<PathBuf>,
    /// Tell EGL which of the host's GPUs are in the container
    #[arg(long)]
    pub application_profile: bool,
    /// The host's directory of leases, where this container must have one
    #[arg(long, value_name = "DIR", value_parser = host_path)]
    pub leases: Option<PathBuf>,
    /// The lease may be of a share of an MPS server, whose directories are mounted then
    #[arg(long)]
    pub mps: bool,
}

/// A driver library that the spec mounts into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The absolute path of the file in the container.
    pub path: PathBuf,
    /// The name that programs ask the loader for; the file's own name if there is no other.
    pub soname: String,
}

/// A symbolic link to make in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What the link says, relative to its own directory or absolute.
    pub target: String,
    /// The absolute path of the link in the container.
    pub path: PathBuf,
}

impl Command {
    /// Reads a whole command line, the program's name first.
    ///
    /// # Errors
    /// What clap says, help and version among them.
    pub fn parse_words<I, T>(words: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Self::try_parse_from(words)
    }
}

impl CreateContainer {
    /// The words that follow the program's name, as they stand in a CDI hook's `args` after the first.
    pub fn to_args(&self) -> Vec<String> {
        let libraries = self.libraries.iter().map(|library| format!("--library={library}"));
        let links = self.links.iter().map(|link| format!("--link={link}"));
        let device_links = self.device_links.iter().map(|link| format!("--device-link={link}"));
        let generation = self.generation.iter().map(|id| format!("--generation={id}"));
        let plan = self.plan.iter().map(|path| format!("--plan={}", path.display()));
        let driver = self.driver.iter().map(|version| format!("--driver={version}"));
        let cuda = self.cuda.iter().map(|version| format!("--cuda={version}"));
        let leases = self.leases.iter().map(|path| format!("--leases={}", path.display()));
        let mps = self.mps.then(|| "--mps".to_owned());
        let profile = self.application_profile.then(|| "--application-profile".to_owned());
        std::iter::once("create-container".to_owned())
            .chain(generation)
            .chain(plan)
            .chain(leases)
            .chain(mps)
            .chain(driver)
            .chain(cuda)
            .chain(profile)
            .chain(libraries)
            .chain(links)
            .chain(device_links)
            .collect()
    }
}

impl Library {
    /// A library that the hook will accept.
    ///
    /// # Errors
    /// When the path is not absolute and plain, or a name holds `/` or `=`.
    pub fn new(path: impl Into<PathBuf>, soname: impl Into<String>) -> Result<Self, Error> {
        let (path, soname) = (path.into(), soname.into());
        let file_name = plain_path(&path)?;
        // Without `=` in either name the last one of a word parts them.
        for name in [file_name, soname.as_str()] {
            plain_name(name, &['/', '='])?;
        }
        Ok(Self { path, soname })
    }

    /// The name of the library file.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The directory of the library file.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

impl Link {
    /// A link that the hook will accept.
    ///
    /// # Errors
    /// When the path is not absolute and plain, or the target is empty or holds `=`.
    pub fn new(target: impl Into<String>, path: impl Into<PathBuf>) -> Result<Self, Error> {
        let (target, path) = (target.into(), path.into());
        plain_path(&path)?;
        plain_name(&target, &['='])?;
        Ok(Self { target, path })
    }
}

impl std::fmt::Display for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.soname == self.file_name() { Ok(()) } else { write!(f, "={}", self.soname) }
    }
}

impl FromStr for Library {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        match word.rsplit_once('=') {
            // A `=` before the last `/` belongs to a directory's name.
            Some((path, soname)) if !soname.contains('/') => Self::new(path, soname),
            _ => {
                let file_name = word.rsplit('/').next().unwrap_or_default();
                Self::new(word, file_name)
            }
        }
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.target, self.path.display())
    }
}

impl FromStr for Link {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        let (target, path) = word.split_once('=').ok_or_else(|| Error::Form { word: word.to_owned() })?;
        Self::new(target, path)
    }
}

/// A link whose place is below /dev. Its target is looked up from there, so it says where it goes.
fn device_link(word: &str) -> Result<Link, Error> {
    let link: Link = word.parse()?;
    match link.path.strip_prefix("/dev") {
        Ok(below) if !below.as_os_str().is_empty() => Ok(link),
        _ => Err(Error::NotADevice { path: link.path }),
    }
}

/// A file or directory of the host's, of which a command line holds only few.
fn host_path(word: &str) -> Result<PathBuf, Error> {
    plain_path(Path::new(word))?;
    Ok(word.into())
}

/// Whether a path could stand in a command line of this hook's.
pub fn is_plain_path(path: &Path) -> bool {
    path.as_os_str().len() <= LONGEST_PATH && plain_path(path).is_ok()
}

/// Refuses a path that is not absolute, not UTF-8, or could mean another place than it says; gives its last name.
fn plain_path(path: &Path) -> Result<&str, Error> {
    let text = path
        .to_str()
        .filter(|text| !text.contains(char::is_control))
        .ok_or_else(|| Error::Character { word: path.to_string_lossy().into_owned() })?;
    if !path.is_absolute() {
        return Err(Error::Relative { path: path.to_owned() });
    }
    // std's components() would skip `.` and `//`; a path in a spec says what it means.
    if text.split('/').skip(1).any(|name| matches!(name, "" | "." | "..")) {
        return Err(Error::NotPlain { path: path.to_owned() });
    }
    Ok(text.rsplit('/').next().unwrap_or_default())
}

fn plain_name(name: &str, refused: &[char]) -> Result<(), Error> {
    if name.is_empty() || name == "." || name == ".." {
        return Err(Error::Empty { word: name.to_owned() });
    }
    if name.contains(char::is_control) {
        return Err(Error::Character { word: name.to_owned() });
    }
    match refused.iter().find(|&&character| name.contains(character)) {
        Some(&character) => Err(Error::Separator { name: name.to_owned(), character }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
