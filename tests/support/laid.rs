//! A live machine for tests that run as root: a simulated host is laid out as files and device nodes, the mock library
//! stands in its driver root, and its /proc files over this machine's in a mount namespace of the test's own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{divvy, facts, mock_nvml, run};

/// A simulated host laid out under a directory, with the mock library in the place of its NVML.
pub struct Laid {
    /// Everything is below it.
    pub dir: tempfile::TempDir,
    /// What the mock serves.
    pub facts: PathBuf,
    /// The driver root's name in `dir`.
    name: OsString,
}

impl Laid {
    /// Lays the host out.
    pub fn out(host: &str) -> Self {
        // Not in /tmp, which may forbid device nodes.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let laid = Self { facts: facts(host), dir, name: "host".into() };
        let (status, _, errors) = run(divvy(&["sim", host]).arg(laid.root()));
        assert_eq!((status, errors.as_str()), (0, ""));
        fs::remove_file(laid.library()).unwrap();
        mock_nvml(laid.library().parent().unwrap());
        laid
    }

    /// Its driver root.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// Gives the driver root another name.
    pub fn rename_root(&mut self, name: &OsStr) {
        fs::rename(self.root(), self.dir.path().join(name)).unwrap();
        self.name = name.to_owned();
    }

    /// The mock library in it.
    pub fn library(&self) -> PathBuf {
        let dir = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        self.root().join(dir).join("libnvidia-ml.so.1")
    }

    /// What the mock notes of its life.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("nvml.log")
    }

    /// The facts, changed: `edit` works on the JSON.
    pub fn change_facts(&mut self, edit: impl FnOnce(&mut serde_json::Value)) {
        let mut json = serde_json::from_str(&fs::read_to_string(&self.facts).unwrap()).unwrap();
        edit(&mut json);
        self.facts = self.dir.path().join("facts.json");
        fs::write(&self.facts, json.to_string()).unwrap();
    }

    /// Runs divvy live on the laid-out host: `settings` are the mock's.
    pub fn live(&self, args: &[&str], settings: &[(&str, &str)]) -> (i32, String, String) {
        self.live_under(&[], args, settings)
    }

    /// As `live`, with divvy run by another program, as strace.
    pub fn live_under(
        &self,
        runner: &[&str],
        args: &[&str],
        settings: &[(&str, &str)],
    ) -> (i32, String, String) {
        let program = divvy(&[]).get_program().to_owned();
        let script = "mount --bind \"$0/proc/driver\" /proc/driver && mount --bind \"$0/proc/devices\" /proc/devices && mount --bind \"$0/sys/bus\" /sys/bus && { [ ! -e \"$0/proc/misc\" ] || mount --bind \"$0/proc/misc\" /proc/misc; } && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", script])
            .arg(self.root())
            .args(runner)
            .arg(program);
        command.args(args).arg("--driver-root").arg(self.root());
        command.env("MOCK_NVML_FACTS", &self.facts).env("MOCK_NVML_LOG", self.log());
        command.envs(settings.iter().copied());
        run(&mut command)
    }

    /// The live listing, and what was said on standard error.
    pub fn list(&self, settings: &[(&str, &str)]) -> (serde_json::Value, String) {
        let (status, json, errors) = self.live(&["list", "--format=json"], settings);
        assert_eq!(status, 0, "{errors}");
        (serde_json::from_str(&json).unwrap(), errors)
    }

    /// The names in the live listing.
    pub fn names(&self, settings: &[(&str, &str)]) -> Vec<String> {
        let (listing, _) = self.list(settings);
        let devices = listing["devices"].as_array().unwrap();
        devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    }
}
