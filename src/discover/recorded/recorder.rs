//! Notes every answer that discovery gets while it runs, and makes the files of a recorded host of them. Never
//! writes a file itself and never asks for anything that discovery does not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::mask::Mask;
use super::{Answers, FORMAT, HOST, NodeAnswer, SocketAnswer, SonameAnswer, TEXT, is_plain};
use crate::discover::files::{Files, Node};
use crate::discover::host::Host;
use crate::discover::{others, side};
use crate::nvml::facts::Facts;

/// Passes reads on to a host's files and notes the answers.
pub struct Recorder<'a> {
    files: &'a dyn Files,
    answers: RefCell<Answers>,
    texts: RefCell<BTreeMap<PathBuf, String>>,
}

/// A host that was discovered, with all the answers that made it.
#[derive(Debug)]
pub struct Recording {
    /// The host as it replays: its nodes lie in /dev itself.
    pub host: Host,
    answers: Answers,
    texts: BTreeMap<PathBuf, String>,
}

impl<'a> Recorder<'a> {
    /// Records what is read of these files.
    pub fn new(files: &'a dyn Files) -> Self {
        Self { files, answers: RefCell::default(), texts: RefCell::default() }
    }

    /// What was recorded while these facts became this host.
    pub fn finish(self, facts: Facts, mut host: Host) -> Recording {
        let mut answers = self.answers.into_inner();
        answers.format = FORMAT;
        answers.divvy = env!("CARGO_PKG_VERSION").into();
        answers.nvml = facts;
        answers.engines = host.engines.clone();
        // What else is installed on a machine is nobody's business.
        for names in answers.driver_directories.values_mut() {
            *names = names_of_driver(names, &host.driver_version);
        }
        for node in host.nodes_mut() {
            node.host_path = node.path.clone();
        }
        for node in &mut host.side.nodes {
            node.host_path = node.path.clone();
        }
        let mut texts = self.texts.into_inner();
        // Nor are other vendors' devices, and what their specs say of them.
        texts = texts
            .into_iter()
            .filter_map(|(path, text)| Some((path.clone(), others::reduced(&path, &text)?)))
            .collect();
        for (dir, names) in &mut answers.directories {
            names
                .retain(|name| !others::is_spec_file(Path::new(name)) || texts.contains_key(&dir.join(name)));
        }
        host.others.unreadable.clear();
        Recording { host, answers, texts }
    }

    fn note<T>(&self, answer: io::Result<T>, note: impl FnOnce(&mut Answers, &T)) -> io::Result<T> {
        if let Ok(answer) = &answer {
            note(&mut self.answers.borrow_mut(), answer);
        }
        answer
    }
}

/// The names that discovery may look for among those in a directory of libraries, firmware or descriptions.
fn names_of_driver(names: &[String], version: &str) -> Vec<String> {
    let versioned = |name: &str| names.iter().any(|other| *other == format!("{name}.{version}"));
    let of_driver = |name: &&String| {
        let library = name.starts_with("lib")
            && (name.starts_with("libnvidia")
                || name.ends_with(version)
                || name.ends_with(".so") && versioned(name));
        let data = !name.starts_with("lib") && name.contains("nvidia");
        library
            || data
            || ["gsp", "ucodes"].iter().any(|start| name.starts_with(start))
            || *name == "nvoptix.bin"
    };
    names.iter().filter(of_driver).cloned().collect()
}

