//! `divvy release`: says how the container that has a device is ended, or ends it. A lease itself is never taken away:
//! what uses the GPU would go on using it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use hooks::lease::{Container, LEASES, Lease, LeasedDevice};
use nix::libc::{ESRCH, SIGKILL};

use super::STDOUT;
use crate::cli::ReleaseArgs;
use crate::container::cgroup;
use crate::container::process::Namespace;
use crate::failure::{Failure, Status, printable};
use crate::held;
use crate::mps::client;
use crate::mps::protocol::Answer;
use crate::plan::kept::{Kept, KeptDevice};
use crate::plan::{GPU_CLASS, Kind, VENDOR};
use crate::ps;
use crate::publish;
use crate::sys;

/// How long a killed container may take to be gone, and the daemon to see it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device as it was typed: without a class, in whichever class has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Typed<'a> {
    class: Option<&'a str>,
    name: &'a str,
}

/// Runs the verb.
pub fn run(args: &ReleaseArgs) -> Result<Status> {
    let state_dir = args.state_dir.clone().unwrap_or_else(|| PathBuf::from(publish::STATE_DIR));
    let typed = Typed::parse(&args.device);
    let leases = state_dir.join(LEASES);
    let (held, warnings) = held::read(&leases);
    for warning in warnings {
        crate::failure::say("warning", warning);
    }
    let plan = kept(&state_dir);
    let Some(lease) = held.iter().find(|lease| typed.is_of(lease, plan.as_ref())) else {
        return not_held(&args.device, &typed, plan.as_ref(), &held);
    };
    if held::is_alive(lease) {
        if !args.kill {
            return Err(refuse(&args.device, lease));
        }
        end_work(lease, &state_dir);
        kill(&lease.container).map_err(|error| cannot_kill(lease, error))?;
    }
    wait(args, lease, &leases, &state_dir)
}

impl<'a> Typed<'a> {
    fn parse(text: &'a str) -> Self {
        let text = text.strip_prefix(VENDOR).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
        match text.split_once('=') {
            Some((class, name)) => Self { class: Some(class), name },
            None => Self { class: None, name: text },
        }
    }

    fn is_of(&self, lease: &Lease, plan: Option<&Kept>) -> bool {
        // A whole device has a name by its UUID too.
        let planned = plan.and_then(|plan| plan.devices.iter().find(|device| self.is(device)));
        let name = planned.map_or(self.name, |device| &device.name);
        lease.devices.iter().any(|leased| {
            leased.name.name == name && self.class.is_none_or(|class| class == leased.name.class)
        })
    }

    fn is(&self, device: &KeptDevice) -> bool {
        let by_uuid = device.kind != Kind::Share && device.uuid == self.name;
        (by_uuid || device.name == self.name)
            && self.class.is_none_or(|class| device.classes.iter().any(|known| known == class))
    }
}

/// None where there is no plan, or none that can be read: leases are released all the same.
fn kept(state_dir: &Path) -> Option<Kept> {
    serde_json::from_str(&publish::plan_text(state_dir).ok()?).ok()
}

fn say(line: &str) -> Result<Status> {
    writeln!(io::stdout().lock(), "{}", printable(line)).context(STDOUT)?;
    Ok(Status::Done)
}

fn usage(what: String, hint: impl Into<String>) -> anyhow::Error {
    Failure::new(anyhow::anyhow!(what)).hint(hint).status(Status::Usage).into()
}

/// Nobody has it: then it is free, which is what was wanted, unless there is no such device.
fn not_held(device: &str, typed: &Typed<'_>, plan: Option<&Kept>, held: &[Lease]) -> Result<Status> {
    let Some(plan) = plan else {
        return Err(usage(
            format!("{device} is not held, and there is no plan that tells whether there is such a device"),
            meant(device, held).unwrap_or_else(|| "`divvy ps` shows what is held".into()),
        ));
    };
    let pool = plan
        .pools
        .iter()
        .find(|pool| pool.name == typed.name && typed.class.is_none_or(|class| pool.class == class));
    match (plan.devices.iter().find(|known| typed.is(known)), pool) {
        (Some(known), _) if known.leased => say(&format!("{device} is free: no container holds it")),
        (Some(_), _) => Err(usage(
            format!("{device} is not leased: any number of containers may have it"),
            "end its containers with their engine; `divvy ps` shows what uses it",
        )),
        (None, Some(pool)) => Err(usage(
            format!("{device} is a pool"),
            format!("name one of its devices: {}", pool.devices.join(", ")),
        )),
        (None, None) => Err(usage(
            format!("there is no device {device}"),
            meant(device, held).unwrap_or_else(|| "`divvy ps` shows what is held, `divvy list` all".into()),
        )),
    }
}

