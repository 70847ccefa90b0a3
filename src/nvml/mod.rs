//! The driver's management library (libnvidia-ml.so.1): the only module that loads it. One session a run: it
//! starts NVML, reads what is asked for and stops it, so no handle outlives this module. A missing symbol or an
//! unsupported call costs its one fact; a GPU without handle or UUID is named with NVML's reason.
//!
//! - `facts`: what was read, as data
//! - `processes`: who uses which device, now
//! - `compute_mode`: who may
//! - `raw`: the calls that nvml-wrapper lacks, and all unsafe code

pub mod compute_mode;
pub mod facts;
pub mod processes;
mod raw;

use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::ComputeMode as NvmlComputeMode;
use nvml_wrapper::error::NvmlError;
use tracing::debug;

use facts::{ComputeMode, Facts, FailedGpu, FailedMigDevice, GpuFacts, MigDeviceFacts, MigFacts, Placement};

/// Why NVML could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The library is not on this machine, or not loadable.
    #[error("cannot load {library}")]
    Library {
        /// What was handed to the dynamic loader.
        library: String,
        /// The loader's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library is there and the kernel module is not.
    #[error("the NVIDIA driver is not loaded")]
    DriverNotLoaded,
    /// Library and kernel module come from two driver versions.
    #[error("the NVIDIA library and the loaded kernel module are of different versions")]
    VersionMismatch,
    /// The caller may not open the control node.
    #[error("no permission to talk to the NVIDIA driver")]
    NoPermission,
    /// Anything else NVML answers to nvmlInit.
    #[error("NVML does not start: {reason}")]
    Other {
        /// NVML's words.
        reason: String,
    },
}

/// Starts NVML from `library` (a path, or a name for the dynamic loader), reads every fact, stops it.
pub fn read(library: &Path) -> Result<Facts, StartError> {
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().map_err(|e| start_error(library, e))?;
    let facts = read_session(&nvml);
    raw::stop(nvml);
    facts
}

fn start_error(library: &Path, error: NvmlError) -> StartError {
    match error {
        NvmlError::LibloadingError(source) => {
            StartError::Library { library: library.display().to_string(), source: Box::new(source) }
        }
        NvmlError::DriverNotLoaded => StartError::DriverNotLoaded,
        NvmlError::LibRmVersionMismatch => StartError::VersionMismatch,
        NvmlError::NoPermission => StartError::NoPermission,
        other => StartError::Other { reason: other.to_string() },
    }
}

fn read_session(nvml: &Nvml) -> Result<Facts, StartError> {
    let count = nvml
        .device_count()
        .map_err(|e| StartError::Other { reason: format!("it cannot count the GPUs: {e}") })?;
    let mut facts = Facts {
        driver_version: fact("driver version", nvml.sys_driver_version()),
        nvml_version: fact("NVML version", nvml.sys_nvml_version()),
        cuda_version: fact("CUDA version", nvml.sys_cuda_driver_version())
            .and_then(|version| u32::try_from(version).ok()),
        ..Facts::default()
    };
    for index in 0..count {
        match read_gpu(nvml, index) {
            Ok(gpu) => facts.gpus.push(gpu),
            Err(error) => facts.failed.push(FailedGpu { index, reason: error.to_string() }),
        }
    }
    Ok(facts)
}

/// The value, or none with a word in the debug log: no fact but a device's identity is worth the run.
fn fact<T>(what: &str, answer: Result<T, NvmlError>) -> Option<T> {
    answer.inspect_err(|error| debug!("no {what}: {error}")).ok()
}

