//! A configuration, a place for specs and one for the plan, for tests that run `divvy` with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{divvy, run};

/// A directory with a configuration, a place for specs and one for the plan.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn with(config: impl AsRef<[u8]>) -> Self {
        let place = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        fs::write(place.path("config.toml"), config).unwrap();
        place
    }

    /// The same where every user may look: what is built may lie in somebody's home.
    pub fn in_sight(config: impl AsRef<[u8]>) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(place.path("config.toml"), config).unwrap();
        place
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with this configuration, and calls the directory DIR in what is said.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let config = format!("--config={}", self.path("config.toml").display());
        let (status, out, errors) = run(divvy(args).arg(config));
        let dir = self.0.path().to_str().unwrap();
        (status, out.replace(dir, "DIR"), errors.replace(dir, "DIR"))
    }

    /// Generates into cdi/divvy.json, with the plan in state/.
    pub fn generate(&self, host: &str) -> (i32, String, String) {
        let output = format!("--output={}", self.path("cdi/divvy.json").display());
        let state = format!("--state-dir={}", self.path("state").display());
        self.run(&["generate", host, "--hook-path=/bin/true", &output, &state])
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    pub fn specs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cdi")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
