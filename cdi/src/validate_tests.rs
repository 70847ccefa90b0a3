use serde_json::{Value, json};

use super::*;

/// A spec that breaks no rule, as JSON, so that a case is one pointer and one value.
fn valid() -> Value {
    json!({
        "cdiVersion": "0.7.0",
        "kind": "example.com/gpu",
        "annotations": {"example.com/note": "x"},
        "devices": [{
            "name": "shared-0",
            "annotations": {"limit": "x"},
            "containerEdits": {
                "env": ["A=", "B=c=d"],
                "deviceNodes": [
                    {"path": "/dev/x0", "hostPath": "/dev/y0", "type": "c", "major": 0, "minor": 0,
                     "fileMode": 0o7777, "permissions": "rwm"},
                    {"path": "/dev/x1", "permissions": ""},
                ],
            },
        }, {
            "name": "0",
            "containerEdits": {"additionalGids": [0]},
        }],
        "containerEdits": {
            "hooks": [{"hookName": "createRuntime", "path": "/usr/bin/hook", "args": ["hook", ""], "env": ["A=b"],
                       "timeout": 1}],
            "mounts": [
                {"hostPath": "/a/../b", "containerPath": "/b", "type": "bind", "options": ["ro"]},
                {"hostPath": "/b", "containerPath": "/c..d", "type": "bind"},
            ],
        },
    })
}

