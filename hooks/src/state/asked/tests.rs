use serde_json::{Value, json};

use super::*;

const HOOK: &str = "/usr/local/bin/divvy-hook";

fn own() -> CreateRuntime {
    CreateRuntime::new(vec!["gpu=shared".parse().unwrap()])
}

/// Of a container in the host's user namespace.
fn asked(config: &Value) -> Asked {
    asked_in_config(config.to_string().as_bytes(), "divvy-hook", &own(), false).unwrap()
}

fn unbound(config: &Value) -> Option<Unbound> {
    asked(config).unbound
}

fn hook(path: &str, args: &[&str]) -> Value {
    json!({ "path": path, "args": args, "env": ["PATH=/usr/bin"] })
}

fn paths(nodes: &[PathBuf]) -> Vec<&str> {
    nodes.iter().map(|node| node.to_str().unwrap()).collect()
}

#[test]
fn devices_of_all_hooks_are_gathered_in_order() {
    let ask = |words: &[&str]| hook(HOOK, &[&["divvy-hook", "create-runtime"], words].concat());
    let hooks = json!([
        ask(&["--device=gpu=shared-3"]),
        hook("/usr/bin/other-hook", &["other-hook", "create-runtime", "--device=gpu=not-ours"]),
        hook(HOOK, &["another-name", "create-runtime", "--device=gpu=not-ours"]),
        hook("/usr/bin/env", &["divvy-hook", "create-runtime", "--device=gpu=not-ours"]),
        ask(&["--device=gpu=shared"]),
        hook(HOOK, &["divvy-hook", "create-container"]),
        hook(HOOK, &["divvy-hook"]),
        hook(HOOK, &[]),
        json!({ "path": HOOK }),
        json!({ "path": HOOK, "args": ["divvy-hook", "create-runtime", 7] }),
        ask(&["--device=gpu=of-a-newer-divvy", "--limit=1"]),
        ask(&["--device=gpu=of-another-daemon", "--state-dir=/srv/divvy"]),
        ask(&["--device=gpu=shared", "--device=gpu.large=large-0", "--start-timeout=3"]),
        null,
    ]);
    let names =
        |config: &Value| -> Vec<_> { asked(config).devices.iter().map(ToString::to_string).collect() };
    let gathered = ["gpu=shared-3", "gpu=shared", "gpu=shared", "gpu.large=large-0"];
    assert_eq!(names(&json!({ "hooks": { "createRuntime": hooks } })), gathered);
    // The words of this process, where the configuration does not have them.
    for config in [
        json!({}),
        json!({ "hooks": null }),
        json!({ "hooks": { "createRuntime": [ask(&["--device=gpu=shared-3"])] } }),
        json!({ "hooks": { "prestart": hooks, "createContainer": hooks } }),
    ] {
        assert_eq!(names(&config), ["gpu=shared"], "{config}");
    }
}

#[test]
fn nodes_are_the_drivers() {
    let device = |path: &str, kind: &str, major: i64, minor: i64| json!({ "path": path, "type": kind, "major": major, "minor": minor });
    let rule = |allow: bool, major: i64, minor: i64, access: &str| json!({ "allow": allow, "type": "c", "major": major, "minor": minor, "access": access });
    let config = json!({ "linux": {
        "devices": [
            device("/dev/null", "c", 1, 3),
            device("/dev/nvidiactl", "c", 195, 255),
            device("/dev/nvidia0", "c", 195, 0),
            device("/dev/nvidia-caps/nvidia-cap3", "c", 510, 3),
            device("//dev/./dri//card1", "c", 226, 1),
            device("/dev/sda", "b", 195, 9),
            device("/dev/nvidia9", "p", 0, 0),
            device("/dev/nvidia0", "c", 195, 0),
            device("/dev/renamed", "c", 195, 1),
            device("/nvidia3", "u", 11, 1),
            json!({ "path": "/dev/nvidia4", "type": "u" }),
            json!({ "type": "c" }),
            null,
        ],
        "resources": { "devices": [
            rule(false, 195, 7, "rwm"),
            rule(true, 195, 0, "rw"),
            rule(true, 195, 2, "r"),
            rule(true, 195, 6, "m"),
            rule(true, 195, 255, "rw"),
            rule(true, 226, 8, "rw"),
            // `--device-cgroup-rule 'c *:3 rw'`
            rule(true, -1, 3, "rw"),
        ] },
    } });
    let expected = [
        "/dev/nvidiactl",
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap3",
        "/dev/dri/card1",
        "/dev/nvidia4",
        "/dev/nvidia1",
        "/dev/nvidia2",
        "/dev/nvidia3",
    ];
    assert_eq!(paths(&asked(&config).nodes), expected);
    assert_eq!(unbound(&config), None);
}

