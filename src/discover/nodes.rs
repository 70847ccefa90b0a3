//! Device nodes and MIG capabilities: which numbers the driver gave them, and what stands in /dev.
//! Numbers are read from the kernel and never computed (a driver is free to number capabilities anew).

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tracing::debug;

use super::files::{Files, Node};
use super::host::{Capability, ControlNode, DeviceNode, Found};

/// Registered with the kernel for /dev/nvidia<N>, nvidiactl and nvidia-modeset since the first driver
/// (Documentation/admin-guide/devices.txt), so it needs no look-up where /proc/devices is silent.
const NVIDIA_MAJOR: u32 = 195;

/// The driver's major numbers and node permissions.
#[derive(Debug)]
pub struct Numbers {
    /// Empty where /proc/devices cannot be read.
    majors: BTreeMap<String, u32>,
    /// Thousands of lines, for those machines alone that are cut by MIG.
    capabilities: OnceCell<BTreeMap<String, u32>>,
    /// DeviceFileMode of the driver's parameters.
    gpu_mode: u32,
}

impl Numbers {
    /// Reads /proc/devices and the driver's parameters; what is absent is simply not known.
    pub fn read(files: &dyn Files) -> Self {
        let text = |path: &str| files.text(Path::new(path)).unwrap_or_default();
        Self {
            majors: parse_majors(&text("/proc/devices")),
            capabilities: OnceCell::new(),
            gpu_mode: parse_device_file_mode(&text("/proc/driver/nvidia/params")).unwrap_or(0o666),
        }
    }

    fn major(&self, drivers: &[&str]) -> Option<u32> {
        drivers.iter().find_map(|driver| self.majors.get(*driver).copied())
    }

    fn nvidia_major(&self) -> u32 {
        self.major(&["nvidia", "nvidia-frontend", "nvidiactl"]).unwrap_or(NVIDIA_MAJOR)
    }

    /// /dev/nvidia<minor>
    pub fn gpu_node(&self, files: &dyn Files, minor: u32) -> DeviceNode {
        let path = PathBuf::from(format!("/dev/nvidia{minor}"));
        self.look(files, path, Some(self.nvidia_major()), minor, Some(self.gpu_mode))
    }

    /// The nodes of the driver as a whole, in the order that listings show them.
    pub fn control_nodes(&self, files: &dyn Files) -> Vec<ControlNode> {
        let uvm = self.major(&["nvidia-uvm"]);
        [
            ("/dev/nvidiactl", Some(self.nvidia_major()), 255, true, "nvidia"),
            ("/dev/nvidia-uvm", uvm, 0, true, "nvidia-uvm"),
            ("/dev/nvidia-uvm-tools", uvm, 1, false, "nvidia-uvm"),
            (
                "/dev/nvidia-modeset",
                self.major(&["nvidia-modeset", "nvidia-frontend"]),
                254,
                false,
                "nvidia-modeset",
            ),
        ]
        .into_iter()
        .map(|(path, major, minor, required, module)| ControlNode {
            node: self.look(files, PathBuf::from(path), major, minor, Some(self.gpu_mode)),
            required,
            module,
        })
        .collect()
    }

    /// The DRM devices of the GPU at this PCI address: the card and the render node, numbered by the kernel in the order
    /// that drivers come.
    pub fn dri_nodes(&self, files: &dyn Files, pci_address: &str) -> Vec<DeviceNode> {
        let dir = PathBuf::from(format!("/sys/bus/pci/devices/{pci_address}/drm"));
        let names = files.names(&dir).unwrap_or_default();
        let is_node = |name: &&String| {
            let number = name.strip_prefix("card").or_else(|| name.strip_prefix("renderD"));
            number.is_some_and(|number| number.parse::<u16>().is_ok())
        };
        let node = |name: &String| {
            let (major, minor) = parse_dev(&files.text(&dir.join(name).join("dev")).ok()?)?;
            // udev makes them, and gives them their group.
            Some(self.look(files, Path::new("/dev/dri").join(name), Some(major), minor, None))
        };
        names.iter().filter(is_node).filter_map(node).collect()
    }

