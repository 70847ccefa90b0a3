//! What one MPS control daemon shall be, as the planner decided: in the plan, and with its supervisor.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One MPS control daemon and its server, of one GPU or MIG device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The device that is shared, `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// It as people call it: `GPU 0`, `MIG device 0:1`.
    pub what: String,
    /// UUID of the physical GPU, whose compute mode is set where the device is no MIG device.
    pub gpu_uuid: String,
    /// It is a MIG device, which has no compute mode.
    pub is_mig: bool,
    /// What a process may use of the device's SMs, 1 to 100: `set_default_active_thread_percentage`.
    pub active_thread_percentage: u32,
    /// What a process may use of the device's memory, MiB, from 1: `set_default_device_pinned_mem_limit 0 <n>M`.
    pub memory_mib: u64,
    /// Processes that the server serves at once.
    pub client_limit: u32,
    /// Processes of all users are served at once; else of one user at a time.
    pub multi_user: bool,
    /// It is started with `divvy serve`, and not when the first share is asked for.
    pub at_boot: bool,
    /// Size of the tmpfs that its containers share at /dev/shm, bytes; none: each has its own.
    pub shared_memory_bytes: Option<u64>,
    /// nvidia-cuda-mps-control on this machine.
    pub control: PathBuf,
    /// nvidia-cuda-mps-server on this machine.
    pub server: PathBuf,
    /// Where the driver's files lie; `/` as a rule.
    pub driver_root: PathBuf,
    /// Version of the driver, which both programs have to be of.
    pub driver_version: String,
}
