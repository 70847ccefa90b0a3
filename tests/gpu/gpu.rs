//! The GPU that is tried, by NVML: chosen, looked at, and refused while anybody uses it. Its compute mode is changed here
//! alone, and put back by `guardian`. MIG, clocks and persistence are never touched.

use std::fs;

use anyhow::{Context, Result, bail};
pub use nvml_wrapper::enum_wrappers::device::ComputeMode;
use nvml_wrapper::{Device, Nvml};

/// Memory that an idle GPU may have in use, MiB: some drivers count a little of their own.
const IDLE_MIB: u64 = 600;

/// What is tried: a whole GPU, or the first MIG device of one in MIG mode.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// NVML's index of the GPU.
    pub index: u32,
    /// The GPU's UUID, whose compute mode counts.
    pub gpu_uuid: String,
    /// UUID of what is tried.
    pub uuid: String,
    /// It is a MIG device, which has no compute mode.
    pub is_mig: bool,
    /// Model.
    pub name: String,
    /// Version of the driver.
    pub driver: String,
    /// CUDA of the driver: 13000 is 13.0.
    pub cuda: u32,
    /// All memory, MiB.
    pub memory_mib: u64,
    /// What the driver keeps of it, MiB, where it tells.
    pub reserved_mib: u64,
    /// Compute capability.
    pub capability: (i32, i32),
    /// The compute mode that was found.
    pub mode: ComputeMode,
}

/// NVML, or why there is no GPU to try.
pub fn nvml() -> Result<Nvml, String> {
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init();
    let nvml = nvml.map_err(|error| format!("needs an NVIDIA GPU and its driver ({error})"))?;
    match nvml.device_count() {
        Ok(0) | Err(_) => Err("needs an NVIDIA GPU: the driver counts none".into()),
        Ok(_) => Ok(nvml),
    }
}

impl Gpu {
    /// The GPU of this index; without one, the only GPU there is.
    pub fn choose(nvml: &Nvml, index: Option<u32>) -> Result<Self> {
        let count = nvml.device_count().context("cannot count the GPUs")?;
        let index = match index {
            Some(index) => index,
            None if count == 1 => 0,
            None => bail!("there are {count} GPUs, and none was chosen: DIVVY_GPU=<index> says which one"),
        };
        let gpu = nvml.device_by_index(index).with_context(|| format!("cannot find GPU {index}"))?;
        let is_mig = gpu.mig_mode().is_ok_and(|mode| mode.current == 1);
        let device = if is_mig { first_mig_device(&gpu)? } else { nvml.device_by_index(index)? };
        let memory = device.memory_info().context("cannot read its memory")?;
        let capability = gpu.cuda_compute_capability().context("cannot read its compute capability")?;
        Ok(Self {
            index,
            gpu_uuid: gpu.uuid()?,
            uuid: device.uuid()?,
            is_mig,
            name: gpu.name()?,
            driver: nvml.sys_driver_version()?,
            cuda: nvml.sys_cuda_driver_version()?.unsigned_abs(),
            memory_mib: memory.total >> 20,
            reserved_mib: memory.reserved >> 20,
            capability: (capability.major, capability.minor),
            mode: gpu.compute_mode().context("cannot read its compute mode")?,
        })
    }

    /// Everybody who uses the GPU, each for a person. MIG devices beside the tried one count too: all of the GPU is to
    /// be idle.
    pub fn users(&self, nvml: &Nvml) -> Result<Vec<String>> {
        let gpu = self.handle(nvml)?;
        let mut handles = vec![nvml.device_by_uuid(self.gpu_uuid.as_str())?];
        if self.is_mig {
            handles.extend(
                (0..gpu.mig_device_count().unwrap_or(0)).filter_map(|i| gpu.mig_device_by_index(i).ok()),
            );
        }
        let mut pids = Vec::new();
        for handle in &handles {
            let lists = [
                handle.running_compute_processes(),
                handle.running_graphics_processes(),
                handle.mps_running_compute_processes(),
            ];
            pids.extend(lists.into_iter().flatten().flatten().map(|process| process.pid));
        }
        pids.sort_unstable();
        pids.dedup();
        let mut users: Vec<String> =
            pids.into_iter().map(|pid| format!("process {pid} ({})", name_of(pid))).collect();
        let used = self.used_mib(nvml)?;
        if users.is_empty() && used > IDLE_MIB {
            users.push(format!("somebody out of sight, who has {used} MiB of its memory"));
        }
        Ok(users)
    }

    /// Memory of what is tried that is in use, MiB.
    pub fn used_mib(&self, nvml: &Nvml) -> Result<u64> {
        Ok(nvml.device_by_uuid(self.uuid.as_str())?.memory_info()?.used >> 20)
    }

    /// The compute mode that the GPU has now.
    pub fn mode_now(&self, nvml: &Nvml) -> Result<ComputeMode> {
        Ok(self.handle(nvml)?.compute_mode()?)
    }

    /// Gives the GPU another compute mode, and looks whether it has it.
    pub fn set_mode(&self, nvml: &Nvml, mode: ComputeMode) -> Result<()> {
        self.handle(nvml)?.set_compute_mode(mode).context("cannot set the compute mode")?;
        let now = self.mode_now(nvml)?;
        if now != mode {
            bail!("the compute mode was set to {mode:?} and is {now:?}");
        }
        Ok(())
    }

    fn handle<'a>(&self, nvml: &'a Nvml) -> Result<Device<'a>> {
        nvml.device_by_uuid(self.gpu_uuid.as_str()).with_context(|| format!("cannot find {}", self.gpu_uuid))
    }
}

fn first_mig_device<'a>(gpu: &Device<'a>) -> Result<Device<'a>> {
    let most = gpu.mig_device_count()?;
    let first = (0..most).find_map(|index| gpu.mig_device_by_index(index).ok());
    first.context("the GPU is in MIG mode and has no MIG device: cut one, or choose another GPU")
}

/// Processes that are MPS control daemons, whoever's: their server would be on the GPU with the next client.
pub fn control_daemons() -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // The kernel keeps 15 bytes of a name: server and control daemon have the same.
    pids.filter(|pid| name_of(*pid).starts_with("nvidia-cuda-mps")).collect()
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    name.map_or_else(|_| "of another namespace".into(), |name| name.trim_end().to_owned())
}
