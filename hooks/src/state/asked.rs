//! What a bundle's `config.json` says of devices (OCI runtime specification, "Devices", "Allowed Device list", "POSIX-platform
//! Hooks", "Mounts"): all that a container asks divvy for, what it gets besides, and whether a share would bind nothing in
//! it. Pure functions on bytes; nothing is looked up on the host.

use std::path::{Component, Path, PathBuf};

use super::Error;
use crate::args::{Command, CreateRuntime, Phase, is_plain_path};
use crate::lease::{DeviceName, Labels, Unbound};
use crate::tree::Tree;

/// Major number of the nodes /dev/nvidia`<minor>` (the kernel's devices.txt).
const NVIDIA: i64 = 195;
/// Above are the control nodes (254 and 255), which belong to no GPU.
const MOST_GPU_MINOR: i64 = 253;
/// Names of NVIDIA's hooks, which read the environment: of nvidia-docker2, of its toolkit before and after 1.0.
const NVIDIA_HOOKS: [&str; 3] =
    ["nvidia-container-runtime-hook", "nvidia-container-toolkit", "nvidia-ctk-hook"];
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES=";

/// What a configuration says of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The devices and pools of all of divvy's createRuntime hooks, in their order and as often as they are named.
    pub devices: Vec<DeviceName>,
    /// The user id of the first program, in the container.
    pub user: u32,
    /// Paths in the container of the driver's character devices, each once. One of a GPU under another name, or that may
    /// be made by its number, goes by the name that the driver gives it. Where no device cgroup holds, a GPU's node of the
    /// host's that is mounted at its own path is one of them.
    pub nodes: Vec<PathBuf>,
    /// Why a share would bind nothing.
    pub unbound: Option<Unbound>,
    /// What names the container.
    pub labels: Labels,
}

/// What the configuration says, for the hook that was started as `program` with `own` words. Of hooks of the same name
/// those count that ask the same daemon; in a user namespace of the caller's (`in_user_namespace`) no device cgroup holds,
/// whatever is written.
///
/// # Errors
/// When it is not the JSON of a configuration.
pub fn asked_in_config(
    config: &[u8],
    program: &str,
    own: &CreateRuntime,
    in_user_namespace: bool,
) -> Result<Asked, Error> {
    let config = Tree::parse(config).map_err(|source| Error::Config { source })?;
    let (hooks, linux) = (config.get("hooks"), config.get("linux"));
    let (prestart, created) = (hooks.get("prestart").items(), hooks.get("createRuntime").items());
    let rules = linux.get("resources").get("devices").items();
    let mounts = config.get("mounts").items();

    let is_told = names_devices(config.get("process").get("env").items());
    // A mount's node opens where no device cgroup stands behind.
    let opened = if in_user_namespace || rules.is_empty() { mounts } else { &[] };
    let unbound = if allows_all(rules) {
        Some(Unbound::Privileged)
    } else if opened.iter().any(|mount| shows_a_gpu(mount) && node_of_a_gpu(mount).is_none()) {
        Some(Unbound::HostDev)
    } else if is_told && prestart.iter().chain(created).any(is_nvidias) {
        Some(Unbound::NvidiaHook)
    } else {
        None
    };
    Ok(Asked {
        devices: devices(created, program, own),
        user: user(config.get("process")),
        nodes: nodes(linux.get("devices").items(), rules, opened),
        unbound,
        labels: Labels {
            podman_name: None,
            annotations: config.annotations(),
            hostname_file: mounts.iter().rev().find_map(hostname_file),
        },
    })
}

/// Root, where nothing is said (OCI runtime specification, "POSIX-platform User").
fn user(process: &Tree) -> u32 {
    let uid = process.get("user").get("uid").count();
    uid.and_then(|uid| uid.try_into().ok()).unwrap_or_default()
}

fn devices(hooks: &[Tree], program: &str, own: &CreateRuntime) -> Vec<DeviceName> {
    let asked: Vec<_> = hooks.iter().filter_map(|hook| request(hook, program)).collect();
    // Where an engine hides its hooks from the configuration, this one's words are all there is.
    let asked = if asked.contains(own) { asked } else { vec![own.clone()] };
    let of_daemon = asked.into_iter().filter(|request| request.state_dir == own.state_dir);
    of_daemon.flat_map(|request| request.devices).collect()
}

/// What a hook asks for, if it is divvy's.
fn request(hook: &Tree, program: &str) -> Option<CreateRuntime> {
    let program = Path::new(program).file_name()?.to_str();
    let args: Option<Vec<&str>> = hook.get("args").items().iter().map(Tree::text).collect();
    let args = args?;
    if name(hook) != program || Path::new(args.first()?).file_name()?.to_str() != program {
        return None;
    }
    match Command::parse_words(args).ok()?.phase {
        Phase::CreateRuntime(request) => Some(request),
        Phase::CreateContainer(_) => None,
    }
}

fn is_nvidias(hook: &Tree) -> bool {
    name(hook).is_some_and(|name| NVIDIA_HOOKS.contains(&name))
}

