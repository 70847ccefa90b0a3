//! Where an attack takes place: a root that it may shape, and beside it, on the same file system, a tree that stands for
//! the host and has a file in every place that the hook would touch if it were led there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hooks::ldcache::Cache;

use crate::built;
use crate::common::{Bundle, CUDA, DIR, Outcome as Run};
use crate::sentinel::Sentinel;

/// What the hook writes.
pub const WRITTEN: [&str; 8] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d/00-divvy.conf",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib/x86_64-linux-gnu/libcuda.so",
    "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf",
    "/etc/ld-musl-x86_64.path",
    "/dev/dri/by-path/pci-0000:01:00.0-card",
];
/// What it reads, or looks for.
pub const READ: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/libcuda.so.580.126.09",
    "/usr/local/cuda/compat/libcuda.so.590.10",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-musl-x86_64.so.1",
    "/dev/dri/card1",
];
/// Directories that it makes to mount over.
pub const MADE: [&str; 2] = ["/tmp/nvidia-mps", "/var/tmp/nvidia-mps"];
/// What every attack's hook is told beside its library and links. HOST stands for the host's tree.
const ARGUMENTS: &[&str] = &[
    "--device-link=../card1=/dev/dri/by-path/pci-0000:01:00.0-card",
    "--cuda=13.0",
    "--generation=1",
    "--plan=HOST/plan.json",
    "--application-profile",
];

/// The directory beside the root where attacks move things to and fro.
pub const MOVED: &str = "moved";
/// Far longer than any run takes, and a run that hangs ends all the same.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The container starts, and finds its driver by what was written in its root.
    Done,
    /// It does, and is told that the image's cache was replaced.
    Replaced,
    /// It starts, and is told what was left as it is.
    Left,
    /// It does not start.
    Refused(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "done inside the root"),
            Self::Replaced => write!(f, "replaced, with a warning"),
            Self::Left => write!(f, "left alone, with a warning"),
            Self::Refused(status) => write!(f, "refused, status {status}"),
        }
    }
}

/// What became of the attempts of one attack, and the place of each that did not end in [`Outcome::Done`].
pub type Outcomes = BTreeSet<(Outcome, String)>;

pub struct Ground {
    pub bundle: Bundle,
    /// What is being tried, for messages.
    pub attempt: String,
    /// The path in the root that is attacked, empty where it is no path.
    place: String,
}

impl Ground {
    /// For an attack on one path.
    pub fn at(place: &str, attempt: &str) -> Self {
        Self { place: place.to_owned(), ..Self::new(format!("{attempt} at {place}")) }
    }

    pub fn new(attempt: impl Into<String>) -> Self {
        let ground = Self { bundle: Bundle::new(), attempt: attempt.into(), place: String::new() };
        for path in WRITTEN.iter().chain(&READ) {
            let path = ground.host(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("the host's {}", path.display())).unwrap();
        }
        fs::set_permissions(ground.host("/etc/ld.so.conf"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(ground.host("/plan.json"), r#"{"generation":"1"}"#).unwrap();
        symlink("etc", ground.host("/link")).unwrap();
        symlink("nowhere", ground.host("/dangling")).unwrap();
        fs::create_dir(ground.beside(MOVED)).unwrap();
        ground
    }

    /// The path of the host's tree at which `path` lies.
    pub fn host(&self, path: &str) -> PathBuf {
        self.beside("host").join(path.trim_start_matches('/'))
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn directory(&self) -> PathBuf {
        self.bundle.config().parent().unwrap().to_owned()
    }

    /// Makes room at `path` in the root.
    pub fn clear(&self, path: &str) -> PathBuf {
        let place = self.bundle.path(path);
        if place.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            fs::remove_dir_all(&place).unwrap();
        } else if place.symlink_metadata().is_ok() {
            fs::remove_file(&place).unwrap();
        }
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }

    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        symlink(target, self.clear(path)).unwrap();
    }

    /// The words after the hook's name.
    pub fn arguments(&self) -> Vec<String> {
        let host = self.beside("host").display().to_string();
        let mut words = vec![
            "create-container".to_owned(),
            format!("--library={DIR}/{CUDA}=libcuda.so.1"),
            format!("--link=libcuda.so.1={DIR}/libcuda.so"),
        ];
        words.extend(ARGUMENTS.iter().map(|word| word.replace("HOST", &host)));
        words
    }

    /// The hook, to be run as it is.
    pub fn hook(&self) -> Command {
        let mut command = Command::new(built::shipped());
        command.args(self.arguments()).env_clear().env("PATH", "/usr/bin");
        command
    }

    /// Runs the hook, and again as at a restart.
    pub fn start(&self) -> Outcomes {
        self.start_with(|| self.hook())
    }

    /// The same of another command that becomes the hook.
    pub fn start_with(&self, command: impl Fn() -> Command) -> Outcomes {
        let first = self.run(command(), self.bundle.state().as_bytes());
        let before = self.bundle.inventory();
        let second = self.run(command(), self.bundle.state().as_bytes());
        if !is_refused(&first) {
            assert_eq!(before, self.bundle.inventory(), "{}: a restart writes again", self.attempt);
            assert!(!is_refused(&second), "{}", self.attempt);
        }
        first
    }

    /// Runs a command that becomes the hook, and looks that the host is as before and the root as it may be.
    pub fn run(&self, command: Command, state: &[u8]) -> Outcomes {
        let (sentinel, names) = (Sentinel::of(&self.directory()), self.names());
        let run = run(command, state, &self.attempt);
        sentinel.assert_same(&Sentinel::of(&self.directory()), &self.attempt);
        self.assert_grown_from(&names);
        let outcomes = classified(&run, &self.attempt);
        if outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done | Outcome::Replaced)) {
            assert!(self.is_served(), "{}: nothing in the root tells a loader of libcuda.so.1", self.attempt);
        }
        let place = |outcome| if outcome == Outcome::Done { String::new() } else { self.place.clone() };
        outcomes.into_iter().map(|outcome| (outcome, place(outcome))).collect()
    }

