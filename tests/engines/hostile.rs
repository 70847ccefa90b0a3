//! Images and options that aim at the host. Whether such a container starts is its own affair; what the hook does
//! must stay inside it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{Engine, EngineTrial};
use crate::ground::{Ground, Output};

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 3] = [
    ("links_out_of_the_image", links_out_of_the_image),
    ("host_etc_as_a_volume", host_etc_as_a_volume),
    ("volume_over_the_libraries", volume_over_the_libraries),
];

/// What a hook could be led to: names, links and contents on the machine, one line each. Two that look at it come one
/// after the other.
struct HostFiles<'a> {
    ground: &'a Ground,
    before: String,
    _alone: MutexGuard<'static, ()>,
}

impl<'a> HostFiles<'a> {
    fn remember(ground: &'a Ground) -> Self {
        static ONE_AFTER_THE_OTHER: Mutex<()> = Mutex::new(());
        let alone = ONE_AFTER_THE_OTHER.lock().unwrap_or_else(PoisonError::into_inner);
        // What an earlier trial may have spoiled is made good, so that each fails by itself.
        ground
            .sh("ldconfig
                 mkdir -p -m 777 /hostage.d
                 [ -e /hostage ] || { echo intact >/hostage; chmod 666 /hostage; }")
            .ok();
        Self { ground, before: Self::read(ground), _alone: alone }
    }

    fn read(ground: &Ground) -> String {
        ground
            .sh("find /hostage /hostage.d /etc /usr/lib/x86_64-linux-gnu -printf '%p %M %u %l\\n' | sort
                 find /hostage /hostage.d /etc -type f -exec sha256sum {} + | sort")
            .ok()
            .to_owned()
    }

    #[track_caller]
    fn assert_unchanged(&self) {
        let after = Self::read(self.ground);
        let only_in = |a: &str, b: &str| {
            a.lines()
                .filter(|line| !b.lines().any(|other| other == *line))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let changes = (only_in(&self.before, &after), only_in(&after, &self.before));
        assert_eq!(changes, (vec![], vec![]), "lines on the machine before and after");
    }
}

/// The container started, or the hook refused it. Any other failure would leave the trial without a meaning.
#[track_caller]
fn assert_tried(output: &Output) {
    assert!(output.stdout == "started\n" || output.stderr.contains("divvy-hook"), "{output:?}");
}

/// In these images /etc/ld.so.cache is a link to /hostage, and /etc one that climbs out to /hostage.d.
fn links_out_of_the_image(ground: &Ground, engine: &Engine) {
    let host = HostFiles::remember(ground);
    for image in ["hostile-cache", "hostile-etc"] {
        assert_tried(&engine.container(ground, &["1"]).image(image).sh("echo started"));
    }
    host.assert_unchanged();
}

/// The user may write the host's /etc. divvy must not do it for them.
fn host_etc_as_a_volume(ground: &Ground, engine: &Engine) {
    let host = HostFiles::remember(ground);
    assert_tried(&engine.container(ground, &["1"]).option("--volume=/etc:/etc").sh("echo started"));
    host.assert_unchanged();
}

/// Into a user's volume the engine puts the files that it mounts on; a link would be divvy's.
fn volume_over_the_libraries(ground: &Ground, engine: &Engine) {
    let volume = format!("/volume-{}", engine.name);
    ground.sh(&format!("mkdir -m 777 {volume}")).ok();
    let container = engine.container(ground, &["1"]).image("bb");
    assert_tried(
        &container.option(&format!("--volume={volume}:/usr/lib/x86_64-linux-gnu")).sh("echo started"),
    );
    assert_eq!(ground.sh(&format!("find {volume} -type l")).ok(), "");
}
