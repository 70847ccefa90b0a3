//! Step 3: `Plan` -> CDI specs, one for each kind. What each device gets, by each of its names, and what every container
//! gets besides: control nodes, the driver's files, one environment variable and the one hook. Spec-level edits apply
//! once to a container however many devices of the kind it asks for (CDI SPEC.md, "OCI Edits"); devices of two kinds
//! bring the same ones twice, which engines and hook take as once. A leased name brings one hook more, which asks for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cdi::{ContainerEdits, DeviceNode, Hook, HookName, Mount, Spec};
use hooks::args::{CreateContainer, CreateRuntime, Library, Link, START_TIMEOUT};
use hooks::lease::{DeviceName, LEASES};

use crate::config::{Mode, Priority};
use crate::discover::files::join_root;
use crate::discover::host::{DriverFile, DriverFiles, DriverLibrary, DriverLink, Host, Purpose, SideClass};
use crate::mps::place::IN_CONTAINER;
use crate::plan::names::Part;
use crate::plan::{ALL, Device, GPU_CLASS, Kind, Plan, PlannedNode, VENDOR};

/// A default runtime of NVIDIA's then adds nothing of its own.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES=void";

/// Read-only, and a container's own mounts stay its own.
const MOUNT_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/// For sockets, which a read-only mount would not close either (as NVIDIA's generator has it).
const SOCKET_OPTIONS: [&str; 5] = ["nosuid", "nodev", "rbind", "rprivate", "noexec"];

/// Where things lie on the host.
#[derive(Debug)]
pub struct Paths<'a> {
    /// Prefix of the driver's files.
    pub driver_root: &'a Path,
    /// Prefix of /dev.
    pub dev_root: &'a Path,
    /// The hook's program, absolute.
    pub hook: &'a Path,
    /// Where the plan will be found when a container starts, if it is kept.
    pub plan: Option<&'a Path>,
    /// Where the daemon will be found.
    pub state: &'a Path,
}

/// What the hook does besides what every run of it does.
#[derive(Debug, Default)]
struct Work<'a> {
    libraries: Vec<&'a DriverLibrary>,
    links: Vec<&'a DriverLink>,
    by_path: Vec<(String, PathBuf)>,
    /// What draws asks which of the host's GPUs it may use.
    draws: bool,
    /// Without a lease the container does not start.
    leased: bool,
    /// It may be of a share of an MPS server.
    mps: bool,
}

/// A spec and the file that it belongs into.
#[derive(Debug)]
pub struct Built {
    /// What is in it.
    pub spec: Spec,
    /// Which of its kind's files it is.
    pub part: Part,
}

/// Builds and validates the specs: those of the class `gpu` first, if it has devices, then the others by class.
pub fn build(plan: &Plan, host: &Host, paths: &Paths<'_>) -> Result<Vec<Built>> {
    let mut classes: Vec<&str> =
        plan.devices.iter().flat_map(|device| &device.classes).map(String::as_str).collect();
    classes.sort_by_key(|class| (*class != GPU_CLASS, *class));
    classes.dedup();
    let mut built = Vec::new();
    for class in classes {
        let entries = entries(class, plan);
        let mut is_first = true;
        for (graphics, leased) in [(true, false), (false, false), (true, true), (false, true)] {
            let is_of = |entry: &&Entry<'_>| (entry.draws(), entry.is_leased()) == (graphics, leased);
            let entries: Vec<&Entry<'_>> = entries.iter().filter(is_of).collect();
            if entries.is_empty() {
                continue;
            }
            let part = if is_first { Part::Main } else { Part::Beside { compute: !graphics, leased } };
            is_first = false;
            let purpose = if graphics { Purpose::Graphics } else { Purpose::Compute };
            let common = common(purpose, &entries, plan, host, paths)?;
            let spec = build_spec(class, &entries, common, plan, &host.driver_files, paths)?;
            built.push(Built { spec, part });
        }
    }
    built.extend(side(plan, host, paths)?);
    Ok(built)
}

