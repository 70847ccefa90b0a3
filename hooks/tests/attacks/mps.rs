//! The directories of an MPS server, which the hook mounts: what stands at their places in the container, and what stands
//! on the host where a lease says they are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::ground::Outcomes;
use crate::leases::{granted, with};

/// A server's directory as its supervisor keeps it.
const FRONT: &str = r#"rm -rf "$LEASES/../front"; mkdir "$LEASES/../front"; : >"$LEASES/../front/control""#;
/// Mounted once at PLACE, for reading alone.
const MOUNTED: &str = r#"
    [ -f "$ROOTPLACE/control" ] && ! touch "$ROOTPLACE/other" 2>/dev/null && ! rm -f "$ROOTPLACE/control" 2>/dev/null &&
    [ "$(awk -v at="$(realpath "$ROOTPLACE")" '$5 == at && $6 ~ /^ro,nosuid,nodev,noexec/' /proc/self/mountinfo | wc -l)" = 1 ] &&
    [ "$(ls "$LEASES/../front")" = control ]"#;
const NOT_MOUNTED: &str =
    r#"[ ! -e "$ROOT/tmp/nvidia-mps/control" ] && [ "$(cat "$ROOT/etc/victim")" = kept ]"#;

fn lease() -> Value {
    let mut lease = granted();
    lease["remove"] = json!([]);
    lease["mps"] = json!({"front": "MOVED/front", "shared_memory": null});
    lease
}

/// At a place that may be another than the one that is named, by links of the image's.
fn mounted_at(place: &str, script: &str) -> Outcomes {
    let after = MOUNTED.replace("PLACE", place);
    with(&format!("{FRONT}\n{script}"), &lease().to_string(), &after)
}

fn mounted(script: &str) -> Outcomes {
    mounted_at("/tmp/nvidia-mps", script)
}

fn refused(script: &str) -> Outcomes {
    with(&format!("{FRONT}\n{script}"), &lease().to_string(), NOT_MOUNTED)
}

/// What engines and images have there.
pub fn places() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        "",
        r#"mkdir -p "$ROOT/tmp""#,
        r#"mkdir -p -m 1777 "$ROOT/tmp/nvidia-mps""#,
        // --tmpfs /tmp, as for a root that is read-only later.
        r#"mkdir -p "$ROOT/tmp"; mount -t tmpfs none "$ROOT/tmp""#,
        r#"mkdir -p "$ROOT/tmp/nvidia-mps"; mount -t tmpfs none "$ROOT/tmp/nvidia-mps""#,
        // -v /tmp:/tmp of a host that has an MPS server of its own.
        r#"mkdir -p "$LEASES/../volume/nvidia-mps" "$ROOT/tmp"; mount --bind "$LEASES/../volume" "$ROOT/tmp""#,
        r#"mkdir -p "$LEASES/../volume" "$ROOT/tmp/nvidia-mps"; mount --bind "$LEASES/../volume" "$ROOT/tmp/nvidia-mps""#,
    ] {
        outcomes.extend(mounted(script));
    }
    outcomes
}

/// What an image or a user may have put there.
pub fn in_the_way() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let place = r#""$ROOT/tmp/nvidia-mps""#;
    let once = |command: &str| {
        format!(r#"mkdir -p "$ROOT/tmp"; [ -L {place} ] || [ -e {place} ] || {command} {place}"#)
    };
    for command in [
        "touch",
        "mkfifo",
        "ln -s /etc",
        "ln -s /",
        "ln -s nvidia-mps",
        "ln -s nowhere",
        r#"ln -s "$LEASES""#,
        "ln -s ../../host",
        "ln -s /proc/self/root",
    ] {
        outcomes.extend(mounted(&once(command)));
    }
    let once = |target: &str| format!(r#"[ -L "$ROOT/tmp" ] || ln -s '{target}' "$ROOT/tmp""#);
    for (target, place) in [
        ("/var/tmp", "/var/tmp/nvidia-mps"),
        ("../../../../var/tmp", "/var/tmp/nvidia-mps"),
        ("/", "/nvidia-mps"),
        ("..", "/nvidia-mps"),
        ("/etc", "/etc/nvidia-mps"),
        ("dev", "/dev/nvidia-mps"),
    ] {
        outcomes.extend(mounted_at(place, &once(target)));
    }
    // The same directory, which its container could write to.
    let writable =
        r#"mkdir -p "$ROOT/tmp/nvidia-mps"; mount --bind "$LEASES/../front" "$ROOT/tmp/nvidia-mps""#;
    outcomes.extend(mounted(writable));
    outcomes
}

/// What could be mounted over only after something was made, or taken away, in a volume.
pub fn volumes() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let volume = r#"mkdir -p "$LEASES/../volume" "$ROOT/tmp"; mount --bind "$LEASES/../volume" "$ROOT/tmp""#;
    for script in [
        "",
        r#"touch "$ROOT/tmp/nvidia-mps""#,
        r#"[ -L "$ROOT/tmp/nvidia-mps" ] || ln -s /etc "$ROOT/tmp/nvidia-mps""#,
    ] {
        outcomes.extend(refused(&format!("{volume}\n{script}")));
    }
    for script in [
        // A tmpfs that others have too.
        r#"mkdir -p "$LEASES/../volume" "$ROOT/tmp"; mount -t tmpfs none "$LEASES/../volume"
           mount --bind "$LEASES/../volume" "$ROOT/tmp""#,
        r#"mkdir -p "$ROOT/tmp"; touch "$ROOT/tmp/nvidia-mps"; : >"$LEASES/../file"
           mount --bind "$LEASES/../file" "$ROOT/tmp/nvidia-mps""#,
        r#"mkdir -p "$LEASES/../volume" "$ROOT/var/tmp"; mount --bind "$LEASES/../volume" "$ROOT/var/tmp"
           [ -L "$ROOT/tmp" ] || ln -s var/tmp "$ROOT/tmp""#,
        r#"[ -e "$ROOT/tmp" ] || touch "$ROOT/tmp""#,
        r#"mount --rbind /proc "$ROOT/proc"; [ -L "$ROOT/tmp" ] || ln -s /proc/self/root/etc "$ROOT/tmp""#,
    ] {
        outcomes.extend(refused(script));
    }
    outcomes
}

