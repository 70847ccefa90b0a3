//! Leases that are not the container's own or not the daemon's, and what may stand in the place of the nodes that a lease
//! says to take away. Each attempt has a mount namespace of its own, and by its number its lease.

use std::collections::BTreeSet;
use std::process::Command;

use hooks::lease::{Container, Lease, VERSION};
use serde_json::{Value, json};

use crate::ground::{Ground, MOVED, Outcomes};

/// Stands for the number of the mount namespace, which is known only in it.
const NAMESPACE: u64 = 7_777_777;
/// A host's node that the container was given, and one that it was not; a lease that says so, in $FILE.
const START: &str = r#"
    umask 022
    rm -rf "$LEASES"; mkdir -p "$LEASES"
    mount -t tmpfs -o mode=755 none "$ROOT/dev"
    mkdir "$ROOT/dev/dri"
    mknod "$ROOT/dev/nvidia0" c 195 0; mknod "$ROOT/dev/nvidia1" c 195 1; mknod "$ROOT/dev/dri/card1" c 226 1
    FILE=$LEASES/$(stat -Lc %i /proc/self/ns/mnt).json
    lease() { printf %s "$LEASE" | sed "s/7777777/$(stat -Lc %i /proc/self/ns/mnt)/" >"$FILE"; }
    lease"#;
/// Neither node is touched by a hook that refuses the lease.
const ALL_THERE: &str =
    r#"[ -c "$ROOT/dev/nvidia0" ] && [ -c "$ROOT/dev/nvidia1" ] && [ -c "$ROOT/dev/dri/card1" ]"#;
/// What was not granted is gone, and its link is not made; and the rest stays.
const TAKEN: &str = r#"[ -c "$ROOT/dev/nvidia0" ] && [ ! -L "$ROOT/dev/nvidia1" ] && [ ! -e "$ROOT/dev/nvidia1" ] &&
    [ ! -e "$ROOT/dev/dri/card1" ] && [ ! -L "$ROOT/dev/dri/by-path/pci-0000:01:00.0-card" ]"#;