/// Names and the devices that they bring: one of them by all of its names, `all`, or a pool, of which the container
/// keeps what it is granted.
struct Entry<'a> {
    names: Vec<&'a str>,
    devices: Vec<&'a Device>,
}

impl Entry<'_> {
    /// Who asks for several gets the files of each.
    fn draws(&self) -> bool {
        self.devices.iter().any(|device| device.graphics)
    }

    fn is_leased(&self) -> bool {
        self.devices.iter().any(|device| device.leased)
    }

    /// Who asks for a pool may get such a share.
    fn is_mps(&self) -> bool {
        self.devices.iter().any(|device| device.mode == Mode::Mps)
    }
}

fn entries<'a>(class: &str, plan: &'a Plan) -> Vec<Entry<'a>> {
    let is_of = |device: &&Device| device.classes.iter().any(|of| of == class);
    let devices: Vec<&Device> = plan.devices.iter().filter(is_of).collect();
    let one = |device: &&'a Device| Entry { names: device.names().collect(), devices: vec![*device] };
    let mut entries: Vec<Entry<'a>> = devices.iter().map(one).collect();
    let whole: Vec<&Device> = devices.iter().copied().filter(|device| device.kind != Kind::Share).collect();
    if !whole.is_empty() {
        entries.push(Entry { names: vec![ALL], devices: whole });
    }
    for pool in plan.pools.iter().filter(|pool| pool.class == class) {
        let members = devices.iter().copied().filter(|device| device.pool.as_ref() == Some(&pool.name));
        entries.push(Entry { names: vec![&pool.name], devices: members.collect() });
    }
    entries
}

/// The specs of side kinds. They bring their nodes, and no driver: who asks for one has a GPU besides, or manages the
/// driver, and then gets its files here. The hook tells whose spec it is, and of which plan.
fn side(plan: &Plan, host: &Host, paths: &Paths<'_>) -> Result<Vec<Built>> {
    let mut built = Vec::new();
    for devices in plan.side.chunk_by(|a, b| a.kind == b.kind) {
        let Some(first) = devices.first() else { continue };
        let mut spec = Spec::new(first.kind.parse()?);
        for device in devices {
            let edits = ContainerEdits {
                device_nodes: nodes(&device.nodes, paths)?,
                additional_gids: groups(&device.nodes),
                ..ContainerEdits::default()
            };
            spec.devices.push(named(&device.name, edits)?);
        }
        spec.container_edits = if first.kind == SideClass::Management.kind() {
            // Its nodes are the device's own.
            ContainerEdits {
                device_nodes: Vec::new(),
                additional_gids: Vec::new(),
                ..common(Purpose::Compute, &[], plan, host, paths)?
            }
        } else {
            ContainerEdits {
                env: vec![VISIBLE_DEVICES.into()],
                mounts: first
                    .files
                    .iter()
                    .map(|file| mount(file, &MOUNT_OPTIONS, paths))
                    .collect::<Result<_>>()?,
                hooks: vec![create_container_hook(plan, host, &Work::default(), paths)?],
                ..ContainerEdits::default()
            }
        };
        built.push(Built { spec: finished(spec)?, part: Part::Main });
    }
    Ok(built)
}

