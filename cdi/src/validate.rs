//! The rules of a spec that works: those of CDI (SPEC.md and what engines check on reading), and those that engines
//! do not check and runtimes break on. All violations are gathered, because an engine that refuses a file reports
//! each of its devices as "unresolvable" and no more. Reads nothing: a path that does not exist is no violation.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path};

use thiserror::Error;

use crate::model::{ContainerEdits, DeviceNode, Hook, Mount, Spec};
use crate::name::DeviceName;
use crate::version::{Version, VersionError, minimum_version};

/// Bytes of keys and values that CDI takes in one set of annotations (Kubernetes' limit).
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// A spec that some engine or runtime would refuse or break on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", .violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidSpec {
    /// All that is wrong, at least one, in the order of the spec.
    pub violations: Vec<Violation>,
}

/// One broken rule, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{field}: {problem}", .device.as_ref().map(|name| format!("device {name}: ")).unwrap_or_default())]
pub struct Violation {
    /// The device, or none for what the whole spec has.
    pub device: Option<DeviceName>,
    /// The field, as a path within the device or the spec: `containerEdits.mounts[2].type`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are what the messages show")]
pub enum Problem {
    /// No engine knows the version.
    #[error("no CDI version from 0.3.0 to 1.1.0 is called {version:?}")]
    UnknownVersion { version: String },
    /// Engines refuse content that is newer than the version.
    #[error("is {version}, but the content needs {needed}")]
    VersionTooLow { version: Version, needed: Version },
    /// CDI asks for at least one device.
    #[error("there is none")]
    NoDevices,
    /// Two devices of a name, two nodes of a path, two mounts of a destination.
    #[error("{value:?} stands there twice")]
    Duplicate { value: String },
    /// Engines refuse a device that brings nothing.
    #[error("is empty")]
    Empty,
    /// CDI holds annotation keys to Kubernetes' rules: `prefix/name` or `name`.
    #[error("{key:?} is not an annotation key: it is written name or prefix/name, as in Kubernetes")]
    AnnotationKey { key: String },
    /// More than 256 KiB.
    #[error("{bytes} bytes are more than the {ANNOTATIONS_LIMIT} that CDI takes")]
    AnnotationsTooLarge { bytes: usize },
    /// Engines refuse a variable without `=` or without a name.
    #[error("{entry:?} is not NAME=value")]
    Variable { entry: String },
    /// A C string would end there.
    #[error("holds a NUL byte")]
    Nul,
    /// Relative to what, engines do not agree.
    #[error("{path:?} is not an absolute path")]
    NotAbsolute { path: String },
    /// A path in a container that leaves where it seems to be.
    #[error("{path:?} holds \"..\"")]
    ParentComponent { path: String },
    /// Engines refuse a node type that is not theirs.
    #[error("{value:?} is none of b, c, u and p")]
    NodeType { value: String },
    /// -1 would be a wildcard in the device cgroup.
    #[error("{number} is negative")]
    NegativeNumber { number: i64 },
    /// More than permission bits.
    #[error("{mode:#o} is more than 0o7777")]
    FileMode { mode: u32 },
    /// Engines refuse what is not made of `r`, `w` and `m`.
    #[error("{value:?} is not made of r, w and m")]
    Permissions { value: String },
    /// A program without argv\[0\].
    #[error("is empty where the program's name belongs")]
    NoProgramName,
    /// A hook without an environment of its own inherits another: the runtime's, or one that the image has a say in,
    /// LD_PRELOAD included (CVE-2025-23266).
    #[error("is empty, so the hook would inherit an environment that is not its own")]
    NoHookEnv,
    /// runc gives up at once on a timeout of 0.
    #[error("{seconds} seconds fail at once")]
    Timeout { seconds: i64 },
    /// runc refuses a mount with neither type nor bind option, and crun crashes on a missing type in a pod
    /// (crun issue 1948).
    #[error("is missing, which some runtimes crash on")]
    NoMountType,
}

/// Checks a spec against every rule.
///
/// # Errors
/// [`InvalidSpec`] with all violations.
pub fn validate(spec: &Spec) -> Result<(), InvalidSpec> {
    let mut found = Findings { device: None, violations: Vec::new() };
    found.version(spec);
    found.annotations(&spec.annotations);

    if spec.devices.is_empty() {
        found.add("devices", Problem::NoDevices);
    }
    let mut names = HashSet::new();
    for device in &spec.devices {
        found.device = Some(device.name.clone());
        if !names.insert(&device.name) {
            found.add("name", Problem::Duplicate { value: device.name.to_string() });
        }
        found.annotations(&device.annotations);
        if device.container_edits.is_empty() {
            found.add("containerEdits", Problem::Empty);
        }
        found.edits(&device.container_edits);
    }

    found.device = None;
    found.edits(&spec.container_edits);
    if found.violations.is_empty() { Ok(()) } else { Err(InvalidSpec { violations: found.violations }) }
}

struct Findings {
    device: Option<DeviceName>,
    violations: Vec<Violation>,
}

impl Findings {
    fn add(&mut self, field: impl Into<String>, problem: Problem) {
        self.violations.push(Violation { device: self.device.clone(), field: field.into(), problem });
    }

