//! What a device consists of: its nodes, and what keeps it from being given out. Also what belongs to the driver as a
//! whole: control nodes and libraries.

use crate::discover::host::{
    Capability, ControlNode, DeviceNode, DriverLibrary, Found, Gpu, Host, MigDevice,
};

use super::{Plan, PlannedNode, Problem, Unit};

/// Why a device cannot be given to a container.
#[derive(Debug)]
pub struct LeftOut {
    /// For a sentence that begins with the device.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl LeftOut {
    pub fn problem(self, what: String) -> Problem {
        Problem { place: None, what, why: format!("is left out: {}", self.why), hint: self.hint }
    }
}

/// A UUID becomes a CDI device name. One strange character in it makes the whole spec unreadable, and one that looks
/// like another name would be one.
pub fn usable_uuid(unit: &Unit<'_>) -> Result<(), LeftOut> {
    let (uuid, prefix) = (unit.uuid(), if matches!(unit, Unit::Gpu(_)) { "GPU-" } else { "MIG-" });
    let why = match uuid.parse::<cdi::DeviceName>() {
        Err(error) => error.to_string(),
        Ok(_) if !uuid.starts_with(prefix) => format!("it does not begin with {prefix}"),
        Ok(_) => return Ok(()),
    };
    Err(LeftOut {
        why: format!("its UUID {uuid:?} cannot be a device name: {why}"),
        hint: "compare with `nvidia-smi -L`; a driver that garbles UUIDs needs an upgrade".into(),
    })
}

pub fn gpu_node(gpu: &Gpu) -> Result<PlannedNode, LeftOut> {
    let node = gpu.node.as_ref().ok_or_else(|| LeftOut {
        why: "its minor number is not known".into(),
        hint: "`grep Minor /proc/driver/nvidia/gpus/*/information` should show it; upgrade the driver if not"
            .into(),
    })?;
    device_node(node)
}

/// The GPU's node and the two capabilities: all three or none, since two of them open nothing.
pub fn mig_nodes(gpu: &Gpu, mig: &MigDevice) -> Result<Vec<PlannedNode>, LeftOut> {
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
        Found::Present { mode, gid } => Ok(planned_node(node, *mode, *gid)),
        Found::Missing => Err("is missing".into()),
        Found::Wrong(what) => Err(format!("cannot be used: {what}")),
    }
}

fn planned_node(node: &DeviceNode, mode: u32, gid: u32) -> PlannedNode {
    PlannedNode { path: node.path.clone(), host_path: node.host_path.clone(), mode, gid }
}

/// The GPU's nodes in /dev/dri, those that can be used. CUDA goes without; what is not there is said.
pub fn dri_nodes(gpu: &Gpu, plan: &mut Plan) -> Vec<PlannedNode> {
    let mut nodes = Vec::new();
    for node in &gpu.dri_nodes {
        match planned(node) {
            Ok(node) => nodes.push(node),
            Err(why) => {
                let path = node.host_path.display();
                let note =
                    format!("{path} of GPU {} {why}; containers with the GPU go without it", gpu.index);
                // Asked for by the whole GPU and by its shares.
                if !plan.notes.contains(&note) {
                    plan.notes.push(note);
                }
            }
        }
    }
    nodes
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
pub fn plan_control_node(control: &ControlNode, plan: &mut Plan) {
    let node = &control.node;
    match planned(node) {
        Ok(node) => plan.control_nodes.push(node),
        Err(why) if control.required => {
            if node.found == Found::Missing {
                plan.control_nodes.push(planned_node(node, node.create_mode.unwrap_or(0o666), 0));
            }
            plan.problems.push(Problem {
                place: None,
                what: node.host_path.display().to_string(),
                why: format!("{why}: no container with a GPU will work until it is there"),
                hint: node_hint(node, &format!("`modprobe {}`", control.module)),
            });
        }
        Err(why) => plan.notes.push(format!("{} {why}; containers go without it", node.host_path.display())),
    }
}

/// A library that is there and cannot be read is missed later and in stranger ways. Devices without libcuda are of use
/// to few programs, and a spec without it looks whole.
pub fn plan_libraries(host: &Host, plan: &mut Plan) {
    for (path, why) in &host.driver_files.broken {
        plan.problems.push(Problem {
            place: None,
            what: path.display().to_string(),
            why: format!("is left out: it cannot be read as the driver's: {why}"),
            hint: "install the driver's user space anew, and run as root".into(),
        });
    }
    let is_cuda = |library: &DriverLibrary| library.soname == "libcuda.so.1";
    if !host.driver_files.libraries.iter().any(is_cuda) {
        plan.problems.push(Problem {
            place: None,
            what: format!("libcuda.so.{}", host.driver_version),
            why: "was not found where drivers are installed: containers go without it".into(),
            hint: "install the driver's user space in the version of its kernel module; if it lies elsewhere, name its root with --driver-root".into(),
        });
    }
}
