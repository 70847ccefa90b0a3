//! Images and options that aim at the host. Whether such a container starts is its own affair; what the hook does
//! must stay inside it. Each trial compares the machine's files before and after.

use crate::engine::{Engine, EngineTrial};
use crate::ground::Ground;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 2] =
    [("links_out_of_the_image", links_out_of_the_image), ("host_etc_as_a_volume", host_etc_as_a_volume)];

/// Names, link targets and contents of what a hook could be led to.
fn host_files(ground: &Ground) -> String {
    ground
        .sh("ls -lR /hostage /hostage.d /etc /usr/lib/x86_64-linux-gnu &&
             find /hostage /hostage.d /etc -type f -exec sha256sum {} + | sort")
        .ok()
        .to_owned()
}

/// In these images /etc/ld.so.cache is a link to /hostage, and /etc one that climbs out to /hostage.d.
fn links_out_of_the_image(ground: &Ground, engine: &Engine) {
    ground.sh("mkdir -p /hostage.d; [ -e /hostage ] || echo intact >/hostage; chmod 666 /hostage; chmod 777 /hostage.d").ok();
    let before = host_files(ground);
    for image in ["hostile-cache", "hostile-etc"] {
        let output = engine.container(ground, &["1"]).image(image).sh("echo started");
        // Refused by the hook or started: but not failed for a reason that has nothing to do with this.
        assert!(output.stdout == "started\n" || output.stderr.contains("hook"), "{image}: {output:?}");
    }
    assert_eq!(host_files(ground), before);
}

/// The user may write the host's /etc. divvy must not do it for them.
fn host_etc_as_a_volume(ground: &Ground, engine: &Engine) {
    ground.sh("mkdir -p /hostage.d; [ -e /hostage ] || echo intact >/hostage").ok();
    let before = host_files(ground);
    let output = engine.container(ground, &["1"]).option("--volume=/etc:/etc").sh("echo started");
    assert!(output.stdout == "started\n" || output.stderr.contains("hook"), "{output:?}");
    assert_eq!(host_files(ground), before);
    assert!(!before.contains("00-divvy.conf"), "{before}");
}
