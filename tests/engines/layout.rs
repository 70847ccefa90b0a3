//! What the machine has of divvy: the simulated driver as its package and its modules would have left it, the specs that
//! the trials ask for, and a daemon for each plan with leased devices.
//!
//! A device that is leased is one trial's at a time. So each engine has shares of its own, and what all of them ask for
//! by the same name is asked for by one trial after the other ([`alone`]).

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::ENGINES;
use crate::ground::Ground;

/// A spec of its own, with its own plan, and its own daemon.
struct Plan {
    /// Configuration and spec, and the state directory below /run.
    name: &'static str,
    /// Simulated host.
    host: &'static str,
    /// Where the spec goes. Names in /var/run/cdi go before those in /etc/cdi.
    output: &'static str,
    /// Where the nodes are that are not in /dev.
    options: &'static str,
    config: &'static str,
}

/// GPUs 4 and 7 and the MIG device 0:0 are leased as a whole, everything else is everybody's.
const MAIN: Plan = Plan {
    name: "divvy",
    host: "a100-lab",
    output: "/var/run/cdi/divvy.json",
    options: "",
    config: "[[gpu]]
match = [\"4\", \"7\", \"0:0\"]
exclusive = true
",
};

const PLANS: [Plan; 5] = [
    // What README.md asks for. Two shares may go to one container, of either kind.
    Plan {
        name: "shares",
        host: "a100-lab",
        output: "/etc/cdi/shares.json",
        options: "",
        config: "whole_names = \"no\"
[[gpu]]
match = [\"6\"]
mode = \"time-slice\"
replicas = 4
[[gpu]]
match = [\"0:3\"]
mode = \"time-slice\"
replicas = 2
rename = true
[pool.shared]
per_container = 2
",
    },
    // Of this one only the pool counts: the names of the MIG devices themselves are those of the main plan. The two are
    // compute instances of one GPU instance.
    Plan {
        name: "mig",
        host: "a100-lab",
        output: "/etc/cdi/mig.json",
        options: "",
        config: "[[gpu]]
match = [\"0:1\", \"0:2\"]
exclusive = true
",
    },
    // Its daemon comes and goes.
    Plan {
        name: "away",
        host: "a100-lab",
        output: "/etc/cdi/away.json",
        options: "",
        config: "whole_names = \"no\"
start_timeout = \"1s\"
[[gpu]]
match = [\"5\"]
mode = \"time-slice\"
name = \"away\"
",
    },
    // Its state directory has the plan of another.
    Plan {
        name: "stale",
        host: "a100-lab",
        output: "/etc/cdi/stale.json",
        options: "",
        config: "whole_names = \"no\"
management = true
[[gpu]]
match = [\"5\"]
mode = \"time-slice\"
name = \"stale\"
",
    },
    Plan {
        name: "fabric",
        host: "hgx-h100",
        output: "/etc/cdi/fabric.json",
        options: "--dev-root /fabric",
        config: "whole_names = \"no\"\n",
    },
];

/// Starts the daemon of a plan: `serve NAME`. Its process id is in /run/NAME.pid.
pub const SERVE: &str = "
    serve() {
        setsid divvy serve --state-dir /run/$1 >>/var/log/divvy-$1.log 2>&1 </dev/null &
        echo $! >/run/$1.pid
    }";

/// For each engine a share on GPU 2 and one on GPU 3, which make a pool, and a pool of one share to queue for.
fn of_engines() -> String {
    let mut config =
        "whole_names = \"no\"\n[[gpu]]\nmatch = [\"2\", \"3\"]\nmode = \"time-slice\"\n".to_owned();
    for engine in &ENGINES {
        let _ = writeln!(config, "[[gpu.share]]\nname = \"{}\"", engine.name);
    }
    config += "[[gpu]]\nmatch = [\"5\"]\nmode = \"time-slice\"\n";
    for engine in &ENGINES {
        let _ = writeln!(config, "[[gpu.share]]\nname = \"wait-{}\"", engine.name);
    }
    for engine in &ENGINES {
        let _ = writeln!(config, "[pool.wait-{}]\nwait = \"1m\"", engine.name);
    }
    config
}

impl Plan {
    fn generate(&self) -> String {
        let Self { name, host, output, options, config } = self;
        let state_dir = format!("--state-dir /run/{name}");
        generate(name, host, output, &format!("{state_dir} {options}"), config)
    }
}

fn generate(name: &str, host: &str, output: &str, options: &str, config: &str) -> String {
    format!(
        "cat >/etc/divvy/{name}.toml <<'T'
{config}T
         divvy --quiet generate --host sim:{host} {options} --config /etc/divvy/{name}.toml \\
             --output {output}\n"
    )
}

/// Makes the machine a host with GPUs.
pub fn lay_out(ground: &Ground) -> Result<(), String> {
    let mut script = "set -e
         install /divvy/divvy /divvy/divvy-hook /usr/bin/
         install -D --mode=644 -t /usr/lib/divvy /divvy/libdivvy_mps_guard.so
         divvy --quiet sim a100-lab /sim
         cp -a /sim/usr/. /usr/
         cp -a /sim/lib/. /lib/
         cp -a /sim/run/. /run/
         cp -a /sim/etc/. /etc/
         cp -a /sim/dev/. /dev/
         ldconfig
         divvy --quiet sim hgx-h100 /fabric
         cp -a /fabric/etc/cufile.json /etc/
         mkdir -p /run/udev && cp -a /fabric/run/udev/data /run/udev/
         mkdir /etc/divvy\n"
        .to_owned();
    script += &MAIN.generate();
    // The one that every divvy reads by itself.
    script += "mv /etc/divvy/divvy.toml /etc/divvy/config.toml\n";
    for plan in &PLANS {
        script += &plan.generate();
    }
    script +=
        &generate("engines", "a100-lab", "/etc/cdi/engines.json", "--state-dir /run/engines", &of_engines());
    script += "cp /run/shares/plan.json /run/stale/plan.json\n";
    script += SERVE;
    script += "
         served='divvy shares mig away stale engines'
         for name in $served; do serve $name; done
         for name in $served; do
             for _ in $(seq 100); do [ ! -S /run/$name/divvy.sock ] || break; sleep 0.05; done
             [ -S /run/$name/divvy.sock ] || { tail /var/log/divvy-$name.log >&2; exit 1; }
         done";
    ground.sh(&script).require()
}

/// Keeps other trials from devices that they ask for under the same name, as long as the guard lives. `what` is an
/// engine's name, or that of a plan.
pub fn alone(what: &str) -> MutexGuard<'static, ()> {
    static OF_ENGINES: [Mutex<()>; ENGINES.len()] = [const { Mutex::new(()) }; ENGINES.len()];
    static OF_PLANS: [Mutex<()>; PLANS.len()] = [const { Mutex::new(()) }; PLANS.len()];
    static OF_MAIN: Mutex<()> = Mutex::new(());
    let engine = ENGINES.iter().position(|engine| engine.name == what).map(|at| &OF_ENGINES[at]);
    let plan = || PLANS.iter().position(|plan| plan.name == what).map(|at| &OF_PLANS[at]);
    let lock = engine.or_else(plan).unwrap_or(&OF_MAIN);
    // A trial that failed has let go of what it had.
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
