//! What draws: the nodes in /dev/dri with their groups and their links by PCI address, and the files for OpenGL and
//! Vulkan. Whole GPUs bring them, MIG devices and shares do not. GPU 1 of the simulated host is card2 and renderD129.

use crate::engine::{Engine, EngineTrial};
use crate::ground::Ground;
use crate::layout::alone;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 4] = [
    ("dri_nodes", dri_nodes),
    ("dri_groups", dri_groups),
    ("no_graphics_in_parts", no_graphics_in_parts),
    ("dev_of_the_host", dev_of_the_host),
];

const FILES: &str = "ls -d /usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0 \
    /usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so /etc/vulkan/icd.d/nvidia_icd.json /run/nvidia-persistenced/socket \
    /usr/bin/nvidia-xconfig /dev/dri 2>/dev/null || true";

fn dri_nodes(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]);
    let links = "cd /dev/dri/by-path && for link in *; do echo $link $(readlink -f $link); done";
    assert_eq!(
        container.sh(links).ok(),
        "pci-0000:10:1d.0-card /dev/dri/card2\npci-0000:10:1d.0-render /dev/dri/renderD129"
    );
    assert_eq!(container.sh("cd /dev/dri && ls -d *").ok(), "by-path\ncard2\nrenderD129");
    assert_eq!(container.sh(FILES).ok().lines().count(), 6);
    // The user outside is in neither group, so the host's nodes are closed to a rootless container.
    let answer = if engine.rootful { "ENXIO" } else { "EACCES" };
    assert_eq!(
        container.sh("probe open /dev/dri/card2 /dev/dri/renderD129").ok(),
        format!("/dev/dri/card2: {answer}\n/dev/dri/renderD129: {answer}")
    );
    if engine.rootful {
        assert_eq!(
            container.sh("stat -c '%a %g' /dev/dri/card2 /dev/dri/renderD129").ok(),
            "660 44\n660 105"
        );
        let other = container.option("--cap-add=MKNOD").sh("probe mknod /tmp/other 226 130");
        assert_eq!(other.ok(), "/tmp/other: EPERM");
    }
}

/// A user in the container opens the nodes by their groups. Docker has ignored these before 29.5 (moby#52579).
fn dri_groups(ground: &Ground, engine: &Engine) {
    if !engine.rootful {
        return;
    }
    let container = engine.container(ground, &["1"]).option("--user=1000");
    let opened = container.sh("probe open /dev/dri/renderD129");
    if engine.name.starts_with("docker") {
        assert_eq!(opened.ok(), "/dev/dri/renderD129: EACCES");
        let given = container.option("--group-add=105").sh("probe open /dev/dri/renderD129");
        assert_eq!(given.ok(), "/dev/dri/renderD129: ENXIO");
    } else {
        assert_eq!(opened.ok(), "/dev/dri/renderD129: ENXIO");
    }
}

fn no_graphics_in_parts(ground: &Ground, engine: &Engine) {
    let share = format!("{}-0", engine.name);
    let _alone = alone(engine.name);
    for device in ["0:1", &share] {
        assert_eq!(engine.container(ground, &[device]).sh(FILES).ok(), "", "{device}");
    }
    // Beside a whole GPU they have them.
    assert_eq!(engine.container(ground, &["0:1", "1"]).sh(FILES).ok().lines().count(), 6);
}

/// The links must not land in the host's /dev, which is a tmpfs too.
fn dev_of_the_host(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]).option("--volume=/dev:/dev");
    let output = container.sh("ls /dev/dri");
    assert!(!ground.sh("ls /dev/dri").ok().contains("by-path"), "{output:?}");
}