/// A root, or a volume, whose mounts other mount namespaces see (`-v /tmp:/tmp:rshared`).
pub fn shared() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"mount --bind "$ROOT" "$ROOT"; mount --make-shared "$ROOT"; mkdir -p "$ROOT/tmp/nvidia-mps""#,
        r#"mkdir -p "$LEASES/../volume/nvidia-mps" "$ROOT/tmp"; mount --bind "$LEASES/../volume" "$ROOT/tmp"
           mount --make-shared "$ROOT/tmp""#,
        r#"mkdir -p "$ROOT/tmp/nvidia-mps"; mount -t tmpfs none "$ROOT/tmp/nvidia-mps"
           mount --make-shared "$ROOT/tmp/nvidia-mps""#,
    ] {
        outcomes.extend(refused(script));
    }
    outcomes
}

/// On the host.
pub fn odd() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"chmod 775 "$LEASES/../front""#,
        r#"chmod 1777 "$LEASES/../front""#,
        r#"chown 1000 "$LEASES/../front""#,
        r#"touch "$LEASES/../front/control_privileged""#,
        r#"touch "$LEASES/../front/.control""#,
        r#"rm -rf "$LEASES/../front""#,
        r#"rm -rf "$LEASES/../front"; ln -s leases "$LEASES/../front""#,
        r#"rm -rf "$LEASES/../front"; touch "$LEASES/../front""#,
    ] {
        outcomes.extend(refused(script));
    }
    for mps in [
        json!({"front": "front"}),
        json!({"front": ""}),
        json!({"front": 1}),
        json!({"shared_memory": "MOVED/front"}),
        json!([]),
        json!("MOVED/front"),
        json!(true),
    ] {
        let mut lease = lease();
        lease["mps"] = mps;
        outcomes.extend(with(FRONT, &lease.to_string(), NOT_MOUNTED));
    }
    outcomes
}

fn with_memory() -> String {
    let mut lease = lease();
    lease["mps"]["shared_memory"] = json!("MOVED/shm");
    lease.to_string()
}

const SHARED: &str = r#"mkdir -p "$LEASES/../shm"; mount -t tmpfs -o mode=1777 none "$LEASES/../shm""#;

/// Where the container has one of its own, the host's, or none.
pub fn memory() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let after = r#"touch "$ROOT/dev/shm/of-all" && [ -e "$LEASES/../shm/of-all" ] &&
        [ "$(awk -v at="$(realpath "$ROOT/dev/shm")" '$5 == at && $6 ~ /^rw,nosuid,nodev,noexec/' /proc/self/mountinfo | wc -l)" = 1 ]"#;
    for script in [
        "",
        r#"mkdir "$ROOT/dev/shm"; mount -t tmpfs none "$ROOT/dev/shm""#,
        r#"mkdir "$ROOT/dev/shm"; mount --bind /dev/shm "$ROOT/dev/shm""#,
    ] {
        outcomes.extend(with(&format!("{FRONT}\n{SHARED}\n{script}"), &with_memory(), after));
    }
    outcomes
}

/// A directory that is of no bounded size, and one of others'.
pub fn no_memory() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"mkdir -p "$LEASES/../shm""#,
        r#"rm -rf "$LEASES/../shm""#,
        r#"mkdir -p "$LEASES/../shm"; mount -t tmpfs -o uid=1000 none "$LEASES/../shm""#,
        r#"touch "$LEASES/../file"; rm -rf "$LEASES/../shm"; ln -sf file "$LEASES/../shm""#,
    ] {
        outcomes.extend(with(
            &format!("{FRONT}\n{script}"),
            &with_memory(),
            r#"[ ! -e "$ROOT/dev/shm/of-all" ]"#,
        ));
    }
    outcomes
}
