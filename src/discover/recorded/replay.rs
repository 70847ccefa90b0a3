//! Answers from the directory of a recorded host, which may come from a stranger. Only regular files inside it are
//! opened, links never followed and sizes bounded; what is wrong with it is an error that names the file, and
//! never an answer.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde_json::Value;

use super::{
    Answers, CONFIGS, FORMAT, HOST, LONGEST_STRING, NodeAnswer, SocketAnswer, SonameAnswer, TEXT, is_plain,
};
use crate::discover::engines::Engine;
use crate::discover::files::{Files, Node};
use crate::discover::sim;
use crate::failure::{Failure, Status};
use crate::nvml::facts::Facts;

const HOST_LIMIT: u64 = 16 << 20;
const TEXT_LIMIT: u64 = 16 << 20;
const CONFIG_LIMIT: u64 = 1 << 20;

const UNCHANGED: &str = "a recorded host is what `divvy record` wrote and nothing else: ask for it again";

/// An open recorded host.
#[derive(Debug)]
pub struct Recorded {
    dir: File,
    path: PathBuf,
    answers: Answers,
    /// The configuration's path and text.
    config: Option<(PathBuf, String)>,
    /// The first text file that could not be read, and why. Discovery takes such a file for an absent one.
    unreadable: RefCell<Option<(PathBuf, io::Error)>>,
}

impl Recorded {
    /// Opens the recorded host in a directory, and reads all of it but its text files.
    pub fn open(path: &Path) -> Result<Self> {
        // A directory alone: a FIFO would wait for its writer.
        let flags = OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let dir = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
        let dir = dir.map_err(|error| no_directory(path, error))?;
        let text = match read(&dir, Path::new(HOST), HOST_LIMIT) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let what = anyhow!("{} is not a recorded host: it has no {HOST}", path.display());
                return Err(wrong(what, "name the directory that `divvy record` wrote"));
            }
            text => text.map_err(|error| unreadable(&path.join(HOST), error))?,
        };
        let answers = parse(&text, &path.join(HOST))?;
        let config = CONFIGS.iter().find_map(|name| match read(&dir, Path::new(name), CONFIG_LIMIT) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            config => Some((path.join(name), config)),
        });
        let config = match config {
            None => None,
            Some((path, text)) => {
                let text = text.map_err(|error| unreadable(&path, error))?;
                if let Some(line) = text.lines().find(|line| is_harmful(line)) {
                    return Err(harmful(&path, line));
                }
                Some((path, text))
            }
        };
        Ok(Self { dir, path: path.into(), answers, config, unreadable: RefCell::default() })
    }

    /// The engines that were installed.
    pub fn engines(&self) -> Vec<Engine> {
        self.answers.engines.clone()
    }

    /// What its NVML said.
    pub fn facts(&self) -> Facts {
        self.answers.nvml.clone()
    }

    /// The configuration that it brings, with its name for messages.
    pub fn config(&self) -> Option<(String, String)> {
        let (path, text) = self.config.as_ref()?;
        Some((path.display().to_string(), text.clone()))
    }

    /// Fails if a text file that was asked for is there and cannot be read: what was discovered is not the host then.
    pub fn check(&self) -> Result<()> {
        match self.unreadable.take() {
            None => Ok(()),
            Some((path, error)) => Err(unreadable(&path, error)),
        }
    }
}

/// host.json, parsed apart from where it was read.
fn parse(text: &str, path: &Path) -> Result<Answers> {
    let shown = path.display();
    let told = |error: serde_json::Error, hint: &str| {
        wrong(anyhow::Error::new(error).context(format!("cannot read {shown}")), hint)
    };
    let json: Value = serde_json::from_str(text)
        .map_err(|error| told(error, "it may have been cut off on its way: ask for it again"))?;
    if let Some(length) = longest_string(&json).filter(|length| *length > LONGEST_STRING) {
        return Err(wrong(
            anyhow!("{shown} is of no real host: it has a string of {length} bytes"),
            UNCHANGED,
        ));
    }
    // Before anything of it is in a message.
    if let Some(string) = harmful_string(&json) {
        return Err(harmful(path, string));
    }
    match json["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            let what = anyhow!("{shown} is of format {format}, this divvy reads {FORMAT}");
            return Err(wrong(what, "upgrade divvy, or record the host anew with this version"));
        }
        None => return Err(wrong(anyhow!("{shown} does not say of which format it is"), UNCHANGED)),
    }
    // From the values that were looked through: where a field stands twice, the text has one that was not.
    let answers: Answers = serde_json::from_value(json).map_err(|error| told(error, UNCHANGED))?;
    match answers.impossible() {
        None => Ok(answers),
        Some(what) => Err(wrong(anyhow!("{shown} is of no real host: {what}"), UNCHANGED)),
    }
}

fn longest_string(json: &Value) -> Option<usize> {
    match json {
        Value::String(text) => Some(text.len()),
        Value::Array(items) => items.iter().filter_map(longest_string).max(),
        Value::Object(fields) => {
            let names = fields.keys().map(|name| Some(name.len()));
            names.chain(fields.values().map(longest_string)).flatten().max()
        }
        _ => None,
    }
}

