//! A mock of NVIDIA's management library for tests: installed as `libnvidia-ml.so.1` it serves a host's recorded
//! facts through the C interface of nvml.h (API 13). Signatures and structs are an own reading of that header and
//! come from no binding, so that a mistake in the binding that divvy uses shows.
//!
//! # Controls
//!
//! Environment variables, read once in a process at the first call.
//!
//! | variable | meaning |
//! |---|---|
//! | `MOCK_NVML_FACTS=FILE` | JSON file with the host to serve. Without it nvmlInit_v2 answers `NVML_ERROR_DRIVER_NOT_LOADED` (9). |
//! | `MOCK_NVML_FAIL=FUNCTION[@INDEX]=CODE,...` | The function answers `CODE` instead of doing its work; with `@INDEX` for the GPU of that NVML index only. MIG devices and instances count as their GPU. |
//! | `MOCK_NVML_LOG=FILE` | Appends `init` for each call of nvmlInit_v2 and nvmlInitWithFlags, `shutdown` for each of nvmlShutdown, failed ones too; and `compute mode N` for each one set. |
//! | `MOCK_NVML_LOG_CALLS=1` | Appends each called function's name to that file as well. |
//! | `MOCK_NVML_INIT_DELAY_MS=N` | nvmlInit_v2 and nvmlInitWithFlags take N milliseconds. |
//! | `MOCK_NVML_PROCESSES=FILE` | JSON file with the processes on each device, read at each call that asks for them. Without it there are none. |
//! | `MOCK_NVML_COMPUTE_MODES=DIR` | Directory with a file for each GPU whose compute mode was set, called by its UUID, with the number. Without it nobody may set one: `NVML_ERROR_NO_PERMISSION` (4). |
//!
//! A control or a facts file that cannot be read is told on standard error, and nvmlInit_v2 answers
//! `NVML_ERROR_UNKNOWN` (999).
//!
//! # Facts
//!
//! The format is that of divvy's simulated hosts. A GPU has an `index` and a `uuid`, a MIG device an `index`; every
//! other field may be null or missing, and then the call for it answers `NVML_ERROR_NOT_SUPPORTED` (3). An index
//! that the list of GPUs skips is a GPU that is counted and gives no handle: `NVML_ERROR_GPU_IS_LOST` (15). What
//! facts do not tell (PCI device ids, profile ids, where a compute instance starts, used memory) is 0.
//!
//! # Processes
//!
//! By UUID of a GPU or MIG device, in three lists, each of which may be missing; `null` for a list is one that is not
//! supported, and for memory (bytes) one that is not counted:
//!
//! ```json
//! {"GPU-...": {"compute": [{"pid": 4711, "memory": 1048576}], "graphics": [], "mps": null}}
//! ```
//!
//! A GPU in MIG mode has those of its MIG devices, with their instances.
//!
//! # Where nvml.h leaves room
//!
//! - Every call but nvmlErrorString answers `NVML_ERROR_UNINITIALIZED` (1) while NVML is not started.
//! - A call that serves GPUs only answers a MIG device's handle, and the reverse, with `NVML_ERROR_NOT_SUPPORTED`
//!   where the header lists that code for it, with `NVML_ERROR_INVALID_ARGUMENT` (2) otherwise.
//! - A handle that this library never gave out is `NVML_ERROR_INVALID_ARGUMENT`; so is a null pointer.
//! - A GPU whose MIG mode is off has at most 0 MIG devices, as the header says, whatever its facts' limit.
//!
//! # Modules
//!
//! - `control`: the environment variables
//! - `facts`: the JSON file, read
//! - `handles`: what the opaque pointers stand for
//! - `call`: what every exported function does first
//! - `pointers`: the caller's pointers, and all pointer access
//! - `types`: codes and structs of nvml.h
//! - `system`, `device`, `mig`, `processes`, `compute_mode`: the exported functions

mod call;
mod compute_mode;
mod control;
mod device;
mod facts;
mod handles;
mod mig;
mod pointers;
mod processes;
mod system;
mod types;
