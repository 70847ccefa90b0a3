//! Which engine started a container, and what it calls it: labels for people, found where engines leave them. A user can
//! make any of them say anything of containers of the user's own, so nothing is decided by them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hooks::lease::Request;
use nix::libc;
use serde::Deserialize;

use crate::failure::printable;
use crate::serve::process::{self, Stat};

/// The longest name that is kept, in characters: Kubernetes allows three of 253, 253 and 63.
const MOST: usize = 600;
/// The longest configuration of Docker's that is read, in bytes.
const MOST_CONFIGURATION: u64 = 4 << 20;
/// How far above the hook a conmon can be: hook, runtime, conmon, and wrappers of a runtime.
const STEPS: usize = 8;

/// Engine and name of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `docker`, `podman`, `containerd`, `nerdctl`, `kubernetes`.
    pub engine: Option<String>,
    /// Its name there; a pod's container as `namespace/pod/container`.
    pub name: Option<String>,
}

/// Finds them by what the hook says, and by the processes above it. Files that it names are read for root alone.
pub fn find(request: &Request, uid: u32, caller: Option<i32>) -> Names {
    let (engine, name) = by_annotations(request)
        .or_else(|| by_docker(request, uid))
        .or_else(|| by_conmon(request, caller?))
        .or_else(|| by_bundle(&request.bundle))
        .unwrap_or_default();
    let shown = |text: String| {
        let text: String = printable(&text).chars().take(MOST).collect();
        Some(text).filter(|text| !text.is_empty())
    };
    Names { engine: shown(engine), name: shown(name) }
}

type Found = (String, String);

/// Kubernetes' runtimes and nerdctl say it in annotations.
fn by_annotations(request: &Request) -> Option<Found> {
    let annotation = |key: &str| request.labels.annotations.get(key);
    for [namespace, pod, container] in [
        // containerd: internal/cri/annotations.
        [
            "io.kubernetes.cri.sandbox-namespace",
            "io.kubernetes.cri.sandbox-name",
            "io.kubernetes.cri.container-name",
        ],
        // CRI-O, and the kubelet's own labels.
        ["io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"],
    ] {
        if let (Some(namespace), Some(pod)) = (annotation(namespace), annotation(pod)) {
            let container =
                annotation(container).map(|container| format!("/{container}")).unwrap_or_default();
            return Some(("kubernetes".to_owned(), format!("{namespace}/{pod}{container}")));
        }
    }
    let name = annotation("nerdctl/name")?;
    Some(("nerdctl".to_owned(), name.clone()))
}

/// Docker keeps what it calls a container in a file of its own, beside the host name that it mounts.
fn by_docker(request: &Request, uid: u32) -> Option<Found> {
    let id = &request.id;
    let is_plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // With another container's network, it is that container's host name.
    let containers = request.labels.hostname_file.as_deref().and_then(|file| file.parent()?.parent());
    let name = containers
        .filter(|containers| uid == 0 && is_plain && containers.ends_with("containers"))
        .and_then(|containers| docker_name(&containers.join(id).join("config.v2.json")));
    match name {
        Some(name) => Some(("docker".to_owned(), name)),
        None if task(&request.bundle)?.0 == "moby" => Some(("docker".to_owned(), String::new())),
        None => None,
    }
}

fn docker_name(file: &Path) -> Option<String> {
    // A FIFO must not hold anybody up.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(file).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut json = Vec::new();
    file.take(MOST_CONFIGURATION).read_to_end(&mut json).ok()?;
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Configuration {
        name: String,
    }
    let Configuration { name } = serde_json::from_slice(&json).ok()?;
    Some(name.trim_start_matches('/').to_owned())
}

/// Podman's conmon calls the runtime, and has id and name in its command line.
fn by_conmon(request: &Request, caller: i32) -> Option<Found> {
    let above = |&pid: &i32| Stat::read(pid).ok().map(|stat| stat.parent);
    std::iter::successors(Some(caller), above)
        .take(STEPS)
        .take_while(|&pid| pid > 1)
        .find_map(|pid| conmon_name(&process::text(pid, "cmdline").ok()?, &request.id))
        .map(|name| ("podman".to_owned(), name))
}

/// The name in a command line, if it is that of a conmon for this container.
fn conmon_name(command_line: &str, id: &str) -> Option<String> {
    let words: Vec<&str> = command_line.split('\0').collect();
    let is_conmon = Path::new(words.first()?).file_name().is_some_and(|name| name == "conmon");
    let after = |options: [&str; 2]| {
        let at = words.iter().position(|word| options.contains(word))?;
        words.get(at + 1).copied()
    };
    (is_conmon && after(["-c", "--cid"]) == Some(id)).then(|| after(["-n", "--name"]).map(str::to_owned))?
}

/// containerd's own clients say nothing: the id is what they call it.
fn by_bundle(bundle: &Path) -> Option<Found> {
    let (_, id) = task(bundle)?;
    Some(("containerd".to_owned(), id.to_owned()))
}

/// Namespace and id in a bundle of containerd's: `<state>/io.containerd.runtime.v2.task/<namespace>/<id>`.
fn task(bundle: &Path) -> Option<(&str, &str)> {
    let mut parts = bundle.iter().rev();
    let (id, namespace, kind) = (parts.next()?, parts.next()?, parts.next()?);
    (kind == "io.containerd.runtime.v2.task").then_some((namespace.to_str()?, id.to_str()?))
}