fn build_spec(
    class: &str,
    entries: &[&Entry<'_>],
    common: ContainerEdits,
    plan: &Plan,
    files: &DriverFiles,
    paths: &Paths<'_>,
) -> Result<Spec> {
    let mut spec = Spec::new(format!("{VENDOR}/{class}").parse()?);
    for entry in entries {
        let edits = of_devices(&entry.devices, files, paths)?;
        for name in &entry.names {
            let mut edits = edits.clone();
            if entry.is_leased() {
                edits.hooks.push(create_runtime_hook(class, name, plan, paths)?);
            }
            spec.devices.push(named(name, edits)?);
        }
    }
    spec.container_edits = common;
    finished(spec)
}

/// In order, with the lowest version that its content needs, and valid.
fn finished(mut spec: Spec) -> Result<Spec> {
    spec.devices.sort_by(|a, b| a.name.cmp(&b.name));
    spec.cdi_version = cdi::minimum_version(&spec).to_string();
    cdi::validate(&spec).context("the spec is not valid, which is a bug of divvy's")?;
    Ok(spec)
}

fn named(name: &str, container_edits: ContainerEdits) -> Result<cdi::Device> {
    Ok(cdi::Device { name: name.parse()?, annotations: BTreeMap::new(), container_edits })
}

/// What one device brings, or several together: MIG devices of one GPU share its node, and compute instances their GPU
/// instance's capability. Sockets of the driver's daemons go with whole GPUs: a share has no business with the
/// persistence mode of a GPU that others use too.
fn of_devices(devices: &[&Device], files: &DriverFiles, paths: &Paths<'_>) -> Result<ContainerEdits> {
    let mut union: Vec<PlannedNode> = Vec::new();
    for node in devices.iter().flat_map(|device| device.nodes.iter().chain(&device.dri_nodes)) {
        if !union.contains(node) {
            union.push(node.clone());
        }
    }
    let has_gpu = devices.iter().any(|device| device.kind == Kind::Gpu);
    let sockets = files.sockets.iter().filter(|_| has_gpu);
    Ok(ContainerEdits {
        env: mps(devices),
        device_nodes: nodes(&union, paths)?,
        mounts: sockets.map(|socket| mount(socket, &SOCKET_OPTIONS, paths)).collect::<Result<_>>()?,
        additional_gids: groups(&union),
        ..ContainerEdits::default()
    })
}

/// How a container finds the MPS server of its share, and what it is to ask of it (nvidia-cuda-mps-control(1)). It can ask
/// for less than the server allows and never for more. Of several devices that one of is granted, the largest has to do.
fn mps(devices: &[&Device]) -> Vec<String> {
    let shares = || devices.iter().filter_map(|device| device.mps.as_ref());
    let percentage = shares().map(|share| share.active_thread_percentage).max();
    let memory = shares().map(|share| share.memory_mib).max();
    let priority = shares().map(|share| share.priority).min();
    let (Some(percentage), Some(memory), Some(priority)) = (percentage, memory, priority) else {
        return Vec::new();
    };
    let priority = match priority {
        Priority::Normal => 0,
        Priority::Low => 1,
    };
    vec![
        format!("CUDA_MPS_PIPE_DIRECTORY={IN_CONTAINER}"),
        format!("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={percentage}"),
        format!("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0={memory}M"),
        format!("CUDA_MPS_CLIENT_PRIORITY={priority}"),
    ]
}

/// The groups without which a user in the container could not open these nodes.
fn groups(nodes: &[PlannedNode]) -> Vec<u32> {
    let is_closed = |node: &&PlannedNode| node.gid != 0 && node.mode & 0o006 != 0o006;
    let mut groups: Vec<u32> = nodes.iter().filter(is_closed).map(|node| node.gid).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
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
            gid: Some(node.gid).filter(|gid| *gid != 0),
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

/// A file of the driver in the container.
fn mount(file: &DriverFile, options: &[&str], paths: &Paths<'_>) -> Result<Mount> {
    Ok(Mount {
        host_path: text(&join_root(paths.driver_root, &file.real_path))?,
        container_path: text(&file.path)?,
        // crun crashes on a mount without a type in a pod's user namespace (containers/crun#1948).
        r#type: Some("bind".into()),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    })
}

/// What every container with a device of one spec gets.
fn common(
    purpose: Purpose,
    entries: &[&Entry<'_>],
    plan: &Plan,
    host: &Host,
    paths: &Paths<'_>,
) -> Result<ContainerEdits> {
    let files = &host.driver_files;
    let wanted = |of: Purpose| of == Purpose::Compute || of == purpose;
    let libraries: Vec<&DriverLibrary> =
        files.libraries.iter().filter(|library| wanted(library.purpose)).collect();
    let as_file = |library: &DriverLibrary| DriverFile {
        path: library.path.clone(),
        real_path: library.path.clone(),
        purpose: library.purpose,
    };
    let mounted = libraries.iter().map(|library| as_file(library));
    let mounted = mounted.chain(files.files.iter().filter(|file| wanted(file.purpose)).cloned());
    let mounts = mounted.map(|file| mount(&file, &MOUNT_OPTIONS, paths)).collect::<Result<_>>()?;
    let links: Vec<&DriverLink> = files.links.iter().filter(|link| wanted(link.purpose)).collect();
    let draws = purpose == Purpose::Graphics;
    let by_path = if draws { by_path(plan) } else { Vec::new() };
    let leased = entries.iter().any(|entry| entry.is_leased());
    let mps = entries.iter().any(|entry| entry.is_mps());
    let work = Work { libraries, links, by_path, draws, leased, mps };
    Ok(ContainerEdits {
        env: vec![VISIBLE_DEVICES.into()],
        device_nodes: nodes(&plan.control_nodes, paths)?,
        mounts,
        hooks: vec![create_container_hook(plan, host, &work, paths)?],
        additional_gids: groups(&plan.control_nodes),
    })
}

/// /dev/dri/by-path/pci-0000:1b:00.0-card and the like, of every GPU in the spec: in a container the hook makes those
/// whose node is there.
fn by_path(plan: &Plan) -> Vec<(String, PathBuf)> {
    let mut links: Vec<(String, PathBuf)> = Vec::new();
    for device in plan.devices.iter().filter(|device| device.graphics) {
        let Some(address) = &device.pci_address else { continue };
        for node in &device.dri_nodes {
            let Some(name) = node.path.file_name().and_then(|name| name.to_str()) else { continue };
            let kind = if name.starts_with("card") { "card" } else { "render" };
            let link = PathBuf::from(format!("/dev/dri/by-path/pci-{address}-{kind}"));
            if links.iter().all(|(_, path)| *path != link) {
                links.push((format!("../{name}"), link));
            }
        }
    }
    links
}

/// The one spec-level hook.
fn create_container_hook(plan: &Plan, host: &Host, work: &Work<'_>, paths: &Paths<'_>) -> Result<Hook> {
    let library = |library: &&DriverLibrary| Library::new(&library.path, &library.soname);
    let links = work.links.iter().map(|link| Link::new(&link.target, &link.path));
    let device_links = work.by_path.iter().map(|(target, path)| Link::new(target, path));
    let request = CreateContainer {
        driver: host.driver_version.parse().ok(),
        cuda: host.cuda_version.as_deref().and_then(|version| version.parse().ok()),
        generation: Some(plan.generation.clone()),
        plan: paths.plan.map(Path::to_owned),
        application_profile: work.draws,
        leases: work.leased.then(|| paths.state.join(LEASES)),
        mps: work.mps,
        libraries: work.libraries.iter().map(library).collect::<Result<_, _>>()?,
        links: links.collect::<Result<_, _>>()?,
        device_links: device_links.collect::<Result<_, _>>()?,
    };
    hook(HookName::CreateContainer, request.to_args(), paths)
}

/// What a leased name adds: the question for it, in the engine's namespaces, before the container's own are filled.
fn create_runtime_hook(class: &str, name: &str, plan: &Plan, paths: &Paths<'_>) -> Result<Hook> {
    let request = CreateRuntime {
        state_dir: paths.state.to_owned(),
        start_timeout: plan.start_timeout.unwrap_or(START_TIMEOUT),
        devices: vec![DeviceName { class: class.to_owned(), name: name.to_owned() }],
    };
    hook(HookName::CreateRuntime, request.to_args(), paths)
}

/// Its environment must not be empty: a runtime may hand the image's environment to a hook without one
/// (CVE-2025-23266).
fn hook(hook_name: HookName, args: Vec<String>, paths: &Paths<'_>) -> Result<Hook> {
    let name = paths.hook.file_name().context("the hook's path has no file name")?;
    Ok(Hook {
        hook_name,
        path: text(paths.hook)?,
        args: std::iter::once(text(Path::new(name))?).chain(args).collect(),
        env: vec!["PATH=/usr/sbin:/usr/bin".into()],
        timeout: None,
    })
}
