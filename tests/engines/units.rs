//! divvy's units as `make install` puts them, under a systemd that is the first process of a machine of its own
//! (tests/machine/units-host.sh): enabled as README.md has it, started by their socket and by each other, within their
//! sandboxes, stopped, killed and upgraded under containers that run. These are Podman's and Docker's, scopes of that
//! systemd, and a user's.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;

use crate::ground::{self, BOOTED, Ground, Need, Output, command_in};
use crate::machine::MachineTrial;
use crate::mps::hosts;
use crate::mps::{ALONE, MET_MPS};
use crate::readme;

const NEEDS: &[Need] = &[Need::Podman, Need::Mps];

/// Every trial.
pub const TRIALS: [MachineTrial; 8] = [
    ("units_at_boot", &[Need::Docker, Need::Podman, Need::Mps], at_boot),
    ("units_by_socket", NEEDS, by_socket),
    ("units_for_users", &[Need::Rootless, Need::Podman, Need::Mps], for_users),
    ("units_time_slices", NEEDS, time_slices),
    ("units_mps", NEEDS, mps),
    ("units_mps_supervisor", NEEDS, mps_supervisor),
    ("units_daemon_that_fails", NEEDS, daemon_that_fails),
    ("units_process_of_the_host", NEEDS, process_of_the_host),
];

/// Two GPUs with a share each, which are a pool; and MPS on another.
const CONFIG: &str = "[[gpu]]
match = [\"6\", \"7\"]
mode = \"time-slice\"
time_slice = \"long\"
[[gpu]]
match = [\"1\"]
mode = \"mps\"
name = \"mps\"
replicas = 2
shm = \"1MiB\"
";

/// The machine, for one trial at a time.
struct Host<'a> {
    ground: &'a Ground,
    _alone: MutexGuard<'static, ()>,
}

/// Boots it for the first who asks.
#[track_caller]
fn host(ground: &Ground) -> Host<'_> {
    static BOOT: OnceLock<Result<(), String>> = OnceLock::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let host = Host { ground, _alone: ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner) };
    if let Err(why) = BOOT.get_or_init(|| host.boot()) {
        panic!("the machine does not boot: {why}");
    }
    // What a trial that failed left behind.
    host.sh("podman rm --force --all --time=0
             rm -f /run/divvy/leases/77.json
             systemctl reset-failed
             systemctl start divvy.socket divvy-generate.service
             ! systemctl --quiet is-active docker || docker rm --force turns server")
        .ok();
    host
}

impl Host<'_> {
    fn boot(&self) -> Result<(), String> {
        let [version, _] = hosts::versions()?;
        let [nvml, server] = hosts::stand_ins()?;
        ground::run_script("units-host.sh", &[&ground::suite(), BOOTED, &version, &nvml, &server])?;
        self.configure(CONFIG);
        let commands = readme::block("again after every change of the driver").replace("sudo ", "");
        self.sh(&format!("set -e\n{commands}")).require()
    }

    /// As root types it, who knows where NVML's facts are.
    fn sh(&self, script: &str) -> Output {
        let script = format!(". /run/mps-here.sh; facts; PATH=/opt/divvy/bin:$PATH\n{script}");
        command_in(BOOTED, 120, "in.sh", &["sh", "-c", &script])
    }

    fn configure(&self, config: &str) {
        self.sh(&format!("mkdir -p /etc/divvy; cat >/etc/divvy/config.toml <<'T'\n{config}T")).ok();
    }

    /// A container that stays.
    fn start(&self, name: &str, device: &str) -> Output {
        self.sh(&format!(
            "podman run --detach --name={name} --cap-add=MKNOD --device=nvidia.com/gpu={device} glibc sleep 600"
        ))
    }

    fn exec(&self, name: &str, script: &str) -> Output {
        self.sh(&format!("podman exec {name} sh -c '{script}'"))
    }

    /// What systemd says of a unit.
    #[track_caller]
    fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} {unit}")).ok().to_owned()
    }

    #[track_caller]
    fn is(&self, state: &str, unit: &str) -> bool {
        self.property(unit, "ActiveState") == state
    }

    #[track_caller]
    fn wait(&self, what: &str, has_come: impl Fn() -> bool) {
        if !self.ground.wait(has_come) {
            let log = self.sh("journalctl --no-pager --lines=60");
            panic!("in vain: {what}\n{}", log.stdout);
        }
    }

    #[track_caller]
    fn remove(&self, name: &str) {
        self.sh(&format!("podman rm --force --time=0 {name}")).ok();
        self.wait("the end of the lease", || !self.holds(&format!("podman {name}")));
    }

    /// A container, by its engine and name, has a lease.
    #[track_caller]
    fn holds(&self, container: &str) -> bool {
        self.sh("divvy ps").ok().contains(&format!(" {container} "))
    }
}

