//! Step 2: `Host` -> `Plan`: which CDI devices there will be, under which names, with which nodes; and what is left
//! out, each with its reason. Pure: no file is read and no clock asked here, so that a plan is the same on the
//! machine, on a simulated host and in a test.

use std::path::PathBuf;

use serde::Serialize;

use crate::discover::host::{
    Capability, ComputeMode, ControlNode, DeviceNode, DriverLibrary, Found, Gpu, Host, MigDevice, MigMode,
    Placement,
};

/// What `generate` writes and `list` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Devices in GPU order, MIG devices in the place of their GPU.
    pub devices: Vec<Device>,
    /// What every container with a device gets besides.
    pub control_nodes: Vec<PlannedNode>,
    /// What should be there and is not.
    pub problems: Vec<Problem>,
    /// What is as it should be and may still surprise.
    pub notes: Vec<String>,
}

/// One CDI device: a whole GPU or a MIG device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// `0` for a GPU, `0:1` for a MIG device: NVML indices.
    pub name: String,
    /// The same device by UUID: `GPU-...` or `MIG-...`.
    pub uuid: String,
    /// GPU or MIG device.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Product name of the GPU.
    pub model: Option<String>,
    /// PCI address of the GPU, as sysfs writes it.
    pub pci_address: Option<String>,
    /// CUDA compute capability of the GPU.
    pub compute_capability: Option<String>,
    /// Who may open contexts on the GPU.
    pub compute_mode: Option<ComputeMode>,
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Streaming multiprocessors.
    pub sms: Option<u32>,
    /// What a MIG device is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigPart>,
    /// Device nodes of this device alone.
    pub nodes: Vec<PlannedNode>,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole GPU.
    Gpu,
    /// A compute instance inside a GPU instance.
    Mig,
}

/// The instances that a MIG device is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigPart {
    /// Profile, as `1c.2g.10gb`.
    pub profile: Option<String>,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// Memory slices of the GPU instance.
    pub placement: Option<Placement>,
}

/// A device node that goes into the spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedNode {
    /// Path in the container, and below the device root.
    pub path: PathBuf,
    /// Permission bits in the container: those of the host's node.
    #[serde(skip)]
    pub mode: u32,
}

/// Something that had to be left out, or that will keep containers from starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What: `GPU 3`, `MIG device 0:1`, `/dev/nvidia-uvm`.
    pub what: String,
    /// Why, for a sentence that begins with `what`.
    pub why: String,
    /// What to do.
    pub hint: String,
}

/// Decides on every device of the host.
pub fn plan(host: &Host) -> Plan {
    let mut plan = Plan::default();
    for gpu in &host.gpus {
        plan_gpu(gpu, &mut plan);
    }
    for failed in &host.failed {
        plan.problems.push(Problem {
            what: format!("GPU {}", failed.index),
            why: format!("is left out: NVML cannot read it: {}", failed.reason),
            hint: "`dmesg | grep -i xid` may say why; a GPU that fell off the bus needs a reset or a reboot"
                .into(),
        });
    }
    for control in &host.control_nodes {
        plan_control_node(control, &mut plan);
    }
    plan_libraries(host, &mut plan);
    plan
}

/// A library that is there and cannot be read is missed later and in stranger ways. Devices without libcuda are of use
/// to few programs, and a spec without it looks whole.
fn plan_libraries(host: &Host, plan: &mut Plan) {
    for (path, why) in &host.driver_files.broken {
        plan.problems.push(Problem {
            what: path.display().to_string(),
            why: format!("is left out: it cannot be read as a library: {why}"),
            hint: "install the driver's user space anew".into(),
        });
    }
    let is_cuda = |library: &DriverLibrary| library.soname == "libcuda.so.1";
    if !host.driver_files.libraries.iter().any(is_cuda) {
        plan.problems.push(Problem {
            what: format!("libcuda.so.{}", host.driver_version),
            why: "was not found where drivers are installed: containers go without it".into(),
            hint: "install the driver's user space in the version of its kernel module; if it lies elsewhere, name its root with --driver-root".into(),
        });
    }
}

fn plan_gpu(gpu: &Gpu, plan: &mut Plan) {
    if gpu.mig_mode != MigMode::Enabled {
        let what = format!("GPU {}", gpu.index);
        match usable_uuid(&gpu.uuid).and_then(|()| gpu_node(gpu)) {
            Ok(node) => plan.devices.push(Device { nodes: vec![node], ..device(gpu) }),
            Err(missing) => plan.problems.push(missing.problem(what)),
        }
        return;
    }
    if gpu.mig_devices.is_empty() && gpu.mig_failed.is_empty() {
        plan.notes.push(format!(
            "GPU {index} is in MIG mode and has no MIG devices, so it has no name; `nvidia-smi mig -i {index} -lgip` lists what can be made",
            index = gpu.index
        ));
    }
    for mig in &gpu.mig_devices {
        let what = format!("MIG device {}:{}", gpu.index, mig.index);
        match usable_uuid(&mig.uuid).and_then(|()| mig_nodes(gpu, mig)) {
            Ok(nodes) => plan.devices.push(mig_device(gpu, mig, nodes)),
            Err(missing) => plan.problems.push(missing.problem(what)),
        }
    }
    for failed in &gpu.mig_failed {
        plan.problems.push(Problem {
            what: format!("MIG device {}:{}", gpu.index, failed.index),
            why: format!("is left out: NVML cannot read it: {}", failed.reason),
            hint: "`nvidia-smi -L` should show it; a driver older than its GPU may not".into(),
        });
    }
}

