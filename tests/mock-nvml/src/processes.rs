//! Which processes use a GPU or MIG device, from a file that a test may change meanwhile.
#![allow(unsafe_code, reason = "exporting a symbol by its C name is unsafe by rule")]
#![allow(non_snake_case, reason = "NVIDIA's names")]

use std::ffi::c_uint;
use std::fs;

use serde_json::Value;

use crate::call::{Call, Device, answer};
use crate::control::refuse;
use crate::facts::MigDevice;
use crate::pointers::Out;
use crate::types::{Answer, Handle, INSUFFICIENT_SIZE, NOT_SUPPORTED, ProcessInfo, Return};

/// Processes with a compute context.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: Out<c_uint>,
    infos: Out<ProcessInfo>,
) -> Return {
    answer("nvmlDeviceGetComputeRunningProcesses_v3", |call| give(call, "compute", device, &count, &infos))
}

/// Processes with a graphics context.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Handle,
    count: Out<c_uint>,
    infos: Out<ProcessInfo>,
) -> Return {
    answer("nvmlDeviceGetGraphicsRunningProcesses_v3", |call| give(call, "graphics", device, &count, &infos))
}

/// Clients of MPS.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: Handle,
    count: Out<c_uint>,
    infos: Out<ProcessInfo>,
) -> Return {
    answer("nvmlDeviceGetMPSComputeRunningProcesses_v3", |call| give(call, "mps", device, &count, &infos))
}

fn give(call: &Call, list: &str, device: Handle, count: &Out<c_uint>, infos: &Out<ProcessInfo>) -> Answer {
    let room = count.number()?;
    let all = all(call)?;
    let of = |uuid: &str, mig: Option<&MigDevice>| processes(&all, uuid, list, mig);
    let found = match call.device(device)? {
        Device::Mig(_, mig) => of(mig.uuid.as_deref().unwrap_or_default(), Some(mig))?,
        Device::Gpu(gpu) => match gpu.mig.as_ref().filter(|mig| mig.enabled) {
            None => of(&gpu.uuid, None)?,
            Some(mode) => {
                let uuid = |mig: &MigDevice| mig.uuid.clone().unwrap_or_default();
                let lists = mode.devices.iter().map(|mig| of(&uuid(mig), Some(mig)));
                lists.collect::<Answer<Vec<_>>>()?.concat()
            }
        },
    };
    let length = c_uint::try_from(found.len()).map_err(|_| INSUFFICIENT_SIZE)?;
    let given = infos.give_list(room, found);
    // The header: on NVML_ERROR_INSUFFICIENT_SIZE too.
    count.set(length)?;
    given
}

/// The file, as it is now.
fn all(call: &Call) -> Answer<Value> {
    let Some(path) = &call.control.processes else { return Ok(Value::Null) };
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    parsed.map_err(|problem| refuse(&format!("{}: {problem}", path.display())))
}

fn processes(all: &Value, uuid: &str, list: &str, mig: Option<&MigDevice>) -> Answer<Vec<ProcessInfo>> {
    let instance = |id: fn(&MigDevice) -> Option<u32>| mig.and_then(id).unwrap_or(c_uint::MAX);
    let process = |process: &Value| {
        let pid = process["pid"].as_u64().and_then(|pid| c_uint::try_from(pid).ok());
        Ok(ProcessInfo {
            pid: pid.ok_or_else(|| refuse(&format!("{process} has no pid")))?,
            used_memory: process["memory"].as_u64().unwrap_or(u64::MAX),
            gpu_instance: instance(|mig| mig.gpu_instance),
            compute_instance: instance(|mig| mig.compute_instance),
        })
    };
    match all.get(uuid).and_then(|device| device.get(list)) {
        None => Ok(Vec::new()),
        Some(Value::Null) => Err(NOT_SUPPORTED),
        Some(list) => list.as_array().into_iter().flatten().map(process).collect(),
    }
}
