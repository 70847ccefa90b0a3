//! The container engines of this machine, by what they say of themselves. Only programs where packages put them are
//! asked, never what the caller's PATH says; they are started before NVML is read, which takes longer, and a program
//! that does not answer in time is ended.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::trust;

/// Where packages put engines.
const DIRS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
const TIMEOUT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(2);
/// A line is all that is wanted, in bytes.
const ANSWER_LIMIT: u64 = 4096;
/// `28.5.2` and the like, in bytes.
const LONGEST_VERSION: usize = 32;

/// Engines that resolve CDI names themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// `dockerd`: the daemon resolves the names, whatever client asks.
    Docker,
    /// `podman`
    Podman,
}

impl EngineName {
    const ALL: [Self; 2] = [Self::Docker, Self::Podman];

    fn program(self) -> &'static str {
        match self {
            Self::Docker => "dockerd",
            Self::Podman => "podman",
        }
    }
}

/// An engine that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Which.
    pub name: EngineName,
    /// Its version's numbers: `28.5.2`.
    pub version: String,
}

impl Engine {
    /// Whether its version can be one: numbers and dots, and not many.
    pub fn is_possible(&self) -> bool {
        self.version.len() <= LONGEST_VERSION && version_in(&self.version) == Some(self.version.as_str())
    }
}

/// Engines that were asked and have not answered yet.
#[derive(Debug)]
pub struct Asked(Vec<(EngineName, Child, File)>);

impl Asked {
    /// Asks every engine that is there.
    pub fn start() -> Self {
        let found = EngineName::ALL.into_iter().filter_map(|name| {
            let path =
                DIRS.iter().map(|dir| Path::new(dir).join(name.program())).find(|path| path.is_file())?;
            // A version is worth nobody's root.
            if let Some(weakness) = trust::weakness(&path).filter(|_| nix::unistd::geteuid().is_root()) {
                debug!("{} is not asked: {weakness}", path.display());
                return None;
            }
            match ask(&path) {
                Ok((child, said)) => Some((name, child, said)),
                Err(error) => {
                    debug!("{}: {error}", path.display());
                    None
                }
            }
        });
        Self(found.collect())
    }

    /// What they said; those that say nothing that can be understood are left out.
    pub fn finish(self) -> Vec<Engine> {
        let deadline = Instant::now() + TIMEOUT;
        let answers = self.0.into_iter().filter_map(|(name, child, said)| {
            let answer = answer(child, said, deadline);
            debug!("{} --version: {answer:?}", name.program());
            Some(Engine { name, version: version_in(&answer?)?.to_owned() })
        });
        answers.collect()
    }
}

/// It writes into a file: a pipe would stay open as long as any child of its own.
fn ask(path: &Path) -> std::io::Result<(Child, File)> {
    let said = tempfile::tempfile()?;
    let child = Command::new(path)
        .arg("--version")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, said))
}

fn answer(mut child: Child, mut said: File, deadline: Instant) -> Option<String> {
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            _ => {
                // It ends, and is not waited for by anybody else.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let mut text = String::new();
    said.rewind().ok()?;
    said.take(ANSWER_LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `28.5.2` of "Docker version 28.5.2+dfsg1, build ...": the first word that begins with numbers and dots.
fn version_in(answer: &str) -> Option<&str> {
    answer.split_whitespace().find_map(|word| {
        let word = word.trim_start_matches('v');
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let version = word[..end].trim_end_matches('.');
        (version.contains('.') && version.split('.').all(|part| part.parse::<u32>().is_ok()))
            .then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_engines_say_them() {
        for (answer, version) in [
            ("Docker version 28.5.2+dfsg1, build ecc694264d\n", Some("28.5.2")),
            ("Docker version 20.10.24+dfsg1, build 297e128\n", Some("20.10.24")),
            ("podman version 4.3.1\n", Some("4.3.1")),
            ("podman version 5.0.0-rc1\n", Some("5.0.0")),
            ("v29.2\n", Some("29.2")),
            ("podman version unknown\n", None),
            ("1\n", None),
            ("1..2 .5\n", None),
            ("", None),
        ] {
            assert_eq!(version_in(answer), version, "{answer:?}");
        }
    }

    #[test]
    fn what_an_engine_leaves_running_is_not_waited_for() {
        let said = tempfile::tempfile().unwrap();
        let script = "sleep 2 & echo podman version 5.0.0";
        let child =
            Command::new("sh").args(["-c", script]).stdout(said.try_clone().unwrap()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_millis(1900);
        assert_eq!(answer(child, said, deadline).as_deref(), Some("podman version 5.0.0\n"));
    }

    #[test]
    fn an_engine_that_hangs_is_ended() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = child.id();
        assert_eq!(answer(child, tempfile::tempfile().unwrap(), Instant::now()), None);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
