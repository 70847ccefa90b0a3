//! The Quadlet unit of README.md: Podman's generator makes a service of it, and systemd starts that.
//!
//! The machine's first process is not systemd, and a system manager would have to be. So it is a user's manager, also
//! for root, whose one generator is Podman's; the service that it generates runs as it is, `--cgroups=split` and
//! `--sdnotify` included.

use crate::ground::{Ground, Need};
use crate::layout::alone;
use crate::machine::{MachineTrial, apart};
use crate::readme;

/// Every trial.
pub const TRIALS: [MachineTrial; 2] = [
    ("quadlet", &[Need::Podman], |ground| unit(ground, ROOT)),
    ("quadlet_rootless", &[Need::Rootless], |ground| unit(ground, USER)),
];

const ROOT: &str = "
    as=
    units=/etc/containers/systemd
    generator=/usr/lib/systemd/system-generators/podman-system-generator
    export XDG_RUNTIME_DIR=/run/user/0";

const USER: &str = "
    as='setpriv --reuid 1001 --regid 1001 --clear-groups env HOME=/home/dev USER=dev'
    units=/home/dev/.config/containers/systemd
    generator=/usr/lib/systemd/user-generators/podman-user-generator
    export XDG_RUNTIME_DIR=/run/user/1001";

/// Starts the manager, with nothing to be loaded but what is generated and the two targets that it depends on.
/// `/run/systemd/system` is how sd_booted(3) knows systemd. There is no journal: what Podman says goes to a file.
const MANAGER: &str = "
    mkdir -p /run/systemd $XDG_RUNTIME_DIR $units $dir/units/service.d $dir/generators
    mount -t tmpfs tmpfs /run/systemd
    mkdir /run/systemd/system
    mount -t tmpfs -o mode=755 tmpfs $units
    ln -s $generator $dir/generators/
    printf '[Unit]\n' | tee $dir/units/basic.target >$dir/units/default.target
    printf '[Service]\nStandardError=append:%s\n' $dir/errors >$dir/units/service.d/errors.conf
    cgroup=/sys/fs/cgroup/${dir##*/}
    mkdir $cgroup
    [ -z \"$as\" ] || chown -R 1001:1001 $dir $cgroup
    chmod 755 $dir
    export SYSTEMD_GENERATOR_PATH=$dir/generators
    export SYSTEMD_UNIT_PATH=$dir/units:$XDG_RUNTIME_DIR/systemd/generator
    (echo 0 >$cgroup/cgroup.procs; exec $as /usr/lib/systemd/systemd --user) >$dir/log 2>&1 &
    until [ -S $XDG_RUNTIME_DIR/systemd/private ]; do sleep 0.05; done";

/// Runs the unit, and beside it one that names a device that is not there.
fn unit(ground: &Ground, who: &str) {
    readme::put_nvidia_smi(ground);
    let _alone = alone("shares");
    let unit = readme::block("A Quadlet unit,");
    let unknown = unit.replace("shared-0", "shared-9");
    let output = apart(
        ground,
        &format!(
            "{who}
             {MANAGER}
             cat >$units/gpu.container <<'END'
{unit}END
             cat >$units/unknown.container <<'END'
{unknown}END
             $as podman tag glibc docker.io/library/ubuntu
             $as systemctl --user daemon-reload
             $as systemctl --user start gpu || cat $dir/errors $dir/log
             for _ in $(seq 100); do
                 ! $as podman logs systemd-gpu 2>&1 | grep -q libnvidia-ml || break
                 sleep 0.1
             done
             $as podman logs systemd-gpu
             $as systemctl --user stop gpu
             echo --
             $as podman ps --all --quiet --filter name=systemd-gpu
             echo --
             $as systemctl --user start unknown || cat $dir/errors
             $as systemctl --user --force exit
             wait"
        ),
    );
    let sections: Vec<&str> = output.ok().split("--\n").collect();
    let [met, left, refused] = sections[..] else { panic!("{output:?}") };
    readme::assert_met(met, &["/dev/nvidia6"]);
    assert_eq!(left, "");
    assert!(refused.contains("unresolvable CDI devices nvidia.com/gpu=shared-9"), "{output:?}");
}
