//! What a host has, as the planner and the listings see it. Plain data: discovery fills it, nobody else does.

use std::path::PathBuf;

use serde::Serialize;

use super::engines::Engine;
use super::files::Node;
use super::others::Others;
pub use super::side_class::SideClass;
pub use crate::nvml::facts::{ComputeMode, FailedGpu, FailedMigDevice, Placement};

/// One machine with NVIDIA GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Driver version, as `580.126.09`.
    pub driver_version: String,
    /// The newest CUDA version the driver serves, as `13.0`.
    pub cuda_version: Option<String>,
    /// GPUs by NVML index.
    pub gpus: Vec<Gpu>,
    /// GPUs that are there and did not answer.
    pub failed: Vec<FailedGpu>,
    /// GPUs and MIG devices that are not in `gpus`, because another claims to be the same.
    pub contradictions: Vec<Contradiction>,
    /// /dev/nvidiactl and the like: what every container with a GPU needs.
    pub control_nodes: Vec<ControlNode>,
    /// The driver's files for containers.
    #[serde(skip)]
    pub driver_files: DriverFiles,
    /// Devices beside the GPUs.
    #[serde(skip)]
    pub side: Side,
    /// Programs of NVIDIA's Multi-Process Service.
    #[serde(skip)]
    pub mps: MpsPrograms,
    /// nvidia-smi, links resolved, without the driver root; none where it is not installed.
    #[serde(skip)]
    pub nvidia_smi: Option<PathBuf>,
    /// Container engines that are installed.
    #[serde(skip)]
    pub engines: Vec<Engine>,
    /// CDI specs and generators that are not divvy's.
    #[serde(skip)]
    pub others: Others,
}

impl Host {
    /// Every device node of the host, capabilities included.
    pub fn nodes_mut(&mut self) -> impl Iterator<Item = &mut DeviceNode> {
        let control = self.control_nodes.iter_mut().map(|control| &mut control.node);
        let gpus = self.gpus.iter_mut().flat_map(|gpu| {
            let capabilities = gpu
                .mig_devices
                .iter_mut()
                .flat_map(|mig| [&mut mig.gpu_instance_capability, &mut mig.compute_instance_capability]);
            let capabilities = capabilities.filter_map(|capability| match capability {
                Capability::Node(node) => Some(node),
                Capability::Unlisted { .. } => None,
            });
            gpu.node.iter_mut().chain(&mut gpu.dri_nodes).chain(capabilities)
        });
        control.chain(gpus)
    }
}

/// A GPU or MIG device that says of itself what another says too. Neither can be given out: nobody knows whose
/// memory a container would reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contradiction {
    /// `GPU 3`, `MIG device 0:1`; with the UUID where it is the index that two share.
    pub what: String,
    /// NVML index of the GPU that it is, or is a part of.
    pub gpu: u32,
    /// NVML MIG index of a MIG device.
    pub mig: Option<u32>,
    /// For a sentence after `is left out: `: `GPU 1 has the same minor number 1`.
    pub why: String,
}

/// One physical GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// NVML index.
    pub index: u32,
    /// `GPU-` and 36 characters.
    pub uuid: String,
    /// Minor number; /proc/driver/nvidia names its capabilities by it.
    pub minor: Option<u32>,
    /// PCI address, as sysfs writes it: `0000:10:1c.0`.
    pub pci_address: Option<String>,
    /// Product name.
    pub model: Option<String>,
    /// Total memory, bytes.
    pub memory_bytes: Option<u64>,
    /// What the driver keeps of it to itself, bytes.
    pub reserved_memory_bytes: Option<u64>,
    /// Streaming multiprocessors.
    pub sms: Option<u32>,
    /// CUDA compute capability, as `8.0`.
    pub compute_capability: Option<String>,
    /// Who may open contexts.
    pub compute_mode: Option<ComputeMode>,
    /// Whether it is cut by MIG.
    pub mig_mode: MigMode,
    /// Its MIG devices.
    pub mig_devices: Vec<MigDevice>,
    /// MIG devices that are there and did not answer.
    pub mig_failed: Vec<FailedMigDevice>,
    /// /dev/nvidia<minor>; none where the minor is unknown.
    pub node: Option<DeviceNode>,
    /// /dev/dri/card<N> and /dev/dri/renderD<N>, as sysfs lists them for its PCI address.
    pub dri_nodes: Vec<DeviceNode>,
}

/// MIG mode of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigMode {
    /// The GPU has no MIG.
    Unsupported,
    /// It has, and is whole.
    Disabled,
    /// It is given out in MIG devices only.
    Enabled,
}

