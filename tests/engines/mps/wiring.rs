//! Who has MPS: programs of a share, started by the engine or in `exec`, whatever image and options say of MPS; nobody else.
//! Where it cannot be had the container does not start.

use super::hosts::{MULTI, SINGLE, TAKEN, alone, gpu_of};
use super::{ALONE, CUDA_TWICE, MET_MPS};
use crate::containers::is_old_crun;
use crate::engine::{Engine, EngineTrial};
use crate::ground::{Ground, Need};
use crate::leases::{NOTHING_FREE, assert_refused};

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 8] = [
    ("mps_share", mps_share),
    ("mps_in_exec", mps_in_exec),
    ("mps_not_for_others", mps_not_for_others),
    ("mps_variables_of_users", mps_variables_of_users),
    ("mps_volumes_of_users", mps_volumes_of_users),
    ("mps_sees_processes", mps_sees_processes),
    ("mps_of_two_users", mps_of_two_users),
    ("mps_that_cannot_be_had", mps_that_cannot_be_had),
];

/// A container's root is root of the machine, or the user.
fn root_of(engine: &Engine) -> i64 {
    if engine.rootful { 0 } else { 1001 }
}

/// What a share brings: limits in the environment, the one socket, and a server that is started for it.
fn mps_share(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let container = MULTI.container(ground, engine, "");
    let shown = container.sh(&format!(
        "env | sed -n /CUDA_MPS/p | sort; {CUDA_TWICE}; ls -A /tmp/nvidia-mps
         sed -n 's,.* /tmp/nvidia-mps \\([^ ]*\\).*,\\1,p' /proc/self/mountinfo"
    ));
    let mps = MULTI.mps(ground, engine);
    let settings = ground.sh(&format!("cat {}/settings.json", mps.directory));
    let memory = settings.ok().split("\"memory_mib\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
    assert_eq!(
        shown.ok().lines().collect::<Vec<_>>(),
        [
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50",
            "CUDA_MPS_CLIENT_PRIORITY=0",
            &format!("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0={}M", memory.unwrap_or_default().trim()),
            "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps",
            MET_MPS,
            MET_MPS,
            "control",
            "ro,nosuid,nodev,noexec,relatime",
        ]
    );
    assert!(mps.is("ready"), "{}", mps.status());
    // A restart is a new mount, and MPS goes on.
    if engine.restarts() {
        let control = mps.pid("control_pid");
        let held = container.hold(&format!("mps-again-{}", engine.name));
        held.restart();
        assert_eq!(held.sh("probe cuda; ls -A /tmp/nvidia-mps").ok(), format!("{MET_MPS}\ncontrol"));
        assert_eq!(mps.pid("control_pid"), control);
    }
}

/// Most engines' `exec` has not the variables of the spec.
fn mps_in_exec(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let mps = MULTI.mps(ground, engine);
    let held = MULTI.container(ground, engine, "").hold(&format!("mps-exec-{}", engine.name));
    let before = mps.clients().len();
    assert_eq!(held.sh(CUDA_TWICE).ok(), format!("{MET_MPS}\n{MET_MPS}"));
    assert_eq!(mps.clients().len(), before + 2, "{:?}", mps.clients());
}

/// Containers with a time slice or a whole device of the same host; and MPS on a MIG device.
fn mps_not_for_others(ground: &Ground, engine: &Engine) {
    let script = "probe cuda; [ -e /tmp/nvidia-mps ] || echo no front";
    for device in ["gpu=turns", "mig-1g.5gb=0:3"] {
        let container = engine.container(ground, &[]).option(&format!("--device=nvidia.com/{device}"));
        assert_eq!(container.sh(script).ok(), format!("{ALONE}\nno front"), "{device}");
    }
    let mig = engine.container(ground, &["mps-mig"]).sh("probe cuda; ls -A /tmp/nvidia-mps");
    assert_eq!(mig.ok(), format!("{MET_MPS}\ncontrol"));
    let refused = engine.container(ground, &["turns", "mps-mig"]).sh("echo started");
    assert_refused(ground, engine, &refused, (1, "MPS"));
}

/// The image `bare` names another directory and other limits, and so does the user.
fn mps_variables_of_users(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let script = "probe cuda; echo $CUDA_MPS_PIPE_DIRECTORY ${CUDA_MPS_PINNED_DEVICE_MEM_LIMIT%%=*}";
    let container = MULTI.container(ground, engine, "");
    let of_image = container.clone().image("bare");
    let of_user = container
        .option("--env=CUDA_MPS_PIPE_DIRECTORY=/nowhere")
        .option("--env=CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=junk");
    for container in [of_image, of_user] {
        assert_eq!(container.sh(script).ok(), format!("{MET_MPS}\n/tmp/nvidia-mps 0"));
    }
}

/// The front is mounted over what the user has at its place; where it could only be made in the user's own files, the
/// container does not start.
fn mps_volumes_of_users(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let [full, empty, made] = ["full", "empty", "made"].map(|name| format!("/srv/{name}-{}", engine.name));
    ground
        .sh(&format!(
            "mkdir -p {full}/nvidia-mps {empty} {made}
             echo mine >{full}/nvidia-mps/control
             chmod -R a+rwX {full} {empty} {made}"
        ))
        .ok();
    let files = format!(
        "find {full} {empty} /tmp/nvidia-mps 2>/dev/null; sed -n '/nvidia-mps/p' /proc/self/mountinfo"
    );
    let before = ground.sh(&files).stdout;
    let container = MULTI.container(ground, engine, "");
    let run = |options: &[&str]| {
        let container = options.iter().fold(container.clone(), |container, option| container.option(option));
        container.sh("probe cuda; ls -A /tmp/nvidia-mps")
    };
    let wired = format!("{MET_MPS}\ncontrol");
    assert_eq!(run(&[&format!("--volume={full}/nvidia-mps:/tmp/nvidia-mps")]).ok(), wired);
    assert_eq!(run(&[&format!("--volume={full}:/tmp")]).ok(), wired);
    if engine.need != Need::Containerd {
        assert_eq!(run(&["--tmpfs=/tmp"]).ok(), wired);
        assert_eq!(run(&[&format!("--volume={made}:/tmp"), "--tmpfs=/tmp/nvidia-mps"]).ok(), wired);
    }
    for volume in [empty.as_str(), "/tmp"] {
        let refused = run(&[&format!("--volume={volume}:/tmp")]);
        assert!(refused.status != 0 && refused.stdout.is_empty(), "{refused:?}");
        let words = if engine.name.ends_with("-crun") {
            "exit code: 1"
        } else {
            "another file system is mounted at or above \"/tmp/nvidia-mps\""
        };
        assert!(refused.stderr.contains(words), "{words} in {refused:?}");
    }
    let read_only = run(&["--read-only"]);
    if engine.name.ends_with("crun") && is_old_crun(ground) {
        assert!(read_only.status != 0 && read_only.stderr.contains("divvy-hook"), "{read_only:?}");
    } else {
        assert_eq!(read_only.ok(), wired);
    }
    assert_eq!(ground.sh(&files).stdout, before, "on the machine");
}

/// The control daemon has the process ids and users of the machine, whatever namespaces the container has. That of all
/// users' server takes them for one.
fn mps_sees_processes(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let script = "while [ ! -e /go ]; do sleep 0.05; done; probe cuda; exec env -i /usr/bin/probe cuda";
    for (host, user) in [(&MULTI, 0), (&SINGLE, root_of(engine))] {
        let mps = host.mps(ground, engine);
        let held = host
            .container(ground, engine, "0")
            .hold_with(&format!("seen-{}-{}", host.name, engine.name), script);
        let share = host.share(engine, "0");
        let lease = ground.sh(&format!("sed -n '/\"{share}\"/p' /run/{}/leases/*.json", host.name));
        let lease: serde_json::Value = serde_json::from_str(lease.ok()).unwrap();
        let pid = lease["container"]["pid"].as_i64().unwrap();
        held.sh("touch /go").ok();
        let is_seen = ground.wait(|| mps.clients().contains(&(pid, user)));
        assert!(is_seen, "{pid} of user {user} in {:?}", mps.clients());
    }
}

/// Two containers of different users, on a server for all and on one for one.
fn mps_of_two_users(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    for host in [&MULTI, &SINGLE] {
        let roots = host.container(ground, engine, "0").hold(&format!("root-{}-{}", host.name, engine.name));
        assert_eq!(roots.sh("probe cuda").ok(), MET_MPS);
        let others = host.container(ground, engine, "1").option("--user=1000");
        if host.name == MULTI.name {
            assert_eq!(others.sh("probe cuda").ok(), MET_MPS);
            continue;
        }
        assert_refused(
            ground,
            engine,
            &others.sh("echo started"),
            (NOTHING_FREE, "serves one user at a time, now uid"),
        );
        assert_eq!(roots.sh("probe cuda").ok(), MET_MPS);
        roots.stop();
        assert_eq!(others.sh("probe cuda").ok(), MET_MPS);
        let user = host.mps(ground, engine).clients().last().map(|(_, user)| *user);
        assert_eq!(user, Some(if engine.rootful { 1000 } else { 100_999 }));
    }
}

/// Somebody uses the GPU, and MPS does not start on it.
fn mps_that_cannot_be_had(ground: &Ground, engine: &Engine) {
    let refused = engine.container(ground, &["taken"]).sh("echo started");
    let pid = ground.sh("cat /run/taken.pid");
    let words = format!("GPU {TAKEN}: MPS needs it for itself, and process {} (sleep) uses it", pid.ok());
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &words));
    assert!(gpu_of(crate::engine::ENGINES.len() - 1) < TAKEN);
}
