//! Compose files with devices, brought up as a user does: `docker compose up`, and `podman compose up`, which is the
//! same Compose on Podman's socket. Both the file and the command are those of README.md.

use crate::ground::{Ground, Need, Output};
use crate::layout::alone;
use crate::readme;

/// A trial that runs with every provider: its name and what it does.
type ComposeTrial = (&'static str, fn(&Ground, &Provider));

/// Every trial.
pub const TRIALS: [ComposeTrial; 7] = [
    ("devices", devices),
    ("reservation", reservation),
    ("gpus", gpus),
    ("several_devices", several_devices),
    ("replicas", replicas),
    ("name_with_colon", name_with_colon),
    ("unknown_device", unknown_device),
];

/// Who brings up a compose file.
#[derive(Debug)]
pub struct Provider {
    /// First part of the trials' names.
    pub name: &'static str,
    /// What must be there.
    pub need: Need,
    /// Root or the unprivileged user, as in `Ground::command`.
    entry: &'static str,
    /// Makes `ubuntu` an image of the engine, and the engine listen.
    prepare: &'static str,
    command: &'static str,
}

/// systemd would start the service when it is asked.
const PODMAN_SERVICE: &str = "
    podman tag glibc docker.io/library/ubuntu
    podman system service --time=0 unix://$dir/socket >/dev/null 2>&1 &
    service=$!
    export CONTAINER_HOST=unix://$dir/socket
    until [ -S socket ]; do sleep 0.05; done";

/// Every provider that trials run with.
pub const PROVIDERS: [Provider; 3] = [
    Provider {
        name: "compose-docker",
        need: Need::Docker,
        entry: "in.sh",
        prepare: "docker tag glibc ubuntu",
        command: "docker compose",
    },
    Provider {
        name: "compose-podman",
        need: Need::Podman,
        entry: "in.sh",
        prepare: PODMAN_SERVICE,
        command: "podman compose",
    },
    Provider {
        name: "compose-rootless",
        need: Need::Rootless,
        entry: "as-user.sh",
        prepare: PODMAN_SERVICE,
        command: "podman compose",
    },
];

/// Compose reads it along with compose.yaml. The machine has no network.
const OVERRIDE: &str = "services: {gpu: {network_mode: none}}";

const SHARE: &str = "\"nvidia.com/gpu=shared\"";

impl Provider {
    fn up(&self, ground: &Ground, file: &str) -> Output {
        let command = self.command;
        self.with(ground, file, &format!("{command} up"))
    }

    /// Runs a script beside a compose file, and takes down what it brought up.
    fn with(&self, ground: &Ground, file: &str, script: &str) -> Output {
        readme::put_nvidia_smi(ground);
        let _alone = alone("shares");
        let Self { prepare, command, .. } = self;
        let script = format!(
            "dir=$(mktemp -d) && cd $dir || exit
             {prepare}
             echo '{OVERRIDE}' >compose.override.yaml
             cat >compose.yaml <<'END'
{file}END
             {script}
             status=$?
             {command} down --timeout 0 >/dev/null 2>&1
             [ -z \"$service\" ] || kill $service
             exit $status"
        );
        ground.command(self.entry, &["sh", "-c", &script])
    }
}

/// What the container printed: Compose puts the service's name and a bar before it.
fn printed(up: &Output) -> String {
    let lines: Vec<&str> = up.ok().lines().filter_map(|line| Some(line.split_once(" | ")?.1)).collect();
    lines.join("\n")
}

#[track_caller]
fn assert_refused(up: &Output, what: &str) {
    assert!(up.status != 0 && up.stderr.contains(what), "{up:?}");
    assert!(!up.stdout.contains("/dev/nvidia"), "{up:?}");
}

/// Compose 2.26 takes a CDI name for a path and ignores `gpus:`, 2.40 does neither (docker/compose#12184, `gpus:` came
/// with 2.30).
fn is_old_compose(ground: &Ground) -> bool {
    let version = ground.sh("docker compose version --short");
    let minor = version.ok().strip_prefix("2.").and_then(|rest| rest.split('.').next()?.parse().ok());
    minor.is_some_and(|minor: u32| minor < 30)
}

fn with_devices() -> String {
    readme::block("`compose.yaml`")
}

fn with_reservation() -> String {
    readme::block("The same as a reservation")
}

fn devices(ground: &Ground, provider: &Provider) {
    let up = provider.up(ground, &with_devices());
    if is_old_compose(ground) {
        assert_refused(&up, "nvidia.com/gpu=shared");
        return;
    }
    readme::assert_met(&printed(&up), &["/dev/nvidia6"]);
}

fn reservation(ground: &Ground, provider: &Provider) {
    let up = provider.up(ground, &with_reservation());
    readme::assert_met(&printed(&up), &["/dev/nvidia6"]);
}

/// README.md has no block with it, only that it may be ignored.
fn gpus(ground: &Ground, provider: &Provider) {
    let request = format!("gpus: [{{driver: cdi, device_ids: [{SHARE}]}}]");
    let up = provider.up(ground, &with_devices().replace(&format!("devices: [{SHARE}]"), &request));
    if is_old_compose(ground) {
        assert_refused(&up, "nvidia-smi");
        return;
    }
    readme::assert_met(&printed(&up), &["/dev/nvidia6"]);
}

/// In `devices:` Compose takes a colon for the end of a path, so that a MIG device goes there by its UUID.
fn several_devices(ground: &Ground, provider: &Provider) {
    let short = (with_devices(), "MIG-8970491e-16e0-5140-9f8f-d561baa3c186");
    for (file, mig) in [short, (with_reservation(), "0:1")] {
        if file == with_devices() && is_old_compose(ground) {
            continue;
        }
        let two = format!("{SHARE}, \"nvidia.com/gpu={mig}\"");
        let up = provider.up(ground, &file.replace(SHARE, &two));
        let capabilities = ["/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"];
        let nodes = ["/dev/nvidia0", "/dev/nvidia6", capabilities[0], capabilities[1]];
        readme::assert_met(&printed(&up), &nodes);
    }
}

/// Each replica takes a share of the pool, and there are four. A fifth starts when there is one for it, not before.
fn replicas(ground: &Ground, provider: &Provider) {
    let file = with_reservation().replace("deploy:\n", "deploy:\n      replicas: 4\n");
    let file = file.replace("command: nvidia-smi", "command: sleep 600");
    let command = provider.command;
    let held = "divvy ps --state-dir /run/shares | grep -o '^shared-[0-9]*' | sort | xargs echo";
    let output = provider.with(
        ground,
        &file,
        &format!(
            "{command} up --detach && {held}
             ! {command} up --detach --no-recreate --scale gpu=5 && {held}
             echo $({command} ps --quiet --status running | wc -l)"
        ),
    );
    let four = "shared-0 shared-1 shared-2 shared-3";
    assert_eq!(output.ok(), format!("{four}\n{four}\n4"), "{}", output.stderr);
}

fn name_with_colon(ground: &Ground, provider: &Provider) {
    let up = provider.up(ground, &with_devices().replace("=shared", "=0:1"));
    assert_refused(&up, "nvidia.com/gpu=0");
}

fn unknown_device(ground: &Ground, provider: &Provider) {
    for file in [with_devices(), with_reservation()] {
        let up = provider.up(ground, &file.replace("=shared", "=shared-9"));
        assert_refused(&up, "nvidia.com/gpu=shared-9");
    }
}
