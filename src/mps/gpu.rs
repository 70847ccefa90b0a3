//! The GPU that MPS is on, through NVML: whether MPS may have it, and its compute mode. NVML is started when it is asked
//! something, and kept until MPS runs: it takes long where nobody else holds the GPUs awake.

use super::compute_mode::Modes;
use super::foreign;
use super::place::Place;
use super::reason::Reason;
use super::settings::Settings;
use crate::discover::{self, Roots};
use crate::nvml::facts::ComputeMode;
use crate::nvml::processes::Session;

/// The GPU of one device.
#[derive(Debug)]
pub struct Gpu {
    modes: Modes,
    nvml: Option<Session>,
}

impl Gpu {
    /// That of a place.
    pub fn new(place: &Place) -> Self {
        Self { modes: Modes::new(place), nvml: None }
    }

    /// Refuses a device that is not there, or that somebody else uses.
    pub fn check(&mut self, settings: &Settings, place: &Place) -> Result<(), Reason> {
        foreign::check(settings, place, started(&mut self.nvml, settings)?)
    }

    /// Refuses a device on which somebody else than these processes was faster than the MPS server.
    pub fn check_alone(&mut self, settings: &Settings, own: &[i32]) -> Result<(), Reason> {
        foreign::check_alone(settings, started(&mut self.nvml, settings)?, own)
    }

    /// Has it admit nobody, from now on.
    pub fn close(&mut self, settings: &Settings) -> Result<(), Reason> {
        self.modes.close(settings, started(&mut self.nvml, settings)?)
    }

    /// Has it admit the MPS server alone.
    pub fn admit_server(&mut self, settings: &Settings) -> Result<(), Reason> {
        self.modes.admit_server(settings, started(&mut self.nvml, settings)?)
    }

    /// Has it admit nobody, if MPS had it.
    pub fn admit_nobody(&mut self, settings: &Settings) -> Result<(), Reason> {
        if !self.modes.is_noted() {
            return Ok(());
        }
        self.modes.admit_nobody(settings, started(&mut self.nvml, settings)?)
    }

    /// Why the MPS server may not be alone on it any more.
    pub fn disturbance(&mut self, settings: &Settings) -> Option<Reason> {
        if settings.is_mig {
            return None;
        }
        match started(&mut self.nvml, settings) {
            Ok(nvml) => self.modes.disturbance(settings, nvml),
            Err(reason) => Some(reason),
        }
    }

    /// Gives it the compute mode of before MPS. One that somebody else set meanwhile stays, and is returned.
    pub fn restore(&mut self, settings: &Settings) -> Result<Option<ComputeMode>, Reason> {
        if !self.modes.is_noted() {
            return Ok(None);
        }
        self.modes.restore(settings, started(&mut self.nvml, settings)?)
    }

    /// Stops NVML, until it is asked again.
    pub fn leave(&mut self) {
        self.nvml = None;
    }
}

fn started<'a>(nvml: &'a mut Option<Session>, settings: &Settings) -> Result<&'a Session, Reason> {
    if nvml.is_none() {
        let driver = settings.driver_root.clone();
        *nvml = discover::nvml_session(&Roots { dev: driver.clone(), driver });
    }
    nvml.as_ref().ok_or_else(|| {
        let message = format!("{}: the driver's management library does not start", settings.what);
        Reason::failed(message, "`divvy list` says why")
    })
}
