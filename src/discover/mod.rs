//! Step 1: the machine, or a simulated or recorded one -> `Host`. One NVML session tells the facts, /proc the capability minors,
//! /dev what stands there, the driver root its files. Nothing is judged fatal here but the absence of a driver;
//! what is missing is recorded in the `Host` for the planner to name.
//!
//! - `host`: the result
//! - `files`: where files are read, whatever the machine
//! - `nodes`: device numbers, device nodes, MIG capabilities
//! - `driver`: the driver's version and files
//! - `side`: devices beside GPUs: IMEX channels, NVSwitches, storage, network
//! - `others`: CDI specs and generators that are not divvy's
//! - `contradictions`: devices that claim to be the same
//! - `engines`: which container engines are installed
//! - `create`: makes missing device nodes
//! - `sim`: the built-in simulated hosts
//! - `recorded`: hosts as directories, written on one machine and read on another

mod contradictions;
pub mod create;
pub mod driver;
pub mod engines;
pub mod files;
pub mod host;
mod nodes;
pub mod others;
pub mod recorded;
pub mod side;
mod side_class;
pub mod sim;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing::debug;

use crate::failure::{Failure, say};
use crate::nvml::processes::Session;
use crate::nvml::{self, facts};
use crate::trust;
use engines::{Asked, Engine};
use files::{Files, Live};
use host::{Capability, Gpu, Host, MigDevice, MigMode};
use nodes::Numbers;
use recorded::{Recorded, Recorder, Recording};

/// Which machine to discover.
#[derive(Debug)]
pub enum Source {
    /// This one.
    Live(Roots),
    /// A built-in simulated host.
    Sim(sim::SimHost),
    /// A host that was recorded, perhaps on another machine.
    Recorded(Box<Recorded>),
}

impl Source {
    /// The configuration that a simulated or recorded host brings: its name for messages, and its text.
    pub fn config(&self) -> Option<(String, String)> {
        match self {
            Self::Live(_) => None,
            Self::Sim(sim) => Some((format!("sim:{}'s configuration", sim.name), sim.config?.to_owned())),
            Self::Recorded(recorded) => recorded.config(),
        }
    }
}

/// Where a live machine's driver and device nodes lie.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Prefix of driver libraries and programs, `/` unless the driver is in a container or an image.
    pub driver: PathBuf,
    /// Prefix of /dev.
    pub dev: PathBuf,
}

/// Discovers a host.
///
/// `output` is where the spec goes; others' specs beside it matter even where engines do not look by themselves.
pub fn discover(source: &Source, output: &Path) -> Result<Host> {
    read(source, |facts, files, engines| assemble(facts, files, engines, output))
}

/// Discovers a host, and keeps every answer that discovery got.
pub fn record(source: &Source, output: &Path) -> Result<Recording> {
    read(source, |facts, files, engines| {
        let recorder = Recorder::new(files);
        let host = assemble(facts.clone(), &recorder, engines, output)?;
        Ok(recorder.finish(facts, host))
    })
}

fn read<T>(
    source: &Source,
    assemble: impl FnOnce(facts::Facts, &dyn Files, Vec<Engine>) -> Result<T>,
) -> Result<T> {
    match source {
        Source::Live(roots) => {
            let files = Live::open(&roots.driver, &roots.dev)
                .with_context(|| format!("cannot open the driver root {}", roots.driver.display()))?;
            let engines = Asked::start();
            let facts =
                start_nvml(&files, roots, nvml::read).map_err(|error| explain_start(error, &roots.driver));
            // Whatever NVML said: nobody else waits for them.
            let engines = engines.finish();
            assemble(facts?, &files, engines)
        }
        Source::Sim(sim) => assemble(sim.facts(), &sim.tree(), Vec::new()),
        Source::Recorded(recorded) => {
            let assembled = assemble(recorded.facts(), &**recorded, recorded.engines());
            recorded.check()?;
            assembled
        }
    }
}

/// NVML of this machine, started, to be asked which processes use what. None where it does not start: no driver, as on
/// any machine at times.
pub fn nvml_session(roots: &Roots) -> Option<Session> {
    let files = Live::open(&roots.driver, &roots.dev).ok()?;
    let started = start_nvml(&files, roots, Session::start);
    started.inspect_err(|error| debug!("no NVML: {error}")).ok()
}

