//! A Docker whose daemon gives every container a user namespace (`userns-remap`). It has no option of a container's for
//! that, so this is a second daemon with a store of its own, beside the one of the other trials.

use crate::containers::{LOAD, OPEN_ALL, assert_loads, assert_nodes};
use crate::ground::{Ground, Need};
use crate::machine::MachineTrial;

/// Every trial.
pub const TRIALS: [MachineTrial; 1] = [("docker_userns_remap", &[Need::Docker], docker_userns_remap)];

const HOST: &str = "--host=unix:///run/remap.sock";

/// Its store is on the one other file system that is not an overlay and that a mapped root may pass through.
const START: &str = "set -e
    mkdir -p /home/remap
    setsid dockerd --userns-remap=dev:dev --host=unix:///run/remap.sock --pidfile=/run/remap.pid \\
        --data-root=/home/remap --exec-root=/run/remap >/var/log/remap.log 2>&1 </dev/null &
    for _ in $(seq 100); do
        ! docker --host=unix:///run/remap.sock version >/dev/null 2>&1 || break
        sleep 0.1
    done
    docker --host=unix:///run/remap.sock import --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' \\
        /images/glibc.tar glibc";

const STOP: &str =
    "pid=$(cat /run/remap.pid) && kill $pid && while kill -0 $pid 2>/dev/null; do sleep 0.1; done";

fn docker_userns_remap(ground: &Ground) {
    ground.sh(START).ok();
    let run = |script: &str| {
        let device = "--device=nvidia.com/gpu=0:1";
        ground.command("in.sh", &["docker", HOST, "run", "--rm", device, "glibc", "sh", "-c", script])
    };
    let [map, nodes, loaded, owner] =
        ["cat /proc/self/uid_map", OPEN_ALL, LOAD, "stat -c %u:%g /etc/ld.so.cache"].map(run);
    ground.sh(STOP).ok();
    assert_eq!(map.ok().split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_nodes(
        nodes.ok(),
        &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"],
    );
    assert_loads(loaded.ok());
    assert_eq!(owner.ok(), "0:0");
}
