//! divvy beside NVIDIA's generator: whoever writes first, and into whichever directory, `nvidia.com/gpu=1` and
//! `nvidia.com/gpu=shared-0` resolve in a real engine after the next `divvy generate`. Each trial has directories for
//! specs of its own, in a mount namespace of its own.

use crate::ground::{Ground, Need};
use crate::machine::{LIVE, MachineTrial, apart};

/// Every trial.
pub const TRIALS: [MachineTrial; 5] = [
    ("beside_nvidia_same_directory_theirs_first", &[Need::Podman, Need::Mock], same_directory_theirs_first),
    ("beside_nvidia_same_directory_ours_first", &[Need::Podman, Need::Mock], same_directory_ours_first),
    ("beside_nvidia_other_directory_theirs_first", &[Need::Podman, Need::Mock], other_directory_theirs_first),
    ("beside_nvidia_other_directory_ours_first", &[Need::Podman, Need::Mock], other_directory_ours_first),
    ("beside_nvidia_refresh_unit", &[Need::Podman, Need::Mock], refresh_unit),
];

/// A daemon serves the state directory of each. The words of the scripts: `theirs DIR` writes what nvidia-ctk would, `ours` generates with GPU 6 cut in two, and
/// `try DEVICE` prints the GPU nodes of a container with it, or that there is no such device.
const WORDS: &str = r#"
    mount -t tmpfs tmpfs /etc/cdi
    mount -t tmpfs tmpfs /run/cdi
    divvy serve >$dir/log 2>&1 &
    serve=$!
    trap 'kill $serve; wait' EXIT
    for _ in $(seq 200); do [ ! -S /run/divvy/divvy.sock ] || break; sleep 0.05; done
    [ -S /run/divvy/divvy.sock ] || cat $dir/log >&2
    printf '[[gpu]]\nmatch = ["6"]\nmode = "time-slice"\nreplicas = 2\n' >$dir/config.toml
    theirs() {
        { printf 'cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n'
          for gpu in 1 6; do
              printf -- '- name: "%s"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia%s\n' $gpu $gpu
          done
          printf -- '- name: all\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia1\n    - path: /dev/nvidia6\n'
        } >$1/nvidia.yaml
    }
    ours() { divvy generate --config $dir/config.toml --output /var/run/cdi/divvy.json 2>&1; }
    try() {
        out=$(podman run --rm --device nvidia.com/gpu=$1 glibc sh -c 'echo /dev/nvidia[0-9]*' 2>&1)
        case $out in
        *unresolvable*) echo "$1: unresolvable" ;;
        *) echo "$1: $out" ;;
        esac
    }
"#;

const WITHHELD: &str = "names of whole GPUs and MIG devices are left out, because";
const REACHED: &str = "warning: GPU 6 can be had past its shares, as nvidia.com/gpu=6, all of";
/// Of `all`, ours is the one that counts, and it leaves GPU 6 out.
const REACHED_ELSEWHERE: &str = "warning: GPU 6 can be had past its shares, as nvidia.com/gpu=6 of";
const RESOLVED: &str = "1: /dev/nvidia1\nshared-0: /dev/nvidia6\n";

#[track_caller]
fn shown(ground: &Ground, script: &str) -> String {
    let output = apart(ground, &format!("{LIVE}\n{WORDS}\n{script}"));
    format!("{}\n", output.ok())
}

fn same_directory_theirs_first(ground: &Ground) {
    assert_eq!(
        shown(ground, "theirs /run/cdi; ours; try 1; try shared-0"),
        format!(
            "{REACHED} /var/run/cdi/nvidia.yaml\n\
             note: {WITHHELD} /var/run/cdi/nvidia.yaml has them (whole_names = \"auto\")\n\
             wrote /var/run/cdi/divvy.json: 2 shares\n{RESOLVED}"
        )
    );
}

/// Until divvy looks again the name is nobody's: this is what the trial is about, so it is asserted too.
fn same_directory_ours_first(ground: &Ground) {
    assert_eq!(
        shown(ground, "ours; try 1; theirs /run/cdi; try 1; ours; try 1; try shared-0"),
        format!(
            "wrote /var/run/cdi/divvy.json, wrote /var/run/cdi/divvy+compute.json, wrote /var/run/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 2 shares\n1: /dev/nvidia1\n1: unresolvable\n\
             {REACHED} /var/run/cdi/nvidia.yaml\n\
             note: {WITHHELD} /var/run/cdi/nvidia.yaml has them (whole_names = \"auto\")\n\
             removed /var/run/cdi/divvy+compute+leased.json, removed /var/run/cdi/divvy+compute.json, wrote /var/run/cdi/divvy.json: 2 shares\n{RESOLVED}"
        )
    );
}

fn other_directory_theirs_first(ground: &Ground) {
    assert_eq!(
        shown(ground, "theirs /etc/cdi; ours; try 1; try shared-0; try 6; try all"),
        format!(
            "{REACHED_ELSEWHERE} /etc/cdi/nvidia.yaml\n\
             wrote /var/run/cdi/divvy.json, wrote /var/run/cdi/divvy+compute.json, wrote /var/run/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 2 shares\n{RESOLVED}6: /dev/nvidia6\n\
             all: /dev/nvidia0 /dev/nvidia1 /dev/nvidia2 /dev/nvidia3 /dev/nvidia4 /dev/nvidia5 /dev/nvidia7\n"
        )
    );
}

fn other_directory_ours_first(ground: &Ground) {
    assert_eq!(
        shown(ground, "ours; theirs /etc/cdi; try 1; try shared-0; ours"),
        format!(
            "wrote /var/run/cdi/divvy.json, wrote /var/run/cdi/divvy+compute.json, wrote /var/run/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 2 shares\n{RESOLVED}\
             {REACHED_ELSEWHERE} /etc/cdi/nvidia.yaml\n\
             unchanged: /var/run/cdi/divvy.json, unchanged: /var/run/cdi/divvy+compute.json, unchanged: /var/run/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 2 shares\n"
        )
    );
}

/// At boot divvy may be first, and knows by the unit that the other will come.
fn refresh_unit(ground: &Ground) {
    assert_eq!(
        shown(
            ground,
            "mkdir -p $dir/units; mount -t tmpfs tmpfs /etc/systemd/system 2>/dev/null ||
                 { mkdir -p /etc/systemd/system && mount -t tmpfs tmpfs /etc/systemd/system; }
             echo '[Service]' >/etc/systemd/system/nvidia-cdi-refresh.service
             ours; theirs /run/cdi; try 1; try shared-0
             ln -sf /dev/null /etc/systemd/system/nvidia-cdi-refresh.service; rm /run/cdi/nvidia.yaml; ours"
        ),
        format!(
            "note: {WITHHELD} nvidia-cdi-refresh writes them (whole_names = \"auto\")\n\
             wrote /var/run/cdi/divvy.json: 2 shares\n{RESOLVED}\
             wrote /var/run/cdi/divvy.json, wrote /var/run/cdi/divvy+compute.json, wrote /var/run/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 2 shares\n"
        )
    );
}