/// On this machine's own root by the library's plain name first, so that the loader's rules hold; then, and in another
/// root, by the file that is found. A library that loads is the one: another would not start better.
fn start_nvml<T>(
    files: &Live,
    roots: &Roots,
    start: impl Fn(&Path) -> Result<T, nvml::StartError>,
) -> Result<T, nvml::StartError> {
    let own_root = roots.driver == Path::new("/");
    let by_name = own_root.then(|| start(Path::new(driver::NVML)));
    match by_name {
        Some(Err(nvml::StartError::Library { .. })) | None => {}
        Some(answer) => return answer,
    }
    let library = driver::nvml_library(files, &roots.driver);
    debug!("NVML from {library:?}");
    let weakness = library.as_deref().filter(|_| nix::unistd::geteuid().is_root()).and_then(trust::weakness);
    if let Some(weakness) = weakness {
        say("warning", format_args!("NVML is loaded as root, and {weakness}"));
        say("hint", "keep the driver's files where only root can write: whoever changes them is root now");
    }
    match (library, by_name) {
        (Some(library), _) => start(&library),
        (None, Some(not_loaded)) => not_loaded,
        (None, None) => start(&roots.driver.join(driver::NVML)),
    }
}

fn explain_start(error: nvml::StartError, driver_root: &Path) -> anyhow::Error {
    use nvml::StartError as E;
    let hint = match &error {
        E::Library { .. } if driver_root != Path::new("/") => {
            format!("--driver-root {} must hold the driver's libraries", driver_root.display())
        }
        E::Library { .. } => {
            "install the NVIDIA driver (its package holds libnvidia-ml.so.1), or try --host sim:a100-lab to see divvy without a GPU".into()
        }
        E::DriverNotLoaded => {
            "load it with `modprobe nvidia`; if that fails, `dmesg` and `lspci -d 10de:` tell whether the machine has a GPU and what the module says".into()
        }
        E::VersionMismatch => "the driver was upgraded while the old module stayed loaded: reboot, or unload and load the nvidia modules".into(),
        E::NoPermission => "run as root, or let your user open /dev/nvidiactl".into(),
        E::Other { .. } => "`nvidia-smi` should fail in the same way; its message or `dmesg` may say more".into(),
    };
    Failure::new(error).hint(hint).into()
}

/// Facts and files of one machine -> Host. The same code for live, simulated and recorded machines.
fn assemble(facts: facts::Facts, files: &dyn Files, engines: Vec<Engine>, output: &Path) -> Result<Host> {
    let numbers = Numbers::read(files);
    let driver_version = driver::version(files, facts.driver_version.as_deref())?;
    let driver_files = driver::files(files, &driver_version);
    let gpus = facts.gpus.into_iter().map(|gpu| assemble_gpu(gpu, files, &numbers)).collect();
    let (gpus, contradictions) = contradictions::take_out(gpus);
    Ok(Host {
        driver_version,
        cuda_version: facts.cuda_version.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
        gpus,
        failed: facts.failed,
        contradictions,
        control_nodes: numbers.control_nodes(files),
        driver_files,
        mps: driver::mps_programs(files),
        nvidia_smi: driver::program(files, "nvidia-smi"),
        side: side::read(files, &numbers),
        engines,
        others: others::read(files, output),
    })
}

