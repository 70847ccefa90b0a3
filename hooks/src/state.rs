//! What the engine says on standard input (OCI runtime specification, "State"), and where the container's root is.
//!
//! The state comes from the engine, not from the image, but it is bounded all the same. Of it and of the bundle's
//! `config.json` only what is needed is read, so that values which this program does not know yet cannot fail a start.
//!
//! - `asked`: what the configuration says of devices, for the daemon

mod asked;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::tree::Tree;
pub use asked::{Asked, asked_in_config};

/// The most that is read from standard input, in bytes.
pub const STATE_LIMIT: u64 = 1 << 20;
/// The most that is read of a bundle's `config.json`, in bytes.
pub const CONFIG_LIMIT: u64 = 16 << 20;

/// Why the container's root is not known.
#[derive(Debug, Error)]
pub enum Error {
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// `the container's state`, or the path of its configuration.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// More bytes than its reader takes.
    #[error("{what} is longer than {limit} bytes")]
    TooLarge {
        /// `the container's state`, or the path of its configuration.
        what: String,
        /// In bytes.
        limit: u64,
    },
    /// Nothing came on standard input.
    #[error("there is no container's state on standard input")]
    Empty,
    /// Standard input is no state.
    #[error("the container's state is malformed")]
    State {
        /// Where and why.
        source: serde_json::Error,
    },
    /// A state that names neither the bundle nor the root, or not by an absolute path.
    #[error("the container's state names no bundle")]
    NoBundle,
    /// The configuration is none.
    #[error("the bundle's config.json is malformed")]
    Config {
        /// Where and why.
        source: serde_json::Error,
    },
    /// A configuration without `root.path`.
    #[error("the bundle's config.json names no root")]
    NoRoot,
    /// A state without an id.
    #[error("the container's state has no id")]
    NoId,
    /// A state without the container's first process.
    #[error("the container's state names no process")]
    NoProcess,
}

impl Error {
    /// What the administrator can do about it, if there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Empty => Some(
                "a container engine runs this program as an OCI hook and tells it of the container there",
            ),
            _ => None,
        }
    }
}

/// The state of a container that is being started: of what the engine says, what is needed. Whatever else it may say,
/// now or later, is no reason to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Empty where there is none.
    bundle: PathBuf,
    /// Where the root is, as crun says beyond the specification. The bundle's `config.json` can be out of reach when
    /// this is not.
    root: Option<PathBuf>,
    id: Option<String>,
    pid: Option<i64>,
    annotations: BTreeMap<String, String>,
}

impl Container {
    /// Reads a state to the end of `input`.
    ///
    /// # Errors
    /// When it is longer than [`STATE_LIMIT`], empty, or does not parse.
    pub fn read(input: impl Read) -> Result<Self, Error> {
        let what = "the container's state";
        let bytes = read_bounded(input, STATE_LIMIT, what)?;
        if bytes.trim_ascii().is_empty() { Err(Error::Empty) } else { Self::parse(&bytes) }
    }

    /// Parses a state.
    ///
    /// # Errors
    /// When it is not the JSON of a state.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let state = Tree::parse(bytes).map_err(|source| Error::State { source })?;
        Ok(Self {
            bundle: state.get("bundle").text().unwrap_or_default().into(),
            root: state.get("root").text().map(PathBuf::from),
            id: state.get("id").text().map(str::to_owned),
            pid: state.get("pid").number(),
            annotations: state.annotations(),
        })
    }

    /// The container's id, by which engine and runtime know it.
    ///
    /// # Errors
    /// When there is none.
    pub fn id(&self) -> Result<&str, Error> {
        self.id.as_deref().filter(|id| !id.is_empty()).ok_or(Error::NoId)
    }

    /// The bundle's directory, absolute.
    ///
    /// # Errors
    /// When there is none.
    pub fn bundle(&self) -> Result<&Path, Error> {
        Some(self.bundle.as_path()).filter(|bundle| bundle.is_absolute()).ok_or(Error::NoBundle)
    }

    /// The container's first process, as the process that reads the state counts them: at createContainer it may be
    /// another number, or none.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self) -> Result<i32, Error> {
        let pid = self.pid.and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).ok_or(Error::NoProcess)
    }

    /// Annotations that name the container for a person, as far as engines are known to write them.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The bundle and the content of its `config.json`, for a process that the runtime started in its own namespaces. crun
    /// says there, and there alone, `/` for the bundle of a container with devices and a user namespace of its own; then it
    /// is the one that the runtime itself, whose command line is `runtime`, was told of.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than [`CONFIG_LIMIT`].
    pub fn config_by(&self, runtime: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
        let bundle = self.bundle()?;
        match config(bundle) {
            Err(Error::Read { source, what }) if source.kind() == ErrorKind::NotFound => {
                let words =
                    File::open(runtime).ok().and_then(|file| read_bounded(file, STATE_LIMIT, "").ok());
                let told = words.as_deref().and_then(|words| told_bundle(words, self.id().ok()?));
                let told = told.ok_or(Error::Read { source, what })?;
                Ok((told.to_owned(), config(told)?))
            }
            read => Ok((bundle.to_owned(), read?)),
        }
    }

    /// The container's root directory on the host: what the state says, or else the bundle's `config.json`.
    ///
    /// In a user namespace of its own the bundle is out of reach, for the engine's directories are closed to the
    /// container's root. Then it is the working directory, which runc, that says no root in the state, sets to the
    /// container's root for createContainer hooks; crun sets it to the bundle.
    ///
    /// # Errors
    /// When none says it, or the configuration cannot be read.
    pub fn root(&self) -> Result<PathBuf, Error> {
        let bundle = self.bundle.as_path();
        match &self.root {
            Some(root) if root.is_absolute() => return Ok(root.clone()),
            _ if !bundle.is_absolute() => return Err(Error::NoBundle),
            _ => {}
        }
        match config(bundle) {
            Err(Error::Read { source, .. })
                if source.kind() == ErrorKind::PermissionDenied && is_elsewhere(bundle) =>
            {
                Ok(PathBuf::from("."))
            }
            config => root_in_config(bundle, &config?),
        }
    }
}

