//! Return codes, constants and structs of nvml.h, with the C names in each item's doc. Field order and width are
//! the interface; field names are not.

use std::ffi::{c_char, c_uint, c_ulonglong, c_void};

/// nvmlReturn_t.
pub type Return = c_uint;
/// What a function works out: a value, or the code it answers instead.
pub type Answer<T = ()> = Result<T, Return>;
/// nvmlDevice_t, nvmlGpuInstance_t and nvmlComputeInstance_t: opaque pointers.
pub type Handle = *const c_void;

pub const SUCCESS: Return = 0;
pub const UNINITIALIZED: Return = 1;
pub const INVALID_ARGUMENT: Return = 2;
pub const NOT_SUPPORTED: Return = 3;
pub const NO_PERMISSION: Return = 4;
pub const NOT_FOUND: Return = 6;
pub const INSUFFICIENT_SIZE: Return = 7;
pub const DRIVER_NOT_LOADED: Return = 9;
pub const GPU_IS_LOST: Return = 15;
pub const ARGUMENT_VERSION_MISMATCH: Return = 25;
pub const UNKNOWN: Return = 999;

/// A fact that the facts file may leave out.
pub fn known<T>(fact: Option<T>) -> Answer<T> {
    fact.ok_or(NOT_SUPPORTED)
}

/// nvmlPciInfo_t as nvmlDeviceGetPciInfo_v3 fills it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PciInfo {
    pub legacy: PciInfoLegacy,
    /// `00000000:10:1C.0`, NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE.
    pub bus_id: [c_char; 32],
}

/// nvmlPciInfo_t up to the fields that API 9 added. Callers of nvmlDeviceGetPciInfo_v2 may hold a struct that is
/// too short for those.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PciInfoLegacy {
    /// `0000:10:1C.0`, NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE.
    pub bus_id_legacy: [c_char; 16],
    pub domain: c_uint,
    pub bus: c_uint,
    pub device: c_uint,
    pub pci_device_id: c_uint,
    pub pci_sub_system_id: c_uint,
}

/// nvmlMemory_t, bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub total: c_ulonglong,
    pub free: c_ulonglong,
    pub used: c_ulonglong,
}

/// nvmlMemory_v2_t, bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MemoryV2 {
    pub version: c_uint,
    pub total: c_ulonglong,
    pub reserved: c_ulonglong,
    pub free: c_ulonglong,
    pub used: c_ulonglong,
}

impl MemoryV2 {
    /// nvmlMemory_v2: the struct's size, and its version in the top byte.
    pub const VERSION: c_uint = size_of::<Self>() as c_uint | 2 << 24;
}

/// nvmlDeviceAttributes_t.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DeviceAttributes {
    pub multiprocessor_count: c_uint,
    pub shared_copy_engine_count: c_uint,
    pub shared_decoder_count: c_uint,
    pub shared_encoder_count: c_uint,
    pub shared_jpeg_count: c_uint,
    pub shared_ofa_count: c_uint,
    pub gpu_instance_slice_count: c_uint,
    pub compute_instance_slice_count: c_uint,
    /// MiB, whatever the C name (memorySizeMB) says.
    pub memory_size_mib: c_ulonglong,
}

/// nvmlGpuInstancePlacement_t and nvmlComputeInstancePlacement_t.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    pub start: c_uint,
    pub size: c_uint,
}

/// nvmlGpuInstanceInfo_t.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GpuInstanceInfo {
    pub device: Handle,
    pub id: c_uint,
    pub profile_id: c_uint,
    pub placement: Placement,
}

/// nvmlComputeInstanceInfo_t.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ComputeInstanceInfo {
    pub device: Handle,
    pub gpu_instance: Handle,
    pub id: c_uint,
    pub profile_id: c_uint,
    pub placement: Placement,
}

/// nvmlProcessInfo_t of the calls of version 3.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: c_uint,
    /// Bytes, or NVML_VALUE_NOT_AVAILABLE, which is all ones.
    pub used_memory: c_ulonglong,
    /// All ones without MIG.
    pub gpu_instance: c_uint,
    /// Likewise.
    pub compute_instance: c_uint,
}