fn assemble_gpu(gpu: facts::GpuFacts, files: &dyn Files, numbers: &Numbers) -> Gpu {
    let pci_address = gpu.pci_address.as_deref().map(sysfs_address);
    let minor = gpu.minor.or_else(|| driver::minor_from_proc(files, pci_address.as_deref()?));
    let dri_nodes =
        pci_address.as_deref().map(|address| numbers.dri_nodes(files, address)).unwrap_or_default();
    let mig_mode = match &gpu.mig {
        None => MigMode::Unsupported,
        Some(mig) if mig.enabled => MigMode::Enabled,
        Some(_) => MigMode::Disabled,
    };
    let mig = gpu.mig.unwrap_or_default();
    let mig_devices =
        mig.devices.into_iter().map(|device| assemble_mig_device(device, minor, files, numbers)).collect();
    Gpu {
        index: gpu.index,
        uuid: gpu.uuid,
        minor,
        pci_address,
        model: gpu.name,
        memory_bytes: gpu.memory_bytes,
        reserved_memory_bytes: gpu.reserved_memory_bytes,
        sms: gpu.cores.zip(gpu.compute_capability).and_then(|(cores, cc)| sm_count(cores, cc)),
        compute_capability: gpu.compute_capability.map(|(major, minor)| format!("{major}.{minor}")),
        compute_mode: gpu.compute_mode,
        mig_mode,
        mig_devices,
        mig_failed: mig.failed,
        node: minor.map(|minor| numbers.gpu_node(files, minor)),
        dri_nodes,
    }
}

fn assemble_mig_device(
    device: facts::MigDeviceFacts,
    gpu_minor: Option<u32>,
    files: &dyn Files,
    numbers: &Numbers,
) -> MigDevice {
    let capability = |compute_instance: Option<u32>| match gpu_minor {
        Some(minor) => numbers.capability(files, minor, device.gpu_instance, compute_instance),
        None => Capability::Unlisted { name: format!("gpu?/mig/gi{}/access", device.gpu_instance) },
    };
    MigDevice {
        index: device.index,
        profile: profile(&device),
        gpu_instance_capability: capability(None),
        compute_instance_capability: capability(Some(device.compute_instance)),
        uuid: device.uuid,
        gpu_instance: device.gpu_instance,
        compute_instance: device.compute_instance,
        placement: device.placement,
        memory_bytes: device.memory_mib.and_then(|mib| mib.checked_mul(1 << 20)),
        reserved_memory_bytes: device.reserved_memory_bytes,
        sms: device.multiprocessors,
    }
}

/// The profile as the driver names it. There is no table of profiles to fall behind: a MIG device of a profile
/// that nobody has heard of keeps its UUID and index, and has no profile if the driver names none.
fn profile(device: &facts::MigDeviceFacts) -> Option<String> {
    let (_, profile) = device.name.as_deref()?.rsplit_once(" MIG ")?;
    Some(profile.trim().to_owned()).filter(|profile| !profile.is_empty())
}

/// NVML writes an eight-digit domain and capitals, sysfs and /proc at least four digits and small letters.
fn sysfs_address(nvml: &str) -> String {
    let address = nvml.to_ascii_lowercase();
    match address.split_once(':') {
        Some((domain, rest)) => match u32::from_str_radix(domain, 16) {
            Ok(domain) => format!("{domain:04x}:{rest}"),
            Err(_) => address,
        },
        None => address,
    }
}

/// SMs of a whole GPU. NVML tells cores; how many make an SM is fixed by the compute capability
/// (CUDA C++ Programming Guide, "Compute Capabilities"). An unknown one costs this fact.
fn sm_count(cores: u32, (major, minor): (u32, u32)) -> Option<u32> {
    let per_sm = match (major, minor) {
        (5, _) => 128,
        (6, 0) => 64,
        (6, _) => 128,
        (7, _) => 64,
        (8, 0) => 64,
        (8, _) | (9, _) | (10, _) | (11, _) | (12, _) => 128,
        _ => return None,
    };
    cores.is_multiple_of(per_sm).then_some(cores / per_sm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sm_counts_by_compute_capability() {
        for (cores, cc, sms) in [
            (6912, (8, 0), Some(108)),
            (16896, (9, 0), Some(132)),
            (7424, (8, 9), Some(58)),
            (2560, (7, 5), Some(40)),
            (6913, (8, 0), None),
            (100, (99, 0), None),
        ] {
            assert_eq!(sm_count(cores, cc), sms, "{cores} {cc:?}");
        }
    }

    #[test]
    fn pci_addresses_as_sysfs_writes_them() {
        assert_eq!(sysfs_address("00000000:10:1C.0"), "0000:10:1c.0");
        assert_eq!(sysfs_address("0000:10:1C.0"), "0000:10:1c.0");
        assert_eq!(sysfs_address("00010000:10:1C.0"), "10000:10:1c.0");
    }
}
