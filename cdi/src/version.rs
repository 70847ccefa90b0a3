//! CDI versions, and the lowest one that a spec's content needs.
//! Engines refuse a whole file whose version is newer than they know, so the lowest is the one to write; they also
//! refuse a file whose content is newer than its version.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::model::{ContainerEdits, Spec};

/// A released version of CDI, oldest first (CDI SPEC.md, "Released versions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.3.0, the oldest that engines take.
    V0_3_0,
    /// 0.4.0: a mount's type.
    V0_4_0,
    /// 0.5.0: device names that start with a digit, and a device node's `hostPath`.
    V0_5_0,
    /// 0.6.0: annotations, and dots in the class.
    V0_6_0,
    /// 0.7.0: `additionalGids`, `intelRdt`.
    V0_7_0,
    /// 0.8.0: nothing new in a spec.
    V0_8_0,
    /// 1.0.0: nothing new in a spec.
    V1_0_0,
    /// 1.1.0: `netDevices`, more of `intelRdt`.
    V1_1_0,
}

const VERSIONS: [(Version, &str); 8] = [
    (Version::V0_3_0, "0.3.0"),
    (Version::V0_4_0, "0.4.0"),
    (Version::V0_5_0, "0.5.0"),
    (Version::V0_6_0, "0.6.0"),
    (Version::V0_7_0, "0.7.0"),
    (Version::V0_8_0, "0.8.0"),
    (Version::V1_0_0, "1.0.0"),
    (Version::V1_1_0, "1.1.0"),
];

/// Why a text is not a CDI version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VersionError {
    /// No release has this number.
    #[error("no CDI version from 0.3.0 to 1.1.0 is called {text:?}")]
    Unknown {
        /// What was given.
        text: String,
    },
}

impl FromStr for Version {
    type Err = VersionError;

    /// All three numbers are needed; one leading `v` is taken, as engines take it.
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let number = text.strip_prefix('v').unwrap_or(text);
        VERSIONS
            .iter()
            .find(|(_, known)| *known == number)
            .map(|(version, _)| *version)
            .ok_or_else(|| VersionError::Unknown { text: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(VERSIONS[*self as usize].1)
    }
}

/// The lowest version that holds everything in this spec, whatever its `cdi_version` says.
///
/// After the table in CDI SPEC.md, "Released versions":
///
/// | version | needed by |
/// |---|---|
/// | 0.4.0 | the type of a mount |
/// | 0.5.0 | a device name that does not start with a letter; `hostPath` of a device node |
/// | 0.6.0 | annotations of the spec or a device; a dot in the class |
/// | 0.7.0 | `additionalGids` |
/// | 0.3.0 | all else |
pub fn minimum_version(spec: &Spec) -> Version {
    let in_names = if spec.devices.iter().any(|device| !device.annotations.is_empty())
        || !spec.annotations.is_empty()
        || spec.kind.class().contains('.')
    {
        Version::V0_6_0
    } else if spec.devices.iter().any(|d| !d.name.as_str().starts_with(|c: char| c.is_ascii_alphabetic())) {
        Version::V0_5_0
    } else {
        Version::V0_3_0
    };
    let edits = spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits]);
    edits.map(needed_by).fold(in_names, Version::max)
}

fn needed_by(edits: &ContainerEdits) -> Version {
    if !edits.additional_gids.is_empty() {
        Version::V0_7_0
    } else if edits.device_nodes.iter().any(|node| node.host_path.is_some()) {
        Version::V0_5_0
    } else if edits.mounts.iter().any(|mount| mount.r#type.is_some()) {
        Version::V0_4_0
    } else {
        Version::V0_3_0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_every_version_in_order() {
        for (at, (version, text)) in VERSIONS.into_iter().enumerate() {
            assert_eq!(version as usize, at);
            assert_eq!(version.to_string(), text);
            assert_eq!(text.parse(), Ok(version));
            assert_eq!(format!("v{text}").parse(), Ok(version));
        }
        assert!(VERSIONS.is_sorted());
        for text in ["", "v", "0.6", "0.2.0", "1.2.0", "vv0.6.0", "0.6.0 ", "0.6.0-rc.1", "V0.6.0"] {
            assert_eq!(text.parse::<Version>(), Err(VersionError::Unknown { text: text.into() }));
        }
    }

    #[test]
    fn content_decides_the_lowest_version() {
        let spec = |kind: &str, name: &str, annotations: &str, edits: &str| {
            [
                // What a device brings and what the whole spec brings count alike.
                format!(
                    r#"{{"cdiVersion":"","kind":"{kind}","devices":[{{"name":"{name}","annotations":{{{annotations}}},"containerEdits":{{{edits}}}}}]}}"#
                ),
                format!(
                    r#"{{"cdiVersion":"","kind":"{kind}","annotations":{{{annotations}}},"devices":[{{"name":"{name}"}}],"containerEdits":{{{edits}}}}}"#
                ),
            ]
        };
        let node = r#""deviceNodes":[{"path":"/dev/x","type":"c","fileMode":438}]"#;
        let host_path = r#""deviceNodes":[{"path":"/dev/x","hostPath":"/dev/y"}]"#;
        let plain_mount = r#""mounts":[{"hostPath":"/x","containerPath":"/x","options":["bind"]}]"#;
        let mount = r#""mounts":[{"hostPath":"/x","containerPath":"/x","type":"bind"}]"#;
        let both = format!("{mount},{host_path}");
        let gids = format!(r#"{mount},"additionalGids":[44]"#);
        for (kind, name, annotations, edits, version) in [
            ("a.b/cc", "a0", "", node, "0.3.0"),
            ("a.b/cc", "a0", "", plain_mount, "0.3.0"),
            ("a.b/cc", "a0", "", mount, "0.4.0"),
            ("a.b/cc", "0", "", node, "0.5.0"),
            ("a.b/cc", "0", "", mount, "0.5.0"),
            ("a.b/cc", "a0", "", host_path, "0.5.0"),
            ("a.b/cc", "a0", "", &both, "0.5.0"),
            ("a.b/cc.d", "a0", "", node, "0.6.0"),
            ("a.b/cc", "0", r#""k":"v""#, node, "0.6.0"),
            ("a.b/cc", "a0", "", &gids, "0.7.0"),
            ("a.b/cc.d", "0", "", &gids, "0.7.0"),
            ("a.b/cc", "a0", "", r#""additionalGids":[]"#, "0.3.0"),
        ] {
            for text in spec(kind, name, annotations, edits) {
                assert_eq!(minimum_version(&Spec::parse(&text).unwrap()).to_string(), version, "{text}");
            }
        }
    }
}
