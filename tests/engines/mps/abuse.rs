//! What a container with a share tries against the MPS server that others have shares of too, with NVIDIA's own
//! nvidia-cuda-mps-control in it. What came of it is in docs/mps.md: what the container met, and whether anything became
//! of the server, its limits, or another container's way to it.

use serde_json::Value;

use super::MET_MPS;
use super::hosts::{Host, MULTI, Mps, SINGLE, alone};
use crate::engine::{Container, Engine, EngineTrial, Held, MAPPED};
use crate::ground::{self, Ground, Output};
use crate::table::Place;

/// Name and function of the trial.
pub const TRIALS: [EngineTrial; 1] = [("mps_abuse", mps_abuse)];

/// Who tries: the column's head, the engine, and the container's options.
const WHO: [(&str, &str, &[&str]); 5] = [
    ("root", "docker-runc", &[]),
    ("root, `--cap-add=ALL`", "docker-runc", &["--cap-add=ALL"]),
    ("uid 1000", "docker-runc", &["--user=1000"]),
    ("root of a user namespace", "podman-crun", MAPPED),
    ("root, rootless Podman", "rootless-crun", &[]),
];

/// What is tried: its name, and a script that prints in a few words what the container met.
struct Attack {
    name: &'static str,
    script: &'static str,
    options: &'static [&'static str],
}

const fn attack(name: &'static str, script: &'static str) -> Attack {
    Attack { name, script, options: &[] }
}

/// Words of the scripts: `say COMMAND` to the control daemon, `try COMMAND`, of which the error counts. $SERVER is the
/// server's process id, $CONTROL the daemon's and $VICTIM another container's, as the machine counts them; $PIPE the pipe directory there.
const WORDS: &str = r#"
    say() {
        out=$(echo "$1" | timeout 10 /abuse/nvidia-cuda-mps-control 2>/dev/null | tr '\n' ' ')
        if [ -n "$out" ]; then echo "answered"; else echo "hung up on"; fi
    }
    try() {
        if out=$("$@" 2>&1); then echo done; else echo "${out##*: }" | sed 's/^permission.*root?)/operation not permitted/' | tr A-Z a-z; fi
    }
    box=/abuse/busybox front=/tmp/nvidia-mps
"#;

/// Another container starts CUDA again and again meanwhile.
const SILENCE: &str = "ten of them at once, while another container starts CUDA";

const ATTACKS: [Attack; 23] = [
    attack("`set_default_active_thread_percentage 90`", "say 'set_default_active_thread_percentage 90'"),
    attack("`set_default_device_pinned_mem_limit 0 80G`", "say 'set_default_device_pinned_mem_limit 0 80G'"),
    attack("`set_active_thread_percentage SERVER 90`", "say \"set_active_thread_percentage $SERVER 90\""),
    attack("`set_device_pinned_mem_limit SERVER 0 80G`", "say \"set_device_pinned_mem_limit $SERVER 0 80G\""),
    attack("`start_server -uid 4711`", "say 'start_server -uid 4711'"),
    attack("`terminate_client SERVER PID`", "say \"terminate_client $SERVER $VICTIM\""),
    attack("`shutdown_server SERVER -f`", "say \"shutdown_server $SERVER -f\""),
    attack("`quit -t 0`", "say 'quit -t 0'"),
    attack(
        "`get_server_list`, `get_client_list SERVER`, `ps` (others' command lines)",
        "for command in get_server_list \"get_client_list $SERVER\" ps; do say \"$command\"; done | sort -u",
    ),
    attack(
        "`control_privileged` in the front, beside it, at the machine's path, through /proc",
        "for dir in $front $front/.. $front/../pipe $PIPE /proc/1/root$PIPE /proc/1/cwd$PIPE; do
             [ ! -e $dir/control_privileged ] || echo there
             CUDA_MPS_PIPE_DIRECTORY=$dir say get_server_list
         done | sed 's/hung up on/there is none/' | sort -u",
    ),
    attack(
        "a connection that says nothing, for ten seconds",
        "probe silent $front/control 10 | sed 's/.*: //; s/hung up/hung up on/'",
    ),
    Attack {
        name: SILENCE,
        script: "for i in 0 1 2 3 4 5 6 7 8 9; do probe silent $front/control 60 & done |
             sed 's/.*: //; s/hung up/hung up on/' | sort -u",
        options: &[],
    },
    attack("writing to the pipe `log`", "[ -e $front/log ] || echo 'there is none'"),
    attack("removing `control`", "try rm $front/control"),
    attack("a socket of its own in the place of `control`", "touch /tmp/new; try mv /tmp/new $front/control"),
    attack("closing `control` to others (chmod)", "try chmod 0 $front/control"),
    attack(
        "mounting the front writable, then removing `control`",
        "try $box mount -o remount,bind,rw $front | sed 's/^done$/mounted/'; [ ! -w $front ] || try rm $front/control | sed 's/^done$/**removed**, and put back by the supervisor/'",
    ),
    attack(
        "a directory of its own mounted over the front",
        "try $box mount -t tmpfs tmpfs $front | sed 's/^done$/done, for itself alone/'",
    ),
    attack("unmounting the front", "try $box umount $front | sed 's/^done$/done, for itself alone/'"),
    attack(
        "CUDA with CUDA_MPS_PIPE_DIRECTORY=/nowhere",
        "CUDA_MPS_PIPE_DIRECTORY=/nowhere probe cuda | sed 's/^100$/it looks for a GPU without MPS (100)/'",
    ),
    Attack {
        name: "`--privileged`",
        script: "say 'set_default_active_thread_percentage 90'",
        options: &["--privileged"],
    },
    Attack {
        name: "the machine's `/run` as a volume, and its `control_privileged`",
        script: "export CUDA_MPS_PIPE_DIRECTORY=/host${PIPE#/run}
             tell() { echo $1 | timeout 10 /abuse/nvidia-cuda-mps-control 2>/dev/null; }
             old=$(tell get_default_active_thread_percentage)
             case $(tell 'set_default_active_thread_percentage 90') in
                 90*) tell \"set_default_active_thread_percentage $old\" >/dev/null; echo '**obeyed**' ;;
                 *) echo 'refused' ;;
             esac",
        options: &["--volume=/run:/host"],
    },
    Attack {
        name: "the machine's processes (`--pid=host`), and `kill -9` of the control daemon",
        script: "try kill -9 $CONTROL | sed 's/^done$/killed/'",
        options: &["--pid=host"],
    },
];