/// What to type where a container was named instead of what it holds.
fn meant(device: &str, held: &[Lease]) -> Option<String> {
    let is_of = |container: &Container| {
        container.name.as_deref() == Some(device) || device.len() >= 4 && container.id.starts_with(device)
    };
    let devices = held.iter().filter(|lease| is_of(&lease.container)).flat_map(|lease| &lease.devices);
    let name = |device: &LeasedDevice| match device.name.class.as_str() {
        GPU_CLASS => device.name.name.clone(),
        _ => device.name.to_string(),
    };
    let names: Vec<String> = devices.map(name).collect();
    Some(format!("{device} holds {}: divvy release {}", names.join(", "), names.first()?))
}

fn refuse(device: &str, lease: &Lease) -> anyhow::Error {
    let container = &lease.container;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let user = ps::user_name(container.uid).unwrap_or_else(|| container.uid.to_string());
    let what = anyhow::anyhow!(
        "{device} is held by {} ({}, since {}, user {user}), which runs",
        held::who(container),
        ps::table::short_id(&container.id),
        sys::local_time(lease.since, now),
    );
    let by_force = format!("`divvy release {device} --kill` kills it");
    let hint = match stop_command(container) {
        Some(command) if needs_user(container) => format!("`{command}` as user {user} ends it; {by_force}"),
        Some(command) => format!("`{command}` ends it; {by_force}"),
        None => format!("end it with its engine; {by_force}"),
    };
    Failure::new(what).hint(hint).into()
}

/// Podman knows each user's containers apart.
fn needs_user(container: &Container) -> bool {
    container.engine.as_deref() == Some("podman") && container.uid != nix::unistd::geteuid().as_raw()
}

/// What ends the container, as it is typed in a shell: what is not a plain word there is left out.
fn stop_command(container: &Container) -> Option<String> {
    let name = container.name.as_deref().filter(|name| is_plain(name));
    let id = Some(container.id.as_str()).filter(|id| is_plain(id));
    match container.engine.as_deref()? {
        engine @ ("docker" | "podman") => Some(format!("{engine} stop {}", name.or(id)?)),
        "kubernetes" => Some(format!("crictl stop {}", id?)),
        // /run/containerd/io.containerd.runtime.v2.task/<namespace>/<id>
        "containerd" => {
            let namespace = container.bundle.parent()?.file_name()?.to_str().filter(|name| is_plain(name))?;
            Some(format!("ctr --namespace {namespace} task kill --signal SIGTERM {}", id?))
        }
        _ => None,
    }
}

fn is_plain(word: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain)
}

/// Has its MPS server end its work first: a client that is killed in the middle of some may take all others along
/// (nvidia-cuda-mps-control(1), `terminate_client`). Where that cannot be done it is killed all the same.
fn end_work(lease: &Lease, state_dir: &Path) {
    if lease.mps.is_none() {
        return;
    }
    let known = client::known(state_dir);
    let is_served =
        |device: &&LeasedDevice| known.iter().any(|known| known.uuid == device.uuid && known.is_supervised);
    let pids = processes(&lease.container).unwrap_or_default();
    for device in lease.devices.iter().filter(is_served) {
        if let Answer::Refused { message, .. } = client::terminate(state_dir, &device.uuid, &pids) {
            let what = format!("its work is not ended before it is killed, which may harm others: {message}");
            crate::failure::say("warning", what);
        }
    }
}

fn processes(container: &Container) -> io::Result<Vec<i32>> {
    match &container.cgroup {
        Some(own) => cgroup::members(own),
        None => Ok(in_namespace(container)?.into_iter().map(|(pid, _)| pid).collect()),
    }
}

/// All of its processes: by the cgroup that is its own, else by its mount namespace, which nothing outside of it is in.
fn kill(container: &Container) -> io::Result<()> {
    match &container.cgroup {
        Some(own) => cgroup::kill(own),
        None => kill_in_namespace(container),
    }
}

fn kill_in_namespace(container: &Container) -> io::Result<()> {
    for (_, pidfd) in in_namespace(container)? {
        match sys::pidfd_send_signal(pidfd.as_fd(), SIGKILL) {
            // Its first process ends the others of its pid namespace.
            Err(error) if error.raw_os_error() == Some(ESRCH) => {}
            done => done?,
        }
    }
    Ok(())
}

