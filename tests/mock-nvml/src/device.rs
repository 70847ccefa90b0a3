//! Handles, and what NVML says of one GPU or MIG device.
#![allow(unsafe_code, reason = "exporting a symbol by its C name is unsafe by rule")]
#![allow(non_snake_case, reason = "NVIDIA's names")]

use std::ffi::{c_char, c_int, c_uint};

use crate::call::{Call, Device, answer};
use crate::compute_mode;
use crate::facts::{Gpu, MigDevice, PciAddress};
use crate::handles::Object;
use crate::pointers::{Out, Text};
use crate::types::{
    ARGUMENT_VERSION_MISMATCH, Answer, GPU_IS_LOST, Handle, INVALID_ARGUMENT, Memory, MemoryV2, NOT_FOUND,
    NOT_SUPPORTED, PciInfo, PciInfoLegacy, Return,
};

/// How many GPUs there are, those without a handle too.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetCount_v2", |call| count.set(gpu_count(call)))
}

/// A GPU's handle by NVML index.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: Out<Handle>) -> Return {
    answer("nvmlDeviceGetHandleByIndex_v2", |call| {
        if index >= gpu_count(call) {
            return Err(INVALID_ARGUMENT);
        }
        call.on_gpu(index)?;
        let gpu = call.machine.host.gpus.iter().find(|gpu| gpu.index == index).ok_or(GPU_IS_LOST)?;
        device.set(call.handle(gpu)?)
    })
}

/// The handle of a GPU by `GPU-...`, of a MIG device by `MIG-...` or `MIG-GPU-.../GI/CI`.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByUUID(uuid: Text, device: Out<Handle>) -> Return {
    answer("nvmlDeviceGetHandleByUUID", |call| {
        let uuid = uuid.get()?;
        give_found(call, device, |object| match *object {
            Object::Gpu(gpu) if gpu.uuid == uuid => Some(gpu),
            Object::MigDevice(gpu, mig) if is_named(gpu, mig, uuid) => Some(gpu),
            _ => None,
        })
    })
}

/// A GPU's handle by PCI address, with a domain of any width.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(pci_bus_id: Text, device: Out<Handle>) -> Return {
    answer("nvmlDeviceGetHandleByPciBusId_v2", |call| {
        let address = PciAddress::parse(pci_bus_id.get()?).ok_or(INVALID_ARGUMENT)?;
        give_found(call, device, |object| match *object {
            Object::Gpu(gpu) if gpu.pci == Some(address) => Some(gpu),
            _ => None,
        })
    })
}

/// NVML index of a GPU, or a MIG device's index on its GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetIndex(device: Handle, index: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetIndex", |call| {
        index.set(match call.device(device)? {
            Device::Gpu(gpu) => gpu.index,
            Device::Mig(_, mig) => mig.index,
        })
    })
}

/// UUID.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUUID(device: Handle, uuid: Out<c_char>, length: c_uint) -> Return {
    answer("nvmlDeviceGetUUID", |call| {
        let own = match call.device(device)? {
            Device::Gpu(gpu) => Some(gpu.uuid.as_str()),
            Device::Mig(_, mig) => mig.uuid.as_deref(),
        };
        uuid.give_text(length, own)
    })
}

/// Product name; a MIG device's has ` MIG ` and its profile behind.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetName(device: Handle, name: Out<c_char>, length: c_uint) -> Return {
    answer("nvmlDeviceGetName", |call| {
        let own = match call.device(device)? {
            Device::Gpu(gpu) => gpu.name.as_deref(),
            Device::Mig(_, mig) => mig.name.as_deref(),
        };
        name.give_text(length, own)
    })
}

/// A GPU's minor number, as in `/dev/nvidia<minor>`.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMinorNumber(device: Handle, minor: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetMinorNumber", |call| minor.give(call.gpu(device, NOT_SUPPORTED)?.minor))
}

/// A GPU's PCI address, with an eight-digit domain too.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v3(device: Handle, pci: Out<PciInfo>) -> Return {
    answer("nvmlDeviceGetPciInfo_v3", |call| {
        let address = call.gpu(device, INVALID_ARGUMENT)?.pci;
        pci.give(address.map(|address| PciInfo {
            legacy: legacy(address),
            bus_id: chars(&format!("{:08X}:{:02X}:{:02X}.0", address.domain, address.bus, address.device)),
        }))
    })
}

