//! CDI devices beside the GPUs', in kinds of their own. They are left to another generator where one has the same names
//! in the same directory, and management is given out only where the configuration says so.

use std::path::Path;

use serde::Serialize;

use super::{ALL, Kind, Plan, PlannedNode};
use crate::config::Config;
use crate::discover::host::{DriverFile, Found, Host, SideClass, SideNode};
use crate::discover::others::OtherSpec;

/// One CDI device of a side kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideDevice {
    /// Its kind, as `nvidia.com/gds`.
    pub kind: &'static str,
    /// Its name in that kind: a channel's number, or `all`.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<PlannedNode>,
    /// Files that it brings.
    #[serde(skip)]
    pub files: Vec<DriverFile>,
}

/// Plans every class of which there is a node that can be used.
pub fn plan(host: &Host, config: &Config, plan: &mut Plan) {
    for class in SideClass::ALL {
        if class == SideClass::Management && !config.management {
            continue;
        }
        let of_class = || host.side.nodes.iter().filter(|node| node.class == class);
        let nodes: Vec<(&SideNode, PlannedNode)> =
            of_class().filter_map(|node| Some((node, usable(node)?))).collect();
        plan.notes.extend(left_out(class, of_class()));
        if nodes.is_empty() {
            continue;
        }
        if class == SideClass::Management && plan.devices.iter().any(|device| device.leased) {
            let is_shared = plan.devices.iter().any(|device| device.kind == Kind::Share);
            let past =
                if is_shared { "shared GPUs past their shares" } else { "leased GPUs past their leases" };
            plan.warnings.push(format!("{}=all reaches {past}", class.kind()));
        }
        let files = if class == SideClass::Gds { host.side.gds_files.clone() } else { Vec::new() };
        let device = |name: String, nodes: Vec<PlannedNode>| SideDevice {
            kind: class.kind(),
            name,
            nodes,
            files: files.clone(),
        };
        if class == SideClass::ImexChannel {
            plan.side.extend(
                nodes.iter().map(|(node, planned)| device(channel(&node.path), vec![planned.clone()])),
            );
        }
        plan.side.push(device(ALL.into(), nodes.into_iter().map(|(_, planned)| planned).collect()));
    }
}

fn usable(node: &SideNode) -> Option<PlannedNode> {
    let Found::Present { mode, gid } = node.found else { return None };
    Some(PlannedNode { path: node.path.clone(), host_path: node.host_path.clone(), mode, gid })
}

/// One note on all nodes of a class that cannot be used: what an unloaded module leaves are often many. (One that is
/// missing went away since its directory was read.)
fn left_out<'a>(class: SideClass, nodes: impl Iterator<Item = &'a SideNode>) -> Option<String> {
    let wrong = nodes.filter_map(|node| match &node.found {
        Found::Wrong(why) => Some((node.host_path.display(), why)),
        _ => None,
    });
    let wrong: Vec<_> = wrong.collect();
    let (path, why) = wrong.first()?;
    let more = match wrong.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{} goes without {path}{more}: {why}", class.kind()))
}

/// `7` of /dev/nvidia-caps-imex-channels/channel7
fn channel(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned()
}

/// Leaves a kind to the spec beside ours that has its names.
pub fn leave_to_others(beside: &[&OtherSpec], plan: &mut Plan) {
    for spec in beside {
        let theirs = |device: &SideDevice| {
            device.kind == spec.kind && spec.devices.iter().any(|other| other.name == device.name)
        };
        if plan.side.iter().any(theirs) {
            plan.side.retain(|device| device.kind != spec.kind);
            plan.notes.push(format!("{} is left out, because {} has it", spec.kind, spec.path.display()));
        }
    }
}