/// The file name of a hook's program.
fn name(hook: &Tree) -> Option<&str> {
    Path::new(hook.get("path").text()?).file_name()?.to_str()
}

fn nodes(devices: &[Tree], rules: &[Tree], mounts: &[Tree]) -> Vec<PathBuf> {
    // `u` is what the specification calls an unbuffered character device: mknod(1) knows no other.
    let devices = devices.iter().filter(|device| matches!(device.get("type").text(), Some("c" | "u")));
    let paths = devices.clone().filter_map(|device| device.get("path").text());
    let paths = paths.map(plain);
    let paths = paths.filter(|path| is_of_the_driver(path));
    let opened = rules.iter().filter(|rule| rule.get("allow").is_true() && opens(rule));
    let mut nodes = Vec::new();
    let numbered = devices.chain(opened).filter_map(gpu);
    for node in paths.chain(numbered).chain(mounts.iter().filter_map(node_of_a_gpu)) {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    nodes
}

/// Without `//` and `.`, as the runtime has it.
fn plain(path: &str) -> PathBuf {
    Path::new(path).components().collect()
}

/// The node of the GPU whose numbers a device or a rule has; a rule without a major, or with -1, is of each.
fn gpu(numbers: &Tree) -> Option<PathBuf> {
    let minor = numbers.get("minor").number()?;
    let is_gpu = matches!(numbers.get("major").number(), None | Some(-1 | NVIDIA))
        && (0..=MOST_GPU_MINOR).contains(&minor);
    is_gpu.then(|| format!("/dev/nvidia{minor}").into())
}

fn is_of_the_driver(path: &Path) -> bool {
    let below = path.strip_prefix("/dev").ok().and_then(|below| below.components().next());
    let Some(Component::Normal(first)) = below else { return false };
    first == "dri" || first.as_encoded_bytes().starts_with(b"nvidia")
}

/// Whether the rules of the device cgroup, of which later ones win, let a container open every node of NVIDIA's major
/// number, as they do for `--privileged`.
fn allows_all(rules: &[Tree]) -> bool {
    let concerns = |rule: &&Tree| {
        // -1 is how some engines write that any number will do.
        let is_any = |number: Option<i64>| number.is_none_or(|number| number < 0);
        let (major, minor) = (rule.get("major").number(), rule.get("minor").number());
        matches!(rule.get("type").text(), None | Some("" | "a" | "c"))
            && (is_any(major) || major == Some(NVIDIA))
            && is_any(minor)
            && opens(rule)
    };
    rules.iter().rev().find(concerns).is_some_and(|rule| rule.get("allow").is_true())
}

/// Whether a rule is about opening nodes: every engine allows `m`, to make them.
fn opens(rule: &Tree) -> bool {
    let access = rule.get("access").text().unwrap_or_default();
    access.is_empty() || access.contains(['r', 'w'])
}

/// Whether the last NVIDIA_VISIBLE_DEVICES, which is the one that counts, names any.
fn names_devices(env: &[Tree]) -> bool {
    let last = env.iter().rev().find_map(|entry| entry.text()?.strip_prefix(VISIBLE));
    last.is_some_and(|value| !matches!(value.trim(), "" | "void" | "none"))
}

fn is_bind(mount: &Tree) -> bool {
    let options = mount.get("options").items().iter();
    mount.get("type").text() == Some("bind")
        || options.filter_map(Tree::text).any(|option| matches!(option, "bind" | "rbind"))
}

/// Whether a GPU's node of the host shows in a mount.
fn shows_a_gpu(mount: &Tree) -> bool {
    let source = Path::new(mount.get("source").text().unwrap_or_default());
    // A relative one counts from the bundle.
    if !is_bind(mount) || !source.is_absolute() {
        return false;
    }
    let mut names = source.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        _ => None,
    });
    match (names.next(), names.next()) {
        (None, _) | (Some(b"dev"), None) => true,
        (Some(b"dev"), Some(name)) => name
            .strip_prefix(b"nvidia")
            .is_some_and(|rest| rest == b"-caps" || !rest.is_empty() && rest.iter().all(u8::is_ascii_digit)),
        _ => false,
    }
}

/// The GPU's node that a mount of the host's is, as rootless Podman writes `--device`. At its own path: one at another
/// would be there still when that path was taken away.
fn node_of_a_gpu(mount: &Tree) -> Option<PathBuf> {
    let (source, destination) = (plain(mount.get("source").text()?), plain(mount.get("destination").text()?));
    let number = source.to_str()?.strip_prefix("/dev/nvidia")?;
    let is_gpu = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_bind(mount) && is_gpu && source == destination).then_some(source)
}

/// The host's file behind /etc/hostname, if that is what a mount is.
fn hostname_file(mount: &Tree) -> Option<PathBuf> {
    let source = Path::new(mount.get("source").text()?);
    let is_it = mount.get("destination").text() == Some("/etc/hostname") && is_bind(mount);
    (is_it && is_plain_path(source)).then(|| source.to_owned())
}

#[cfg(test)]
mod tests;