    /// Judges a node of one of these drivers, by their names in /proc/devices; where that cannot be read, whatever node
    /// is there is the one.
    pub fn judge(&self, answer: std::io::Result<Node>, drivers: &[&str], minor: Option<u32>) -> Found {
        match answer {
            Ok(node) if minor.is_some_and(|minor| minor != node.minor) => {
                Found::Wrong(format!("the kernel does not list it with its number {}", node.minor))
            }
            Ok(node)
                if self.majors.is_empty()
                    || drivers.iter().any(|driver| self.majors.get(*driver) == Some(&node.major)) =>
            {
                Found::Present { mode: node.mode, gid: node.gid }
            }
            Ok(node) => Found::Wrong(format!(
                "/proc/devices has no {} with its number {}",
                drivers.first().unwrap_or(&"driver"),
                node.major
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Missing,
            Err(error) => Found::Wrong(error.to_string()),
        }
    }

    fn look(
        &self,
        files: &dyn Files,
        path: PathBuf,
        major: Option<u32>,
        minor: u32,
        create_mode: Option<u32>,
    ) -> DeviceNode {
        let host_path = files.node_path(&path);
        let orphan = major.is_none() && !self.majors.is_empty();
        let mut node =
            DeviceNode { path, host_path, major, orphan, minor, create_mode, found: Found::Missing };
        node.found = node.judge(files.node(&node.path));
        debug!(
            "{} (major {:?}, minor {}): {:?}",
            node.host_path.display(),
            node.major,
            node.minor,
            node.found
        );
        node
    }

    /// The access capability of a GPU instance, or of a compute instance in it.
    /// `gpu_minor` is the GPU's minor number, which is not always its NVML index.
    pub fn capability(
        &self,
        files: &dyn Files,
        gpu_minor: u32,
        gpu_instance: u32,
        compute_instance: Option<u32>,
    ) -> Capability {
        let instance = match compute_instance {
            None => format!("gi{gpu_instance}"),
            Some(ci) => format!("gi{gpu_instance}/ci{ci}"),
        };
        let proc_path = format!("/proc/driver/nvidia/capabilities/gpu{gpu_minor}/mig/{instance}/access");
        let listed = || files.text(Path::new("/proc/driver/nvidia-caps/mig-minors")).unwrap_or_default();
        let listed = self.capabilities.get_or_init(|| parse_mig_minors(&listed()));
        let listed = listed.get(&format!("gpu{gpu_minor}/{instance}/access")).copied();
        // The table is of the nvidia-caps driver; the file beside the capability says the same and more.
        let file = || parse_capability(&files.text(Path::new(&proc_path)).unwrap_or_default());
        let (minor, mode) = match listed {
            Some(minor) => (Some(minor), None),
            None => {
                let file = file();
                (file.minor, file.mode)
            }
        };
        match minor {
            None => Capability::Unlisted { name: format!("gpu{gpu_minor}/mig/{instance}/access") },
            Some(minor) => {
                let path = PathBuf::from(format!("/dev/nvidia-caps/nvidia-cap{minor}"));
                // Access capabilities are readable by all: the right is the open, checked by the device cgroup.
                Capability::Node(self.look(
                    files,
                    path,
                    self.major(&["nvidia-caps"]),
                    minor,
                    Some(mode.unwrap_or(0o444)),
                ))
            }
        }
    }
}

/// A device's `dev` file in sysfs: `226:128` (major and minor).
fn parse_dev(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Character majors by driver name, from /proc/devices (proc(5)).
fn parse_majors(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .take_while(|line| *line != "Block devices:")
        .filter_map(|line| {
            let (major, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), major.parse().ok()?))
        })
        .collect()
}

/// Capability minors by name (`gpu0/gi2/ci0/access`), from /proc/driver/nvidia-caps/mig-minors.
fn parse_mig_minors(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let (name, minor) = line.trim().split_once(' ')?;
            Some((name.to_owned(), minor.trim().parse().ok()?))
        })
        .collect()
}

/// `DeviceFileMode` of /proc/driver/nvidia/params, decimal.
fn parse_device_file_mode(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("DeviceFileMode:"))?;
    line.trim().parse::<u32>().ok().filter(|mode| *mode <= 0o777 && *mode != 0)
}

/// `DeviceFileMinor` and `DeviceFileMode` (decimal) of a capability's file.
#[derive(Debug, Default, PartialEq, Eq)]
struct CapabilityFile {
    minor: Option<u32>,
    mode: Option<u32>,
}

fn parse_capability(text: &str) -> CapabilityFile {
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
    };
    CapabilityFile { minor: value("DeviceFileMinor"), mode: value("DeviceFileMode") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dev_file_gives_both_numbers() {
        assert_eq!(parse_dev("226:128\n"), Some((226, 128)));
        for text in ["", "226", "226:", "a:1", "226:-1"] {
            assert_eq!(parse_dev(text), None, "{text:?}");
        }
    }

    #[test]
    fn majors_stop_at_block_devices() {
        let majors = parse_majors(
            "Character devices:\n  1 mem\n195 nvidia-frontend\n242 nvidia-caps\n\nBlock devices:\n  8 sd\n511 nvidia-uvm\n",
        );
        assert_eq!(majors.get("nvidia-frontend"), Some(&195));
        assert_eq!(majors.get("nvidia-caps"), Some(&242));
        assert_eq!(majors.get("nvidia-uvm"), None);
        assert_eq!(majors.get("sd"), None);
    }

    #[test]
    fn mig_minors_keep_what_is_readable() {
        let minors =
            parse_mig_minors("config 1\nmonitor 2\ngpu0/gi2/access 21\ngpu0/gi2/ci0/access 22\nx\ny z\n");
        assert_eq!(minors.get("gpu0/gi2/ci0/access"), Some(&22));
        assert_eq!(minors.len(), 4);
    }

    #[test]
    fn a_capability_file_gives_minor_and_mode() {
        let file = parse_capability("DeviceFileMinor: 21\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        assert_eq!(file, CapabilityFile { minor: Some(21), mode: Some(0o444) });
        assert_eq!(parse_capability("DeviceFileMinor: -1\n"), CapabilityFile::default());
    }

    #[test]
    fn device_file_mode_is_decimal_and_bounded() {
        for (text, mode) in [
            ("ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n", Some(0o666)),
            ("DeviceFileMode: 432\n", Some(0o660)),
            ("DeviceFileMode: 99999\n", None),
            ("", None),
        ] {
            assert_eq!(parse_device_file_mode(text), mode, "{text}");
        }
    }
}
