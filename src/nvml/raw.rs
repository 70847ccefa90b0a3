//! NVML calls that nvml-wrapper 0.13 lacks, each a safe function. The only unsafe code of the command.
//! Signatures and structs follow nvml.h (API 13).
#![allow(unsafe_code)]

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlMemory_t, nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
};

/// Stops NVML. nvml-wrapper's `Drop` panics where the symbol is missing; then the process's end must do.
pub fn stop(nvml: Nvml) {
    if nvml.lib().nvmlShutdown.is_err() {
        std::mem::forget(nvml);
    }
}

/// Memory of a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What the driver keeps to itself; none where the library does not tell.
    pub reserved: Option<u64>,
}

/// nvmlDeviceGetMemoryInfo_v2, or the first version where the library is older than R510.
pub fn memory(nvml: &Nvml, device: &Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Err(NvmlError::FailedToLoadSymbol(_)) => {}
        answer => {
            return answer.map(|memory| Memory { total: memory.total, reserved: Some(memory.reserved) });
        }
    }
    let call = nvml_sym(nvml.lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut memory = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: the handle belongs to a device of this running session, `memory` is a live nvmlMemory_t.
    nvml_try(unsafe { call(device.handle(), &mut memory) })?;
    Ok(Memory { total: memory.total, reserved: None })
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

/// The lists of processes that NVML keeps of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessList {
    /// With a compute context.
    Compute,
    /// With a graphics context.
    Graphics,
    /// Clients of MPS.
    Mps,
}

/// How a driver lays nvmlProcessInfo_t out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLayout {
    /// In words of 8 bytes.
    size: usize,
}

impl ProcessLayout {
    /// The first drivers of branch 535 (CUDA 12.2) had one field more, usedGpuCcProtectedMemory, under the same name of
    /// the call; 535.98 took it back.
    pub fn of_driver(version: Option<&str>) -> Self {
        let minor = version.and_then(|version| version.strip_prefix("535."));
        let minor: Option<u32> = minor.and_then(|rest| rest.split('.').next()?.parse().ok());
        Self { size: if minor.is_some_and(|minor| minor < 98) { 4 } else { 3 } }
    }
}

/// The longest list that is believed.
const MOST_PROCESSES: u32 = 1 << 16;

/// nvmlDeviceGetComputeRunningProcesses_v3 and its like: process ids, and memory in bytes where it is counted.
/// nvml-wrapper gives up when a process starts between its two calls, and has room for one layout only.
pub fn processes(
    nvml: &Nvml,
    device: &Device<'_>,
    list: ProcessList,
    layout: ProcessLayout,
) -> Result<Vec<(u32, Option<u64>)>, NvmlError> {
    let lib = nvml.lib();
    let call = nvml_sym(match list {
        ProcessList::Compute => lib.nvmlDeviceGetComputeRunningProcesses_v3.as_ref(),
        ProcessList::Graphics => lib.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref(),
        ProcessList::Mps => lib.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref(),
    })?;
    let mut room: u32 = 32;
    loop {
        // As words, and of the longer layout, so that neither is written past the end.
        let mut words = vec![0_u64; room as usize * 4];
        let mut count = room;
        // SAFETY: the handle belongs to a device of this running session; `words` is aligned as nvmlProcessInfo_t and
        // has room for `count` of them in either layout; `count` is a live unsigned int.
        let answer = unsafe { call(device.handle(), &mut count, words.as_mut_ptr().cast()) };
        if answer == nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE && room < MOST_PROCESSES {
            room = count.saturating_add(room).min(MOST_PROCESSES);
            continue;
        }
        nvml_try(answer)?;
        let entries = words.chunks_exact(layout.size).take(count.min(room) as usize);
        return Ok(entries.map(process).collect());
    }
}

/// nvmlProcessInfo_t: pid, usedGpuMemory, and ids of instances.
fn process(words: &[u64]) -> (u32, Option<u64>) {
    let [a, b, c, d, ..] = words[0].to_ne_bytes();
    // NVML_VALUE_NOT_AVAILABLE
    (u32::from_ne_bytes([a, b, c, d]), Some(words[1]).filter(|bytes| *bytes != u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_with_one_field_more() {
        let size = |version: &str| ProcessLayout::of_driver(Some(version)).size;
        assert_eq!((size("535.54.03"), size("535.86.10"), size("535.98"), size("580.95.05")), (4, 4, 3, 3));
        assert_eq!(ProcessLayout::of_driver(None).size, 3);
    }

    #[test]
    fn memory_that_is_not_counted_is_none() {
        let pid = u64::from_ne_bytes([4711_u32.to_ne_bytes(), [0xff; 4]].concat().try_into().unwrap());
        assert_eq!(process(&[pid, 1 << 20, 0]), (4711, Some(1 << 20)));
        assert_eq!(process(&[pid, u64::MAX, 0]), (4711, None));
    }
}