/// None if its first process is gone.
fn in_namespace(container: &Container) -> io::Result<Vec<(i32, OwnedFd)>> {
    let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A first process that went to another namespace has left the number of its old one to anybody. While this is open, the
    // number is the namespace's.
    let namespace = File::open(format!("/proc/{}/ns/mnt", container.pid))
        .and_then(|file| Namespace::of_file(&file).map(|found| (found, file)))
        .ok()
        .filter(|(found, _)| found.inode == container.mount_namespace)
        // Whoever wrote such a lease, the host's processes are no container's.
        .filter(|(found, _)| Namespace::own("mnt").is_ok_and(|own| own != *found));
    let is_in = |pid: i32| {
        let is_the_same = |(namespace, _): &(Namespace, File)| {
            Namespace::of(pid, "mnt").is_ok_and(|found| found == *namespace)
        };
        pid == container.pid || namespace.as_ref().is_some_and(is_the_same)
    };
    // By descriptors, since an id may come to another process at any time.
    let found: Vec<(i32, OwnedFd)> = ids
        .filter(|pid| is_in(*pid))
        .filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?)))
        .filter(|(pid, _)| is_in(*pid))
        .collect();
    // Else its id, and the namespace's number, may have been another's when they were looked at.
    Ok(if held::has_first_process(container) { found } else { Vec::new() })
}

fn cannot_kill(lease: &Lease, error: io::Error) -> anyhow::Error {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let error = anyhow::Error::new(error).context(format!("cannot kill {}", held::who(&lease.container)));
    let failure = Failure::new(error);
    match denied {
        true => failure.hint("run as root, or as the user that it is of").into(),
        false => failure.into(),
    }
}

/// Until the daemon has seen that the container is gone.
fn wait(args: &ReleaseArgs, lease: &Lease, leases: &Path, state_dir: &Path) -> Result<Status> {
    let device = &args.device;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if !stands(lease, leases) {
            return say(&format!("{device} is free: {} is gone", held::who(&lease.container)));
        }
        let is_alive = held::is_alive(lease);
        // Without cgroup.kill (Linux 5.14, cgroup v2) those escape that are forked meanwhile.
        let escape = |own: &PathBuf| !own.join("cgroup.kill").exists();
        if args.kill && is_alive && lease.container.cgroup.as_ref().is_some_and(escape) {
            kill(&lease.container).map_err(|error| cannot_kill(lease, error))?;
        }
        if !is_alive && !held::daemon_answers(state_dir) {
            return say(&format!(
                "{} is gone; the daemon is not there, and frees {device} when it starts",
                held::who(&lease.container)
            ));
        }
        if Instant::now() >= deadline {
            let (what, hint) = match is_alive {
                true => {
                    ("was killed and still runs", "a process that waits for a device ends when that answers")
                }
                false => ("is gone, and the daemon has not seen it", "see what `divvy serve` logs"),
            };
            let what = anyhow::anyhow!("{device} is still held: {} {what}", held::who(&lease.container));
            return Err(Failure::new(what).hint(hint).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether there is one of the same container, in whichever file: mount namespaces are used again.
fn stands(lease: &Lease, leases: &Path) -> bool {
    let (now, _) = held::read(leases);
    now.iter().any(|now| now.container == lease.container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::process;

    fn container(engine: &str, name: Option<&str>, id: &str) -> Container {
        Container {
            mount_namespace: 1,
            pid: 1,
            start_time: 1,
            boot_id: String::new(),
            cgroup: None,
            uid: 0,
            process_uid: Some(0),
            id: id.into(),
            bundle: format!("/run/containerd/io.containerd.runtime.v2.task/default/{id}").into(),
            engine: Some(engine.into()),
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn nobody_else_among_the_hosts_mounts_is_killed() {
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let container = Container {
            mount_namespace: Namespace::own("mnt").unwrap().inode,
            pid,
            start_time: process::Stat::read(pid).unwrap().start_time,
            boot_id: process::boot_id().unwrap(),
            ..container("podman", None, "3f2a")
        };
        let found = in_namespace(&container).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [pid]);
    }

    #[test]
    fn what_is_typed_with_and_without_its_kind() {
        for (text, class, name) in [
            ("shared-0", None, "shared-0"),
            ("0:1", None, "0:1"),
            ("gpu.shared=shared-0", Some("gpu.shared"), "shared-0"),
            ("nvidia.com/gpu.shared=shared-0", Some("gpu.shared"), "shared-0"),
        ] {
            assert_eq!(Typed::parse(text), Typed { class, name }, "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_obey_is_not_told_to_be_typed() {
        let stop = |engine: &str, name: Option<&str>, id: &str| stop_command(&container(engine, name, id));
        assert_eq!(stop("docker", Some("web"), "3f2a").unwrap(), "docker stop web");
        assert_eq!(stop("podman", None, "3f2a").unwrap(), "podman stop 3f2a");
        assert_eq!(stop("podman", Some("$(reboot)"), "3f2a").unwrap(), "podman stop 3f2a");
        assert_eq!(stop("podman", Some("--all"), "a b"), None);
        assert_eq!(stop("kubernetes", Some("ns/pod/c"), "3f2a").unwrap(), "crictl stop 3f2a");
        assert_eq!(
            stop("containerd", None, "web").unwrap(),
            "ctr --namespace default task kill --signal SIGTERM web"
        );
        assert_eq!(stop("lxc", Some("web"), "3f2a"), None);
    }
}