#[test]
fn rules_that_allow_every_gpu_are_found() {
    let docker = [
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" }),
        json!({ "allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "c", "major": 195, "minor": 0, "access": "rw" }),
        json!({ "allow": true, "type": "b", "access": "rwm" }),
        json!({ "allow": true, "type": "c", "major": 136, "access": "rwm" }),
    ];
    let all = json!({ "allow": true, "access": "rwm" });
    let none = json!({ "allow": false, "access": "rwm" });
    for (more, expected) in [
        (vec![], None),
        (vec![all.clone()], Some(Unbound::Privileged)),
        (vec![all.clone(), none.clone()], None),
        (vec![none.clone(), all.clone()], Some(Unbound::Privileged)),
        (vec![json!({ "allow": true, "type": "a", "access": "rwm" })], Some(Unbound::Privileged)),
        (vec![json!({ "allow": true, "type": "", "major": -1, "minor": -1 })], Some(Unbound::Privileged)),
        (vec![json!({ "allow": true, "type": "c", "access": "r" })], Some(Unbound::Privileged)),
        // `--device-cgroup-rule 'c 195:* rwm'`
        (
            vec![json!({ "allow": true, "type": "c", "major": 195, "access": "rwm" })],
            Some(Unbound::Privileged),
        ),
        // Some are denied, and all others stay.
        (
            vec![all.clone(), json!({ "allow": false, "type": "c", "major": 10, "access": "rwm" })],
            Some(Unbound::Privileged),
        ),
        (vec![all.clone(), json!({ "allow": false, "access": "m" })], Some(Unbound::Privileged)),
        (vec![all, json!({ "allow": false, "type": "c", "major": 195, "access": "rwm" })], None),
    ] {
        let rules = [&docker[..], &more].concat();
        let config = json!({ "linux": { "resources": { "devices": rules } } });
        assert_eq!(unbound(&config), expected, "{more:?}");
    }
}

#[test]
fn nodes_of_the_host_count_where_no_device_cgroup_is() {
    let bind = |source: &str| json!({ "destination": "/x", "type": "bind", "source": source, "options": ["rbind", "rprivate"] });
    let by_option = json!({ "destination": "/x", "source": "/dev", "options": ["rbind"] });
    let tmpfs = json!({ "destination": "/dev", "type": "tmpfs", "source": "/dev", "options": ["nosuid"] });
    for (mount, shows) in [
        (bind("/dev"), true),
        (bind("/dev/"), true),
        (bind("/"), true),
        (bind("/dev/nvidia0"), true),
        (bind("//dev/./nvidia15"), true),
        (bind("/dev/nvidia-caps"), true),
        (bind("/dev/nvidia-caps/nvidia-cap3"), true),
        (by_option, true),
        (bind("/dev/nvidiactl"), false),
        (bind("/dev/nvidia-uvm"), false),
        (bind("/dev/dri"), false),
        (bind("/dev/null"), false),
        (bind("/devices"), false),
        (bind("/home/dev"), false),
        (bind("dev"), false),
        (bind(""), false),
        (tmpfs, false),
        (json!({ "destination": "/x", "type": "bind" }), false),
        (Value::Null, false),
    ] {
        let rules = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        let ruled = json!({ "mounts": [mount], "linux": { "resources": rules } });
        let expected = shows.then_some(Unbound::HostDev);
        assert_eq!(unbound(&json!({ "mounts": [mount] })), expected, "{mount}");
        assert_eq!(unbound(&ruled), None, "{mount}");
        // Rootless engines write rules, and cannot hold them.
        let rootless = asked_in_config(ruled.to_string().as_bytes(), "divvy-hook", &own(), true);
        assert_eq!(rootless.unwrap().unbound, expected, "{mount}");
    }
}

/// Rootless Podman's `--device`: as a device is elsewhere.
#[test]
fn a_gpus_node_that_is_mounted_at_its_path_is_a_node() {
    let mount = |source: &str, destination: &str| {
        json!({ "destination": destination, "type": "bind", "source": source,
        "options": ["slave", "nosuid", "noexec", "rw", "rbind"] })
    };
    let config = |mounts: &[Value]| {
        let rules = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        let devices = json!([{ "path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0 }]);
        json!({ "mounts": mounts, "linux": { "devices": devices, "resources": rules } })
    };
    let asked = |config: &Value, in_user_namespace| {
        asked_in_config(config.to_string().as_bytes(), "divvy-hook", &own(), in_user_namespace).unwrap()
    };
    let one = config(&[mount("/dev/nvidia1", "//dev/./nvidia1"), mount("/dev/nvidia0", "/dev/nvidia0")]);
    let rootless = asked(&one, true);
    assert_eq!((paths(&rootless.nodes), rootless.unbound), (vec!["/dev/nvidia0", "/dev/nvidia1"], None));
    // The device cgroup keeps it shut.
    assert_eq!(paths(&asked(&one, false).nodes), ["/dev/nvidia0"]);
    for other in [
        mount("/dev/nvidia1", "/dev/nvidia0"),
        mount("/dev/nvidia1", "/x"),
        mount("/dev/nvidia-caps/nvidia-cap3", "/dev/nvidia-caps/nvidia-cap3"),
        mount("/dev", "/dev"),
        mount("/", "/"),
    ] {
        let asked = asked(&config(std::slice::from_ref(&other)), true);
        assert_eq!(
            (paths(&asked.nodes), asked.unbound),
            (vec!["/dev/nvidia0"], Some(Unbound::HostDev)),
            "{other}"
        );
    }
}

#[test]
fn nvidias_hook_counts_where_it_is_told_of_devices() {
    let with = |phase: &str, path: &str, env: &[&str]| json!({ "hooks": { phase: [hook(path, &["x"])] }, "process": { "env": env } });
    let path = "/usr/bin/nvidia-container-runtime-hook";
    for (config, expected) in [
        (with("prestart", path, &["NVIDIA_VISIBLE_DEVICES=all"]), true),
        (with("createRuntime", path, &["NVIDIA_VISIBLE_DEVICES=0"]), true),
        (with("prestart", "/usr/bin/nvidia-container-toolkit", &["NVIDIA_VISIBLE_DEVICES=0"]), true),
        (with("prestart", path, &["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=void"]), false),
        (with("prestart", path, &["NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_VISIBLE_DEVICES=all"]), true),
        (with("prestart", path, &["NVIDIA_VISIBLE_DEVICES=none"]), false),
        (with("prestart", path, &["NVIDIA_VISIBLE_DEVICES="]), false),
        (with("prestart", path, &["XNVIDIA_VISIBLE_DEVICES=0"]), false),
        (with("prestart", path, &[]), false),
        (with("poststop", path, &["NVIDIA_VISIBLE_DEVICES=all"]), false),
        (with("createContainer", "/usr/bin/nvidia-cdi-hook", &["NVIDIA_VISIBLE_DEVICES=all"]), false),
        (with("prestart", "/usr/bin/other", &["NVIDIA_VISIBLE_DEVICES=all"]), false),
    ] {
        assert_eq!(unbound(&config), expected.then_some(Unbound::NvidiaHook), "{config}");
    }
}

#[test]
fn the_host_names_file_is_the_hosts() {
    let mount = |destination: &str, source: &str| json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind"] });
    let file = |mounts: &[Value]| asked(&json!({ "mounts": mounts })).labels.hostname_file;
    let docker = "/var/lib/docker/containers/3f2a/hostname";
    assert_eq!(file(&[mount("/etc/hostname", docker), mount("/x", "/y")]), Some(docker.into()));
    assert_eq!(file(&[mount("/etc/hostname", "/a/../b")]), None);
    assert_eq!(file(&[mount("/etc/hostname", "hostname")]), None);
    assert_eq!(file(&[mount("/etc/hosts", docker)]), None);
}

#[test]
fn the_first_programs_user_is_told() {
    for (process, user) in [
        (json!({ "user": { "uid": 1000, "gid": 7 } }), 1000),
        (json!({ "user": { "uid": 4_294_967_294_u32 } }), 4_294_967_294),
        (json!({ "user": { "uid": 0 } }), 0),
        (json!({ "user": { "uid": -1 } }), 0),
        (json!({ "user": {} }), 0),
        (json!({ "user": "nobody" }), 0),
        (json!(null), 0),
    ] {
        assert_eq!(asked(&json!({ "process": process })).user, user, "{process}");
    }
}