/// None at all, and those of other containers: the kernel uses numbers of namespaces again.
pub fn of_others() -> Outcomes {
    let mut outcomes = refused(r#"rm "$FILE""#);
    outcomes.extend(refused(r#"rm -r "$LEASES""#));
    outcomes.extend(refused(r#"mv "$FILE" "$LEASES/1.json""#));
    for (place, other) in [
        ("id", json!("c2")),
        ("id", json!("c")),
        ("bundle", json!("/run/other")),
        ("mount_namespace", json!(1)),
    ] {
        outcomes.extend(changed(|lease| lease["container"][place] = other.clone(), ALL_THERE));
    }
    outcomes
}

/// What is no lease, under the name of one.
pub fn odd() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"mv "$FILE" "$LEASES/real"; ln -s real "$FILE""#,
        r#"rm "$FILE"; mkfifo "$FILE""#,
        r#"rm "$FILE"; mkdir "$FILE""#,
        r#"rm "$FILE"; mknod "$FILE" c 1 5"#,
        r#"truncate -s 1T "$FILE""#,
        r#"head -c 2M /dev/zero | tr '\0' ' ' >>"$FILE""#,
        r#": >"$FILE""#,
        r#"truncate -s -1 "$FILE""#,
        r#"echo '[]' >"$FILE""#,
        r#"(yes '[' || :) | head -c 100000 >"$FILE""#,
    ] {
        outcomes.extend(refused(script));
    }
    outcomes.extend(changed(|lease| lease["version"] = json!(VERSION + 1), ALL_THERE));
    outcomes.extend(changed(|lease| lease["version"] = Value::Null, ALL_THERE));
    outcomes.extend(changed(|lease| lease["remove"] = Value::Null, ALL_THERE));
    outcomes.extend(changed(|lease| lease["remove"] = json!([1]), ALL_THERE));
    outcomes.extend(changed(|lease| lease["container"] = Value::Null, ALL_THERE));
    outcomes
}

/// Leases, and directories of leases, that others than root may write.
pub fn of_anybody() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"chmod 664 "$FILE""#,
        r#"chmod 646 "$FILE""#,
        r#"chown 1000 "$FILE""#,
        r#"chown 65534 "$FILE""#,
        r#"chmod 775 "$LEASES""#,
        r#"chmod 1777 "$LEASES""#,
        r#"chown 1000 "$LEASES""#,
    ] {
        outcomes.extend(refused(script));
    }
    outcomes
}

/// Leases that say to remove what is no device.
pub fn beyond_dev() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in [
        "/etc/victim",
        "/dev/../etc/victim",
        "/dev/./nvidia1",
        "/dev//nvidia1",
        "/dev/nvidia1/",
        "/dev",
        "/dev/",
        "/",
        "",
        "nvidia1",
        "dev/nvidia1",
        "/devices",
        "/dev/nvidia\n1",
    ] {
        // The bad one comes last: none is taken away before all are looked at.
        let remove = json!(["/dev/nvidia1", path]);
        let there = format!(r#"{ALL_THERE} && [ -f "$ROOT/etc/victim" ]"#);
        outcomes.extend(changed(|lease| lease["remove"] = remove.clone(), &there));
    }
    outcomes
}

/// In the place of a node: what is no node, and volumes, which are others'.
pub fn nothing_to_take() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let volume = r#"[ "$(cat "$LEASES/../volume")" = kept ]"#;
    for (script, after) in [
        (r#"rm "$ROOT/dev/nvidia1"; mkdir "$ROOT/dev/nvidia1""#, r#"[ -d "$ROOT/dev/nvidia1" ]"#),
        (r#"rm "$ROOT/dev/nvidia1"; mkfifo "$ROOT/dev/nvidia1""#, r#"[ -p "$ROOT/dev/nvidia1" ]"#),
        (r#"rm "$ROOT/dev/nvidia1"; echo x >"$ROOT/dev/nvidia1""#, r#"[ -f "$ROOT/dev/nvidia1" ]"#),
        (r#"echo kept >"$LEASES/../volume"; mount --bind "$LEASES/../volume" "$ROOT/dev/nvidia1""#, volume),
        (
            r#"mkdir -p "$LEASES/../dri"; [ -e "$LEASES/../dri/card1" ] || mknod "$LEASES/../dri/card1" c 226 1
               mount --bind "$LEASES/../dri" "$ROOT/dev/dri""#,
            r#"[ -c "$LEASES/../dri/card1" ]"#,
        ),
    ] {
        outcomes.extend(with(script, &text(&granted()), after));
    }
    outcomes
}

/// Links go, and what they lead to stays.
pub fn links() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for target in
        ["nvidia0", "/dev/nvidia0", "/etc/victim", "nowhere", "nvidia1", "../../host/etc/ld.so.conf"]
    {
        let script = format!(r#"rm "$ROOT/dev/nvidia1"; ln -s '{target}' "$ROOT/dev/nvidia1""#);
        outcomes.extend(with(
            &script,
            &text(&granted()),
            &format!(r#"{TAKEN} && [ -f "$ROOT/etc/victim" ]"#),
        ));
    }
    outcomes
}

/// The host's /dev in the container, and a volume, which may be a tmpfs too.
pub fn the_hosts_dev() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for script in [
        r#"mkdir -p "$LEASES/../dev"; cp -a "$ROOT/dev/." "$LEASES/../dev"; umount "$ROOT/dev"
           mount --bind "$LEASES/../dev" "$ROOT/dev""#,
        r#"mkdir -p "$LEASES/../dev"; mount --bind "$ROOT/dev" "$LEASES/../dev""#,
    ] {
        outcomes.extend(with(script, &text(&granted()), ALL_THERE));
    }
    outcomes
}

/// As engines bring them: nodes of the container's own, and the host's mounted over files, as often as they are asked for.
pub fn nodes() -> Outcomes {
    let mut outcomes = with("", &text(&granted()), TAKEN);
    let mounted = r#"
        mkdir -p "$LEASES/../nodes"; cp -a "$ROOT/dev/nvidia1" "$LEASES/../nodes/"
        rm "$ROOT/dev/nvidia1"; : >"$ROOT/dev/nvidia1"
        mount --bind "$LEASES/../nodes/nvidia1" "$ROOT/dev/nvidia1"
        mount --bind "$LEASES/../nodes/nvidia1" "$ROOT/dev/nvidia1""#;
    let after = format!(r#"{TAKEN} && [ -c "$LEASES/../nodes/nvidia1" ]"#);
    outcomes.extend(with(mounted, &text(&granted()), &after));
    // A hook of another spec has linked what this one's takes away.
    let linked =
        r#"mkdir "$ROOT/dev/dri/by-path"; ln -s ../card1 "$ROOT/dev/dri/by-path/pci-0000:01:00.0-card""#;
    outcomes.extend(with(linked, &text(&granted()), TAKEN));
    outcomes.extend(with(r#"rm "$ROOT/dev/nvidia1" "$ROOT/dev/dri/card1""#, &text(&granted()), TAKEN));
    outcomes
}

pub fn granted() -> Value {
    let lease = Lease {
        version: VERSION,
        container: Container {
            mount_namespace: NAMESPACE,
            pid: 1,
            start_time: 1,
            boot_id: "b".into(),
            cgroup: None,
            uid: 0,
            process_uid: Some(0),
            id: "c1".into(),
            bundle: "BUNDLE".into(),
            engine: None,
            name: None,
        },
        since: 1,
        asked: Vec::new(),
        devices: Vec::new(),
        remove: ["/dev/nvidia1", "/dev/dri/card1", "/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap9"]
            .map(Into::into)
            .into(),
        denied_by: None,
        mps: None,
    };
    serde_json::to_value(&lease).unwrap()
}

fn text(lease: &Value) -> String {
    lease.to_string()
}

/// After a lease was changed.
fn changed(change: impl Fn(&mut Value), after: &str) -> Outcomes {
    let mut lease = granted();
    change(&mut lease);
    with("", &text(&lease), after)
}

/// After its file was.
fn refused(script: &str) -> Outcomes {
    with(script, &text(&granted()), ALL_THERE)
}

/// Lays out a container with a lease, has a script change that, and runs the hook twice and then another script, which
/// fails where something is not as it must be.
pub fn with(script: &str, lease: &str, after: &str) -> Outcomes {
    let ground = Ground::new(format!("{script} {lease}"));
    ground.bundle.file("/etc/victim", b"kept");
    for directory in ["/dev", "/proc"] {
        std::fs::create_dir_all(ground.bundle.path(directory)).unwrap();
    }
    let bundle = ground.bundle.config().parent().unwrap().to_owned();
    let leases = ground.beside(MOVED).join("leases");
    ground.start_with(|| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        // The state is on standard input, once for each hook.
        command.arg(format!(
            "{START}\n{script}\nstate=$(cat)\nfor run in 1 2; do\n  status=0\n  \
             printf %s \"$state\" | \"$@\" 2>\"$LEASES.said\" || status=$?\n  [ $status = 0 ] || break\ndone\n\
             cat \"$LEASES.said\" >&2\n{{ {after}; }} || exit 99\nexit $status"
        ));
        let hook = ground.hook();
        command.arg("sh").arg(hook.get_program()).args(hook.get_args());
        command.arg(format!("--leases={}", leases.display())).arg("--mps");
        command.env("ROOT", ground.bundle.path("")).env("LEASES", &leases);
        command.env("LEASE", lease.replace("BUNDLE", bundle.to_str().unwrap()).replace("MOVED", ground.beside(MOVED).to_str().unwrap()));
        command
    })
}