/// What must be as before after each.
struct Watched<'a> {
    ground: &'a Ground,
    host: &'a Host,
    mps: Mps<'a>,
    victim: Held<'a>,
}

impl Watched<'_> {
    /// Limits, processes and the front, a line each.
    fn look(&self) -> Vec<String> {
        let said = self.ground.sh(&format!(
            "export CUDA_MPS_PIPE_DIRECTORY={0}/pipe
             ask() {{ echo \"$1: $(echo \"$2\" | timeout 10 /drivers/{1}/usr/bin/nvidia-cuda-mps-control 2>&1)\"; }}
             ask 'limits for new servers' 'get_default_active_thread_percentage'
             ask 'limits for new servers' 'get_default_device_pinned_mem_limit 0'
             ask 'limits' 'get_active_thread_percentage {2}'
             ask 'limits' 'get_device_pinned_mem_limit {2} 0'
             ask 'server' get_server_list
             stat --format='front: %n %A %u' {0}/front {0}/front/*",
            self.mps.directory,
            self.host.name,
            self.mps.pid("server_pid")
        ));
        let cuda = self.victim.sh("probe cuda");
        let mut lines: Vec<String> = said.stdout.lines().map(str::to_owned).collect();
        lines.push(format!("control daemon: {}", self.mps.pid("control_pid")));
        lines.push(format!("another container: {}", cuda.stdout.trim_end()));
        lines
    }

    /// Has the other container start CUDA as long as something goes on, and says whether it ever failed to meet MPS.
    fn meanwhile(&self, something: impl FnOnce() -> Output + Send) -> (Output, bool) {
        std::thread::scope(|scope| {
            let at_it = scope.spawn(something);
            let mut starved = false;
            while !at_it.is_finished() {
                let before = self.mps.clients().len();
                let answer = self.victim.sh("probe cuda");
                starved |= answer.stdout.trim() != MET_MPS || self.mps.clients().len() == before;
            }
            (at_it.join().unwrap(), starved)
        })
    }

    /// What became of it, if anything did and lasts; all is waited for.
    fn damage(&self, before: &[String]) -> Option<String> {
        if self.look() == before {
            return None;
        }
        let is_back = || self.mps.is("ready") && self.victim.sh("probe cuda").stdout.trim() == MET_MPS;
        assert!(self.ground.wait(is_back), "{}\n{}", self.mps.status(), self.mps.last_words());
        let after = self.look();
        println!("before: {before:#?}\nafter: {after:#?}\n{}", self.mps.status());
        let what = |line: &String| line.split(':').next().unwrap_or_default().to_owned();
        let mut changed: Vec<String> = after.iter().filter(|line| !before.contains(line)).map(what).collect();
        changed.dedup();
        (!changed.is_empty()).then(|| format!("another {}", changed.join(", ")))
    }
}

/// Whether anything is tried there: what holds does not depend on the engine.
pub fn is_tried_on(engine: &Engine) -> bool {
    WHO.iter().any(|(_, name, _)| *name == engine.name)
}

fn mps_abuse(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    prepare(ground);
    for host in [&MULTI, &SINGLE] {
        for (column, _, options) in WHO.into_iter().filter(|(_, name, _)| *name == engine.name) {
            let cells = measure(ground, engine, host, options);
            place(host).compare(column, &cells);
        }
    }
}

fn place(host: &Host) -> Place<'static> {
    Place {
        page: "mps.md",
        heading: if host.name == MULTI.name {
            "One server for all users"
        } else {
            "A server for one user at a time"
        },
        columns: &COLUMNS,
        rows: &ROWS,
        trials: "mps_abuse",
        is_only_compared: !ground::label().is_empty(),
    }
}

const COLUMNS: [&str; WHO.len()] = {
    let mut columns = [""; WHO.len()];
    let mut at = 0;
    while at < WHO.len() {
        columns[at] = WHO[at].0;
        at += 1;
    }
    columns
};
const ROWS: [&str; ATTACKS.len()] = {
    let mut rows = [""; ATTACKS.len()];
    let mut at = 0;
    while at < ATTACKS.len() {
        rows[at] = ATTACKS[at].name;
        at += 1;
    }
    rows
};

/// What attackers bring along: the control program, and a busybox that mounts.
fn prepare(ground: &Ground) {
    ground
        .sh("mkdir -p /srv/abuse && cd /srv/abuse && tar -xf /images/bb.tar --strip-components=2 ./bin/busybox
             for host in multi single; do
                 mkdir -p $host && cp busybox /drivers/$host/usr/bin/nvidia-cuda-mps-control $host/
             done")
        .ok();
}

fn measure(ground: &Ground, engine: &Engine, host: &Host, options: &[&str]) -> Vec<(&'static str, String)> {
    let victim = with(host.container(ground, engine, "0"), options);
    let victim = victim.hold(&format!("victim-{}-{}", host.name, engine.name));
    let watched = Watched { ground, host, mps: host.mps(ground, engine), victim };
    let attacker = with(host.container(ground, engine, "1"), options)
        .option(&format!("--volume=/srv/abuse/{}:/abuse", host.name));
    let lease =
        ground.sh(&format!("sed -n '/\"{}\"/p' /run/{}/leases/*.json", host.share(engine, "0"), host.name));
    let lease: Value = serde_json::from_str(lease.ok()).unwrap();
    let victim_pid = lease["container"]["pid"].as_i64().unwrap();
    let cells = ATTACKS.iter().map(|attack| {
        let before = watched.look();
        assert!(before.iter().any(|line| line == &format!("another container: {MET_MPS}")), "{before:#?}");
        let numbers = format!(
            "SERVER={} CONTROL={} VICTIM={victim_pid} PIPE={}/pipe",
            watched.mps.pid("server_pid"),
            watched.mps.pid("control_pid"),
            watched.mps.directory
        );
        let try_it =
            || with(attacker.clone(), attack.options).sh(&format!("{numbers}\n{WORDS}\n{}", attack.script));
        let (tried, starved) =
            if attack.name == SILENCE { watched.meanwhile(try_it) } else { (try_it(), false) };
        let does_not_start =
            tried.stderr.contains("exit status 5,") || tried.stderr.contains("exit code: 5)");
        let met = match (tried.status, tried.stdout.trim_end()) {
            (0, met) if !met.is_empty() => met.replace('\n', ", "),
            (_, "") if does_not_start => "the container does not start".into(),
            _ => panic!("{}: {tried:?}", attack.name),
        };
        let cell = match watched.damage(&before) {
            None if starved => format!("**not held**: {met}; the other does not meet MPS"),
            None if attack.name == SILENCE => format!("{met}; the other waits, and meets MPS"),
            None => met,
            Some(damage) => format!("**not held**: {met}; {damage}"),
        };
        println!("{} {}: {}: {cell}", engine.name, host.name, attack.name);
        (attack.name, cell)
    });
    cells.collect()
}

fn with<'a>(container: Container<'a>, options: &[&str]) -> Container<'a> {
    options.iter().fold(container, |container, option| container.option(option))
}
