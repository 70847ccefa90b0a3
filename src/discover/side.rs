//! Devices beside GPUs that containers of NVIDIA's stack ask for: IMEX channels, NVSwitches, GPUDirect Storage, GDRCopy,
//! InfiniBand, and the nodes by which a container manages the driver. Each is found by its name in /dev and believed if
//! the kernel lists its driver under the node's number: dynamic numbers go to other drivers.

use std::path::Path;

use super::files::Files;
use super::host::{DriverFile, Purpose, Side, SideClass, SideNode};
use super::nodes::Numbers;

/// Where a class's nodes are, how they are named, and the drivers that may be behind them by their names in
/// /proc/devices.
struct Place {
    class: SideClass,
    dir: &'static str,
    is: fn(&str) -> bool,
    drivers: &'static [&'static str],
}

const DRIVER: [&str; 6] =
    ["nvidia", "nvidia-frontend", "nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-caps"];

/// A miscellaneous device: its major is shared with many others, its minor is told by /proc/misc.
const RDMA_CM: &str = "rdma_cm";

const PLACES: [Place; 9] = [
    Place {
        class: SideClass::ImexChannel,
        dir: "/dev/nvidia-caps-imex-channels",
        is: |name| is_numbered(name, "channel"),
        drivers: &["nvidia-caps-imex-channels"],
    },
    Place {
        class: SideClass::Nvswitch,
        dir: "/dev",
        is: |name| name == "nvidia-nvswitchctl" || is_numbered(name, "nvidia-nvswitch"),
        drivers: &["nvidia-nvswitch"],
    },
    Place {
        class: SideClass::Gds,
        dir: "/dev",
        is: |name| is_numbered(name, "nvidia-fs"),
        drivers: &["nvidia-fs"],
    },
    Place { class: SideClass::Gdrcopy, dir: "/dev", is: |name| name == "gdrdrv", drivers: &["gdrdrv"] },
    Place {
        class: SideClass::Mofed,
        dir: "/dev/infiniband",
        is: |name| is_numbered(name, "uverbs"),
        drivers: &["infiniband_verbs"],
    },
    Place { class: SideClass::Mofed, dir: "/dev/infiniband", is: |name| name == RDMA_CM, drivers: &["misc"] },
    Place {
        class: SideClass::Management,
        dir: "/dev",
        is: |name| {
            ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"].contains(&name)
                || is_numbered(name, "nvidia")
        },
        drivers: &DRIVER,
    },
    Place {
        class: SideClass::Management,
        dir: "/dev/nvidia-caps",
        is: |name| is_numbered(name, "nvidia-cap"),
        drivers: &["nvidia-caps"],
    },
    Place {
        class: SideClass::Management,
        dir: "/dev/nvidia-caps-imex-channels",
        is: |name| is_numbered(name, "channel"),
        drivers: &["nvidia-caps-imex-channels"],
    },
];

/// What GPUDirect Storage brings besides, where the host has it: cuFile reads its configuration, and asks udev's data
/// which disks are NVMe. Not /run/udev itself, as NVIDIA's generator has it: udev's control socket lies there, which
/// obeys any root.
const GDS_CONFIGURATION: &str = "/etc/cufile.json";
const UDEV_DATA: &str = "/run/udev/data";

/// Looks into the directories of the device root.
pub fn read(files: &dyn Files, numbers: &Numbers) -> Side {
    let mut nodes = Vec::new();
    for place in &PLACES {
        let dir = Path::new(place.dir);
        let mut names: Vec<String> = files.device_names(dir).unwrap_or_default();
        names.retain(|name| (place.is)(name));
        names.sort_by_key(|name| (number(name), name.clone()));
        names.dedup();
        nodes.extend(names.iter().map(|name| {
            let path = dir.join(name);
            SideNode {
                class: place.class,
                found: numbers.judge(files.node(&path), place.drivers, misc_minor(files, name)),
                host_path: files.node_path(&path),
                path,
            }
        }));
    }
    let has_gds = nodes.iter().any(|node| node.class == SideClass::Gds);
    let gds_files = [
        (GDS_CONFIGURATION, files.driver_file(Path::new(GDS_CONFIGURATION))),
        (UDEV_DATA, files.driver_real_path(Path::new(UDEV_DATA))),
    ];
    let gds_files = gds_files.into_iter().filter(|_| has_gds).filter_map(|(path, real_path)| {
        Some(DriverFile { path: path.into(), real_path: real_path.ok()?, purpose: Purpose::Compute })
    });
    Side { gds_files: gds_files.collect(), nodes }
}

/// The minor of a miscellaneous device by its name in /proc/misc; none for any other.
fn misc_minor(files: &dyn Files, name: &str) -> Option<u32> {
    if name != RDMA_CM {
        return None;
    }
    let text = files.text(Path::new("/proc/misc")).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    let minor = lines.find(|(_, of)| of.trim() == name).and_then(|(minor, _)| minor.parse().ok());
    // No node has this one.
    Some(minor.unwrap_or(u32::MAX))
}

fn is_numbered(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) && number.len() < 10
    })
}

/// The number at a name's end.
fn number(name: &str) -> Option<u32> {
    name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

/// Whether discovery asks for a name in a directory of devices.
pub fn is_asked_for(dir: &Path, name: &str) -> bool {
    PLACES.iter().any(|place| Path::new(place.dir) == dir && (place.is)(name))
}