/// What `validate` says of the valid spec with one value put in at a JSON pointer (a last `-` appends).
fn with(pointer: &str, value: Value) -> Vec<String> {
    let mut spec = valid();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap() {
        Value::Object(fields) => {
            fields.insert(key.replace("~1", "/"), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        other => panic!("{parent} is {other}"),
    }
    let spec = Spec::parse(&spec.to_string()).unwrap();
    match validate(&spec) {
        Ok(()) => Vec::new(),
        Err(InvalidSpec { violations }) => violations.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn valid_specs_pass() {
    for (pointer, value) in [
        ("/cdiVersion", json!("v0.7.0")),
        ("/cdiVersion", json!("1.1.0")),
        ("/containerEdits", json!({})),
        // The same node in two devices, and in a device and the spec, is one node in the container.
        ("/devices/1/containerEdits/deviceNodes", json!([{"path": "/dev/x0"}])),
        ("/containerEdits/deviceNodes", json!([{"path": "/dev/x0"}])),
        ("/annotations/Example.COM~1A_b.C", json!("x")),
    ] {
        assert_eq!(with(pointer, value), [""; 0], "{pointer}");
    }
}

#[test]
fn each_rule_names_device_field_and_reason() {
    let node = "/devices/0/containerEdits/deviceNodes/0";
    let hook = "/containerEdits/hooks/0";
    let mount = "/containerEdits/mounts/1";
    for (pointer, value, message) in [
        (
            "/cdiVersion".to_owned(),
            json!("0.6"),
            "cdiVersion: no CDI version from 0.3.0 to 1.1.0 is called \"0.6\"",
        ),
        ("/cdiVersion".into(), json!("0.6.0"), "cdiVersion: is 0.6.0, but the content needs 0.7.0"),
        (
            "/annotations/a~1b~1c".into(),
            json!(""),
            "annotations: \"a/b/c\" is not an annotation key: it is written name or prefix/name, as in Kubernetes",
        ),
        (
            "/devices/1/annotations".into(),
            json!({"-a": ""}),
            "device 0: annotations: \"-a\" is not an annotation key: it is written name or prefix/name, as in Kubernetes",
        ),
        (
            "/devices/1/annotations".into(),
            json!({"a": "x".repeat(262_144)}),
            "device 0: annotations: 262145 bytes are more than the 262144 that CDI takes",
        ),
        (
            "/devices/1/name".into(),
            json!("shared-0"),
            "device shared-0: name: \"shared-0\" stands there twice",
        ),
        ("/devices/1/containerEdits".into(), json!({}), "device 0: containerEdits: is empty"),
        (
            "/devices/0/containerEdits/env/1".into(),
            json!("B"),
            "device shared-0: containerEdits.env[1]: \"B\" is not NAME=value",
        ),
        (
            "/devices/0/containerEdits/env/1".into(),
            json!("=c"),
            "device shared-0: containerEdits.env[1]: \"=c\" is not NAME=value",
        ),
        (
            "/devices/0/containerEdits/env/0".into(),
            json!("A=\0"),
            "device shared-0: containerEdits.env[0]: holds a NUL byte",
        ),
        (
            "/devices/0/containerEdits/deviceNodes/1/path".into(),
            json!("/dev//x0"),
            "device shared-0: containerEdits.deviceNodes[1].path: \"/dev//x0\" stands there twice",
        ),
        (
            format!("{node}/path"),
            json!("dev/x"),
            "device shared-0: containerEdits.deviceNodes[0].path: \"dev/x\" is not an absolute path",
        ),
        (
            format!("{node}/path"),
            json!(""),
            "device shared-0: containerEdits.deviceNodes[0].path: \"\" is not an absolute path",
        ),
        (
            format!("{node}/path"),
            json!("/dev/../x"),
            "device shared-0: containerEdits.deviceNodes[0].path: \"/dev/../x\" holds \"..\"",
        ),
        (
            format!("{node}/path"),
            json!("/dev/\0"),
            "device shared-0: containerEdits.deviceNodes[0].path: holds a NUL byte",
        ),
        (
            format!("{node}/hostPath"),
            json!("y"),
            "device shared-0: containerEdits.deviceNodes[0].hostPath: \"y\" is not an absolute path",
        ),
        (
            format!("{node}/type"),
            json!("x"),
            "device shared-0: containerEdits.deviceNodes[0].type: \"x\" is none of b, c, u and p",
        ),
        (
            format!("{node}/major"),
            json!(-1),
            "device shared-0: containerEdits.deviceNodes[0].major: -1 is negative",
        ),
        (
            format!("{node}/minor"),
            json!(-2),
            "device shared-0: containerEdits.deviceNodes[0].minor: -2 is negative",
        ),
        (
            format!("{node}/fileMode"),
            json!(0o20666),
            "device shared-0: containerEdits.deviceNodes[0].fileMode: 0o20666 is more than 0o7777",
        ),
        (
            format!("{node}/permissions"),
            json!("rx"),
            "device shared-0: containerEdits.deviceNodes[0].permissions: \"rx\" is not made of r, w and m",
        ),
        (
            format!("{hook}/path"),
            json!("hook"),
            "containerEdits.hooks[0].path: \"hook\" is not an absolute path",
        ),
        (
            format!("{hook}/args/0"),
            json!(""),
            "containerEdits.hooks[0].args[0]: is empty where the program's name belongs",
        ),
        (format!("{hook}/args/1"), json!("\0"), "containerEdits.hooks[0].args[1]: holds a NUL byte"),
        (
            format!("{hook}/env"),
            json!([]),
            "containerEdits.hooks[0].env: is empty, so the hook would inherit an environment that is not its own",
        ),
        (format!("{hook}/env/0"), json!("A"), "containerEdits.hooks[0].env[0]: \"A\" is not NAME=value"),
        (format!("{hook}/timeout"), json!(0), "containerEdits.hooks[0].timeout: 0 seconds fail at once"),
        (format!("{hook}/timeout"), json!(-5), "containerEdits.hooks[0].timeout: -5 seconds fail at once"),
        (
            format!("{mount}/hostPath"),
            json!("tmpfs"),
            "containerEdits.mounts[1].hostPath: \"tmpfs\" is not an absolute path",
        ),
        (
            format!("{mount}/containerPath"),
            json!("c"),
            "containerEdits.mounts[1].containerPath: \"c\" is not an absolute path",
        ),
        (
            format!("{mount}/containerPath"),
            json!("/c/.."),
            "containerEdits.mounts[1].containerPath: \"/c/..\" holds \"..\"",
        ),
        (
            format!("{mount}/containerPath"),
            json!("/b/"),
            "containerEdits.mounts[1].containerPath: \"/b/\" stands there twice",
        ),
        (
            format!("{mount}/type"),
            json!(""),
            "containerEdits.mounts[1].type: is missing, which some runtimes crash on",
        ),
        // A bind option does not stand in for the type: crun crashes all the same.
        (
            mount.to_owned(),
            json!({"hostPath": "/b", "containerPath": "/c", "options": ["bind"]}),
            "containerEdits.mounts[1].type: is missing, which some runtimes crash on",
        ),
    ] {
        assert_eq!(with(&pointer, value), [message], "{pointer}");
    }
}

#[test]
fn a_spec_without_devices_is_refused() {
    assert_eq!(with("/devices", json!([])), ["devices: there is none"]);
}

#[test]
fn all_violations_are_reported_at_once() {
    let spec = Spec::parse(
        r#"{"cdiVersion":"0.3.0","kind":"aa/bb","devices":[{"name":"0"},{"name":"0","containerEdits":{"env":["x"]}}],
            "containerEdits":{"mounts":[{"hostPath":"/a","containerPath":"b"}]}}"#,
    )
    .unwrap();
    assert_eq!(
        validate(&spec).unwrap_err().to_string(),
        "cdiVersion: is 0.3.0, but the content needs 0.5.0; \
         device 0: containerEdits: is empty; \
         device 0: name: \"0\" stands there twice; \
         device 0: containerEdits.env[0]: \"x\" is not NAME=value; \
         containerEdits.mounts[0].containerPath: \"b\" is not an absolute path; \
         containerEdits.mounts[0].type: is missing, which some runtimes crash on"
    );
}

#[test]
fn annotation_keys_keep_to_kubernetes_rules() {
    for (key, good) in [
        ("a", true),
        ("a/b", true),
        ("divvy.example/memory.by", true),
        (&"n".repeat(63), true),
        (&"n".repeat(64), false),
        (&format!("{}/n", "p".repeat(254)), false),
        ("", false),
        ("/a", false),
        ("a/", false),
        ("a..b/c", false),
        ("a_b/c", false),
        ("a b", false),
        ("ä", false),
        ("a-", false),
    ] {
        assert_eq!(is_annotation_key(key), good, "{key:?}");
    }
}
