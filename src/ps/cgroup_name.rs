//! Engine and container by the name of a cgroup: all that the kernel tells of a container that has no lease. The names
//! are the engines' habits, not a promise; who may make cgroups can make one that is called so.

use std::path::Path;

/// A container as its cgroup names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// `docker`, `podman`, `containerd`, `kubernetes`; none where the name does not tell.
    pub engine: Option<&'static str>,
    /// The container's id.
    pub id: String,
}

/// systemd's scopes and directories of cgroupfs, by what stands before the id.
const PREFIXES: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("libpod-", "podman"),
    ("cri-containerd-", "kubernetes"),
    ("crio-", "kubernetes"),
    ("nerdctl-", "containerd"),
    ("buildkit-", "buildkit"),
];

/// Directories in which cgroupfs has a container's by its plain id.
const PARENTS: [(&str, &str); 3] =
    [("docker", "docker"), ("k8s.io", "kubernetes"), ("libpod_parent", "podman")];

/// The container of a cgroup, or the one above that it is nested in.
pub fn container(cgroup: &Path) -> Option<Named> {
    let names: Vec<&str> = cgroup.iter().filter_map(|name| name.to_str()).collect();
    // `ctr run`: the namespace, and the id as it was typed.
    if let ["/", "default", id] = names[..] {
        return Some(Named { engine: Some("containerd"), id: id.into() });
    }
    (0..names.len()).rev().find_map(|at| named(names[at], at.checked_sub(1).map(|above| names[above])))
}

fn named(name: &str, above: Option<&str>) -> Option<Named> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // What conmon itself runs in is beside the container.
    if name.starts_with("libpod-conmon-") || name.starts_with("crio-conmon-") {
        return None;
    }
    for (prefix, engine) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some(Named { engine: Some(engine), id: id.into() });
        }
    }
    if !is_id(name) {
        return None;
    }
    let above = above?;
    let engine = match PARENTS.iter().find(|(parent, _)| above == *parent) {
        Some((_, engine)) => engine,
        // /kubepods/besteffort/pod<uid>/<id>, and kubepods-besteffort-pod<uid>.slice.
        None if above.starts_with("pod") || above.starts_with("kubepods") => "kubernetes",
        None => return Some(Named { engine: None, id: name.into() }),
    };
    Some(Named { engine: Some(engine), id: name.into() })
}

/// Engines make ids of 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_habits() {
        let id = "3f2a".repeat(16);
        for (cgroup, engine) in [
            ("/system.slice/docker-ID.scope", Some("docker")),
            ("/docker/ID", Some("docker")),
            ("/docker/ID/nested/deeper", Some("docker")),
            ("/machine.slice/libpod-ID.scope/container", Some("podman")),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope", Some("podman")),
            ("/libpod_parent/libpod-ID", Some("podman")),
            ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope", Some("kubernetes")),
            ("/kubepods/besteffort/pod42/ID", Some("kubernetes")),
            ("/k8s.io/ID", Some("kubernetes")),
            ("/kubepods.slice/kubepods-pod1.slice/crio-ID.scope", Some("kubernetes")),
            ("/actions_job/ID", None),
        ] {
            let named = container(Path::new(&cgroup.replace("ID", &id)));
            assert_eq!(named, Some(Named { engine, id: id.clone() }), "{cgroup}");
        }
        let typed = container(Path::new("/default/web")).unwrap();
        assert_eq!(typed, Named { engine: Some("containerd"), id: "web".into() });
        for cgroup in [
            "/",
            "/init.scope",
            "/user.slice/user-1000.slice/session-2.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/system.slice/docker-3f2a.scope",
            "/system.slice/docker.service",
        ] {
            assert_eq!(container(Path::new(&cgroup.replace("ID", &id))), None, "{cgroup}");
        }
    }
}