/// One compute instance inside one GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigDevice {
    /// NVML MIG index on its GPU; indices have holes.
    pub index: u32,
    /// `MIG-` and 36 characters.
    pub uuid: String,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id, within its GPU instance.
    pub compute_instance: u32,
    /// Profile, as `1c.2g.10gb`; none where the driver does not name it.
    pub profile: Option<String>,
    /// Memory slices of the GPU instance.
    pub placement: Option<Placement>,
    /// Memory of the GPU instance, bytes (compute instances of one GPU instance share it).
    pub memory_bytes: Option<u64>,
    /// What the driver keeps of it to itself, bytes.
    pub reserved_memory_bytes: Option<u64>,
    /// Streaming multiprocessors of the compute instance.
    pub sms: Option<u32>,
    /// Access capability of the GPU instance.
    pub gpu_instance_capability: Capability,
    /// Access capability of the compute instance.
    pub compute_instance_capability: Capability,
}

/// A MIG capability: opening its node is what permits the use of the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// /dev/nvidia-caps/nvidia-cap<minor>
    Node(DeviceNode),
    /// The driver lists no minor for it.
    Unlisted {
        /// The capability's name below /proc/driver/nvidia/capabilities: `gpu0/mig/gi2/access`.
        name: String,
    },
}

/// A device node that a container needs, and what was found in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: PathBuf,
    /// Path on this machine: the same below the device root.
    #[serde(skip)]
    pub host_path: PathBuf,
    /// Major number by /proc/devices; none where the kernel does not list the driver.
    #[serde(skip)]
    pub major: Option<u32>,
    /// The driver is known not to be loaded. A node that is there all the same is a left-over, and its number may be
    /// another driver's by now.
    #[serde(skip)]
    pub orphan: bool,
    /// Minor number.
    pub minor: u32,
    /// Permission bits for a node that has to be made; none where that is udev's part.
    #[serde(skip)]
    pub create_mode: Option<u32>,
    /// What is there.
    pub found: Found,
}

/// What stands at a device node's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// The node, with these permission bits and this group.
    Present {
        /// Permission bits.
        mode: u32,
        /// Group id.
        gid: u32,
    },
    /// Nothing.
    Missing,
    /// Something else, in words.
    Wrong(String),
}

impl DeviceNode {
    /// Judges what was found at the node's path against the numbers it should have.
    pub fn judge(&self, answer: std::io::Result<Node>) -> Found {
        match answer {
            Ok(_) if self.orphan => Found::Wrong("its driver is not in /proc/devices".into()),
            Ok(node) if self.major.is_none_or(|major| major == node.major) && node.minor == self.minor => {
                Found::Present { mode: node.mode, gid: node.gid }
            }
            Ok(node) => Found::Wrong(format!(
                "it is device {}:{}, the driver has {}:{}",
                node.major,
                node.minor,
                self.major.unwrap_or(node.major),
                self.minor
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Missing,
            Err(error) => Found::Wrong(error.to_string()),
        }
    }
}

/// A node that belongs to the driver as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlNode {
    /// The node.
    #[serde(flatten)]
    pub node: DeviceNode,
    /// CUDA does not start without it.
    pub required: bool,
    /// The kernel module that brings it.
    pub module: &'static str,
}

/// The driver's files that containers get, as paths without the driver root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverFiles {
    /// Shared libraries.
    pub libraries: Vec<DriverLibrary>,
    /// Programs and data, mounted where programs look for them.
    pub files: Vec<DriverFile>,
    /// Links that programs look for, besides SONAMEs.
    pub links: Vec<DriverLink>,
    /// Sockets of the driver's daemons, where they run.
    pub sockets: Vec<DriverFile>,
    /// Sockets that are there and that containers do not get, and why.
    pub closed_sockets: Vec<(PathBuf, String)>,
    /// What is the driver's by its name and cannot be taken for it, and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// Who needs a file of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Every container with a device: CUDA, OpenCL, video, `nvidia-smi`.
    Compute,
    /// One that draws: OpenGL, Vulkan, EGL, X11, OptiX.
    Graphics,
}

/// One shared library of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverLibrary {
    /// The file, links resolved.
    pub path: PathBuf,
    /// DT_SONAME, or the file's name where it has none.
    pub soname: String,
    /// Who needs it.
    pub purpose: Purpose,
}

/// One other file of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFile {
    /// Where the container sees it.
    pub path: PathBuf,
    /// The file itself, links resolved.
    pub real_path: PathBuf,
    /// Who needs it.
    pub purpose: Purpose,
}

/// A link in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverLink {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub target: String,
    /// Who needs it.
    pub purpose: Purpose,
}

/// Programs that run MPS, links resolved, as paths without the driver root. Containers never get them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MpsPrograms {
    /// nvidia-cuda-mps-control; none where it is not installed.
    pub control: Option<PathBuf>,
    /// nvidia-cuda-mps-server, likewise.
    pub server: Option<PathBuf>,
}

/// A node beside the GPUs' own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideNode {
    /// What it belongs to.
    pub class: SideClass,
    /// Path in the container.
    pub path: PathBuf,
    /// Path on this machine.
    #[serde(skip)]
    pub host_path: PathBuf,
    /// What is there.
    pub found: Found,
}

/// What there is beside the GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Nodes by class, then in the order of their numbers.
    pub nodes: Vec<SideNode>,
    /// Files for GPUDirect Storage.
    pub gds_files: Vec<DriverFile>,
}
