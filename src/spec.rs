//! Step 3: `Plan` -> CDI specs, one for each kind. What each device gets, by each of its names, and what every container
//! gets besides: control nodes, the driver's files, one environment variable and the one hook. Spec-level edits apply
//! once to a container however many devices of the kind it asks for (CDI SPEC.md, "OCI Edits"); devices of two kinds
//! bring the same ones twice, which engines and hook take as once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cdi::{ContainerEdits, DeviceNode, Hook, HookName, Mount, Spec};
use hooks::args::{CreateContainer, Library, Link};

use crate::discover::files::join_root;
use crate::discover::host::{DriverFiles, DriverLibrary};
use crate::plan::{ALL, Device, GPU_CLASS, Kind, Plan, PlannedNode, VENDOR};

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

/// Builds and validates the specs: that of the class `gpu` first, if it has devices, then the others by class.
pub fn build(plan: &Plan, files: &DriverFiles, paths: &Paths<'_>) -> Result<Vec<Spec>> {
    let mut classes: Vec<&str> =
        plan.devices.iter().flat_map(|device| &device.classes).map(String::as_str).collect();
    classes.sort_by_key(|class| (*class != GPU_CLASS, *class));
    classes.dedup();
    classes.into_iter().map(|class| build_kind(class, plan, files, paths)).collect()
}

fn build_kind(class: &str, plan: &Plan, files: &DriverFiles, paths: &Paths<'_>) -> Result<Spec> {
    let mut spec = Spec::new(format!("{VENDOR}/{class}").parse()?);
    let devices = || plan.devices.iter().filter(|device| device.classes.iter().any(|of| of == class));
    for device in devices() {
        let edits =
            ContainerEdits { device_nodes: nodes(&device.nodes, paths)?, ..ContainerEdits::default() };
        for name in device.names() {
            spec.devices.push(named(name, edits.clone())?);
        }
    }
    let whole: Vec<&Device> = devices().filter(|device| device.kind != Kind::Share).collect();
    if !whole.is_empty() {
        spec.devices.push(named(ALL, all(&whole, paths)?)?);
    }
    spec.devices.sort_by(|a, b| a.name.cmp(&b.name));
    spec.container_edits = common(plan, files, paths)?;
    spec.cdi_version = cdi::minimum_version(&spec).to_string();
    cdi::validate(&spec).context("the spec is not valid, which is a bug of divvy's")?;
    Ok(spec)
}

fn named(name: &str, container_edits: ContainerEdits) -> Result<cdi::Device> {
    Ok(cdi::Device { name: name.parse()?, annotations: BTreeMap::new(), container_edits })
}

/// The union of the devices' nodes: MIG devices of one GPU share its node, and compute instances their GPU
/// instance's capability. Never a share: who asks for everything asks for whole devices.
fn all(devices: &[&Device], paths: &Paths<'_>) -> Result<ContainerEdits> {
    let mut union: Vec<PlannedNode> = Vec::new();
    for node in devices.iter().flat_map(|device| &device.nodes) {
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
        hooks: vec![create_container_hook(plan, files, paths)?],
        ..ContainerEdits::default()
    })
}

/// The one spec-level hook. Its environment must not be empty: a runtime may hand the image's environment to a
/// hook without one (CVE-2025-23266).
fn create_container_hook(plan: &Plan, files: &DriverFiles, paths: &Paths<'_>) -> Result<Hook> {
    let name = paths.hook.file_name().context("the hook's path has no file name")?;
    let library = |library: &DriverLibrary| Library::new(&library.path, &library.soname);
    let request = CreateContainer {
        libraries: files.libraries.iter().map(library).collect::<Result<_, _>>()?,
        links: files.libraries.iter().filter_map(development_link).collect::<Result<_, _>>()?,
        generation: Some(plan.generation.clone()),
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
