//! Leases as files, for the verbs that only look: `list`, `ps`, `generate`. The daemon writes them and removes them; here
//! they are read, and whether their containers still run is asked of the kernel, since a daemon that was killed leaves
//! them lying. Nothing here is changed, and no daemon has to run.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use hooks::lease::{Container, LEASE_LIMIT, LEASES, Lease, LeasedDevice, SOCKET};

use crate::container::cgroup;
use crate::plan::{Device, Kind};
use crate::publish::read_regular;

const PROC: &str = "/proc";

/// As many characters of a container's id as engines print.
const SHORT_ID: usize = 12;

/// What the word `ended` beside a lease means while the daemon is away.
pub const ENDED: &str =
    "ended: nothing of the container is left, and the daemon frees the device when it runs";

/// Whether the daemon, or systemd for it, takes requests. It is asked nothing.
pub fn daemon_answers(state_dir: &Path) -> bool {
    UnixStream::connect(state_dir.join(SOCKET)).is_ok()
}

/// The leases in a directory, the oldest first; and what is wrong with those that cannot be read. A directory that is
/// not there holds none.
pub fn read(dir: &Path) -> (Vec<Lease>, Vec<String>) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Default::default(),
        Err(error) => {
            return (Vec::new(), vec![format!("cannot read the leases in {}: {error}", dir.display())]);
        }
    };
    let (mut leases, mut warnings) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                warnings.push(format!("cannot read the leases in {}: {error}", dir.display()));
                continue;
            }
        };
        if !is_lease(&path) {
            continue;
        }
        let text = match read_regular(&path, LEASE_LIMIT) {
            Ok(text) => text,
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                warnings.push(format!("the lease {} cannot be read: {error}", path.display()));
                continue;
            }
        };
        match Lease::parse(text.as_bytes()) {
            Ok(lease) => leases.push(lease),
            Err(error) => warnings.push(format!("the lease {} is damaged: {error}", path.display())),
        }
    }
    leases.sort_by_key(|lease| (lease.since, lease.container.mount_namespace));
    warnings.sort();
    (leases, warnings)
}

/// `<mount namespace>.json`, or with `-<start time>` where another container has a namespace of that number by now; what
/// is being written bears other names.
fn is_lease(path: &Path) -> bool {
    let is_number = |n: &str| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(name) = name.strip_suffix(".json") else { return false };
    name.split_once('-').map_or(is_number(name), |(one, other)| is_number(one) && is_number(other))
}

/// Whether its container still runs: its first process, or one in the cgroup that is its own.
pub fn is_alive(lease: &Lease) -> bool {
    runs(&lease.container, Path::new(PROC))
}

/// Whether a container's first process still runs. If not, and the lease stands, it is ending.
pub fn has_first_process(container: &Container) -> bool {
    is_this_boot(container, Path::new(PROC)) && first_process_runs(container, Path::new(PROC))
}

fn is_this_boot(container: &Container, proc: &Path) -> bool {
    let boot_id = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
    boot_id.trim() == container.boot_id
}

fn runs(container: &Container, proc: &Path) -> bool {
    is_this_boot(container, proc)
        && (first_process_runs(container, proc)
            || container.cgroup.as_ref().is_some_and(|own| !cgroup::is_empty(own).unwrap_or(false)))
}