fn device(gpu: &Gpu) -> Device {
    Device {
        name: gpu.index.to_string(),
        uuid: gpu.uuid.clone(),
        kind: Kind::Gpu,
        model: gpu.model.clone(),
        pci_address: gpu.pci_address.clone(),
        compute_capability: gpu.compute_capability.clone(),
        compute_mode: gpu.compute_mode,
        memory_bytes: gpu.memory_bytes,
        sms: gpu.sms,
        mig: None,
        nodes: Vec::new(),
    }
}

fn mig_device(gpu: &Gpu, mig: &MigDevice, nodes: Vec<PlannedNode>) -> Device {
    Device {
        name: format!("{}:{}", gpu.index, mig.index),
        uuid: mig.uuid.clone(),
        kind: Kind::Mig,
        memory_bytes: mig.memory_bytes,
        sms: mig.sms,
        mig: Some(MigPart {
            profile: mig.profile.clone(),
            gpu_instance: mig.gpu_instance,
            compute_instance: mig.compute_instance,
            placement: mig.placement,
        }),
        nodes,
        ..device(gpu)
    }
}

/// Why a device cannot be given to a container.
struct LeftOut {
    why: String,
    hint: String,
}

impl LeftOut {
    fn problem(self, what: String) -> Problem {
        Problem { what, why: format!("is left out: {}", self.why), hint: self.hint }
    }
}

/// A UUID becomes a CDI device name, which one strange character makes the whole spec unreadable for.
fn usable_uuid(uuid: &str) -> Result<(), LeftOut> {
    uuid.parse::<cdi::DeviceName>().map(|_| ()).map_err(|error| LeftOut {
        why: format!("its UUID {uuid:?} cannot be a device name: {error}"),
        hint: "compare with `nvidia-smi -L`; a driver that garbles UUIDs needs an upgrade".into(),
    })
}

fn gpu_node(gpu: &Gpu) -> Result<PlannedNode, LeftOut> {
    let node = gpu.node.as_ref().ok_or_else(|| LeftOut {
        why: "its minor number is not known".into(),
        hint: "`grep Minor /proc/driver/nvidia/gpus/*/information` should show it; upgrade the driver if not"
            .into(),
    })?;
    device_node(node)
}

/// The GPU's node and the two capabilities: all three or none, since two of them open nothing.
fn mig_nodes(gpu: &Gpu, mig: &MigDevice) -> Result<Vec<PlannedNode>, LeftOut> {
    let capability = |capability: &Capability| match capability {
        Capability::Node(node) => device_node(node),
        Capability::Unlisted { name } => Err(LeftOut {
            why: format!("the driver lists no capability {name}"),
            hint: "check /proc/driver/nvidia-caps/mig-minors and the GPU instances (`nvidia-smi mig -lgi`)"
                .into(),
        }),
    };
    Ok(vec![
        gpu_node(gpu)?,
        capability(&mig.gpu_instance_capability)?,
        capability(&mig.compute_instance_capability)?,
    ])
}

fn device_node(node: &DeviceNode) -> Result<PlannedNode, LeftOut> {
    planned(node).map_err(|why| LeftOut {
        why: format!("{} {why}", node.host_path.display()),
        hint: node_hint(node, "load the NVIDIA kernel module"),
    })
}

/// The node as it goes into the spec; or what is wrong with it, for a sentence that begins with its path.
fn planned(node: &DeviceNode) -> Result<PlannedNode, String> {
    match &node.found {
        Found::Present(mode) => Ok(PlannedNode { path: node.path.clone(), mode: *mode }),
        Found::Missing => Err("is missing".into()),
        Found::Wrong(what) => Err(format!("cannot be used: {what}")),
    }
}

/// What to do about a node that is not as it should be; `load` says how its driver is loaded.
fn node_hint(node: &DeviceNode, load: &str) -> String {
    let create = "run `divvy generate --create-device-nodes` as root to make missing device nodes";
    match &node.found {
        _ if node.major.is_none() => format!("{load} (/proc/devices does not list it), then {create}"),
        Found::Wrong(_) => format!("remove {}, then {create}", node.host_path.display()),
        _ => create.into(),
    }
}

/// A control node that CUDA cannot do without goes into the spec even when it is missing: an engine then refuses
/// to start a container and names the node, which is better than a container in which CUDA fails; and nothing has
/// to be written anew when the node appears. What stands in its place and is not it, no container gets.
fn plan_control_node(control: &ControlNode, plan: &mut Plan) {
    let node = &control.node;
    match planned(node) {
        Ok(node) => plan.control_nodes.push(node),
        Err(why) if control.required => {
            if node.found == Found::Missing {
                plan.control_nodes.push(PlannedNode { path: node.path.clone(), mode: node.create_mode });
            }
            plan.problems.push(Problem {
                what: node.host_path.display().to_string(),
                why: format!("{why}: no container with a GPU will work until it is there"),
                hint: node_hint(node, &format!("`modprobe {}`", control.module)),
            });
        }
        Err(why) => plan.notes.push(format!("{} {why}; containers go without it", node.host_path.display())),
    }
}

#[cfg(test)]
mod tests;
