//! The CDI spec as data, and its JSON text in both directions (CDI SPEC.md, "CDI JSON Specification").
//! A spec can be held that no engine takes; [`crate::validate`](crate::validate()) tells. Reading takes unknown
//! fields in its stride, because other vendors' specs pass through here too; what it does not know it drops.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Serializer;
use thiserror::Error;

use crate::json::Lines;
use crate::name::{DeviceName, Kind};
use crate::version::Version;

/// Why a text is not a spec.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It is not JSON, or a field is missing, of another type, or holds a wrong name.
    #[error("the text is not a CDI spec in JSON")]
    Json {
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
}

/// One spec file: devices of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// The CDI version that the content keeps to, as text, because a file may claim one that nobody knows.
    pub cdi_version: String,
    /// The kind of all devices in this file.
    pub kind: Kind,
    /// Notes for people and tools; they never reach a container. Needs CDI 0.6.0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The devices, at least one for a valid spec.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Edits made once to every container that asks for at least one device of this file, before the devices' own.
    #[serde(default, skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

impl Spec {
    /// A spec of no devices, with the lowest CDI version; set `cdi_version` from
    /// [`minimum_version`](crate::minimum_version) once the content stands.
    pub fn new(kind: Kind) -> Self {
        Spec {
            cdi_version: Version::V0_3_0.to_string(),
            kind,
            annotations: BTreeMap::new(),
            devices: Vec::new(),
            container_edits: ContainerEdits::default(),
        }
    }

    /// The text of a spec file: the same bytes for the same spec, a line for each device and for each of the spec's
    /// own edits, and a line break at the end. It is YAML as well, as engines read it.
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        self.serialize(&mut Serializer::with_formatter(&mut text, Lines::default()))
            .expect("a spec has text keys only and memory takes every byte");
        text.push(b'\n');
        String::from_utf8(text).expect("JSON of text is text")
    }

    /// Reads a spec from JSON.
    ///
    /// # Errors
    /// [`ParseError::Json`] where the text is not JSON, a required field is missing, or a kind or a device name is
    /// one that engines do not take.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        serde_json::from_str(text).map_err(|source| ParseError::Json { source })
    }
}

/// One device: the name that a user asks for, and what it brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its name within the kind.
    pub name: DeviceName,
    /// Notes for people and tools; they never reach a container. Needs CDI 0.6.0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What a container that asks for it gets; not empty in a valid spec.
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

/// Changes to a container's OCI configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerEdits {
    /// `NAME=value` variables; they win over the image's and the user's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes to make in the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Programs that the runtime runs on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Files and directories to mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Supplementary groups of the container's first process. Needs CDI 0.7.0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

impl ContainerEdits {
    /// Whether they change nothing. Engines refuse a device of which this is true.
    pub fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.hooks.is_empty()
            && self.mounts.is_empty()
            && self.additional_gids.is_empty()
    }
}

