//! NVML calls that nvml-wrapper 0.13 lacks, each a safe function. The only unsafe code of the command.
//! Signatures and structs follow nvml.h (API 13).
#![allow(unsafe_code)]

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlMemory_t};

/// Stops NVML. nvml-wrapper's `Drop` panics where the symbol is missing; then the process's end must do.
pub fn stop(nvml: Nvml) {
    if nvml.lib().nvmlShutdown.is_err() {
        std::mem::forget(nvml);
    }
}

/// nvmlDeviceGetMemoryInfo_v2, or the first version where the library is older than R510: total, bytes.
pub fn total_memory(nvml: &Nvml, device: &Device<'_>) -> Result<u64, NvmlError> {
    match device.memory_info() {
        Err(NvmlError::FailedToLoadSymbol(_)) => {}
        answer => return answer.map(|memory| memory.total),
    }
    let call = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: the handle belongs to a device of this running session, `memory` is a live nvmlMemory_t.
    nvml_try(unsafe { call(device.handle(), &mut memory) })?;
    Ok(memory.total)
}

/// nvmlDeviceGetGpuInstanceId: the GPU instance that a MIG device lies in.
pub fn gpu_instance_id(nvml: &Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let mut id = 0;
    // SAFETY: the handle belongs to a device of this running session, `id` is a live unsigned int.
    nvml_try(unsafe { call(device.handle(), &mut id) })?;
    Ok(id)
}

/// nvmlDeviceGetComputeInstanceId: the compute instance that a MIG device is.
pub fn compute_instance_id(nvml: &Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref())?;
    let mut id = 0;
    // SAFETY: as above.
    nvml_try(unsafe { call(device.handle(), &mut id) })?;
    Ok(id)
}

/// nvmlGpuInstanceGetInfo of one GPU instance: first memory slice and count.
pub fn placement(nvml: &Nvml, gpu: &Device<'_>, gpu_instance: u32) -> Result<(u32, u32), NvmlError> {
    let by_id = nvml_sym(nvml.lib().nvmlDeviceGetGpuInstanceById.as_ref())?;
    let info_of = nvml_sym(nvml.lib().nvmlGpuInstanceGetInfo.as_ref())?;
    let mut instance: nvmlGpuInstance_t = std::ptr::null_mut();
    // SAFETY: the handle belongs to a GPU of this running session, `instance` is a live handle variable.
    nvml_try(unsafe { by_id(gpu.handle(), gpu_instance, &mut instance) })?;
    // SAFETY: nvmlGpuInstanceInfo_t is made of integers and a pointer, for which zero is a value.
    let mut info: nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `instance` was filled by the call above, `info` is a live nvmlGpuInstanceInfo_t.
    nvml_try(unsafe { info_of(instance, &mut info) })?;
    Ok((info.placement.start, info.placement.size))
}