    /// Fails where the root has a name that no hook writes.
    pub fn assert_grown_from(&self, before: &BTreeSet<PathBuf>) {
        let names = self.names();
        for path in names.difference(before) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let known = if path.symlink_metadata().unwrap().is_dir() {
                self.may_be_directory(name)
            } else {
                // A file of the image's may have been moved.
                // What stands in the place of a directory is the attack's.
                MADE.iter().any(|made| made.split('/').any(|part| part == name))
                    || WRITTEN.iter().any(|written| written.rsplit('/').next() == Some(name))
                    || before.difference(&names).any(|old| old.ends_with(name))
            };
            assert!(known, "{}: {} is none of the hook's", self.attempt, path.display());
        }
    }

    /// Directories are those of what the hook writes, and those that a link of the attack names.
    fn may_be_directory(&self, name: &str) -> bool {
        let host = self.host("/nowhere").display().to_string();
        WRITTEN.iter().chain(&READ).chain(&MADE).any(|path| path.split('/').any(|part| part == name))
            || host.split('/').any(|part| part == name)
    }

    /// Every path in the root.
    pub fn names(&self) -> BTreeSet<PathBuf> {
        names_below(&self.bundle.path("/"))
    }

    /// Whether glibc's loader, or musl's, finds the driver.
    fn is_served(&self) -> bool {
        let is_path_file = |path: &PathBuf| {
            path.ends_with("ld-musl-x86_64.path")
                && fs::read(path)
                    .is_ok_and(|text| String::from_utf8_lossy(&text).lines().any(|line| line == DIR))
        };
        !self.caches().is_empty() || self.names().iter().any(is_path_file)
    }

    /// The library caches in the root, wherever its links have put them, that know the driver.
    pub fn caches(&self) -> Vec<PathBuf> {
        let knows = |path: &PathBuf| {
            fs::read(path).is_ok_and(|bytes| {
                Cache::parse(&bytes).is_ok_and(|cache| cache.lookup("libcuda.so.1").next().is_some())
            })
        };
        let is_cache =
            |path: &PathBuf| path.ends_with("ld.so.cache") && path.symlink_metadata().unwrap().is_file();
        self.names().into_iter().filter(is_cache).filter(knows).collect()
    }
}

/// Every path below a directory.
pub fn names_below(top: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    let mut left = vec![top.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            names.insert(entry.path());
        }
    }
    names
}

fn is_refused(outcomes: &Outcomes) -> bool {
    outcomes.iter().any(|(outcome, _)| matches!(outcome, Outcome::Refused(_)))
}

/// Every directory and file on the way to what the hook touches.
pub fn components() -> BTreeSet<String> {
    let paths = WRITTEN.iter().chain(&READ);
    let ancestors = paths.flat_map(|path| Path::new(path).ancestors().filter(|path| path.parent().is_some()));
    ancestors.map(|path| path.to_str().unwrap().to_owned()).collect()
}

/// Runs a command that must end by itself.
pub fn run(mut command: Command, input: &[u8], attempt: &str) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may well not read to the end.
    let _ = child.stdin.take().unwrap().write_all(input);
    ends(&mut child, attempt);
    child.wait_with_output().unwrap().into()
}

fn ends(child: &mut Child, attempt: &str) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{attempt}: the hook hangs");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What a run's status and messages say. A message that stands for none of them is a failure.
pub fn classified(run: &Run, attempt: &str) -> BTreeSet<Outcome> {
    if run.status != 0 {
        assert!(run.stderr.starts_with("error: divvy-hook: "), "{attempt}: {} {}", run.status, run.stderr);
        assert!(matches!(run.status, 1 | 2), "{attempt}: {}", run.status);
        return BTreeSet::from([Outcome::Refused(run.status)]);
    }
    let of_line = |line: &str| match line.strip_prefix("warning: divvy-hook: ") {
        Some(warning) if warning.starts_with("replaced ") => Outcome::Replaced,
        Some(warning) if warning.starts_with("left ") => Outcome::Left,
        // A library of the image's, or a setting for EGL, that the container goes without.
        Some(warning) if warning.contains(" is not used: ") || warning.starts_with("EGL is not told ") => {
            Outcome::Left
        }
        Some(warning) if warning.contains(" is not in the container; ") => Outcome::Left,
        _ => panic!("{attempt}: {line}"),
    };
    let mut outcomes: BTreeSet<Outcome> = run.stderr.lines().map(of_line).collect();
    if outcomes.is_empty() {
        outcomes.insert(Outcome::Done);
    }
    outcomes
}
