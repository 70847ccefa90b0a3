//! Recorded hosts for tests: records of simulated hosts, to be changed.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::{divvy, run};

/// A record of a simulated host, in a directory that goes away with it.
pub struct Record(tempfile::TempDir);

impl Record {
    pub fn of(host: &str) -> Self {
        let record = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let host = format!("--host=sim:{host}");
        let (status, _, errors) = run(divvy(&["--quiet", "record", &host]).arg(record.dir()));
        assert_eq!((status, errors.as_str()), (0, ""));
        record
    }

    /// The directory that it is in, which goes away too.
    pub fn place(&self) -> &std::path::Path {
        self.0.path()
    }

    pub fn dir(&self) -> PathBuf {
        self.0.path().join("record")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut host = serde_json::from_str(&fs::read_to_string(self.file("host.json")).unwrap()).unwrap();
        edit(&mut host);
        fs::write(self.file("host.json"), host.to_string()).unwrap();
    }

    /// Status, standard output and standard error of `list`, with the record's directory called DIR.
    pub fn list(&self) -> (i32, String, String) {
        let (status, out, errors) = run(divvy(&["list", "--format=json", "--host"]).arg(self.dir()));
        (status, out, errors.replace(self.dir().to_str().unwrap(), "DIR"))
    }

    pub fn names(&self) -> Vec<String> {
        let (_, listing, _) = self.list();
        let listing: Value = serde_json::from_str(&listing).unwrap();
        let devices = listing["devices"].as_array().unwrap();
        devices.iter().map(|device| device["name"].as_str().unwrap().to_owned()).collect()
    }
}
