//! NVIDIA's MPS programs that run on this machine, and in no container, whoever started them: control daemons and servers, by
//! the file that they were started from and by their environment, as root can read them of all. Anybody may call a program
//! of his own so: whose it is and which file counts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::kept::Kept;
use super::process::{is_here, runs, users};

/// A process of one of the two programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtWork {
    /// Its process.
    pub pid: i32,
    /// It is a server; else a control daemon.
    pub is_server: bool,
    /// Its real and its effective user.
    users: [u32; 2],
    /// CUDA_MPS_PIPE_DIRECTORY.
    pipe: Option<PathBuf>,
    /// CUDA_VISIBLE_DEVICES.
    visible: Option<String>,
}

/// MPS's own, where the environment names none.
const DEFAULT_PIPE: &str = "/tmp/nvidia-mps";

impl AtWork {
    /// All that run.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }

    /// One process; none if it is of another program, in a container, or only asks a daemon something.
    pub fn read(pid: i32) -> Option<Self> {
        let of = |file: &str| PathBuf::from(format!("/proc/{pid}/{file}"));
        let program = fs::read_link(of("exe")).ok()?;
        let is_server = match program_name(&program)? {
            "nvidia-cuda-mps-server" => true,
            "nvidia-cuda-mps-control" => false,
            _ => return None,
        };
        if !is_server && !is_daemon(&fs::read(of("cmdline")).ok()?) {
            return None;
        }
        if !is_here(pid) {
            return None;
        }
        let environment = fs::read(of("environ")).ok()?;
        let variable = |name: &str| {
            let mut lines = environment.split(|byte| *byte == 0);
            lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Some(Self {
            pid,
            is_server,
            users: users(pid)?,
            pipe: variable("CUDA_MPS_PIPE_DIRECTORY").map(|path| OsStr::from_bytes(path).into()),
            visible: variable("CUDA_VISIBLE_DEVICES").map(text),
        })
    }

    /// Its pipe directory.
    pub fn pipe(&self) -> &Path {
        self.pipe.as_deref().unwrap_or(Path::new(DEFAULT_PIPE))
    }

    /// Whether it is of the control daemon with this pipe directory.
    pub fn is_of(&self, pipe: &Path) -> bool {
        self.pipe() == pipe
    }

    /// Whether it is root's.
    pub fn is_roots(&self) -> bool {
        self.users == [0, 0]
    }

    /// Whether it is a program of what is kept to, root's, or the user's who is served alone.
    pub fn is_kept(&self, kept: &Kept) -> bool {
        let file = if self.is_server { &kept.settings.server } else { &kept.settings.control };
        let is_users = |user: &u32| *user == 0 || (self.is_server && *user == kept.uid);
        self.users.iter().all(is_users) && runs(self.pid, file)
    }

    /// Whether it may serve a device: that is named, or one by number, or nothing is. CUDA takes the beginning of a UUID
    /// too, and a number means what CUDA_DEVICE_ORDER makes of it.
    pub fn may_serve(&self, uuids: &[&str]) -> bool {
        let Some(visible) = &self.visible else { return true };
        visible.split(',').map(str::trim).filter(|word| !word.is_empty()).any(|word| {
            word.bytes().all(|byte| byte.is_ascii_digit()) || uuids.iter().any(|uuid| uuid.starts_with(word))
        })
    }
}

fn program_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name))
}

/// `-d` or `-f`; without, it asks.
fn is_daemon(command_line: &[u8]) -> bool {
    command_line.split(|byte| *byte == 0).skip(1).any(|word| word == b"-d" || word == b"-f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_devices_a_daemon_may_serve() {
        let uuids = ["MIG-1", "GPU-36441532-9ef4"];
        for (visible, expected) in [
            (None, true),
            (Some(""), false),
            (Some("GPU-36441532-9ef4"), true),
            (Some("GPU-3644"), true),
            (Some("GPU-7"), false),
            (Some("GPU-7, MIG-1"), true),
            (Some("0"), true),
            (Some("NoDevFiles"), false),
        ] {
            let daemon = AtWork { visible: visible.map(str::to_owned), ..AtWork::default() };
            assert_eq!(daemon.may_serve(&uuids), expected, "{visible:?}");
        }
    }

    #[test]
    fn a_question_is_no_daemon() {
        assert!(is_daemon(b"nvidia-cuda-mps-control\0-f\0-multiuser-server\0"));
        assert!(!is_daemon(b"nvidia-cuda-mps-control\0"));
        assert_eq!(
            program_name(Path::new("/usr/bin/nvidia-cuda-mps-control (deleted)")),
            Some("nvidia-cuda-mps-control")
        );
    }
}
