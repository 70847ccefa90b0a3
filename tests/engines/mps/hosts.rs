//! The hosts with MPS: `multi` and `single`. Each engine has a GPU of its own on both, cut into two shares, so that what
//! happens to one server is one trial's affair.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::engine::{Container, ENGINES, Engine};
use crate::ground::{self, Ground};
use crate::layout::SERVE;

/// Drivers from this branch on have a server for all users.
const MULTI_USER: u32 = 555;
/// A GPU of `single` that somebody uses without MPS.
pub const TAKEN: usize = 7;

/// One of the two.
#[derive(Debug)]
pub struct Host {
    /// The name of its state directory below /run.
    pub name: &'static str,
    /// What its shares' names begin with.
    prefix: &'static str,
}

/// Its server serves all users.
pub const MULTI: Host = Host { name: "multi", prefix: "mps" };
/// Its server serves one user at a time.
pub const SINGLE: Host = Host { name: "single", prefix: "one" };

/// A time slice, a MIG device with MPS, and names of whole MIG devices.
const MORE_OF_MULTI: &str = "[[gpu]]
match = [\"7\"]
mode = \"time-slice\"
name = \"turns\"
replicas = 6
[[gpu]]
match = [\"0:0\"]
mode = \"mps\"
name = \"mps-mig\"
replicas = 6
";
const MORE_OF_SINGLE: &str = "[[gpu]]
match = [\"7\"]
mode = \"mps\"
name = \"taken\"
replicas = 6
";

/// MPS on one device.
#[derive(Debug)]
pub struct Mps<'a> {
    ground: &'a Ground,
    /// The device.
    pub uuid: String,
    /// Its directory on the machine.
    pub directory: String,
}

/// Lays both out.
pub fn lay_out(ground: &Ground) -> Result<(), String> {
    let [multi, single] = versions()?;
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--package", "mock-nvml", "--package", "mps-server"])
        .current_dir(ground::project_dir())
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("mps-server does not build".into());
    }
    MULTI.lay_out(ground, &multi, MORE_OF_MULTI)?;
    SINGLE.lay_out(ground, &single, MORE_OF_SINGLE)?;
    ground.sh("setsid sleep infinity >/dev/null 2>&1 </dev/null & echo $! >/run/taken.pid").require()?;
    SINGLE.set_foreign(ground, TAKEN, true);
    Ok(())
}

/// Of the versions that tests/machine/mps.sh unpacked, the newest that serves all users, and the newest that does not.
pub fn versions() -> Result<[String; 2], String> {
    let entries = fs::read_dir(ground::build_dir().join("mps")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut known: Vec<(u32, String)> =
        names.filter_map(|name| Some((name.split('.').next()?.parse().ok()?, name))).collect();
    known.sort();
    let newest = |serves_all: bool| {
        let mut of_kind = known.iter().filter(|(branch, _)| (*branch >= MULTI_USER) == serves_all);
        let version = of_kind.next_back().map(|(_, version)| version.clone());
        version.ok_or("there are not NVIDIA's MPS programs of both kinds: tests/machine/mps.sh says why")
    };
    Ok([newest(true)?, newest(false)?])
}

/// What stands in for NVML and for the MPS server, as built.
pub fn stand_ins() -> Result<[String; 2], String> {
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/debug/deps/engines-... -> target/debug
    let target = exe.ancestors().nth(2).unwrap_or(Path::new("/"));
    Ok(["libnvidia_ml.so", "nvidia-cuda-mps-server"].map(|file| target.join(file).display().to_string()))
}

impl Host {
    /// A GPU of each engine's in two, and more.
    fn config(&self, more: &str) -> String {
        let mut config = "whole_names = \"no\"\n".to_owned();
        if self.name == MULTI.name {
            config += "mig_strategy = \"mixed\"\n";
        }
        for (at, engine) in ENGINES.iter().enumerate() {
            let (gpu, name) = (gpu_of(at), self.share(engine, ""));
            let _ = write!(
                config,
                "[[gpu]]\nmatch = [\"{gpu}\"]\nmode = \"mps\"\nname = \"{name}\"\nreplicas = 2\n"
            );
        }
        config + more
    }

    fn lay_out(&self, ground: &Ground, version: &str, more: &str) -> Result<(), String> {
        let name = self.name;
        let [nvml, server] = stand_ins()?;
        ground::run_script("mps-host.sh", &[ground::NAME, name, version, &nvml, &server])?;
        ground
            .sh(&format!(
                "set -e
                 . /run/mps-{name}.sh
                 cat >/etc/divvy/{name}.toml <<'T'
{}T
                 live divvy --quiet generate --driver-root /drivers/{name} --dev-root / --state-dir /run/{name} \\
                     --config /etc/divvy/{name}.toml --output /etc/cdi/{name}.json",
                self.config(more)
            ))
            .require()?;
        self.serve(ground);
        match ground.wait(|| ground.sh(&format!("[ -S /run/{name}/divvy.sock ]")).status == 0) {
            true => Ok(()),
            false => Err(ground.sh(&format!("tail /var/log/divvy-{name}.log")).stdout),
        }
    }

    /// Starts its daemon.
    pub fn serve(&self, ground: &Ground) {
        let name = self.name;
        ground.sh(&format!(". /run/mps-{name}.sh\nfacts\n{SERVE}\nserve {name}")).ok();
    }

    /// Kills its daemon, and starts another.
    pub fn restart(&self, ground: &Ground) {
        static ONE_AFTER_THE_OTHER: Mutex<()> = Mutex::new(());
        let _alone = ONE_AFTER_THE_OTHER.lock().unwrap_or_else(PoisonError::into_inner);
        let script =
            "pid=$(cat /run/$1.pid); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done";
        ground.command("in.sh", &["sh", "-c", script, "sh", self.name]).ok();
        self.serve(ground);
    }

    /// A container with one of the engine's two shares, or `pool`.
    pub fn container<'a>(&self, ground: &'a Ground, engine: &'a Engine, share: &str) -> Container<'a> {
        engine.container(ground, &[&self.share(engine, share)])
    }

    /// Name of a share: the engine's `0` or `1`, or with nothing its pool.
    pub fn share(&self, engine: &Engine, number: &str) -> String {
        let dash = if number.is_empty() { "" } else { "-" };
        format!("{}-{}{dash}{number}", self.prefix, engine.name)
    }

    /// MPS on the engine's GPU.
    pub fn mps<'a>(&self, ground: &'a Ground, engine: &Engine) -> Mps<'a> {
        let at = ENGINES.iter().position(|other| other.name == engine.name).unwrap_or_default();
        self.of(ground, &format!("GPU {}", gpu_of(at)))
    }

    /// MPS on a device by what divvy calls it.
    pub fn of<'a>(&self, ground: &'a Ground, what: &str) -> Mps<'a> {
        let plan = ground.sh(&format!("cat /run/{}/plan.json", self.name));
        let plan: Value = serde_json::from_str(plan.ok()).unwrap();
        let settings = plan["mps"].as_array().unwrap().iter().find(|settings| settings["what"] == what);
        let uuid = settings.unwrap_or_else(|| panic!("{what} in {plan}"))["uuid"].as_str().unwrap();
        Mps { ground, uuid: uuid.to_owned(), directory: format!("/run/{}/mps/{uuid}", self.name) }
    }

    /// Has NVML say that a process uses a GPU without MPS, or that none does any more.
    pub fn set_foreign(&self, ground: &Ground, gpu: usize, is_there: bool) {
        static FOREIGN: Mutex<Vec<(&str, usize)>> = Mutex::new(Vec::new());
        let mut foreign = FOREIGN.lock().unwrap_or_else(PoisonError::into_inner);
        foreign.retain(|taken| *taken != (self.name, gpu));
        if is_there {
            foreign.push((self.name, gpu));
        }
        let pid: u32 = ground.sh("cat /run/taken.pid").ok().parse().unwrap();
        let processes: serde_json::Map<String, Value> = foreign
            .iter()
            .filter(|(name, _)| *name == self.name)
            .map(|(_, gpu)| self.of(ground, &format!("GPU {gpu}")).uuid)
            .map(|uuid| (uuid, serde_json::json!({"compute": [{"pid": pid, "memory": 1 << 20}]})))
            .collect();
        let file = format!("/run/mps-{}-processes.json", self.name);
        ground
            .sh(&format!("cat >{file}.new <<'J'\n{}\nJ\nmv {file}.new {file}", Value::from(processes)))
            .ok();
    }
}