fn harmful_string(json: &Value) -> Option<&str> {
    match json {
        Value::String(text) => Some(text.as_str()).filter(|text| is_harmful(text)),
        Value::Array(items) => items.iter().find_map(harmful_string),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            Some(name.as_str()).filter(|name| is_harmful(name)).or_else(|| harmful_string(value))
        }),
        _ => None,
    }
}

/// A terminal obeys control characters, and what a record says is going to be printed.
fn is_harmful(text: &str) -> bool {
    text.contains(|c: char| c.is_control() && c != '\t')
}

fn harmful(path: &Path, text: &str) -> anyhow::Error {
    let start: String = text.chars().take(60).collect();
    wrong(anyhow!("{} has a control character in {start:?}", path.display()), UNCHANGED)
}

/// A regular file below the directory, reached without links, of UTF-8 and at most so many bytes.
fn read(dir: &File, path: &Path, limit: u64) -> io::Result<String> {
    let words = |kind, words: &str| Err(io::Error::new(kind, words));
    // Not a FIFO, which would wait for its writer.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let file: File = match openat2(dir, path, OpenHow::new().flags(flags).resolve(resolve)) {
        Err(Errno::ELOOP) => {
            return words(ErrorKind::InvalidInput, "a symbolic link is on the way, none is followed");
        }
        opened => opened?.into(),
    };
    if !file.metadata()?.is_file() {
        return words(ErrorKind::InvalidInput, "not a regular file");
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return words(ErrorKind::FileTooLarge, &format!("larger than {} MiB", limit >> 20));
    }
    String::from_utf8(bytes).or_else(|_| words(ErrorKind::InvalidData, "not UTF-8"))
}

fn no_directory(path: &Path, error: io::Error) -> anyhow::Error {
    let shown = path.display();
    let names = sim::names();
    match error.kind() {
        ErrorKind::NotFound => wrong(
            anyhow!("there is no directory {shown}"),
            &format!("name a directory that `divvy record` wrote, or one of {names}"),
        ),
        ErrorKind::NotADirectory => wrong(
            anyhow!("{shown} is not a directory"),
            "a recorded host is a directory that `divvy record` wrote; unpack it first if it came packed",
        ),
        _ => {
            wrong(anyhow::Error::new(error).context(format!("cannot open {shown}")), "let your user read it")
        }
    }
}

fn unreadable(path: &Path, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => "let your user read it",
        _ => UNCHANGED,
    };
    wrong(anyhow::Error::new(error).context(format!("cannot read {}", path.display())), hint)
}

fn wrong(error: anyhow::Error, hint: &str) -> anyhow::Error {
    Failure::new(error).hint(hint).status(Status::Usage).into()
}

impl Files for Recorded {
    fn text(&self, path: &Path) -> io::Result<String> {
        if !is_plain(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = Path::new(TEXT).join(path.strip_prefix("/").unwrap_or(path));
        read(&self.dir, &inside, TEXT_LIMIT).map_err(|error| {
            let kind = error.kind();
            if kind != ErrorKind::NotFound {
                self.unreadable.borrow_mut().get_or_insert((self.path.join(inside), error));
            }
            kind.into()
        })
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.answers.directories.get(dir).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn driver_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.answers.driver_directories.get(dir).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn device_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.answers.device_directories.get(dir).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn driver_real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.answers.real_paths.get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn driver_file(&self, path: &Path) -> io::Result<PathBuf> {
        self.driver_real_path(path)
    }

    fn driver_socket(&self, path: &Path) -> io::Result<PathBuf> {
        match self.answers.sockets.get(path) {
            None => Err(ErrorKind::NotFound.into()),
            Some(SocketAnswer::At(real)) => Ok(real.clone()),
            Some(SocketAnswer::Closed { closed }) => {
                Err(io::Error::new(ErrorKind::PermissionDenied, closed.clone()))
            }
        }
    }

    fn cached_libraries(&self) -> Vec<(String, PathBuf)> {
        let all = self.answers.libraries.iter();
        all.flat_map(|(soname, paths)| paths.iter().map(|path| (soname.clone(), path.clone()))).collect()
    }

    fn soname(&self, path: &Path) -> io::Result<Option<String>> {
        match self.answers.sonames.get(path) {
            None => Err(ErrorKind::NotFound.into()),
            Some(SonameAnswer::Read(soname)) => Ok(soname.clone()),
            Some(SonameAnswer::Bits { .. }) => Err(ErrorKind::Unsupported.into()),
            Some(SonameAnswer::Wrong { wrong }) => Err(io::Error::new(ErrorKind::InvalidData, wrong.clone())),
        }
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        match self.answers.nodes.get(path) {
            None => Err(ErrorKind::NotFound.into()),
            Some(NodeAnswer::Device(node)) => Ok(*node),
            Some(NodeAnswer::Wrong { wrong }) => Err(io::Error::new(ErrorKind::InvalidData, wrong.clone())),
        }
    }

    fn node_path(&self, path: &Path) -> PathBuf {
        path.to_path_buf()
    }
}
