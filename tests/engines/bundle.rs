//! A bundle for runc or crun, as an engine would make it: a small configuration of this module's own with CDI's edits
//! applied to it by the rules of CDI's specification. Nothing of divvy's code is in between, and no engine's.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::ground::Ground;

const SCRIPT: &str = include_str!("bundle.sh");
/// Above every path where a tree has the test program.
const PATH: &str = "PATH=/usr/bin:/bin:/";

/// A runtime, and who calls it.
#[derive(Debug)]
pub struct Runtime {
    /// Its column in docs/images.md.
    pub name: &'static str,
    /// How it is called.
    call: &'static str,
    /// A user's containers have a user namespace and no cgroup, and their nodes are the host's, bind mounted.
    pub rootful: bool,
}

/// Every runtime that trials run on.
pub const RUNTIMES: [Runtime; 4] = [
    Runtime { name: "runc", call: "runc", rootful: true },
    Runtime { name: "crun", call: "crun", rootful: true },
    Runtime { name: "runc-rootless", call: "runc", rootful: false },
    Runtime { name: "crun-rootless", call: "crun --cgroup-manager=disabled", rootful: false },
];

/// What one run did.
#[derive(Debug)]
pub struct Run {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// What is new or other below the root, apart from what is mounted there: its path, without the first `/`, its kind
    /// as find(1) says it, and its size in bytes.
    pub changed: Vec<(String, String, u64)>,
}

impl Runtime {
    /// Runs configurations one after the other on one root, and then a shell script beside that root's files.
    #[track_caller]
    pub fn run(&self, ground: &Ground, tree: &str, configs: &[Value], look: &str) -> (Vec<Run>, String) {
        let configs: Vec<String> = configs.iter().map(Value::to_string).collect();
        let mut command = vec!["sh", "-c", SCRIPT, "bundle.sh", tree, look, self.call];
        command.extend(configs.iter().map(String::as_str));
        let output = ground.command(if self.rootful { "in.sh" } else { "as-user.sh" }, &command);
        let said = format!("{}\n", output.ok());
        let mut sections: Vec<&str> = said.split("--\n").collect();
        let looked = sections.pop().unwrap_or_default().trim_end().to_owned();
        assert_eq!(sections.len(), 3 * configs.len(), "{output:?}");
        (sections.chunks(3).map(Run::parse).collect(), looked)
    }

    /// A configuration without devices.
    pub fn config(&self, args: &[&str]) -> Value {
        let namespaces = ["pid", "mount", "ipc", "uts"].into_iter().chain((!self.rootful).then_some("user"));
        let namespaces: Vec<Value> = namespaces.map(|kind| json!({"type": kind})).collect();
        let mut linux = json!({"namespaces": namespaces});
        if self.rootful {
            linux["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
        } else {
            let mapping = json!([{"containerID": 0, "hostID": 1001, "size": 1}]);
            linux["uidMappings"] = mapping.clone();
            linux["gidMappings"] = mapping;
        }
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": [PATH],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs", "readonly": false},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
            ],
            "linux": linux,
        })
    }

    /// The same with what CDI has for `nvidia.com/gpu=DEVICE` in the machine.
    #[track_caller]
    pub fn with_device(&self, ground: &Ground, args: &[&str], device: &str) -> Value {
        let specs = specs(ground);
        let of_device = |spec: &&Value| find_device(spec, device).is_some();
        let spec = specs.iter().find(of_device).unwrap_or_else(|| panic!("no spec has {device}"));
        self.with_device_of(ground, args, spec, device)
    }

    /// The same with what a spec has for a device.
    #[track_caller]
    pub fn with_device_of(&self, ground: &Ground, args: &[&str], spec: &Value, device: &str) -> Value {
        let mut config = self.config(args);
        // The device's own first, as CDI's library has it: what the whole spec says is applied once, after all devices.
        for edits in find_device(spec, device).into_iter().chain([spec]) {
            self.apply(ground, &mut config, &edits["containerEdits"]);
        }
        let mounts = config["mounts"].as_array_mut().expect("a list");
        mounts.sort_by_key(|mount| mount["destination"].as_str().map(|path| path.matches('/').count()));
        config
    }

    fn apply(&self, ground: &Ground, config: &mut Value, edits: &Value) {
        let known =
            ["env", "deviceNodes", "mounts", "hooks", "additionalGids"].map(|key| list(&edits[key]).len());
        let there: usize =
            edits.as_object().into_iter().flat_map(Map::values).map(|all| list(all).len()).sum();
        assert_eq!(known.iter().sum::<usize>(), there, "edits that this module does not know: {edits}");
        for variable in list(&edits["env"]) {
            let name = variable.as_str().and_then(|text| text.split('=').next()).expect("NAME=VALUE");
            let is_it =
                |other: &Value| other.as_str().is_some_and(|text| text.split('=').next() == Some(name));
            replace(&mut config["process"]["env"], is_it, variable.clone());
        }
        for node in list(&edits["deviceNodes"]) {
            self.apply_node(ground, config, node);
        }
        for mount in list(&edits["mounts"]) {
            let place = &mount["containerPath"];
            let edited = json!({
                "destination": place,
                "source": mount["hostPath"],
                "type": mount.get("type").unwrap_or(&json!("bind")),
                "options": mount["options"],
            });
            replace(&mut config["mounts"], |other| &other["destination"] == place, edited);
        }
        for hook in list(&edits["hooks"]) {
            let mut edited = hook.clone();
            let phase = edited.as_object_mut().and_then(|hook| hook.remove("hookName")).expect("a phase");
            push(&mut config["hooks"][phase.as_str().expect("a name")], edited);
        }
        // A user has no groups to give.
        for group in list(&edits["additionalGids"]).iter().filter(|_| self.rootful) {
            push(&mut config["process"]["user"]["additionalGids"], group.clone());
        }
    }

    fn apply_node(&self, ground: &Ground, config: &mut Value, node: &Value) {
        let path = node["path"].as_str().expect("a path");
        let host = node["hostPath"].as_str().unwrap_or(path);
        if !self.rootful {
            let options = ["rbind", "rprivate", "rw", "nosuid", "noexec"];
            let mount = json!({"destination": path, "source": host, "type": "bind", "options": options});
            return replace(&mut config["mounts"], |other| other["destination"] == path, mount);
        }
        let numbers = numbers(ground);
        let (major, minor) = numbers.get(host).unwrap_or_else(|| panic!("the machine has no {host}"));
        let mut device = json!({"path": path, "type": "c", "major": major, "minor": minor});
        for key in ["fileMode", "uid", "gid"] {
            if let Some(value) = node.get(key) {
                device[key] = value.clone();
            }
        }
        replace(&mut config["linux"]["devices"], |other| other["path"] == path, device);
        let access = node["permissions"].as_str().unwrap_or("rwm");
        push(
            &mut config["linux"]["resources"]["devices"],
            json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": access}),
        );
    }
}

