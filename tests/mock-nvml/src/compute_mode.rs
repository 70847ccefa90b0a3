//! Compute modes that were set, in a directory that processes share as they would share the GPUs.
#![allow(unsafe_code, reason = "exporting a symbol by its C name is unsafe by rule")]
#![allow(non_snake_case, reason = "NVIDIA's names")]

use std::ffi::c_uint;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::call::{Call, answer};
use crate::control::refuse;
use crate::facts::Gpu;
use crate::types::{Answer, Handle, INVALID_ARGUMENT, NO_PERMISSION, NOT_SUPPORTED, Return};

/// Sets nvmlComputeMode_t of a GPU. The header: for root, and not in MIG mode.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceSetComputeMode(device: Handle, mode: c_uint) -> Return {
    answer("nvmlDeviceSetComputeMode", |call| {
        let gpu = call.gpu(device, NOT_SUPPORTED)?;
        if gpu.mig.as_ref().is_some_and(|mig| mig.enabled) {
            return Err(NOT_SUPPORTED);
        }
        // 1 was one thread at a time.
        if !matches!(mode, 0 | 2 | 3) {
            return Err(INVALID_ARGUMENT);
        }
        let path = path(call, gpu).ok_or(NO_PERMISSION)?;
        call.control.log(&format!("compute mode {mode}"));
        // At once: other processes read it meanwhile.
        let new = path.with_extension(format!("{}.new", std::process::id()));
        let written = fs::write(&new, mode.to_string()).and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| refuse(&format!("{}: {error}", path.display())))
    })
}

/// What was set last; none where nothing was.
pub fn set_before(call: &Call, gpu: &Gpu) -> Answer<Option<u32>> {
    let Some(path) = path(call, gpu) else { return Ok(None) };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(&format!("{}: {error}", path.display()))),
    };
    text.trim().parse().map(Some).map_err(|_| refuse(&format!("{}: {text:?} is no mode", path.display())))
}

fn path(call: &Call, gpu: &Gpu) -> Option<PathBuf> {
    call.control.compute_modes.as_ref().map(|directory| directory.join(&gpu.uuid))
}
