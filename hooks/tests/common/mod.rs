//! A bundle as an engine hands it to a hook, and the hook run on it.

// Each test target uses its own part.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Where the driver's libraries are mounted in these containers.
pub const DIR: &str = "/usr/lib/x86_64-linux-gnu";
pub const CUDA: &str = "libcuda.so.580.126.09";

pub struct Bundle {
    directory: TempDir,
}

impl Bundle {
    /// A root that holds the driver's library and nothing else.
    pub fn new() -> Self {
        let bundle = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(bundle.directory.path().join("outside")).unwrap();
        fs::write(bundle.config(), r#"{"ociVersion":"1.2.1","root":{"path":"rootfs"}}"#).unwrap();
        bundle.file(&format!("{DIR}/{CUDA}"), b"\x7fELF");
        bundle
    }

    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.json")
    }

    /// A directory on the host that no hook may touch.
    pub fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    /// The host's path of a path in the container.
    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path.trim_start_matches('/'))
    }

    pub fn file(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    pub fn state(&self) -> String {
        let bundle = self.directory.path().display();
        format!(r#"{{"ociVersion":"1.2.1","id":"c1","status":"creating","pid":1,"bundle":"{bundle}"}}"#)
    }

    /// Runs the hook as the spec would, with one library and one further link.
    pub fn start(&self) -> Outcome {
        let library = format!("--library={DIR}/{CUDA}=libcuda.so.1");
        let link = format!("--link=libcuda.so.1={DIR}/libcuda.so");
        run(["create-container", &library, &link], self.state().as_bytes())
    }

    /// Starts and starts again; the second start must change nothing. Gives what the first wrote on standard error.
    pub fn start_twice(&self) -> String {
        let first = self.start();
        assert_eq!(first.status, 0, "{}", first.stderr);
        let before = self.inventory();
        let second = self.start();
        assert_eq!(second.status, 0, "{}", second.stderr);
        assert_eq!(self.inventory(), before, "a restart writes nothing");
        assert!(!before.iter().any(|line| line.contains("divvy-0")), "{before:?}");
        first.stderr
    }

    /// Every path below the root with its inode and change time, which any writing would alter.
    pub fn inventory(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut directories = vec![self.path("/")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                let changed = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
                lines.push(format!("{} {changed:?}", entry.path().display()));
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        lines.sort();
        lines
    }

    /// What the container's loader would find for `soname`, by the library cache.
    pub fn lookup(&self, soname: &str) -> Vec<String> {
        let listing = ldconfig_print(&self.path("/etc/ld.so.cache"));
        let prefix = format!("\t{soname} (");
        let found = listing.lines().filter(|line| line.starts_with(&prefix));
        found.filter_map(|line| Some(line.split_once(" => ")?.1.to_owned())).collect()
    }
}

pub struct Outcome {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub fn hook() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_divvy-hook"));
    command.env_clear().env("PATH", "/usr/bin");
    command
}

pub fn run<I>(words: I, input: &[u8]) -> Outcome
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    feed(hook().args(words), input)
}

pub fn feed(command: &mut Command, input: &[u8]) -> Outcome {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may well not read to the end.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

/// What glibc's own program makes of a cache.
pub fn ldconfig_print(cache: &Path) -> String {
    let output = Command::new("/sbin/ldconfig").args(["-p", "-C"]).arg(cache).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Behind the older format ldconfig finds the names of subdirectories no better than the loader.
    let listing = String::from_utf8_lossy(&output.stdout);
    // The first line names the file.
    listing.split_once('\n').unwrap().1.to_owned()
}
