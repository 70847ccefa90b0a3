//! Which processes use which GPU or MIG device, and how much of its memory: what `divvy ps` shows. Unlike facts these
//! change all the time, so a session may be asked again and again; devices are looked up anew each time.

use std::collections::BTreeMap;
use std::path::Path;

use nvml_wrapper::{Device, Nvml};
use tracing::debug;

use super::{StartError, fact, raw, start_error};

/// NVML, started, for as long as this lives.
#[derive(Debug)]
pub struct Session {
    /// None after it was stopped.
    pub(super) nvml: Option<Nvml>,
    layout: raw::ProcessLayout,
}

/// A GPU that is not in MIG mode, or a MIG device, and what runs on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsedDevice {
    /// NVML index of the GPU.
    pub gpu: u32,
    /// NVML MIG index, of a MIG device.
    pub mig: Option<u32>,
    /// `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// Product name of the GPU.
    pub model: Option<String>,
    /// By process id on this machine, in the process id namespace of the asker. None if NVML does not tell.
    pub processes: Option<BTreeMap<u32, UsedMemory>>,
}

/// Memory of a device that a process uses, bytes; none where the driver does not count it.
pub type UsedMemory = Option<u64>;

impl Session {
    /// Starts NVML from `library` (a path, or a name for the dynamic loader).
    ///
    /// # Errors
    /// As `nvml::read`.
    pub fn start(library: &Path) -> Result<Self, StartError> {
        let nvml =
            Nvml::builder().lib_path(library.as_os_str()).init().map_err(|e| start_error(library, e))?;
        let driver = fact("driver version", nvml.sys_driver_version());
        Ok(Self { layout: raw::ProcessLayout::of_driver(driver.as_deref()), nvml: Some(nvml) })
    }

    /// Every GPU and MIG device that answers, in the order of their indices.
    pub fn devices(&self) -> Vec<UsedDevice> {
        let Some(nvml) = &self.nvml else { return Vec::new() };
        let count = fact("count of GPUs", nvml.device_count()).unwrap_or(0);
        (0..count)
            .filter_map(|index| fact(&format!("GPU {index}"), nvml.device_by_index(index)))
            .flat_map(|gpu| self.on_gpu(nvml, &gpu))
            .collect()
    }

    fn on_gpu(&self, nvml: &Nvml, gpu: &Device<'_>) -> Vec<UsedDevice> {
        let (Ok(index), Ok(uuid)) = (gpu.index(), gpu.uuid()) else { return Vec::new() };
        let model = gpu.name().ok();
        let in_mig_mode = gpu.mig_mode().is_ok_and(|mode| mode.current == 1);
        if !in_mig_mode {
            let processes = self.processes(nvml, gpu);
            return vec![UsedDevice { gpu: index, mig: None, uuid, model, processes }];
        }
        // The GPU itself tells of all its MIG devices only to root.
        let most = gpu.mig_device_count().unwrap_or(0);
        let mig_devices = (0..most).filter_map(|mig| Some((mig, gpu.mig_device_by_index(mig).ok()?)));
        mig_devices
            .filter_map(|(mig, device)| {
                let processes = self.processes(nvml, &device);
                let (uuid, model) = (device.uuid().ok()?, model.clone());
                Some(UsedDevice { gpu: index, mig: Some(mig), uuid, model, processes })
            })
            .collect()
    }

    /// A process that computes and draws is in two lists with one memory, and so is a client of MPS.
    fn processes(&self, nvml: &Nvml, device: &Device<'_>) -> Option<BTreeMap<u32, UsedMemory>> {
        let mut all: Option<BTreeMap<u32, UsedMemory>> = None;
        for list in [raw::ProcessList::Compute, raw::ProcessList::Graphics, raw::ProcessList::Mps] {
            let processes = match raw::processes(nvml, device, list, self.layout) {
                Ok(processes) => processes,
                Err(error) => {
                    debug!("no list of {list:?} processes: {error}");
                    continue;
                }
            };
            let all = all.get_or_insert_default();
            for (pid, memory) in processes {
                let known = all.entry(pid).or_default();
                *known = (*known).max(memory);
            }
        }
        all
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(nvml) = self.nvml.take() {
            raw::stop(nvml);
        }
    }
}
