//! Who may compute on a GPU (nvmlComputeMode_t): read, and set. MPS needs that its server alone may.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::ComputeMode as NvmlComputeMode;
use nvml_wrapper::error::NvmlError;

use super::facts::ComputeMode;
use super::processes::Session;

/// Why a compute mode cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// No GPU has the UUID.
    #[error("there is no GPU {uuid}")]
    NoSuchGpu {
        /// The UUID.
        uuid: String,
    },
    /// What NVML says.
    #[error("NVML answers: {reason}")]
    Nvml {
        /// Its words.
        reason: String,
    },
}

impl Session {
    /// A GPU's compute mode.
    ///
    /// # Errors
    /// When there is no such GPU, or NVML does not tell, as of one in MIG mode.
    pub fn compute_mode(&self, uuid: &str) -> Result<ComputeMode, ModeError> {
        let mode = self.gpu(uuid, |nvml| nvml.device_by_uuid(uuid)?.compute_mode())?;
        super::compute_mode(mode).ok_or_else(|| ModeError::Nvml { reason: format!("{mode:?}") })
    }

    /// Sets a GPU's compute mode, for all processes that begin to use it from now on.
    ///
    /// # Errors
    /// When there is no such GPU, or NVML refuses: to who is not root, and on GPUs in MIG mode.
    pub fn set_compute_mode(&self, uuid: &str, mode: ComputeMode) -> Result<(), ModeError> {
        let mode = match mode {
            ComputeMode::Default => NvmlComputeMode::Default,
            ComputeMode::ExclusiveProcess => NvmlComputeMode::ExclusiveProcess,
            ComputeMode::Prohibited => NvmlComputeMode::Prohibited,
        };
        self.gpu(uuid, |nvml| nvml.device_by_uuid(uuid)?.set_compute_mode(mode))
    }

    fn gpu<T>(&self, uuid: &str, call: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, ModeError> {
        let nvml = self.nvml.as_ref().ok_or_else(|| ModeError::Nvml { reason: "it is stopped".into() })?;
        call(nvml).map_err(|error| match error {
            NvmlError::NotFound => ModeError::NoSuchGpu { uuid: uuid.to_owned() },
            error => ModeError::Nvml { reason: error.to_string() },
        })
    }
}
