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

/// The longest name that is kept, in characters: Kubernetes allows three of 253, 253 and 63.
const MOST: usize = 600;
/// The longest configuration of Docker's that is read, in bytes.
const MOST_CONFIGURATION: u64 = 4 << 20;

/// Engine and name of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `docker`, `podman`, `containerd`, `nerdctl`, `kubernetes`.
    pub engine: Option<String>,
    /// Its name there; a pod's container as `namespace/pod/container`.
    pub name: Option<String>,
}

/// Finds them by what the hook says. Files that it names are read for root alone.
pub fn find(request: &Request, uid: u32) -> Names {
    let (engine, name) = by_annotations(request)
        .or_else(|| by_docker(request, uid))
        .or_else(|| Some(("podman".to_owned(), request.labels.podman_name.clone()?)))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use hooks::lease::{Labels, VERSION};

    use super::*;

    const ID: &str = "357bef51f9d741634af15ec2ed55b5b269c89b188e92ea78d6620c3f6d2c175a";
    const PODMANS: &str = "/var/lib/containers/storage/overlay-containers/c0cd/userdata";

    fn request(id: &str, bundle: &str, annotations: &[(&str, &str)], hostname: Option<PathBuf>) -> Request {
        let annotations = annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Request {
            version: VERSION,
            pid: 1,
            start_time: 1,
            id: id.to_owned(),
            bundle: bundle.into(),
            devices: Vec::new(),
            user: 0,
            nodes: Vec::new(),
            unbound: None,
            labels: Labels { annotations: annotations.collect(), hostname_file: hostname, podman_name: None },
        }
    }

    /// Bundles and annotations of Podman 5.8, Docker 28 and containerd 2.1; CRI-O's from its documentation, nerdctl's from
    /// its source.
    #[test]
    fn what_bundles_and_annotations_tell() {
        let cri = [
            ("io.kubernetes.cri.container-name", "cuda"),
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.image-name", "localhost/bb:latest"),
            ("io.kubernetes.cri.sandbox-name", "train-0"),
            ("io.kubernetes.cri.sandbox-namespace", "ml"),
            ("io.kubernetes.cri.sandbox-uid", "0b1c"),
        ];
        let crio = [
            ("io.kubernetes.pod.namespace", "ml"),
            ("io.kubernetes.pod.name", "train-0"),
            ("io.kubernetes.container.name", "cuda"),
        ];
        let nerdctl = [("nerdctl/name", "web"), ("nerdctl/namespace", "default")];
        let podman = [("io.container.manager", "libpod"), ("org.opencontainers.image.stopSignal", "15")];
        let task =
            |namespace: &str| format!("/run/containerd/io.containerd.runtime.v2.task/{namespace}/{ID}");
        for (bundle, annotations, engine, name) in [
            (task("k8s.io"), &cri[..], Some("kubernetes"), Some("ml/train-0/cuda")),
            (task("k8s.io"), &cri[3..], Some("kubernetes"), Some("ml/train-0")),
            (
                "/run/containers/storage/x/userdata".to_owned(),
                &crio,
                Some("kubernetes"),
                Some("ml/train-0/cuda"),
            ),
            (task("default"), &nerdctl, Some("nerdctl"), Some("web")),
            (
                task("default"),
                &[("nerdctl/name", "a\u{1b}[2J\nb")],
                Some("nerdctl"),
                Some("a\\u{1b}[2J\\u{a}b"),
            ),
            (task("default"), &[], Some("containerd"), Some(ID)),
            (task("k8s.io"), &[], Some("containerd"), Some(ID)),
            (task("moby"), &[], Some("docker"), None),
            // What Podman calls it stands in neither.
            (PODMANS.to_owned(), &podman, None, None),
            ("/".to_owned(), &[], None, None),
            ("/default/x".to_owned(), &[], None, None),
        ] {
            let found = find(&request(ID, &bundle, annotations, None), 0);
            let expected = Names { engine: engine.map(str::to_owned), name: name.map(str::to_owned) };
            assert_eq!(found, expected, "{bundle}");
        }
        let long = "é".repeat(MOST + 1);
        let found = find(&request(ID, "/", &[("nerdctl/name", &long)], None), 0);
        assert_eq!(found.name.unwrap().chars().count(), MOST);
    }

    #[test]
    fn dockers_own_file_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let containers = dir.path().join("docker/containers");
        let of = |id: &str| containers.join(id);
        fs::create_dir_all(of(ID)).unwrap();
        fs::create_dir_all(of("other")).unwrap();
        // A few of the fields that Docker 28 writes.
        let json =
            r#"{"StreamConfig":{},"State":{"Running":true},"ID":"357b","Name":"/web","Driver":"overlay2"}"#;
        fs::write(of(ID).join("config.v2.json"), json).unwrap();
        let bundle = format!("/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/{ID}");
        let name = |id: &str, uid, hostname: PathBuf| {
            let found = find(&request(id, &bundle, &[], Some(hostname)), uid);
            assert_eq!(found.engine.as_deref(), Some("docker"));
            found.name
        };
        let web = Some("web".to_owned());
        assert_eq!(name(ID, 0, of(ID).join("hostname")), web);
        // With the network of another container.
        assert_eq!(name(ID, 0, of("other").join("hostname")), web);
        // For a user no file is read, and none that an id leads to elsewhere.
        assert_eq!(name(ID, 1000, of(ID).join("hostname")), None);
        assert_eq!(name("other/../357b", 0, of(ID).join("hostname")), None);
        assert_eq!(name(ID, 0, of(ID).join("more/hostname")), None);
        assert_eq!(name("other", 0, of(ID).join("hostname")), None);
        // What is no plain file is not waited for.
        let fifo = of("other").join("config.v2.json");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(name("other", 0, of(ID).join("hostname")), None);
        for wrong in ["", "{", "{}", r#"{"Name":7}"#, "[]"] {
            fs::write(of(ID).join("config.v2.json"), wrong).unwrap();
            assert_eq!(name(ID, 0, of(ID).join("hostname")), None, "{wrong}");
        }
    }

    #[test]
    fn what_the_hook_found_is_podmans() {
        let named = |annotations: &[(&str, &str)], bundle: &str, name: &str| {
            let mut request = request("c0cd", bundle, annotations, None);
            request.labels.podman_name = Some(name.to_owned());
            let Names { engine, name } = find(&request, 1000);
            (engine.unwrap(), name)
        };
        let web = Some("web".to_owned());
        assert_eq!(named(&[], PODMANS, "web"), ("podman".to_owned(), web.clone()));
        assert_eq!(named(&[], PODMANS, ""), ("podman".to_owned(), None));
        let escaped = Some("\\u{1b}[2J".to_owned());
        assert_eq!(named(&[], PODMANS, "\u{1b}[2J"), ("podman".to_owned(), escaped));
        // CRI-O has a conmon too, whose name for it is another.
        let crio = [("io.kubernetes.pod.namespace", "ml"), ("io.kubernetes.pod.name", "train-0")];
        let pod = Some("ml/train-0".to_owned());
        assert_eq!(named(&crio, PODMANS, "k8s_cuda"), ("kubernetes".to_owned(), pod));
    }
}
