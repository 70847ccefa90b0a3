//! Step 3: `Plan` -> CDI spec. What each device gets, by its two names, and what every container gets besides: control
//! nodes, the driver's files, one environment variable and the one hook. Spec-level edits apply once to a
//! container however many devices it asks for (CDI SPEC.md, "OCI Edits").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cdi::{ContainerEdits, DeviceNode, Hook, HookName, Mount, Spec};
use hooks::args::{CreateContainer, Library, Link};

use crate::discover::files::join_root;
use crate::discover::host::{DriverFiles, DriverLibrary};
use crate::plan::{Plan, PlannedNode};

/// Kind of all devices: the one that NVIDIA's tools taught.
pub const KIND: &str = "nvidia.com/gpu";

/// Every whole GPU and MIG device that has a name.
const ALL: &str = "all";

/// Read-only, and a container's own mounts stay its own.
const MOUNT_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/// Where things lie on the host.
#[derive(Debug)]
pub struct Paths<'a> {
    /// Prefix of the driver's files.
    pub driver_root: &'a Path,
    /// Prefix of /dev.
    pub dev_root: &'a Path,
    /// The hook's program, absolute.
    pub hook: &'a Path,
}

/// Builds and validates the spec.
pub fn build(plan: &Plan, files: &DriverFiles, paths: &Paths<'_>) -> Result<Spec> {
    let mut spec = Spec::new(KIND.parse()?);
    for device in &plan.devices {
        let edits =
            ContainerEdits { device_nodes: nodes(&device.nodes, paths)?, ..ContainerEdits::default() };
        for name in [&device.name, &device.uuid] {
            spec.devices.push(named(name, edits.clone())?);
        }
    }
    spec.devices.push(named(ALL, all(plan, paths)?)?);
    spec.devices.sort_by(|a, b| a.name.cmp(&b.name));
    spec.container_edits = common(plan, files, paths)?;
    spec.cdi_version = cdi::minimum_version(&spec).to_string();
    cdi::validate(&spec).context("the spec is not valid, which is a bug of divvy's")?;
    Ok(spec)
}

fn named(name: &str, container_edits: ContainerEdits) -> Result<cdi::Device> {
    Ok(cdi::Device { name: name.parse()?, annotations: BTreeMap::new(), container_edits })
}

/// The union of all devices' nodes: MIG devices of one GPU share its node, and compute instances their GPU
/// instance's capability.
fn all(plan: &Plan, paths: &Paths<'_>) -> Result<ContainerEdits> {
    let mut union: Vec<PlannedNode> = Vec::new();
    for node in plan.devices.iter().flat_map(|device| &device.nodes) {
        if !union.contains(node) {
            union.push(node.clone());
        }
    }
    Ok(ContainerEdits { device_nodes: nodes(&union, paths)?, ..ContainerEdits::default() })
}

/// Path, type, mode and `rw`, never major and minor: the engine reads the live node, Podman and containerd at each
/// start, Docker after each change in the spec directory. `rw` without `m`: a container has no business making nodes.
/// `hostPath` only where it differs: rootless Podman cannot rename nodes.
fn nodes(planned: &[PlannedNode], paths: &Paths<'_>) -> Result<Vec<DeviceNode>> {
    let node = |node: &PlannedNode| {
        let on_host = join_root(paths.dev_root, &node.path);
        Ok(DeviceNode {
            path: text(&node.path)?,
            host_path: (on_host != node.path).then(|| text(&on_host)).transpose()?,
            r#type: Some("c".into()),
            file_mode: Some(node.mode),
            permissions: Some("rw".into()),
            ..DeviceNode::default()
        })
    };
    planned.iter().map(node).collect()
}

/// A spec is JSON: its paths are UTF-8.
fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn common(plan: &Plan, files: &DriverFiles, paths: &Paths<'_>) -> Result<ContainerEdits> {
    let libraries = files.libraries.iter().map(|library| (&library.path, &library.path));
    let others = files.files.iter().map(|file| (&file.path, &file.real_path));
    let mount = |(path, real): (&PathBuf, &PathBuf)| {
        Ok(Mount {
            host_path: text(&join_root(paths.driver_root, real))?,
            container_path: text(path)?,
            // crun crashes on a mount without a type in a pod's user namespace (containers/crun#1948).
            r#type: Some("bind".into()),
            options: MOUNT_OPTIONS.map(str::to_owned).to_vec(),
        })
    };
    Ok(ContainerEdits {
        // A default runtime of NVIDIA's then adds nothing of its own.
        env: vec!["NVIDIA_VISIBLE_DEVICES=void".into()],
        device_nodes: nodes(&plan.control_nodes, paths)?,
        mounts: libraries.chain(others).map(mount).collect::<Result<_>>()?,
        hooks: vec![create_container_hook(files, paths)?],
        ..ContainerEdits::default()
    })
}

/// The one spec-level hook. Its environment must not be empty: a runtime may hand the image's environment to a
/// hook without one (CVE-2025-23266).
fn create_container_hook(files: &DriverFiles, paths: &Paths<'_>) -> Result<Hook> {
    let name = paths.hook.file_name().context("the hook's path has no file name")?;
    let library = |library: &DriverLibrary| Library::new(&library.path, &library.soname);
    let request = CreateContainer {
        libraries: files.libraries.iter().map(library).collect::<Result<_, _>>()?,
        links: files.libraries.iter().filter_map(development_link).collect::<Result<_, _>>()?,
    };
    Ok(Hook {
        hook_name: HookName::CreateContainer,
        path: text(paths.hook)?,
        args: std::iter::once(text(Path::new(name))?).chain(request.to_args()).collect(),
        env: vec!["PATH=/usr/sbin:/usr/bin".into()],
        timeout: None,
    })
}

/// `libcuda.so` -> `libcuda.so.1`, for what is compiled or loaded by the plain name.
fn development_link(library: &DriverLibrary) -> Option<Result<Link, hooks::args::Error>> {
    let name = library.development_link.as_ref()?;
    Some(Link::new(&library.soname, library.path.with_file_name(name)))
}