/// Keeps others of an engine's trials from its two GPUs, as long as the guard lives.
pub fn alone(engine: &Engine) -> MutexGuard<'static, ()> {
    static OF_ENGINES: [Mutex<()>; ENGINES.len()] = [const { Mutex::new(()) }; ENGINES.len()];
    let at = ENGINES.iter().position(|other| other.name == engine.name).unwrap_or_default();
    OF_ENGINES[at].lock().unwrap_or_else(PoisonError::into_inner)
}

/// GPU 0 is in MIG mode.
pub fn gpu_of(engine: usize) -> usize {
    engine + 1
}

impl Mps<'_> {
    /// How its supervisor says it is.
    pub fn status(&self) -> Value {
        let text = self.ground.sh(&format!("cat {}/status.json", self.directory));
        serde_json::from_str(&text.stdout).unwrap_or_default()
    }

    /// `ready`, `down` and their like.
    pub fn is(&self, state: &str) -> bool {
        self.status()["state"] == state
    }

    /// `supervisor_pid`, `control_pid`, `server_pid`; 0 where there is none.
    pub fn pid(&self, of: &str) -> i64 {
        self.status()[of].as_i64().unwrap_or_default()
    }

    /// What the control daemon and its supervisor said last.
    pub fn last_words(&self) -> String {
        self.ground.sh(&format!("tail -n 30 {}/log/mps.log", self.directory)).stdout
    }

    /// Whom the control daemon took for a client: process id and user id as the machine counts them.
    pub fn clients(&self) -> Vec<(i64, i64)> {
        let log = self.ground.sh(&format!("sed -n 's/.*NEW CLIENT //p' {}/log/mps.log", self.directory));
        let client = |line: &str| {
            let (pid, user) = line.split_once(" from user ")?;
            Some((pid.parse().ok()?, user.split(':').next()?.parse().ok()?))
        };
        log.stdout.lines().map(|line| client(line).unwrap_or_else(|| panic!("{line}"))).collect()
    }
}
