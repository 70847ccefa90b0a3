//! What the tests of `ps` and `release` stand on: leases of processes of theirs, a plan of a simulated host, and a
//! driver that counts what it is told.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use crate::support::place::Place;
use crate::support::{divvy, facts, mock_nvml, run};

pub const FOUR: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 4\n";
pub const GPU: &str = "GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b";
/// 14 November 2023, 22:13 in Greenwich.
pub const SINCE: u64 = 1_700_000_000;
pub const ID: &str = "3f2a5d1c0b9e8f7a3f2a5d1c0b9e8f7a3f2a5d1c0b9e8f7a3f2a5d1c0b9e8f7a";

/// A state directory with the plan of four shares, a driver, and processes that end with it.
pub struct Ground {
    pub host: &'static str,
    pub place: Place,
    pub started: Vec<Child>,
    /// As long as these are open, the children of those live.
    pub ends: Vec<ChildStdin>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        for child in &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ground {
    pub fn new() -> Self {
        Self::of("l4", FOUR)
    }

    pub fn of(host: &'static str, config: &str) -> Self {
        let place = Place::in_sight(config);
        let (status, _, errors) = place.generate(&format!("--host=sim:{host}"));
        assert_eq!(status, 0, "{errors}");
        let driver = place.path(&format!("driver/usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        fs::create_dir_all(&driver).unwrap();
        fs::create_dir(place.path("state/leases")).unwrap();
        mock_nvml(&driver);
        let ground = Self { host, place, started: Vec::new(), ends: Vec::new() };
        ground.processes(&json!({}));
        ground
    }

    /// A process as a container's first one: a shell with a child.
    pub fn start(&mut self) -> (u32, u32) {
        let mut shell = Command::new("sh");
        // The child ends with this test, whatever becomes of the shell: then nobody holds the other end.
        shell.args(["-c", "exec 3<&0; cat <&3 >/dev/null & echo $!; wait"]);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = child.id();
        self.ends.push(child.stdin.take().unwrap());
        self.started.push(child);
        (pid, line.trim().parse().unwrap())
    }

    /// What the driver says, from now on.
    pub fn processes(&self, processes: &Value) {
        // At once: it is read while it is written.
        fs::write(self.place.path("processes.new"), processes.to_string()).unwrap();
        fs::rename(self.place.path("processes.new"), self.place.path("processes.json")).unwrap();
    }

    pub fn lease_path(&self, number: u64) -> PathBuf {
        self.place.path(&format!("state/leases/{number}.json"))
    }

    /// Writes the lease of a process, as `edit` leaves it.
    pub fn lease(&self, number: u64, pid: u32, edit: impl FnOnce(&mut Value)) {
        let mut lease = json!({
            "version": 1,
            "container": {
                "mount_namespace": number,
                "pid": pid,
                "start_time": start_time(pid),
                "boot_id": fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim(),
                "cgroup": null,
                "uid": 0,
                "id": ID,
                "bundle": "/run/bundle",
                "engine": "podman",
                "name": "web",
            },
            "since": SINCE,
            "asked": [{"class": "gpu", "name": "shared-0"}],
            "devices": [{"class": "gpu", "name": "shared-0", "uuid": GPU, "is_share": true, "pool": null}],
            "remove": [],
            "denied_by": null,
        });
        edit(&mut lease);
        fs::write(self.lease_path(number), lease.to_string()).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = divvy(args);
        command.arg("--state-dir").arg(self.place.path("state")).env("TZ", "UTC");
        command
    }

    pub fn ps(&self, args: &[&str]) -> Command {
        let mut command = self.command(&[&["ps"], args].concat());
        command.arg("--driver-root").arg(self.place.path("driver"));
        command.env("MOCK_NVML_FACTS", facts(self.host));
        command.env("MOCK_NVML_PROCESSES", self.place.path("processes.json"));
        command
    }

    pub fn run(&self, mut command: Command) -> (i32, String, String) {
        let (status, out, errors) = run(&mut command);
        let dir = self.place.dir().to_str().unwrap();
        (status, out.replace(dir, "DIR"), errors.replace(dir, "DIR"))
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let (status, out, errors) = self.run(self.ps(&[&["--format=json"], args].concat()));
        assert_eq!((status, errors.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    }

    /// Somebody takes requests, as long as this lives.
    pub fn daemon(&self) -> UnixListener {
        UnixListener::bind(self.place.path("state/divvy.sock")).unwrap()
    }
}

/// proc_pid_stat(5), field 22; the names of these processes have no parenthesis.
pub fn start_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.split_whitespace().nth(21).unwrap().parse().unwrap()
}

pub fn used(pid: u32, mib: u64) -> Value {
    json!({"pid": pid, "memory": mib << 20})
}

pub fn user() -> String {
    nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name
}

/// The same command as a user without rights.
pub fn as_nobody(ground: &Ground, command: &Command) -> (i32, String, String) {
    let program = ground.place.path("divvy");
    crate::support::copy_program(env!("CARGO_BIN_EXE_divvy").as_ref(), &program);
    let mut nobody = Command::new(program);
    nobody.args(command.get_args()).uid(65534).gid(65534);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nobody.env(name, value),
            None => nobody.env_remove(name),
        };
    }
    ground.run(nobody)
}