impl Run {
    fn parse(sections: &[&str]) -> Self {
        let (status, stdout) = sections[0].split_once('\n').unwrap_or_default();
        let changed = sections[2].lines().map(|line| {
            let fields: Vec<&str> = line.rsplitn(3, '|').collect();
            (fields[2].to_owned(), fields[1].to_owned(), fields[0].parse().expect("a size"))
        });
        Self {
            status: status.strip_prefix("status ").and_then(|status| status.parse().ok()).expect("a status"),
            stdout: stdout.trim_end().to_owned(),
            stderr: sections[1].to_owned(),
            changed: changed.collect(),
        }
    }
}

/// The specs that the machine's engines read.
fn specs(ground: &Ground) -> &'static [Value] {
    static SPECS: OnceLock<Vec<Value>> = OnceLock::new();
    SPECS.get_or_init(|| {
        let text = ground.sh("cat /var/run/cdi/*.json");
        let specs = serde_json::Deserializer::from_str(text.ok()).into_iter();
        let specs = specs.map(|spec| spec.expect("JSON"));
        specs.filter(|spec: &Value| spec["kind"] == "nvidia.com/gpu").collect()
    })
}

fn find_device<'a>(spec: &'a Value, name: &str) -> Option<&'a Value> {
    list(&spec["devices"]).iter().find(|device| device["name"] == name)
}

/// The machine's nodes, by path. A spec of divvy's has no numbers: who applies it looks at the host.
fn numbers(ground: &Ground) -> &'static BTreeMap<String, (u32, u32)> {
    static NUMBERS: OnceLock<BTreeMap<String, (u32, u32)>> = OnceLock::new();
    NUMBERS.get_or_init(|| {
        let nodes = ground.sh("find /dev -type c -exec stat -c '%n %Hr %Lr' {} +");
        let numbers = nodes.ok().lines().map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let number = |field: &str| field.parse().expect("a number");
            (fields[0].to_owned(), (number(fields[1]), number(fields[2])))
        });
        numbers.collect()
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn push(place: &mut Value, value: Value) {
    match place {
        Value::Array(values) => values.push(value),
        other => *other = json!([value]),
    }
}

/// Adds a value in the place of those that it replaces.
fn replace(place: &mut Value, is_replaced: impl Fn(&Value) -> bool, value: Value) {
    if let Value::Array(values) = place {
        values.retain(|other| !is_replaced(other));
    }
    push(place, value);
}