fn first_process_runs(container: &Container, proc: &Path) -> bool {
    match fs::read(proc.join(container.pid.to_string()).join("stat")) {
        Ok(stat) => is_it(&String::from_utf8_lossy(&stat), container.start_time),
        // A process that may not be looked at is one that is there (proc(5), hidepid).
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// Whether a line of /proc/PID/stat is of a process that started then and has not ended: proc_pid_stat(5), fields 3 and
/// 22, counted from behind the name, which may hold anything.
fn is_it(stat: &str, start_time: u64) -> bool {
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let mut fields = fields.split_ascii_whitespace();
    let has_ended = matches!(fields.next(), Some("Z" | "X") | None);
    !has_ended && fields.nth(18).and_then(|field| field.parse().ok()) == Some(start_time)
}

/// Leases by whether something of their containers is left.
#[derive(Debug, Default)]
pub struct Leases {
    /// Their containers run.
    pub running: Vec<Lease>,
    /// Nothing is left of their containers: whoever asks the daemon can have what they hold.
    pub ended: Vec<Lease>,
}

/// The leases in a state directory, and what is wrong with those that cannot be read.
pub fn leases(state_dir: &Path) -> (Leases, Vec<String>) {
    let (leases, warnings) = read(&state_dir.join(LEASES));
    let (running, ended) = leases.into_iter().partition(is_alive);
    (Leases { running, ended }, warnings)
}

/// Who has a device, and as what. A share is taken by its name, whatever that meant when it was given out, and while its
/// GPU is leased as a whole; the whole while it or one of its shares is.
pub fn holder<'a>(leases: &'a [Lease], device: &Device) -> Option<(&'a Lease, &'a LeasedDevice)> {
    let excludes = |leased: &LeasedDevice| match leased.is_share && device.kind == Kind::Share {
        true => leased.name.name == device.name && device.classes.contains(&leased.name.class),
        false => leased.uuid == device.uuid,
    };
    let mut all = leases.iter().flat_map(|lease| lease.devices.iter().map(move |leased| (lease, leased)));
    all.find(|(_, leased)| excludes(leased))
}

/// `podman container web`, or by its id as engines shorten it.
pub fn who(container: &Container) -> String {
    let id: String = container.id.chars().take(SHORT_ID).collect();
    let name = container.name.as_deref().unwrap_or(&id);
    match &container.engine {
        Some(engine) => format!("{engine} container {name}"),
        None => format!("container {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooks::lease::VERSION;

    fn lease(pid: i32, start_time: u64) -> Lease {
        Lease {
            version: VERSION,
            container: Container {
                mount_namespace: 4_026_532_000,
                pid,
                start_time,
                boot_id: "b".into(),
                cgroup: Some("/pod/web".into()),
                uid: 0,
                process_uid: Some(0),
                id: "3f2a5d1c0b9e8f7a".into(),
                bundle: "/run/web".into(),
                engine: Some("podman".into()),
                name: None,
            },
            since: 1,
            asked: Vec::new(),
            devices: vec![LeasedDevice {
                name: "gpu=shared-0".parse().unwrap(),
                uuid: "GPU-0".into(),
                is_share: true,
                pool: None,
            }],
            remove: Vec::new(),
            denied_by: None,
            mps: None,
        }
    }

    #[test]
    fn what_lies_in_the_directory_is_read_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (good, later) = (lease(7, 100), Lease { since: 2, ..lease(8, 200) });
        fs::write(at("2.json"), serde_json::to_string(&good).unwrap()).unwrap();
        fs::write(at("1-200.json"), serde_json::to_string(&later).unwrap()).unwrap();
        fs::write(at(".3.json.tmp"), "{").unwrap();
        for name in ["notes.json", "-1.json", "1-.json", "1-2-3.json", "1-2.json.tmp"] {
            fs::write(at(name), "{").unwrap();
        }
        fs::write(at("4.json"), "{").unwrap();
        fs::write(at("5.json"), serde_json::to_string(&Lease { version: 2, ..good.clone() }).unwrap())
            .unwrap();
        fs::write(at("6.json"), vec![b' '; usize::try_from(LEASE_LIMIT).unwrap() + 1]).unwrap();
        std::os::unix::fs::symlink("2.json", at("7.json")).unwrap();
        let (leases, warnings) = read(dir.path());
        assert_eq!(leases, [good, later]);
        let of = |warning: &String| warning.replace(&format!("{}/", dir.path().display()), "");
        let said: Vec<String> = warnings.iter().map(of).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].starts_with("the lease 4.json is damaged: EOF"), "{said:?}");
        assert!(said[1].contains("version 2, and this divvy reads version 1"), "{said:?}");
        assert!(said[2].starts_with("the lease 6.json is damaged: "), "{said:?}");
        assert!(said[3].starts_with("the lease 7.json cannot be read: "), "{said:?}");
        assert_eq!(read(&at("none")), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_container_runs_while_it_has_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let runs = |mut lease: Lease| {
            lease.container.cgroup = Some(dir.path().join("cgroup/pod/web"));
            runs(&lease.container, &dir.path().join("proc"))
        };
        let stat =
            |state: &str, start: u64| format!("7 (a) b (c)) {state} {} {start} 1 2\n", ["1"; 18].join(" "));
        write("proc/sys/kernel/random/boot_id", "b\n");
        write("proc/7/stat", &stat("S", 100));
        assert!(runs(lease(7, 100)));
        assert!(!runs(lease(7, 99)), "its number came again");
        assert!(!runs(lease(8, 100)), "it is gone");
        write("proc/7/stat", &stat("Z", 100));
        assert!(!runs(lease(7, 100)), "it has ended");
        for (file, populated, empty) in [
            ("cgroup/pod/web/cgroup.events", "populated 1\nfrozen 0\n", "populated 0\nfrozen 0\n"),
            ("cgroup/pod/web/cgroup.procs", "9\n", ""),
        ] {
            write(file, populated);
            assert!(runs(lease(7, 100)), "{file}");
            write(file, empty);
            assert!(!runs(lease(7, 100)), "{file}");
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        write("proc/7/stat", &stat("S", 100));
        write("proc/sys/kernel/random/boot_id", "another\n");
        assert!(!runs(lease(7, 100)), "it was before the reboot");
    }

    #[test]
    fn names_of_containers() {
        let unnamed = lease(7, 100).container;
        assert_eq!(who(&unnamed), "podman container 3f2a5d1c0b9e");
        let named = Container { name: Some("web".into()), engine: None, ..unnamed };
        assert_eq!(who(&named), "container web");
    }
}