/// The units as enabled, and what a boot makes of them: /run is empty then, the driver has forgotten all, and Docker brings
/// back its containers.
fn at_boot(ground: &Ground) {
    let host = host(ground);
    let is_up = || {
        let active = host.sh("systemctl is-active divvy-generate.service divvy.socket");
        assert_eq!(active.ok(), "active\nactive");
        let names = host.sh("cat /var/run/cdi/divvy*.json");
        for name in ["0:1", "2", "shared", "shared-1", "mps-0"] {
            assert!(names.ok().contains(&format!("\"name\":\"{name}\"")), "{name} in {}", names.stdout);
        }
    };
    is_up();
    host.sh("systemctl enable --now docker.service && docker import /images/glibc.tar glibc").ok();
    for (name, device) in [("turns", "shared"), ("server", "mps")] {
        let devices = format!("--device=nvidia.com/gpu={device}");
        host.sh(&format!("docker run --detach --restart=always --name={name} {devices} glibc sleep 600"))
            .ok();
    }
    host.sh("systemctl stop docker.socket docker.service containerd.service
             systemctl stop divvy.socket divvy.service divvy-generate.service
             divvy mps stop 1 || exit
             while pgrep 'nvidia-cuda-mps|divvy' >/dev/null; do sleep 0.02; done
             rm -rf /run/divvy /run/cdi/* /dev/nvidia5 /dev/nvidia-caps/nvidia-cap31 /dev/driver/GPU-*
             systemctl start sockets.target multi-user.target")
        .ok();
    is_up();
    assert!(host.sh("[ -c /dev/nvidia5 ] && [ -c /dev/nvidia-caps/nvidia-cap31 ]").status == 0, "the nodes");
    for name in ["turns", "server"] {
        host.wait("a container of Docker's", || host.holds(&format!("docker {name}")));
    }
    assert_eq!(host.sh("docker exec server probe cuda").ok(), MET_MPS);
    host.sh("docker rm --force turns server; systemctl disable --now docker.service docker.socket").ok();

    // Status 7 hides no device from the others.
    host.configure(&format!("{CONFIG}[[gpu]]\nmatch = [\"99\"]\nmode = \"time-slice\"\n"));
    host.sh("systemctl restart divvy-generate").ok();
    assert_eq!(host.property("divvy-generate", "ExecMainStatus"), "7");
    host.configure("[[gpu]]\nmatch = [\"6\"]\nmode = \"mpss\"\n");
    assert_ne!(host.sh("systemctl restart divvy-generate").status, 0);
    assert_eq!(host.property("divvy-generate", "ExecMainStatus"), "2");
    host.configure(CONFIG);
    host.sh("systemctl start divvy-generate").ok();
    is_up();
}

/// A start has the daemon started, within its sandbox; a daemon that is killed comes back, and knows who has what.
fn by_socket(ground: &Ground) {
    let host = host(ground);
    host.sh("systemctl stop divvy").ok();
    assert!(host.is("inactive", "divvy"));
    host.start("first", "shared").ok();
    assert!(host.is("active", "divvy"));
    let (own, other) = match host.exec("first", "echo /dev/nvidia[0-9]*").ok() {
        "/dev/nvidia6" => (6, 7),
        "/dev/nvidia7" => (7, 6),
        nodes => panic!("{nodes}"),
    };
    let denied = || {
        let script = format!(
            "rm -f /tmp/own /tmp/other; probe mknod /tmp/own 195 {own} -- mknod /tmp/other 195 {other}"
        );
        assert_eq!(host.exec("first", &script).ok(), "/tmp/own: ENXIO\n/tmp/other: mknod EPERM");
    };
    denied();
    // systemd gives its scopes their device programs anew.
    host.sh("systemctl daemon-reload").ok();
    denied();

    let daemon = host.property("divvy", "MainPID");
    host.sh("systemctl kill --signal=KILL divvy").ok();
    let is_another = || host.is("active", "divvy") && host.property("divvy", "MainPID") != daemon;
    host.wait("another daemon", is_another);
    let share = format!("shared-{}", own - 6);
    let refused = host.start("second", &share);
    let why = format!("{share} is held by podman container first");
    assert!(refused.status != 0 && refused.stderr.contains(&why), "{refused:?}");
    let is_told = || host.sh("journalctl --no-pager --identifier=divvy-hook").stdout.contains(&why);
    host.wait("the hook's word in the journal", is_told);
    host.remove("first");
    host.sh("podman rm --force second").ok();
    host.start("third", &share).ok();
    host.remove("third");
}

/// What the daemon knows of a user's container, it knows within its sandbox.
fn for_users(ground: &Ground) {
    let host = host(ground);
    // No manager of the user's runs.
    let podman = |arguments: &[&str]| {
        let podman: &[&str] = &["podman", "--cgroup-manager=cgroupfs", "--runtime=crun"];
        command_in(BOOTED, 120, "as-user.sh", &[podman, arguments].concat())
    };
    for (name, device, answer) in [("turns", "shared", ALONE), ("server", "mps", MET_MPS)] {
        let device = format!("--device=nvidia.com/gpu={device}");
        podman(&["run", "--detach", "--name", name, &device, "glibc", "sleep", "600"]).ok();
        assert!(host.holds(&format!("podman {name}")));
        assert_eq!(podman(&["exec", name, "probe", "cuda"]).ok(), answer);
    }
    let table = host.sh("divvy ps");
    assert_eq!(table.ok().matches(" dev ").count(), 2, "{table:?}");
    podman(&["rm", "--force", "--time=0", "turns", "server"]).ok();
    host.wait("the end of the leases", || host.sh("divvy ps").stdout == "nothing is held\n");
}

/// nvidia-smi runs within the daemon's sandbox.
fn time_slices(ground: &Ground) {
    let host = host(ground);
    let are = |length: &str| {
        let kept = host.sh("cat /dev/driver/GPU-*").stdout;
        kept.lines().collect::<Vec<_>>() == [length, length]
    };
    host.sh("systemctl restart divvy").ok();
    host.wait("long turns", || are("Long"));
    host.configure(&CONFIG.replace("time_slice = \"long\"\n", ""));
    host.sh("divvy generate && systemctl restart divvy").ok();
    host.wait("turns as they were", || are("Default"));
    host.configure(CONFIG);
    host.sh("divvy generate && systemctl restart divvy").ok();
    host.wait("long turns again", || are("Long"));
}

/// MPS on the one GPU.
struct Mps<'a> {
    host: &'a Host<'a>,
    directory: String,
    unit: String,
}

impl<'a> Mps<'a> {
    #[track_caller]
    fn new(host: &'a Host<'a>) -> Self {
        let directory = host.sh("echo /run/divvy/mps/*").ok().to_owned();
        let uuid = directory.rsplit('/').next().unwrap_or_default();
        let unit = format!("divvy-mps@{uuid}.service");
        Self { host, directory, unit }
    }

    /// `supervisor_pid`, `control_pid`, `server_pid`.
    #[track_caller]
    fn pid(&self, of: &str) -> i64 {
        let status = self.host.sh(&format!("cat {}/status.json", self.directory));
        let status: Value = serde_json::from_str(status.ok()).unwrap();
        status[of].as_i64().unwrap_or_default()
    }

    #[track_caller]
    fn servers(&self) -> [i64; 2] {
        ["control_pid", "server_pid"].map(|of| self.pid(of))
    }

    /// CUDA in a container reaches the control daemon: where it does not, a tombstone answers the same.
    #[track_caller]
    fn is_wired(&self, container: &str) -> bool {
        let clients = || {
            let count = self.host.sh(&format!("grep -c 'NEW CLIENT' {}/log/mps.log", self.directory));
            count.stdout.trim().parse::<u32>().unwrap_or_default()
        };
        let before = clients();
        let answer = self.host.exec(container, "probe cuda");
        answer.ok() == MET_MPS && clients() > before
    }

    /// The supervisor that systemd runs is the one that keeps the device.
    #[track_caller]
    fn is_supervised(&self) -> bool {
        self.host.is("active", &self.unit)
            && self.host.property(&self.unit, "MainPID") == self.pid("supervisor_pid").to_string()
    }
}

/// A share has its unit started by the daemon's; both can be started again under it.
fn mps(ground: &Ground) {
    let host = host(ground);
    host.start("first", "mps").ok();
    let mps = Mps::new(&host);
    assert!(mps.is_supervised(), "{}", mps.unit);
    assert!(mps.is_wired("first"));
    host.start("turns", "shared").ok();
    assert_eq!(host.exec("turns", "probe cuda").ok(), ALONE);
    // The memory that they share is mounted where the hooks see it.
    host.exec("first", "echo here >/dev/shm/file").ok();
    host.start("second", "mps").ok();
    assert_eq!(host.exec("second", "cat /dev/shm/file; ls /dev/shm").ok(), "here\nfile");

    let (supervisor, servers) = (mps.pid("supervisor_pid"), mps.servers());
    let upgraded = "systemctl restart divvy 'divvy-mps@*'";
    assert!(readme::has(&format!("`sudo {upgraded}` harms no container")));
    host.sh(upgraded).ok();
    host.wait("another supervisor", || mps.is_supervised() && mps.pid("supervisor_pid") != supervisor);
    assert_eq!(mps.servers(), servers);
    assert!(mps.is_wired("first") && mps.is_wired("second"));
    for name in ["first", "second", "turns"] {
        assert!(host.holds(&format!("podman {name}")), "{name}");
        host.remove(name);
    }
    assert_eq!(host.sh("divvy ps").ok(), "nothing is held");
}

/// What stops or kills a supervisor leaves MPS as it is; `divvy mps stop` ends both.
fn mps_supervisor(ground: &Ground) {
    let host = host(ground);
    host.start("first", "mps").ok();
    let mps = Mps::new(&host);
    let servers = mps.servers();
    // The daemon would start it again, sooner or later.
    let stop = format!("systemctl stop divvy.socket divvy.service {}", mps.unit);
    host.sh(&stop).ok();
    assert!(host.is("inactive", &mps.unit));
    assert!(mps.is_wired("first"), "without a supervisor");
    // And does, for who asks.
    host.sh("systemctl start divvy.socket").ok();
    host.start("second", "mps").ok();
    assert!(mps.is_supervised());
    host.remove("second");

    let supervisor = mps.pid("supervisor_pid");
    host.sh(&format!("systemctl kill --kill-whom=main --signal=KILL {}", mps.unit)).ok();
    assert!(mps.is_wired("first"), "without a supervisor");
    host.wait("another supervisor", || mps.is_supervised() && mps.pid("supervisor_pid") != supervisor);
    assert_eq!(mps.servers(), servers);

    // One that somebody runs by hand is not fought by the unit, which begins when it is asked for.
    let by_hand = format!(
        "{stop}
         setsid divvy mps supervise {uuid} >/dev/null 2>&1 </dev/null & pid=$!
         until grep -q \"\\\"supervisor_pid\\\":$pid,\" {directory}/status.json; do sleep 0.02; done
         systemctl start {unit} || exit
         until [ $(systemctl show --value --property=ActiveState {unit}) = inactive ]; do sleep 0.02; done
         systemctl show --value --property=Result {unit}
         kill $pid; wait $pid || true",
        unit = mps.unit,
        uuid = mps.directory.rsplit('/').next().unwrap_or_default(),
        directory = mps.directory
    );
    assert_eq!(host.sh(&by_hand).ok(), "success");
    host.sh("divvy mps restart 1 --force").ok();
    assert!(mps.is_supervised(), "who types it has the unit started");
    assert!(mps.is_wired("first"));
    host.sh("systemctl start divvy.socket").ok();

    let refused = host.sh("divvy mps stop 1");
    assert!(
        refused.status != 0 && refused.stderr.contains("podman container first has a share"),
        "{refused:?}"
    );
    host.remove("first");
    host.sh("divvy mps stop 1").ok();
    host.wait("the unit's end", || host.is("inactive", &mps.unit));
    // It waits for no other start.
    assert_eq!(host.property(&mps.unit, "SubState"), "dead");
    assert_eq!(host.property(&mps.unit, "Result"), "success");
    host.wait("the end of MPS", || host.sh("pgrep nvidia-cuda-mps").stdout.is_empty());
    assert_eq!(host.sh("cat /run/mps-here-modes/*").ok(), "0", "the compute mode");
}

/// A daemon that cannot serve is tried again for as long as that lasts, and its socket stays: starts wait for it.
fn daemon_that_fails(ground: &Ground) {
    let host = host(ground);
    host.sh("echo junk >/run/divvy/leases/77.json").ok();
    assert_ne!(host.sh("systemctl restart divvy").status, 0);
    // By default systemd gives up, and closes the socket for good, after five.
    let tries = || host.property("divvy", "NRestarts").parse::<u32>().unwrap_or_default();
    host.wait("the seventh try", || tries() > 6);
    assert!(host.is("active", "divvy.socket"));
    std::thread::scope(|scope| {
        let started = scope.spawn(|| host.start("first", "shared"));
        host.sh("rm /run/divvy/leases/77.json").ok();
        started.join().unwrap().ok();
    });
    host.remove("first");
}

/// The daemon's mounts are its own, so the host's are known by the first process. A lease of them would have
/// `divvy release --kill` end whatever runs there.
fn process_of_the_host(ground: &Ground) {
    let host = host(ground);
    let asked = host.sh(
        "dir=$(mktemp -d); chmod 755 $dir
         as='setpriv --reuid 1001 --regid 1001 --clear-groups unshare --user --map-root-user'
         $as sleep 600 & pid=$!
         until [ $(readlink /proc/$pid/exe) = $(readlink -f /usr/bin/sleep) ]; do sleep 0.02; done
         echo '{\"process\": {\"user\": {\"uid\": 0}}, \"hooks\": {\"createRuntime\": [{\"path\":
             \"/opt/divvy/bin/divvy-hook\", \"args\": [\"divvy-hook\", \"create-runtime\", \"--device=gpu=shared\"]}]}}' \\
             >$dir/config.json
         echo '{\"ociVersion\": \"1.0.2\", \"id\": \"x\", \"status\": \"creating\", \"pid\": '$pid', \"bundle\": \"'$dir'\"}' |
             $as --mount divvy-hook create-runtime --device=gpu=shared
         status=$?
         divvy ps
         kill $pid
         exit $status",
    );
    assert_eq!((asked.status, asked.stdout.as_str()), (1, "nothing is held\n"), "{asked:?}");
    assert!(asked.stderr.contains("is in no container: it has no mount namespace of its own"), "{asked:?}");
}