/// A device node. What is left out, the engine reads from the host's node at container start, except the mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    /// Where it is in the container.
    pub path: String,
    /// Where it is on the host, if elsewhere. Needs CDI 0.5.0; rootless Podman does not honour it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `b` block, `c` or `u` character, `p` FIFO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Major device number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor device number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits. Without them engines make the node 0666, whatever the host's node has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// What the device cgroup allows: some of `r` read, `w` write, `m` mknod; all three if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// What is mounted, on the host.
    pub host_path: String,
    /// Where it is mounted, in the container.
    pub container_path: String,
    /// File system type, `bind` for host files. Needs CDI 0.4.0; a mount without one is not valid here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Mount options as in fstab(5), and `bind`, `rbind`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A program that the OCI runtime runs at one point of a container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// When it runs.
    pub hook_name: HookName,
    /// The program, on the host; for `startContainer`, in the container.
    pub path: String,
    /// Its arguments, the first of them argv\[0\].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its whole environment, `NAME=value`. An empty one is not "none" but inherited, so a valid hook has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds before the runtime gives up on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// The points of a container's life (OCI runtime-spec, config.md, "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    /// Deprecated; as `createRuntime`.
    Prestart,
    /// Namespaces are there, the root is not yet switched; runs on the host's side.
    CreateRuntime,
    /// After `createRuntime`, in the container's namespaces, still before the root is switched.
    CreateContainer,
    /// In the container, before the user's program.
    StartContainer,
    /// After the user's program was started.
    Poststart,
    /// After the container was deleted.
    Poststop,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn full() -> Spec {
        let mut spec = Spec::new("example.com/gpu".parse().unwrap());
        spec.cdi_version = "0.7.0".into();
        spec.annotations.insert("example.com/b".into(), "2".into());
        spec.annotations.insert("example.com/a".into(), "1".into());
        for name in ["0", "all"] {
            spec.devices.push(Device {
                name: name.parse().unwrap(),
                annotations: BTreeMap::from([("example.com/mode".into(), "mps".into())]),
                container_edits: ContainerEdits {
                    env: vec!["A=b".into()],
                    device_nodes: vec![
                        DeviceNode {
                            path: "/dev/x0".into(),
                            host_path: Some("/dev/y0".into()),
                            r#type: Some("c".into()),
                            major: Some(195),
                            minor: Some(0),
                            file_mode: Some(0o666),
                            permissions: Some("rw".into()),
                            uid: Some(0),
                            gid: Some(44),
                        },
                        DeviceNode { path: "/dev/xctl".into(), ..DeviceNode::default() },
                    ],
                    ..ContainerEdits::default()
                },
            });
        }
        spec.container_edits = ContainerEdits {
            hooks: vec![Hook {
                hook_name: HookName::CreateContainer,
                path: "/usr/bin/hook".into(),
                args: vec!["hook".into(), "createContainer".into()],
                env: vec!["PATH=/usr/bin".into()],
                timeout: Some(30),
            }],
            mounts: vec![Mount {
                host_path: "/usr/lib/libx.so.1".into(),
                container_path: "/usr/lib/libx.so.1".into(),
                r#type: Some("bind".into()),
                options: vec!["ro".into(), "nosuid".into()],
            }],
            additional_gids: vec![44],
            ..ContainerEdits::default()
        };
        spec
    }

    #[test]
    fn text_is_small_stable_and_one_line_for_each_thing() {
        let device = |name: &str| {
            format!(
                r#"{{"name":"{name}","annotations":{{"example.com/mode":"mps"}},"containerEdits":{{"env":["A=b"],"deviceNodes":[{{"path":"/dev/x0","hostPath":"/dev/y0","type":"c","major":195,"minor":0,"fileMode":438,"permissions":"rw","uid":0,"gid":44}},{{"path":"/dev/xctl"}}]}}}}"#
            )
        };
        let text = [
            "{",
            r#""cdiVersion":"0.7.0","#,
            r#""kind":"example.com/gpu","#,
            r#""annotations":{"#,
            r#""example.com/a":"1","#,
            r#""example.com/b":"2"},"#,
            r#""devices":["#,
            &format!("{},", device("0")),
            &format!("{}],", device("all")),
            r#""containerEdits":{"#,
            r#""hooks":["#,
            r#"{"hookName":"createContainer","path":"/usr/bin/hook","args":["hook","createContainer"],"env":["PATH=/usr/bin"],"timeout":30}],"#,
            r#""mounts":["#,
            r#"{"hostPath":"/usr/lib/libx.so.1","containerPath":"/usr/lib/libx.so.1","type":"bind","options":["ro","nosuid"]}],"#,
            r#""additionalGids":["#,
            "44]}}",
            "",
        ]
        .join("\n");
        assert_eq!(full().to_json(), text);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        for spec in [full(), Spec::new("aa/bb".parse().unwrap())] {
            assert_eq!(Spec::parse(&spec.to_json()).unwrap(), spec);
        }
    }

    #[test]
    fn empty_fields_are_left_out() {
        let mut spec = Spec::new("aa/bb".parse().unwrap());
        spec.devices.push(Device {
            name: "0".parse().unwrap(),
            annotations: BTreeMap::new(),
            container_edits: ContainerEdits::default(),
        });
        let expected = serde_json::json!({"cdiVersion": "0.3.0", "kind": "aa/bb",
            "devices": [{"name": "0", "containerEdits": {}}]});
        assert_eq!(serde_json::from_str::<Value>(&spec.to_json()).unwrap(), expected);
    }

    #[test]
    fn takes_unknown_fields_and_unknown_versions() {
        let spec = Spec::parse(
            r#"{"cdiVersion":"9.9.9","kind":"aa/bb","later":{"x":1},"devices":[{"name":"a","containerEdits":
               {"netDevices":[{"name":"eth0"}],"intelRdt":{"closID":"x"},"env":["A=b"]}}]}"#,
        )
        .unwrap();
        assert_eq!(spec.cdi_version, "9.9.9");
        assert_eq!(spec.devices[0].container_edits.env, ["A=b"]);
    }

    #[test]
    fn every_hook_name_is_spelled_as_in_the_spec() {
        for name in
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
        {
            let text = format!("\"{name}\"");
            let hook: HookName = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&hook).unwrap(), text);
        }
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (text, cause) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("[]", "invalid length 0, expected struct Spec with 5 elements at line 1 column 2"),
            ("{\n\"kind\":\"aa/bb\"}", "missing field `cdiVersion` at line 2 column 15"),
            (
                r#"{"cdiVersion":"0.3.0","kind":"aa/bb","devices":[{"name":"a/b"}]}"#,
                "the device name in \"a/b\" cannot hold '/' (character 2) at line 1 column 62",
            ),
            (
                r#"{"cdiVersion":"0.3.0","kind":"aa/bb","containerEdits":{"hooks":[{"hookName":"start","path":"/x"}]}}"#,
                "unknown variant `start`, expected one of `prestart`, `createRuntime`, `createContainer`, \
                 `startContainer`, `poststart`, `poststop` at line 1 column 83",
            ),
        ] {
            let ParseError::Json { source } = Spec::parse(text).unwrap_err();
            assert_eq!(source.to_string(), cause);
        }
    }
}