fn read_gpu(nvml: &Nvml, index: u32) -> Result<GpuFacts, NvmlError> {
    let device = nvml.device_by_index(index)?;
    let uuid = device.uuid()?;
    let about = |what: &str| format!("{what} of GPU {index}");
    // A GPU that cannot do MIG answers "not supported"; a library from before MIG lacks the symbol.
    let mig = match device.mig_mode() {
        Ok(mode) => Some(read_mig(nvml, &device, index, mode.current == 1)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => None,
        // Not knowing whether a GPU is cut by MIG is not the same as knowing that it is whole.
        Err(error) => return Err(error),
    };
    let memory = fact(&about("memory"), raw::memory(nvml, &device));
    Ok(GpuFacts {
        index,
        uuid,
        minor: fact(&about("minor number"), device.minor_number()),
        pci_address: fact(&about("PCI address"), device.pci_info()).map(|pci| pci.bus_id),
        name: fact(&about("name"), device.name()),
        memory_bytes: memory.map(|memory| memory.total),
        reserved_memory_bytes: memory.and_then(|memory| memory.reserved),
        cores: fact(&about("core count"), device.num_cores()),
        compute_capability: fact(&about("compute capability"), device.cuda_compute_capability())
            .and_then(|cc| Some((u32::try_from(cc.major).ok()?, u32::try_from(cc.minor).ok()?))),
        compute_mode: fact(&about("compute mode"), device.compute_mode()).and_then(compute_mode),
        mig,
    })
}

fn compute_mode(mode: NvmlComputeMode) -> Option<ComputeMode> {
    match mode {
        NvmlComputeMode::Default => Some(ComputeMode::Default),
        NvmlComputeMode::ExclusiveProcess => Some(ComputeMode::ExclusiveProcess),
        NvmlComputeMode::Prohibited => Some(ComputeMode::Prohibited),
        // One thread at a time: gone from drivers since CUDA 8.
        NvmlComputeMode::ExclusiveThread => None,
    }
}

fn read_mig(nvml: &Nvml, gpu: &nvml_wrapper::Device<'_>, gpu_index: u32, enabled: bool) -> MigFacts {
    // nvml-wrapper's name misleads: this is the upper bound of indices, not how many there are.
    let max_devices = fact("MIG device limit", gpu.mig_device_count());
    let mut mig = MigFacts { enabled, max_devices, ..MigFacts::default() };
    if !enabled {
        return mig;
    }
    // 16 is past every known GPU's limit, for a library that does not tell it.
    for index in 0..max_devices.unwrap_or(16) {
        let device = match gpu.mig_device_by_index(index) {
            Ok(device) => device,
            // Indices have holes.
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
            Err(error) => {
                let no_such_call = matches!(error, NvmlError::FailedToLoadSymbol(_));
                mig.failed.push(FailedMigDevice { index, reason: error.to_string() });
                if no_such_call {
                    break;
                }
                continue;
            }
        };
        match read_mig_device(nvml, gpu, &device, gpu_index, index) {
            Ok(device) => mig.devices.push(device),
            Err(error) => mig.failed.push(FailedMigDevice { index, reason: error.to_string() }),
        }
    }
    mig
}

fn read_mig_device(
    nvml: &Nvml,
    gpu: &nvml_wrapper::Device<'_>,
    device: &nvml_wrapper::Device<'_>,
    gpu_index: u32,
    index: u32,
) -> Result<MigDeviceFacts, NvmlError> {
    let about = |what: &str| format!("{what} of MIG device {gpu_index}:{index}");
    let gpu_instance = raw::gpu_instance_id(nvml, device)?;
    let attributes = fact(&about("attributes"), device.attributes());
    Ok(MigDeviceFacts {
        index,
        uuid: device.uuid()?,
        name: fact(&about("name"), device.name()),
        gpu_instance,
        compute_instance: raw::compute_instance_id(nvml, device)?,
        multiprocessors: attributes.as_ref().map(|a| a.multiprocessor_count),
        memory_mib: attributes.as_ref().map(|a| a.memory_size_mb),
        reserved_memory_bytes: fact(&about("memory"), raw::memory(nvml, device))
            .and_then(|memory| memory.reserved),
        placement: fact(&about("placement"), raw::placement(nvml, gpu, gpu_instance))
            .map(|(start, size)| Placement { start, size }),
        gpu_instance_slices: attributes.as_ref().map(|a| a.gpu_instance_slice_count),
        compute_instance_slices: attributes.as_ref().map(|a| a.compute_instance_slice_count),
    })
}
