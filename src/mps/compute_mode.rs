//! The GPU's compute mode while MPS has it: what was there before, on disk, so that it comes back whoever ends MPS. MIG
//! devices have none.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::kept::write;
use super::place::Place;
use super::reason::Reason;
use super::settings::Settings;
use crate::nvml::compute_mode::ModeError;
use crate::nvml::facts::ComputeMode;
use crate::nvml::processes::Session;
use crate::publish::read_regular;

const LIMIT: u64 = 64 << 10;

/// `mps/<uuid>/compute-mode.json`: written before each change, so that none is lost between the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// UUID of the GPU.
    gpu: String,
    /// Who could compute before MPS.
    before: ComputeMode,
    /// What MPS last set, or was about to.
    set: ComputeMode,
    /// What was there when that was noted.
    from: ComputeMode,
}

impl Record {
    /// Whether the mode is of MPS's making, as far as can be told.
    fn explains(&self, present: ComputeMode) -> bool {
        present == self.set || present == self.from
    }
}

/// The record of one device.
#[derive(Debug)]
pub struct Modes {
    path: PathBuf,
    /// The GPU was closed, and that could not be noted.
    closed_unnoted: Cell<bool>,
}

impl Modes {
    /// That of a place.
    pub fn new(place: &Place) -> Self {
        Self { path: place.compute_mode(), closed_unnoted: Cell::new(false) }
    }

    /// Has the GPU admit one process, which is to be the MPS server; refuses one that an administrator has closed.
    pub fn admit_server(&self, settings: &Settings, nvml: &Session) -> Result<(), Reason> {
        self.set(settings, nvml, ComputeMode::ExclusiveProcess)
    }

    /// Has the GPU admit nobody; refuses one that an administrator has closed.
    pub fn close(&self, settings: &Settings, nvml: &Session) -> Result<(), Reason> {
        self.set(settings, nvml, ComputeMode::Prohibited)
    }

    /// Has the GPU admit nobody, if MPS had it before.
    pub fn admit_nobody(&self, settings: &Settings, nvml: &Session) -> Result<(), Reason> {
        match self.read() {
            Ok(Some(_)) => self.set(settings, nvml, ComputeMode::Prohibited),
            _ => Ok(()),
        }
    }

    fn set(&self, settings: &Settings, nvml: &Session, wanted: ComputeMode) -> Result<(), Reason> {
        if settings.is_mig {
            return Ok(());
        }
        let gpu = &settings.gpu_uuid;
        let present = nvml.compute_mode(gpu).map_err(|error| unknown(settings, &error))?;
        let record = self.read().map_err(|error| self.unreadable(&error))?;
        let is_ours = record.as_ref().is_some_and(|record| self.is_ours(record, present));
        if present == ComputeMode::Prohibited && !is_ours {
            return Err(closed(settings));
        }
        let is_noted = record.as_ref().is_some_and(|record| record.set == wanted);
        if present == wanted && is_noted {
            return Ok(());
        }
        let is_recorded = record.is_some();
        let before = record.map_or(present, |record| record.before);
        let record = Record { gpu: gpu.clone(), before, set: wanted, from: present };
        match write(&self.path, &record) {
            // What was before is on the disk. That it is full must not open the GPU.
            Err(error) if is_recorded && wanted == ComputeMode::Prohibited => {
                warn!("{}: {}", settings.what, self.unreadable(&error).message);
                self.closed_unnoted.set(true);
            }
            written => {
                written.map_err(|error| self.unreadable(&error))?;
                self.closed_unnoted.set(false);
            }
        }
        nvml.set_compute_mode(gpu, wanted).map_err(|error| unset(settings, wanted, &error))?;
        // From now on what was there last would be somebody else's doing. If this is not kept, it is taken for MPS's.
        let _ = write(&self.path, &Record { gpu: gpu.clone(), before, set: wanted, from: wanted });
        Ok(())
    }

    fn is_ours(&self, record: &Record, present: ComputeMode) -> bool {
        record.explains(present) || present == ComputeMode::Prohibited && self.closed_unnoted.get()
    }

    /// Why the server may not be alone on the GPU: somebody changed the mode.
    pub fn disturbance(&self, settings: &Settings, nvml: &Session) -> Option<Reason> {
        if settings.is_mig {
            return None;
        }
        match nvml.compute_mode(&settings.gpu_uuid) {
            Ok(ComputeMode::ExclusiveProcess) => None,
            Ok(other) => Some(Reason::not_held(
                format!("{}: somebody set its compute mode to {}", settings.what, word(other)),
                format!("nvidia-smi --id={} --compute-mode=EXCLUSIVE_PROCESS", settings.gpu_uuid),
            )),
            Err(error) => Some(unknown(settings, &error)),
        }
    }

    /// Sets the mode of before MPS. One that somebody set meanwhile stays, and is returned.
    pub fn restore(&self, settings: &Settings, nvml: &Session) -> Result<Option<ComputeMode>, Reason> {
        let Some(record) = self.read().map_err(|error| self.unreadable(&error))? else { return Ok(None) };
        let present = nvml.compute_mode(&record.gpu).map_err(|error| unknown(settings, &error))?;
        let is_ours = self.is_ours(&record, present);
        if present != record.before && is_ours {
            nvml.set_compute_mode(&record.gpu, record.before)
                .map_err(|error| unset(settings, record.before, &error))?;
        }
        fs::remove_file(&self.path).map_err(|error| self.unreadable(&error))?;
        Ok((present != record.before && !is_ours).then_some(present))
    }

    /// Whether there is something to restore.
    pub fn is_noted(&self) -> bool {
        !matches!(self.read(), Ok(None))
    }

    fn read(&self) -> io::Result<Option<Record>> {
        match read_regular(&self.path, LIMIT) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn unreadable(&self, error: &io::Error) -> Reason {
        Reason::failed(
            format!("what the compute mode was before cannot be kept in {}: {error}", self.path.display()),
            "make room on that file system; a damaged file may be removed once the mode is as it shall be",
        )
    }
}

/// As nvidia-smi calls it.
pub fn word(mode: ComputeMode) -> &'static str {
    match mode {
        ComputeMode::Default => "Default",
        ComputeMode::ExclusiveProcess => "Exclusive_Process",
        ComputeMode::Prohibited => "Prohibited",
    }
}

fn closed(settings: &Settings) -> Reason {
    Reason::not_held(
        format!("{}: its compute mode is Prohibited, and nobody is to use it", settings.what),
        format!("nvidia-smi --id={} --compute-mode=DEFAULT", settings.gpu_uuid),
    )
}

fn unset(settings: &Settings, mode: ComputeMode, error: &ModeError) -> Reason {
    Reason::failed(
        format!("{}: its compute mode cannot be set to {}: {error}", settings.what, word(mode)),
        format!("nvidia-smi --id={} --query-gpu=compute_mode --format=csv", settings.gpu_uuid),
    )
}

fn unknown(settings: &Settings, error: &ModeError) -> Reason {
    let hint = "`nvidia-smi --list-gpus` shows what is there; after a change, `divvy generate`";
    Reason::failed(format!("{}: its compute mode is not known: {error}", settings.what), hint)
}
