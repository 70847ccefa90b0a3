//! What NVML says about a machine, as plain data. `nvml::read` fills it from the driver's library; a simulated
//! host brings it as JSON. Every fact but a device's index and UUID is optional: an old library or an odd GPU
//! costs that one fact and never the run. Nothing here is derived or judged; that is `discover`'s part.

use serde::{Deserialize, Serialize};

/// All that one NVML session told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Driver version, as `580.126.09`.
    pub driver_version: Option<String>,
    /// NVML's own version.
    pub nvml_version: Option<String>,
    /// The newest CUDA version the driver serves: 1000 * major + 10 * minor.
    pub cuda_version: Option<u32>,
    /// GPUs that answered, by NVML index.
    #[serde(default)]
    pub gpus: Vec<GpuFacts>,
    /// GPUs that are there and did not answer.
    #[serde(default)]
    pub failed: Vec<FailedGpu>,
}

/// A GPU that NVML counts and cannot give a handle or a UUID for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedGpu {
    /// NVML index.
    pub index: u32,
    /// NVML's reason, in words.
    pub reason: String,
}

/// One physical GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuFacts {
    /// NVML index.
    pub index: u32,
    /// `GPU-` and 36 characters.
    pub uuid: String,
    /// Minor number of /dev/nvidia<minor>.
    pub minor: Option<u32>,
    /// PCI address with an eight-digit domain, as NVML writes it: `00000000:10:1C.0`.
    pub pci_address: Option<String>,
    /// Product name.
    pub name: Option<String>,
    /// Total memory, bytes.
    pub memory_bytes: Option<u64>,
    /// What the driver keeps of it to itself, bytes.
    pub reserved_memory_bytes: Option<u64>,
    /// CUDA cores (NVML has no call for a whole GPU's SM count).
    pub cores: Option<u32>,
    /// CUDA compute capability, major and minor.
    pub compute_capability: Option<(u32, u32)>,
    /// Who may open contexts.
    pub compute_mode: Option<ComputeMode>,
    /// MIG state; none on a GPU that cannot do MIG.
    pub mig: Option<MigFacts>,
}

/// nvmlComputeMode_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputeMode {
    /// Any number of processes.
    Default,
    /// One process (or one MPS server) at a time.
    ExclusiveProcess,
    /// Nobody.
    Prohibited,
}

/// The MIG state of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigFacts {
    /// MIG mode is on now (not merely pending).
    pub enabled: bool,
    /// Upper bound of MIG device indices on this GPU, exclusive.
    pub max_devices: Option<u32>,
    /// MIG devices that answered; their indices have holes.
    #[serde(default)]
    pub devices: Vec<MigDeviceFacts>,
    /// MIG devices that are there and did not answer.
    #[serde(default)]
    pub failed: Vec<FailedMigDevice>,
}

/// A MIG device whose UUID or instance ids NVML would not give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedMigDevice {
    /// NVML MIG index on its GPU.
    pub index: u32,
    /// NVML's reason, in words.
    pub reason: String,
}

/// One compute instance inside one GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigDeviceFacts {
    /// NVML MIG index on its GPU.
    pub index: u32,
    /// `MIG-` and 36 characters.
    pub uuid: String,
    /// NVML's name: the GPU's, ` MIG ` and the profile.
    pub name: Option<String>,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id, within its GPU instance.
    pub compute_instance: u32,
    /// SMs of the compute instance.
    pub multiprocessors: Option<u32>,
    /// Memory of the GPU instance, MiB.
    pub memory_mib: Option<u64>,
    /// What the driver keeps of it to itself, bytes.
    pub reserved_memory_bytes: Option<u64>,
    /// Where the GPU instance lies, in memory slices.
    pub placement: Option<Placement>,
    /// Compute slices of the GPU instance.
    pub gpu_instance_slices: Option<u32>,
    /// Compute slices of the compute instance.
    pub compute_instance_slices: Option<u32>,
}

/// nvmlGpuInstancePlacement_t: a run of memory slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// First memory slice.
    pub start: u32,
    /// Count of memory slices.
    pub size: u32,
}
