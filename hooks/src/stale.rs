//! Whether the spec that had this hook started is of the machine as it is now. A spec outlives what it was made from: a
//! driver that was loaded since, whose libraries are not the mounted ones, or a plan that was made since, after which a
//! name can mean another device. Both files are the host's, and still in sight when a hook runs.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::args::{CreateContainer, DriverVersion};

/// The version of the loaded kernel module; missing where none is.
const MODULE_VERSION: &str = "/sys/module/nvidia/version";
/// As much as `divvy generate` reads of a plan, in bytes.
const PLAN_LIMIT: u64 = 64 << 20;
/// `divvy generate` puts specs in place first and then the plan: a start in between waits for it, a second at most.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Why the container must not start with this spec.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Libraries and kernel module would be of two drivers.
    #[error("the CDI spec is out of date: it was made for driver {spec}, and {running} is loaded")]
    Driver {
        /// The spec's.
        spec: DriverVersion,
        /// The loaded one.
        running: DriverVersion,
    },
    /// Names may mean other devices, and limits be others.
    #[error("the CDI spec is out of date: it was made from plan {spec}, and {path:?} is {now}")]
    Generation {
        /// The spec's.
        spec: String,
        /// The plan's.
        now: String,
        /// The plan, on the host.
        path: PathBuf,
    },
}

impl Error {
    /// What the administrator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Driver { .. } => "run `sudo divvy generate` and start the container again",
            Self::Generation { .. } => {
                "run `sudo divvy generate`; where /etc/cdi or /var/run/cdi has another spec of divvy's than it names, remove \
                 that; and start the container again"
            }
        }
    }
}

/// Refuses a spec that is of another driver or plan than the machine has. What the machine does not tell is no reason:
/// a module that is not loaded, a plan that is gone since the machine started.
///
/// # Errors
/// [`Error`].
pub fn check(request: &CreateContainer) -> Result<(), Error> {
    let running = fs::read_to_string(MODULE_VERSION).ok().and_then(|text| text.trim().parse().ok());
    if let (Some(spec), Some(running)) = (&request.driver, running)
        && *spec != running
    {
        return Err(Error::Driver { spec: spec.clone(), running });
    }
    let (Some(spec), Some(path)) = (&request.generation, &request.plan) else { return Ok(()) };
    for attempt in 1.. {
        match generation(path) {
            Some(now) if now != *spec && attempt == ATTEMPTS => {
                return Err(Error::Generation { spec: spec.clone(), now, path: path.clone() });
            }
            Some(now) if now != *spec => thread::sleep(PAUSE),
            _ => break,
        }
    }
    Ok(())
}

/// The generation of a plan, if it can be read.
fn generation(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Plan {
        generation: String,
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(PLAN_LIMIT).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok().map(|plan: Plan| plan.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(plan: &Path) -> CreateContainer {
        CreateContainer {
            generation: Some("00ff".into()),
            plan: Some(plan.to_owned()),
            ..CreateContainer::default()
        }
    }

    #[test]
    fn another_plan_is_refused_and_none_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        assert_eq!(check(&request(&path)), Ok(()));
        for (text, refused) in [
            (r#"{"format":1,"generation":"00ff","devices":[]}"#, false),
            (r#"{"format":1,"generation":"0100"}"#, true),
            ("{", false),
            ("", false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(check(&request(&path)).is_err(), refused, "{text}");
        }
        assert_eq!(check(&CreateContainer { plan: None, ..request(&path) }), Ok(()));
    }

    #[test]
    fn a_plan_that_comes_a_moment_later_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        fs::write(&path, r#"{"generation":"old"}"#).unwrap();
        let later = thread::spawn({
            let path = path.clone();
            move || {
                thread::sleep(PAUSE);
                fs::write(path, r#"{"generation":"00ff"}"#).unwrap();
            }
        });
        assert_eq!(check(&request(&path)), Ok(()));
        later.join().unwrap();
    }
}