impl Files for Recorder<'_> {
    fn text(&self, path: &Path) -> io::Result<String> {
        let text = self.files.text(path)?;
        self.texts.borrow_mut().insert(path.into(), text.clone());
        Ok(text)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.note(self.files.names(dir), |answers, names| {
            answers.directories.insert(dir.into(), names.clone());
        })
    }

    fn driver_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.note(self.files.driver_names(dir), |answers, names| {
            answers.driver_directories.insert(dir.into(), names.clone());
        })
    }

    fn device_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.note(self.files.device_names(dir), |answers, names| {
            let mut names = names.clone();
            names.retain(|name| side::is_asked_for(dir, name));
            answers.device_directories.insert(dir.into(), names);
        })
    }

    fn driver_real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.note(self.files.driver_real_path(path), |answers, real| {
            answers.real_paths.insert(path.into(), real.clone());
        })
    }

    fn driver_file(&self, path: &Path) -> io::Result<PathBuf> {
        self.note(self.files.driver_file(path), |answers, real| {
            answers.real_paths.insert(path.into(), real.clone());
        })
    }

    fn driver_socket(&self, path: &Path) -> io::Result<PathBuf> {
        let answer = self.files.driver_socket(path);
        let noted = match &answer {
            Ok(real) => SocketAnswer::At(real.clone()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                SocketAnswer::Closed { closed: error.to_string() }
            }
            Err(_) => return answer,
        };
        self.answers.borrow_mut().sockets.insert(path.into(), noted);
        answer
    }

    fn cached_libraries(&self) -> Vec<(String, PathBuf)> {
        let found = self.files.cached_libraries();
        let libraries = &mut self.answers.borrow_mut().libraries;
        libraries.clear();
        for (soname, path) in &found {
            libraries.entry(soname.clone()).or_default().push(path.clone());
        }
        found
    }

    fn soname(&self, path: &Path) -> io::Result<Option<String>> {
        let answer = self.files.soname(path);
        let noted = match &answer {
            Ok(soname) => SonameAnswer::Read(soname.clone()),
            Err(error) if error.kind() == ErrorKind::NotFound => return answer,
            Err(error) if error.kind() == ErrorKind::Unsupported => SonameAnswer::Bits { bits: 32 },
            Err(error) => SonameAnswer::Wrong { wrong: error.to_string() },
        };
        self.answers.borrow_mut().sonames.insert(path.into(), noted);
        answer
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        let answer = self.files.node(path);
        let noted = match &answer {
            Ok(node) => NodeAnswer::Device(*node),
            Err(error) if error.kind() == ErrorKind::NotFound => return answer,
            Err(error) => NodeAnswer::Wrong { wrong: error.to_string() },
        };
        self.answers.borrow_mut().nodes.insert(path.into(), noted);
        answer
    }

    fn node_path(&self, path: &Path) -> PathBuf {
        self.files.node_path(path)
    }
}

impl Recording {
    /// The files of the recorded host, by path in its directory. `config` is one of `CONFIGS` and its text.
    pub fn files(&self, config: Option<(&str, String)>, mask: bool) -> Result<BTreeMap<PathBuf, String>> {
        let host = serde_json::to_string_pretty(&self.answers).context("cannot write the answers as JSON")?;
        let mut files = vec![(PathBuf::from(HOST), host + "\n")];
        for (path, text) in &self.texts {
            // Parts of such a path are NVML's words, and it is going to be written to.
            anyhow::ensure!(is_plain(path), "cannot record {}: it is no plain path", path.display());
            files.push((Path::new(TEXT).join(path.strip_prefix("/")?), text.clone()));
        }
        files.extend(config.map(|(name, text)| (name.into(), text)));
        if mask {
            let mut names = self.mask()?;
            for (path, text) in &mut files {
                // Of a path that is UTF-8: a spec's file may be named by a device.
                *path = path.to_str().map_or_else(|| path.clone(), |path| names.mask(path).into());
                *text = names.mask(text);
            }
        }
        Ok(files.into_iter().collect())
    }

    /// What stands for each UUID: the GPUs' in their order, then whatever else occurs.
    fn mask(&self) -> Result<Mask> {
        let mut names = Mask::default();
        names.mask(&serde_json::to_string(&self.answers)?);
        for text in self.texts.values() {
            names.mask(text);
        }
        Ok(names)
    }

    /// Whether a replay of these files tells the same host.
    pub fn is_replayed_by(&self, replayed: &Host, mask: bool) -> Result<bool> {
        if !mask {
            return Ok(self.host == *replayed);
        }
        Ok(self.mask()?.mask(&format!("{:?}", self.host)) == format!("{replayed:?}"))
    }
}
