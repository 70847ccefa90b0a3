//! MIG: a GPU's mode, its MIG devices, and the GPU and compute instances that they stand for.
#![allow(unsafe_code, reason = "exporting a symbol by its C name is unsafe by rule")]
#![allow(non_snake_case, reason = "NVIDIA's names")]

use std::ffi::c_uint;

use crate::call::{Call, Device, answer};
use crate::facts::{Gpu, MigDevice};
use crate::handles::Object;
use crate::pointers::Out;
use crate::types::{
    Answer, ComputeInstanceInfo, DeviceAttributes, GpuInstanceInfo, Handle, INVALID_ARGUMENT, NOT_FOUND,
    NOT_SUPPORTED, Placement, Return, known,
};

/// MIG mode of a GPU, now and after the next reset.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(device: Handle, current: Out<c_uint>, pending: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetMigMode", |call| {
        let mode = call.gpu(device, NOT_SUPPORTED)?.mig.as_ref().map(|mig| mig.enabled.into());
        current.give(mode)?;
        pending.give(mode)
    })
}

/// 1 for a MIG device, 0 for a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceIsMigDeviceHandle(device: Handle, is_mig_device: Out<c_uint>) -> Return {
    answer("nvmlDeviceIsMigDeviceHandle", |call| {
        is_mig_device.set(matches!(call.device(device)?, Device::Mig(..)).into())
    })
}

/// Upper bound of a GPU's MIG device indices, exclusive; 0 where MIG mode is off or there is none.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, count: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetMaxMigDeviceCount", |call| {
        count.give(max_devices(call.gpu(device, INVALID_ARGUMENT)?))
    })
}

/// A MIG device's handle by its index on its GPU. Indices have holes.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Handle,
    index: c_uint,
    mig_device: Out<Handle>,
) -> Return {
    answer("nvmlDeviceGetMigDeviceHandleByIndex", |call| {
        let gpu = call.gpu(device, NOT_SUPPORTED)?;
        known(gpu.mig.as_ref())?;
        if max_devices(gpu).is_some_and(|max| index >= max) {
            return Err(INVALID_ARGUMENT);
        }
        mig_device.set(found(call, |object| {
            matches!(object, Object::MigDevice(of, mig) if of.index == gpu.index && mig.index == index)
        })?)
    })
}

/// The GPU that a MIG device lies on.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    mig_device: Handle,
    device: Out<Handle>,
) -> Return {
    answer("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", |call| {
        let (gpu, _) = call.mig_device(mig_device)?;
        device.set(call.handle(gpu)?)
    })
}

/// GPU instance id of a MIG device.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceId(device: Handle, id: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetGpuInstanceId", |call| id.give(call.mig_device(device)?.1.gpu_instance))
}

/// Compute instance id of a MIG device, within its GPU instance.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeInstanceId(device: Handle, id: Out<c_uint>) -> Return {
    answer("nvmlDeviceGetComputeInstanceId", |call| id.give(call.mig_device(device)?.1.compute_instance))
}

/// Slices, multiprocessors and memory of a MIG device; none of them without the others.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetAttributes_v2(device: Handle, attributes: Out<DeviceAttributes>) -> Return {
    answer("nvmlDeviceGetAttributes_v2", |call| {
        attributes.give(device_attributes(call.mig_device(device)?.1))
    })
}

/// A GPU instance's handle by its id.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGpuInstanceById(
    device: Handle,
    id: c_uint,
    gpu_instance: Out<Handle>,
) -> Return {
    answer("nvmlDeviceGetGpuInstanceById", |call| {
        let gpu = call.gpu(device, NOT_SUPPORTED)?;
        if !gpu.mig.as_ref().is_some_and(|mig| mig.enabled) {
            return Err(NOT_SUPPORTED);
        }
        gpu_instance.set(gpu_instance_handle(call, gpu, id)?)
    })
}

/// Where a GPU instance lies.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceGetInfo(gpu_instance: Handle, info: Out<GpuInstanceInfo>) -> Return {
    answer("nvmlGpuInstanceGetInfo", |call| {
        let (gpu, member) = in_gpu_instance(call, gpu_instance)?;
        let device = call.handle(gpu)?;
        info.give(member.gpu_instance.zip(member.placement).map(|(id, placement)| GpuInstanceInfo {
            device,
            id,
            profile_id: 0,
            placement,
        }))
    })
}

/// A compute instance's handle by its id.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    gpu_instance: Handle,
    id: c_uint,
    compute_instance: Out<Handle>,
) -> Return {
    answer("nvmlGpuInstanceGetComputeInstanceById", |call| {
        let (gpu, member) = in_gpu_instance(call, gpu_instance)?;
        compute_instance.set(found(call, |object| {
            matches!(object, Object::ComputeInstance(of, mig) if of.index == gpu.index
                && mig.gpu_instance == member.gpu_instance
                && mig.compute_instance == Some(id))
        })?)
    })
}

/// What a compute instance belongs to and how many slices it has.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlComputeInstanceGetInfo_v2(
    compute_instance: Handle,
    info: Out<ComputeInstanceInfo>,
) -> Return {
    answer("nvmlComputeInstanceGetInfo_v2", |call| {
        let Object::ComputeInstance(gpu, mig) = *call.machine.object(compute_instance)? else {
            return Err(INVALID_ARGUMENT);
        };
        call.on_gpu(gpu.index)?;
        let (device, gpu_instance) =
            (call.handle(gpu)?, gpu_instance_handle(call, gpu, known(mig.gpu_instance)?)?);
        info.give(mig.compute_instance.zip(mig.compute_instance_slices).map(|(id, size)| {
            ComputeInstanceInfo {
                device,
                gpu_instance,
                id,
                profile_id: 0,
                placement: Placement { start: 0, size },
            }
        }))
    })
}

fn max_devices(gpu: &Gpu) -> Option<u32> {
    match &gpu.mig {
        Some(mig) if mig.enabled => mig.max_devices,
        _ => Some(0),
    }
}

fn device_attributes(mig: &MigDevice) -> Option<DeviceAttributes> {
    Some(DeviceAttributes {
        multiprocessor_count: mig.multiprocessors?,
        shared_copy_engine_count: 0,
        shared_decoder_count: 0,
        shared_encoder_count: 0,
        shared_jpeg_count: 0,
        shared_ofa_count: 0,
        gpu_instance_slice_count: mig.gpu_instance_slices?,
        compute_instance_slice_count: mig.compute_instance_slices?,
        memory_size_mib: mig.memory_mib?,
    })
}

/// The GPU of a GPU instance's handle, and a MIG device in it.
fn in_gpu_instance(call: &Call, handle: Handle) -> Answer<(&'static Gpu, &'static MigDevice)> {
    let Object::GpuInstance(gpu, mig) = *call.machine.object(handle)? else {
        return Err(INVALID_ARGUMENT);
    };
    call.on_gpu(gpu.index)?;
    Ok((gpu, mig))
}

fn gpu_instance_handle(call: &Call, gpu: &Gpu, id: u32) -> Answer<Handle> {
    found(
        call,
        |object| matches!(object, Object::GpuInstance(of, mig) if of.index == gpu.index && mig.gpu_instance == Some(id)),
    )
}

fn found(call: &Call, wanted: impl Fn(&Object) -> bool) -> Answer<Handle> {
    let object = call.machine.find(|object| wanted(object).then_some(()));
    object.map(|(handle, ())| handle).ok_or(NOT_FOUND)
}