fn config(bundle: &Path) -> Result<Vec<u8>, Error> {
    let path = bundle.join("config.json");
    let what = format!("{path:?}");
    let file = File::open(&path).map_err(|source| Error::Read { what: what.clone(), source })?;
    read_bounded(file, CONFIG_LIMIT, &what)
}

/// The absolute path that a runtime's command line, which ends each word with a NUL, gives to `--bundle` for the
/// container with this id.
fn told_bundle<'a>(line: &'a [u8], id: &str) -> Option<&'a Path> {
    let words: Vec<&str> =
        line.split(|byte| *byte == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let flag = words.iter().enumerate().find_map(|(at, word)| match *word {
        "--bundle" | "-b" => words.get(at + 1).copied(),
        word => word.strip_prefix("--bundle="),
    });
    let bundle = flag.map(Path::new).filter(|bundle| bundle.is_absolute())?;
    words.contains(&id).then_some(bundle)
}

/// Whether the working directory is another than the bundle. It is named `.` because its path may be closed, too.
fn is_elsewhere(bundle: &Path) -> bool {
    std::env::current_dir().is_ok_and(|directory| directory != bundle)
}

/// The container's root directory as the content of the `config.json` of `bundle` says it: `root.path` (OCI runtime
/// specification, "Root"), which counts from the bundle if it is relative.
///
/// # Errors
/// When it is no JSON object, or names no root.
pub fn root_in_config(bundle: &Path, config: &[u8]) -> Result<PathBuf, Error> {
    let config = Tree::parse(config).map_err(|source| Error::Config { source })?;
    let path = config.get("root").get("path").text().filter(|path| !path.is_empty());
    path.map(|path| bundle.join(path)).ok_or(Error::NoRoot)
}

