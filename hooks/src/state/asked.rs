//! What a bundle's `config.json` says of devices (OCI runtime specification, "Devices", "Allowed Device list", "POSIX-platform
//! Hooks", "Mounts"): all that a container asks divvy for, what it gets besides, and whether a share would bind nothing in
//! it. Pure functions on bytes; nothing is looked up on the host.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::lenient::Annotations;
use super::{Error, object};
use crate::args::{Command, CreateRuntime, Phase};
use crate::lease::{DeviceName, Labels, Unbound};

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
    /// Paths in the container of the driver's character devices, each once. One of a GPU under another name, or that may
    /// be made by its number, goes by the name that the driver gives it.
    pub nodes: Vec<PathBuf>,
    /// Why a share would bind nothing.
    pub unbound: Option<Unbound>,
    /// What names the container.
    pub labels: Labels,
}

#[derive(Deserialize)]
struct Config {
    process: Option<Process>,
    mounts: Option<Vec<Mount>>,
    hooks: Option<Hooks>,
    #[serde(default)]
    annotations: Annotations,
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Process {
    env: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Mount {
    destination: Option<PathBuf>,
    source: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    options: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hooks {
    prestart: Option<Vec<Hook>>,
    create_runtime: Option<Vec<Hook>>,
}

#[derive(Deserialize)]
struct Hook {
    path: Option<PathBuf>,
    args: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
struct Linux {
    devices: Option<Vec<Device>>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(rename = "type")]
    kind: Option<String>,
    path: Option<PathBuf>,
    major: Option<i64>,
    minor: Option<i64>,
}

#[derive(Deserialize)]
struct Resources {
    devices: Option<Vec<Rule>>,
}

/// A rule of the device cgroup; later ones win.
#[derive(Deserialize)]
struct Rule {
    allow: Option<bool>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    access: Option<String>,
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
    let config: Config = object(config).map_err(|source| Error::Config { source })?;
    let hooks = config.hooks.unwrap_or_default();
    let mounts = config.mounts.unwrap_or_default();
    let linux = config.linux.unwrap_or_default();
    let rules = linux.resources.and_then(|resources| resources.devices).unwrap_or_default();
    let created = hooks.create_runtime.unwrap_or_default();
    let prestart = hooks.prestart.unwrap_or_default();

    let is_told = config.process.and_then(|process| process.env).is_some_and(|env| names_devices(&env));
    let unbound = if allows_all(&rules) {
        Some(Unbound::Privileged)
    } else if (in_user_namespace || rules.is_empty()) && mounts.iter().any(Mount::shows_a_gpu) {
        Some(Unbound::HostDev)
    } else if is_told && prestart.iter().chain(&created).any(Hook::is_nvidias) {
        Some(Unbound::NvidiaHook)
    } else {
        None
    };
    Ok(Asked {
        devices: devices(&created, program, own),
        nodes: nodes(linux.devices.unwrap_or_default(), &rules),
        unbound,
        labels: Labels {
            annotations: config.annotations.0,
            hostname_file: mounts.into_iter().rev().find_map(Mount::hostname_file),
        },
    })
}

fn devices(hooks: &[Hook], program: &str, own: &CreateRuntime) -> Vec<DeviceName> {
    let asked: Vec<_> = hooks.iter().filter_map(|hook| hook.request(program)).collect();
    // Where an engine hides its hooks from the configuration, this one's words are all there is.
    let asked = if asked.contains(own) { asked } else { vec![own.clone()] };
    let of_daemon = asked.into_iter().filter(|request| request.state_dir == own.state_dir);
    of_daemon.flat_map(|request| request.devices).collect()
}

fn nodes(devices: Vec<Device>, rules: &[Rule]) -> Vec<PathBuf> {
    let mut nodes: Vec<PathBuf> = Vec::new();
    let mut add = |node: PathBuf| {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    };
    for device in devices {
        // `u` is what the specification calls an unbuffered character device: mknod(1) knows no other.
        if !matches!(device.kind.as_deref(), Some("c" | "u")) {
            continue;
        }
        device.path.filter(|path| is_of_the_driver(path)).into_iter().for_each(&mut add);
        gpu(device.major, device.minor).into_iter().for_each(&mut add);
    }
    for rule in rules.iter().filter(|rule| rule.allow == Some(true) && rule.opens()) {
        gpu(rule.major, rule.minor).into_iter().for_each(&mut add);
    }
    nodes
}

/// The node of the GPU with these numbers.
fn gpu(major: Option<i64>, minor: Option<i64>) -> Option<PathBuf> {
    let minor = minor.filter(|minor| major == Some(NVIDIA) && (0..=MOST_GPU_MINOR).contains(minor))?;
    Some(format!("/dev/nvidia{minor}").into())
}

fn is_of_the_driver(path: &Path) -> bool {
    let below = path.strip_prefix("/dev").ok().and_then(|below| below.components().next());
    let Some(Component::Normal(first)) = below else { return false };
    first == "dri" || first.as_encoded_bytes().starts_with(b"nvidia")
}

/// Whether the rules let a container open every node of NVIDIA's major number, as they do for `--privileged`.
fn allows_all(rules: &[Rule]) -> bool {
    let concerns = |rule: &&Rule| {
        // -1 is how some engines write that any number will do; `*` is not in the specification's JSON.
        let is_any = |number: Option<i64>| number.is_none_or(|number| number < 0);
        matches!(rule.kind.as_deref(), None | Some("" | "a" | "c"))
            && (is_any(rule.major) || rule.major == Some(NVIDIA))
            && is_any(rule.minor)
            && rule.opens()
    };
    rules.iter().rev().find(concerns).is_some_and(|rule| rule.allow == Some(true))
}

/// Whether the last NVIDIA_VISIBLE_DEVICES, which is the one that counts, names any.
fn names_devices(env: &[String]) -> bool {
    let last = env.iter().rev().find_map(|entry| entry.strip_prefix(VISIBLE));
    last.is_some_and(|value| !matches!(value.trim(), "" | "void" | "none"))
}

impl Rule {
    /// Whether it is about opening nodes: every engine allows `m`, to make them.
    fn opens(&self) -> bool {
        self.access.as_deref().is_none_or(|access| access.is_empty() || access.contains(['r', 'w']))
    }
}

impl Hook {
    fn name(&self) -> Option<&str> {
        self.path.as_deref()?.file_name()?.to_str()
    }

    /// What it asks for, if it is divvy's.
    fn request(&self, program: &str) -> Option<CreateRuntime> {
        let args = self.args.as_deref()?;
        let program = Path::new(program).file_name()?.to_str();
        if self.name() != program || Path::new(args.first()?).file_name()?.to_str() != program {
            return None;
        }
        match Command::parse_words(args).ok()?.phase {
            Phase::CreateRuntime(request) => Some(request),
            Phase::CreateContainer(_) => None,
        }
    }

    fn is_nvidias(&self) -> bool {
        self.name().is_some_and(|name| NVIDIA_HOOKS.contains(&name))
    }
}

impl Mount {
    fn is_bind(&self) -> bool {
        let has = |option: &String| matches!(option.as_str(), "bind" | "rbind");
        self.kind.as_deref() == Some("bind") || self.options.as_deref().is_some_and(|all| all.iter().any(has))
    }

    /// Whether a GPU's node of the host shows in it.
    fn shows_a_gpu(&self) -> bool {
        let Some(source) = self.source.as_deref().filter(|_| self.is_bind()) else { return false };
        let mut names = source.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_encoded_bytes()),
            _ => None,
        });
        match (names.next(), names.next()) {
            (None, _) => source.is_absolute(),
            (Some(b"dev"), None) => true,
            (Some(b"dev"), Some(name)) => name.strip_prefix(b"nvidia").is_some_and(|rest| {
                rest == b"-caps" || !rest.is_empty() && rest.iter().all(u8::is_ascii_digit)
            }),
            _ => false,
        }
    }

    /// The host's file behind /etc/hostname.
    fn hostname_file(self) -> Option<PathBuf> {
        let is_it = self.destination.as_deref() == Some(Path::new("/etc/hostname")) && self.is_bind();
        self.source.filter(|source| is_it && source.is_absolute() && crate::args::is_plain_path(source))
    }
}