/// A GPU's PCI address with a four-digit domain.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v2(device: Handle, pci: Out<PciInfoLegacy>) -> Return {
    answer("nvmlDeviceGetPciInfo_v2", |call| pci.give(call.gpu(device, INVALID_ARGUMENT)?.pci.map(legacy)))
}

/// Memory in bytes; all of it is free.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo(device: Handle, memory: Out<Memory>) -> Return {
    answer("nvmlDeviceGetMemoryInfo", |call| {
        let total = total_memory(&call.device(device)?);
        memory.give(total.map(|total| Memory { total, free: total, used: 0 }))
    })
}

/// Memory in bytes; all that the driver does not keep to itself is free. The caller sets the struct's version.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, memory: Out<MemoryV2>) -> Return {
    answer("nvmlDeviceGetMemoryInfo_v2", |call| {
        let device = call.device(device)?;
        let version = memory.number()?;
        if version != MemoryV2::VERSION {
            return Err(ARGUMENT_VERSION_MISMATCH);
        }
        let reserved = reserved_memory(&device);
        memory.give(total_memory(&device).map(|total| MemoryV2 {
            version,
            total,
            reserved,
            free: total.saturating_sub(reserved),
            used: 0,
        }))
    })
}

/// CUDA cores of a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumGpuCores(device: Handle, cores: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetNumGpuCores", |call| cores.give(call.gpu(device, NOT_SUPPORTED)?.cores))
}

/// CUDA compute capability of a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Handle,
    major: Out<c_int>,
    minor: Out<c_int>,
) -> Return {
    answer("nvmlDeviceGetCudaComputeCapability", |call| {
        let capability = call.gpu(device, INVALID_ARGUMENT)?.compute_capability;
        major.give(capability.map(|(major, _)| major))?;
        minor.give(capability.map(|(_, minor)| minor))
    })
}

/// nvmlComputeMode_t of a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeMode(device: Handle, mode: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetComputeMode", |call| {
        let gpu = call.gpu(device, NOT_SUPPORTED)?;
        mode.give(compute_mode::set_before(call, gpu)?.or(gpu.compute_mode))
    })
}

fn gpu_count(call: &Call) -> u32 {
    call.machine.host.gpus.iter().map(|gpu| gpu.index + 1).max().unwrap_or(0)
}

/// Gives the handle of the object that `wanted` knows, with its GPU.
fn give_found(call: &Call, device: Out<Handle>, wanted: impl Fn(&Object) -> Option<&'static Gpu>) -> Answer {
    let (handle, gpu) = call.machine.find(wanted).ok_or(NOT_FOUND)?;
    call.on_gpu(gpu.index)?;
    device.set(handle)
}

fn is_named(gpu: &Gpu, mig: &MigDevice, uuid: &str) -> bool {
    let by_instances = || {
        let (gpu_instance, compute_instance) = (mig.gpu_instance?, mig.compute_instance?);
        Some(format!("MIG-{}/{gpu_instance}/{compute_instance}", gpu.uuid))
    };
    mig.uuid.as_deref() == Some(uuid) || by_instances().as_deref() == Some(uuid)
}

fn total_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Gpu(gpu) => gpu.memory_bytes,
        Device::Mig(_, mig) => Some(mig.memory_mib? << 20),
    }
}

fn reserved_memory(device: &Device) -> u64 {
    let reserved = match device {
        Device::Gpu(gpu) => gpu.reserved_memory_bytes,
        Device::Mig(_, mig) => mig.reserved_memory_bytes,
    };
    reserved.unwrap_or(0)
}

fn legacy(address: PciAddress) -> PciInfoLegacy {
    let PciAddress { domain, bus, device } = address;
    PciInfoLegacy {
        bus_id_legacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pci_device_id: 0,
        pci_sub_system_id: 0,
    }
}

/// A string in a fixed buffer, cut to leave room for its end.
fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut buffer = [0; N];
    for (to, byte) in buffer.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = byte as c_char;
    }
    buffer
}