fn read_bounded(input: impl Read, limit: u64, what: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = input.take(limit + 1).read_to_end(&mut bytes);
    let length = read.map_err(|source| Error::Read { what: what.to_owned(), source })?;
    if length as u64 > limit { Err(Error::TooLarge { what: what.to_owned(), limit }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    // As the engines wrote them to a hook at createContainer, shortened.
    const RUNC: &str = r#"{"ociVersion":"1.2.1","id":"c1","status":"creating","pid":1,"bundle":"/run/b","annotations":{"a":"b"}}"#;
    const CRUN: &str = r#"{"ociVersion":"1.0","id":"c1","pid":0,"root":"/var/lib/merged","bundle":"/run/b","status":"created"}"#;

    #[test]
    fn the_engines_states_are_read() {
        let runc = Container::parse(RUNC.as_bytes()).unwrap();
        assert_eq!((runc.bundle.as_path(), &runc.root), (Path::new("/run/b"), &None));
        let crun = Container::parse(CRUN.as_bytes()).unwrap();
        assert_eq!(crun.root().unwrap(), Path::new("/var/lib/merged"));
        assert_eq!((runc.id().unwrap(), runc.pid().unwrap()), ("c1", 1));
        assert_eq!(crun.pid().unwrap_err().to_string(), "the container's state names no process");
        for newer in [
            r#"{"bundle":"/b","status":"paused","pid":4294967296,"fds":[1],"annotations":{"a":1}}"#,
            r#"{"bundle":"/b","id":7,"pid":"12","annotations":["a"]}"#,
            r#"{"bundle":"/b","id":null,"pid":-1,"annotations":null}"#,
            r#"{"bundle":"/b","id":"","pid":0.5,"annotations":"a"}"#,
        ] {
            let newer = Container::parse(newer.as_bytes()).unwrap();
            assert_eq!(newer.bundle().unwrap(), Path::new("/b"));
            assert!(newer.pid().is_err() && newer.id().is_err() && newer.annotations().is_empty());
        }
    }

    #[test]
    fn odd_states_are_refused() {
        for (input, error) in [
            ("", "there is no container's state on standard input"),
            (" \n", "there is no container's state on standard input"),
            ("hello", "the container's state is malformed"),
            ("[]", "the container's state is malformed"),
            (r#"{"bundle":"/b"} x"#, "the container's state is malformed"),
        ] {
            assert_eq!(Container::read(input.as_bytes()).unwrap_err().to_string(), error, "{input}");
        }
        let long = Container::read(std::io::repeat(b' ')).unwrap_err();
        assert_eq!(long.to_string(), "the container's state is longer than 1048576 bytes");
        for input in
            ["{}", r#"{"bundle":1}"#, r#"{"bundle":""}"#, r#"{"bundle":"b"}"#, r#"{"root":"merged"}"#]
        {
            let error = Container::parse(input.as_bytes()).unwrap().root().unwrap_err();
            assert_eq!(error.to_string(), "the container's state names no bundle", "{input}");
        }
    }

    #[test]
    fn a_runtime_was_told_of_the_bundle() {
        for (line, bundle) in [
            ("/usr/bin/crun\0create\0--bundle\0/run/b\0--pid-file\0/p\0c1\0", Some("/run/b")),
            ("crun\0create\0--bundle=/run/b\0c1\0", Some("/run/b")),
            ("crun\0create\0-b\0/run/b\0c1\0", Some("/run/b")),
            ("crun\0create\0--bundle\0/run/b\0c2\0", None),
            ("crun\0create\0--bundle\0b\0c1\0", None),
            ("crun\0create\0c1\0--bundle", None),
            ("crun\0create\0c1\0", None),
            ("", None),
        ] {
            assert_eq!(told_bundle(line.as_bytes(), "c1"), bundle.map(Path::new), "{line:?}");
        }
    }

    #[test]
    fn the_runtime_is_asked_where_the_bundle_of_the_state_has_no_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let (bundle, line) = (directory.path().join("b"), directory.path().join("cmdline"));
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join("config.json"), "{}").unwrap();
        std::fs::write(&line, format!("crun\0create\0--bundle\0{}\0c1\0", bundle.display())).unwrap();
        let state = |bundle: &Path| {
            Container::parse(format!(r#"{{"id":"c1","bundle":"{}"}}"#, bundle.display()).as_bytes()).unwrap()
        };
        let elsewhere = state(directory.path());
        assert_eq!(elsewhere.config_by(&line).unwrap(), (bundle, b"{}".to_vec()));
        let error = elsewhere.config_by(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {:?}", directory.path().join("config.json")));
        // What the state says goes first.
        std::fs::write(directory.path().join("config.json"), "[]").unwrap();
        assert_eq!(elsewhere.config_by(&line).unwrap(), (directory.path().to_owned(), b"[]".to_vec()));
    }

    #[test]
    fn a_bundle_names_its_root() {
        let bundle = Path::new("/run/b");
        for (config, root) in [
            (r#"{"root":{"path":"rootfs","readonly":true}}"#, Some("/run/b/rootfs")),
            (
                r#"{"root":{"path":"/var/lib/merged"},"process":{"capabilities":{"bounding":["CAP_NEW"]}}}"#,
                Some("/var/lib/merged"),
            ),
            (r#"{"root":{"path":""}}"#, None),
            (r#"{"root":{}}"#, None),
            (r#"{"root":null}"#, None),
            (r#"{}"#, None),
            (r#"{"root":"rootfs"}"#, None),
            (r#"rootfs"#, None),
        ] {
            assert_eq!(
                root_in_config(bundle, config.as_bytes()).ok().as_deref(),
                root.map(Path::new),
                "{config}"
            );
        }
    }

    #[test]
    fn a_missing_config_is_named_with_its_cause() {
        let directory = tempfile::tempdir().unwrap();
        let state = format!(r#"{{"bundle":"{}"}}"#, directory.path().display());
        let error = Container::parse(state.as_bytes()).unwrap().root().unwrap_err();
        let path = directory.path().join("config.json");
        assert_eq!(error.to_string(), format!("cannot read {path:?}"));
        assert!(error.source().unwrap().to_string().starts_with("No such file or directory"));
    }
}