    fn version(&mut self, spec: &Spec) {
        let needed = minimum_version(spec);
        match spec.cdi_version.parse::<Version>() {
            Err(VersionError::Unknown { text }) => {
                self.add("cdiVersion", Problem::UnknownVersion { version: text });
            }
            Ok(version) if version < needed => {
                self.add("cdiVersion", Problem::VersionTooLow { version, needed });
            }
            Ok(_) => {}
        }
    }

    fn annotations(&mut self, annotations: &BTreeMap<String, String>) {
        for key in annotations.keys().filter(|key| !is_annotation_key(key)) {
            self.add("annotations", Problem::AnnotationKey { key: key.clone() });
        }
        let bytes = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > ANNOTATIONS_LIMIT {
            self.add("annotations", Problem::AnnotationsTooLarge { bytes });
        }
    }

    fn edits(&mut self, edits: &ContainerEdits) {
        self.env("containerEdits.env", &edits.env);

        let mut paths = HashSet::new();
        for (i, node) in edits.device_nodes.iter().enumerate() {
            let at = format!("containerEdits.deviceNodes[{i}]");
            self.node(&at, node);
            if !paths.insert(Path::new(&node.path)) {
                self.add(format!("{at}.path"), Problem::Duplicate { value: node.path.clone() });
            }
        }
        for (i, hook) in edits.hooks.iter().enumerate() {
            self.hook(&format!("containerEdits.hooks[{i}]"), hook);
        }
        let mut destinations = HashSet::new();
        for (i, mount) in edits.mounts.iter().enumerate() {
            let at = format!("containerEdits.mounts[{i}]");
            self.mount(&at, mount);
            if !destinations.insert(Path::new(&mount.container_path)) {
                let value = mount.container_path.clone();
                self.add(format!("{at}.containerPath"), Problem::Duplicate { value });
            }
        }
    }

    fn node(&mut self, at: &str, node: &DeviceNode) {
        self.container_path(format!("{at}.path"), &node.path);
        if let Some(path) = &node.host_path {
            self.absolute(format!("{at}.hostPath"), path);
        }
        if let Some(value) = node.r#type.as_ref().filter(|t| !matches!(t.as_str(), "b" | "c" | "u" | "p")) {
            self.add(format!("{at}.type"), Problem::NodeType { value: value.clone() });
        }
        for (field, number) in [("major", node.major), ("minor", node.minor)] {
            if let Some(number) = number.filter(|n| *n < 0) {
                self.add(format!("{at}.{field}"), Problem::NegativeNumber { number });
            }
        }
        if let Some(mode) = node.file_mode.filter(|mode| *mode > 0o7777) {
            self.add(format!("{at}.fileMode"), Problem::FileMode { mode });
        }
        if let Some(value) = node.permissions.as_ref().filter(|p| !p.chars().all(|c| "rwm".contains(c))) {
            self.add(format!("{at}.permissions"), Problem::Permissions { value: value.clone() });
        }
    }

    fn hook(&mut self, at: &str, hook: &Hook) {
        self.absolute(format!("{at}.path"), &hook.path);
        if hook.args.first().is_some_and(String::is_empty) {
            self.add(format!("{at}.args[0]"), Problem::NoProgramName);
        }
        for (i, _) in hook.args.iter().enumerate().filter(|(_, arg)| arg.contains('\0')) {
            self.add(format!("{at}.args[{i}]"), Problem::Nul);
        }
        if hook.env.is_empty() {
            self.add(format!("{at}.env"), Problem::NoHookEnv);
        }
        self.env(&format!("{at}.env"), &hook.env);
        if let Some(seconds) = hook.timeout.filter(|seconds| *seconds <= 0) {
            self.add(format!("{at}.timeout"), Problem::Timeout { seconds });
        }
    }

    fn mount(&mut self, at: &str, mount: &Mount) {
        self.absolute(format!("{at}.hostPath"), &mount.host_path);
        self.container_path(format!("{at}.containerPath"), &mount.container_path);
        if mount.r#type.as_deref().unwrap_or_default().is_empty() {
            self.add(format!("{at}.type"), Problem::NoMountType);
        }
    }

    fn env(&mut self, field: &str, env: &[String]) {
        for (i, entry) in env.iter().enumerate() {
            if entry.contains('\0') {
                self.add(format!("{field}[{i}]"), Problem::Nul);
            } else if entry.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                self.add(format!("{field}[{i}]"), Problem::Variable { entry: entry.clone() });
            }
        }
    }

    fn container_path(&mut self, field: String, path: &str) {
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            self.add(field.clone(), Problem::ParentComponent { path: path.to_owned() });
        }
        self.absolute(field, path);
    }

    fn absolute(&mut self, field: String, path: &str) {
        if path.contains('\0') {
            self.add(field, Problem::Nul);
        } else if !path.starts_with('/') {
            self.add(field, Problem::NotAbsolute { path: path.to_owned() });
        }
    }
}

/// Kubernetes' "qualified name", which CDI libraries hold keys to after lowering their case: a name of up to 63
/// letters, digits, `_ - .`, and before a slash a DNS subdomain of up to 253.
fn is_annotation_key(key: &str) -> bool {
    let framed = |text: &str, inside: fn(char) -> bool| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || inside(c))
    };
    let is_name = |name: &str| name.len() <= 63 && framed(name, |c| matches!(c, '_' | '-' | '.'));
    let is_prefix =
        |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(|label| framed(label, |c| c == '-'));
    match key.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_name(name),
        None => is_name(key),
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
