//! What every check stands on: the GPU, NVIDIA's programs, a directory, and what the person at the keyboard allows.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nvml_wrapper::Nvml;

use super::daemon::Programs;
use super::gpu::{ComputeMode, Gpu};
use super::program::{Program, Setup, describe};

/// One run.
pub struct Ground {
    /// NVML, for as long as the run lasts.
    pub nvml: Nvml,
    /// What is tried.
    pub gpu: Gpu,
    /// NVIDIA's programs.
    pub programs: Programs,
    /// The run's own directory, which goes with it.
    pub directory: PathBuf,
    /// Where the driver's libraries are found, if the environment says so.
    pub library_path: Option<String>,
    /// There is no other device that a program could find instead.
    pub is_alone: bool,
    /// The compute mode stays as it was found.
    pub keeps_mode: bool,
    sms: OnceLock<u64>,
}

/// The index in DIVVY_GPU.
pub fn wanted_index() -> Result<Option<u32>> {
    let Some(word) = std::env::var_os("DIVVY_GPU").filter(|word| !word.is_empty()) else { return Ok(None) };
    let index = word.to_str().and_then(|word| word.trim().parse().ok());
    index.map(Some).with_context(|| format!("DIVVY_GPU is {word:?}: not the index of a GPU"))
}

/// Whether the environment has this variable, with more in it than nothing or 0.
pub fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
}

/// DIVVY_GPU_KEEP_MODE: the compute mode is nobody's to change on this machine.
pub const KEEP_MODE: &str = "DIVVY_GPU_KEEP_MODE";

impl Ground {
    /// As the environment says.
    pub fn new(nvml: Nvml, directory: &Path) -> Result<Self> {
        let gpu = Gpu::choose(&nvml, wanted_index()?)?;
        let programs = Programs::find().map_err(anyhow::Error::msg)?;
        let is_alone = nvml.device_count()? == 1 && !gpu.is_mig;
        Ok(Self {
            is_alone,
            nvml,
            gpu,
            programs,
            directory: directory.into(),
            library_path: std::env::var("LD_LIBRARY_PATH").ok(),
            keeps_mode: is_set(KEEP_MODE),
            sms: OnceLock::new(),
        })
    }

    /// Why the compute mode cannot be changed here.
    pub fn mode_is_fixed(&self) -> Option<&'static str> {
        match () {
            () if self.gpu.is_mig => Some("a MIG device has no compute mode"),
            () if self.keeps_mode => Some("the compute mode is kept as it is (DIVVY_GPU_KEEP_MODE)"),
            () => None,
        }
    }

    /// Gives the GPU another compute mode; where it is fixed, whether it is that already.
    pub fn set_mode(&self, mode: ComputeMode) -> Result<bool> {
        if self.mode_is_fixed().is_some() {
            return Ok(!self.gpu.is_mig && self.gpu.mode_now(&self.nvml)? == mode);
        }
        self.gpu.set_mode(&self.nvml, mode).map(|()| true)
    }

    /// A memory limit for one client, MiB: small, so that a check takes little and an escape shows.
    pub fn limit_mib(&self) -> u64 {
        (self.gpu.memory_mib / 8).min(2048)
    }

    /// SMs of what is tried, as a program without MPS is told.
    pub fn sms(&self) -> Result<u64> {
        if let Some(sms) = self.sms.get() {
            return Ok(*sms);
        }
        let nowhere = self.directory.join("nowhere");
        let mut program = Program::expect_ready(self, &Setup { pipe: Some(&nowhere), ..Setup::default() })?;
        let sms = program.ask("sm-count")?.number()?;
        Ok(*self.sms.get_or_init(|| sms))
    }

    /// What a client can take, up to so many MiB, or why it gets no context.
    pub fn taken(&self, setup: &Setup<'_>, most: u64) -> Result<Result<u64, String>> {
        match Program::ready(self, setup)? {
            Ok(mut program) => Ok(Ok(program.takes(most)?)),
            Err(code) => Ok(Err(describe(code))),
        }
    }
}
