//! Makes the device nodes that are missing, where the user asked for it. Numbers come from the kernel; what
//! stands at a path already is never replaced.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::files::{Node, join_root, node_at};
use super::host::{Capability, DeviceNode, Found, Host};
use crate::failure::Failure;

/// Makes every node of the host that is missing and whose numbers are known; returns what was made.
/// Nodes whose driver is not registered with the kernel stay missing, for the planner to name.
pub fn missing_nodes(host: &mut Host, dev_root: &Path) -> Result<Vec<String>> {
    let mut made = Vec::new();
    for node in nodes_of(host) {
        let Some(major) = node.major else { continue };
        if node.found != Found::Missing {
            continue;
        }
        let path = join_root(dev_root, &node.path);
        let wanted = Node { major, minor: node.minor, mode: node.create_mode };
        match make_in_dir(&path, &wanted) {
            Ok(()) => made.push(format!("{} ({major}:{})", path.display(), node.minor)),
            // Another process was first: two compute instances share a node, or two runs overlap.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let hint = "run as root, and outside a container: only there device nodes can be made";
                let failure = anyhow::Error::new(error).context(format!("make {}", path.display()));
                return Err(Failure::new(failure).hint(hint).into());
            }
        }
        node.found = node.judge(node_at(&path));
    }
    Ok(made)
}

fn nodes_of(host: &mut Host) -> impl Iterator<Item = &mut DeviceNode> {
    let control = host.control_nodes.iter_mut().map(|control| &mut control.node);
    let gpus = host.gpus.iter_mut().flat_map(|gpu| {
        let capabilities = gpu
            .mig_devices
            .iter_mut()
            .flat_map(|mig| [&mut mig.gpu_instance_capability, &mut mig.compute_instance_capability]);
        let capabilities = capabilities.filter_map(|capability| match capability {
            Capability::Node(node) => Some(node),
            Capability::Unlisted { .. } => None,
        });
        gpu.node.iter_mut().chain(capabilities)
    });
    control.chain(gpus)
}

fn make_in_dir(path: &Path, node: &Node) -> io::Result<()> {
    if let Some(dir) = path.parent()
        && !dir.exists()
    {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    }
    make_node(path, node)
}

/// mknod(2) of a character device with exactly these permission bits, whatever the umask.
pub fn make_node(path: &Path, node: &Node) -> io::Result<()> {
    let number = makedev(node.major.into(), node.minor.into());
    mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(node.mode), number)?;
    fs::set_permissions(path, fs::Permissions::from_mode(node.mode))
}
