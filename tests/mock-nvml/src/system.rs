//! Start and stop, error words, and what NVML says of the system as a whole.
#![allow(unsafe_code, reason = "exporting a symbol by its C name is unsafe by rule")]
#![allow(non_snake_case, reason = "NVIDIA's names")]

use std::ffi::{c_char, c_int, c_uint};

use crate::call::{answer, start, stop};
use crate::control::Control;
use crate::pointers::Out;
use crate::types::Return;

/// Starts NVML. Starts are counted.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Return {
    start("nvmlInit_v2")
}

/// Starts NVML; the flags concern failing GPUs, which this library never starts with.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    start("nvmlInitWithFlags")
}

/// Takes one start back; the last one stops NVML.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Return {
    stop("nvmlShutdown")
}

/// A return code in words.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: Return) -> *const c_char {
    if let Ok(control) = Control::get() {
        control.log_call("nvmlErrorString");
    }
    let words = match result {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        17 => c"The operating system has blocked the request.",
        18 => c"RM has detected an NVML/RM version mismatch.",
        19 => c"In use by another client",
        20 => c"Insufficient Memory",
        25 => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    words.as_ptr()
}

/// The driver's version.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(version: Out<c_char>, length: c_uint) -> Return {
    answer("nvmlSystemGetDriverVersion", |call| {
        version.give_text(length, call.machine.host.driver_version.as_deref())
    })
}

/// The library's own version.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(version: Out<c_char>, length: c_uint) -> Return {
    answer("nvmlSystemGetNVMLVersion", |call| {
        version.give_text(length, call.machine.host.nvml_version.as_deref())
    })
}

/// The newest CUDA version the driver serves: 1000 * major + 10 * minor.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion(version: Out<c_int>) -> Return {
    answer("nvmlSystemGetCudaDriverVersion", |call| version.give(call.machine.host.cuda_version))
}

/// The same, which the real library asks libcuda for.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: Out<c_int>) -> Return {
    answer("nvmlSystemGetCudaDriverVersion_v2", |call| version.give(call.machine.host.cuda_version))
}
