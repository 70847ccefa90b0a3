//! The files and device nodes of a simulated host, built from its facts: /proc/driver/nvidia, capability
//! minors, /dev, the driver's libraries and programs. Numbers follow a real lab host (A100, driver 580).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use super::elf::shared_object;
use crate::discover::files::{Files, Node};
use crate::nvml::facts::{Facts, GpuFacts};

#[cfg(target_arch = "aarch64")]
const LIB: &str = "/usr/lib/aarch64-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const LIB: &str = "/usr/lib/x86_64-linux-gnu";

/// Libraries of a driver: stem, SONAME version (none: the SONAME is the file's name), whether `.so` exists.
const LIBRARIES: [(&str, Option<&str>, bool); 32] = [
    ("libEGL_nvidia", Some("0"), false),
    ("libGLESv1_CM_nvidia", Some("1"), false),
    ("libGLESv2_nvidia", Some("2"), false),
    ("libGLX_nvidia", Some("0"), false),
    ("libcuda", Some("1"), true),
    ("libcudadebugger", Some("1"), false),
    ("libnvcuvid", Some("1"), true),
    ("libnvidia-allocator", Some("1"), true),
    ("libnvidia-cfg", Some("1"), true),
    ("libnvidia-eglcore", None, false),
    ("libnvidia-encode", Some("1"), true),
    ("libnvidia-fbc", Some("1"), true),
    ("libnvidia-glcore", None, false),
    ("libnvidia-glsi", None, false),
    ("libnvidia-glvkspirv", None, false),
    ("libnvidia-gpucomp", None, false),
    ("libnvidia-ml", Some("1"), true),
    ("libnvidia-ngx", Some("1"), false),
    ("libnvidia-nvvm", Some("4"), true),
    ("libnvidia-opencl", Some("1"), false),
    ("libnvidia-opticalflow", Some("1"), true),
    ("libnvidia-pkcs11", None, false),
    ("libnvidia-pkcs11-openssl3", None, false),
    ("libnvidia-present", None, false),
    ("libnvidia-ptxjitcompiler", Some("1"), true),
    ("libnvidia-rtcore", None, false),
    ("libnvidia-tileiras", None, false),
    ("libnvidia-tls", None, false),
    ("libnvidia-vksc-core", None, false),
    ("libnvidia-wayland-client", None, false),
    ("libnvoptix", Some("1"), false),
    ("vdpau/libvdpau_nvidia", Some("1"), false),
];

/// Libraries with versions of their own: file name, SONAME.
const OTHER_LIBRARIES: [(&str, &str); 5] = [
    ("libnvidia-egl-gbm.so.1.1.2", "libnvidia-egl-gbm.so.1"),
    ("libnvidia-egl-wayland.so.1.1.19", "libnvidia-egl-wayland.so.1"),
    ("libnvidia-egl-xcb.so.1.0.3", "libnvidia-egl-xcb.so.1"),
    ("libnvidia-egl-xlib.so.1.0.3", "libnvidia-egl-xlib.so.1"),
    ("libnvidia-nvvm70.so.4", "libnvidia-nvvm70.so.4"),
];

const PROGRAMS: [&str; 8] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
    "nvidia-xconfig",
];

/// Descriptions by which loaders and the X server find the driver; what is in them does not matter here.
const DATA: [&str; 10] = [
    "/etc/OpenCL/vendors/nvidia.icd",
    "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "/usr/share/X11/xorg.conf.d/nvidia-drm-outputclass.conf",
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xcb.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xlib.json",
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/nvidia/nvoptix.bin",
];

/// Groups of Debian's: video, render.
const VIDEO: u32 = 44;
const RENDER: u32 = 105;
/// Registered for /dev/dri (Documentation/admin-guide/devices.txt).
const DRM_MAJOR: u32 = 226;

/// One entry of the tree; directories are implied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A text file.
    Text(String),
    /// An executable script.
    Program(String),
    /// A shared object without functions, by SONAME.
    SharedObject(String),
    /// A symbolic link.
    Link(String),
    /// A socket that nobody listens on.
    Socket,
    /// A character device.
    Node(Node),
}

/// All files of a simulated host, by absolute path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Builds the tree that goes with the facts.
    pub(super) fn of(facts: &Facts, caps_major: u32, uvm_major: u32) -> Self {
        let mut tree = Self::default();
        let version = facts.driver_version.as_deref().unwrap_or_default();
        tree.driver_files(version);
        tree.control(version, caps_major, uvm_major);
        for gpu in &facts.gpus {
            tree.gpu(gpu, caps_major);
        }
        tree
    }

    /// Paths and entries in path order.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    fn put(&mut self, path: impl Into<PathBuf>, entry: Entry) {
        self.0.insert(path.into(), entry);
    }

    fn text(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.put(path, Entry::Text(text.into()));
    }

    fn node(&mut self, path: impl Into<PathBuf>, major: u32, minor: u32, mode: u32) {
        self.put(path, Entry::Node(Node { major, minor, mode, gid: 0 }));
    }

    fn driver_files(&mut self, version: &str) {
        for (stem, soname_version, plain) in LIBRARIES {
            let path = format!("{LIB}/{stem}.so.{version}");
            let stem_name = stem.rsplit_once('/').map_or(stem, |(_, name)| name);
            let file_name = format!("{stem_name}.so.{version}");
            let soname = soname_version.map_or(file_name.clone(), |v| format!("{stem_name}.so.{v}"));
            if let Some(v) = soname_version {
                self.put(format!("{LIB}/{stem}.so.{v}"), Entry::Link(file_name));
            }
            if plain {
                self.put(format!("{LIB}/{stem}.so"), Entry::Link(soname.clone()));
            }
            self.put(path, Entry::SharedObject(soname));
        }
        for (name, soname) in OTHER_LIBRARIES {
            if name != soname {
                self.put(format!("{LIB}/{soname}"), Entry::Link(name.into()));
            }
            self.put(format!("{LIB}/{name}"), Entry::SharedObject(soname.into()));
        }
        for program in PROGRAMS {
            let script =
                format!("#!/bin/sh\necho '{program}: this is a simulated host, there is no GPU behind it'\n");
            self.put(format!("/usr/bin/{program}"), Entry::Program(script));
        }
        for path in DATA {
            self.text(path, "# of a simulated driver\n");
        }
        for image in ["gsp_ga10x.bin", "gsp_tu10x.bin"] {
            self.text(format!("/lib/firmware/nvidia/{version}/{image}"), "firmware\n");
        }
        let module = format!("libglxserver_nvidia.so.{version}");
        self.put("/usr/lib/xorg/modules/drivers/nvidia_drv.so", Entry::SharedObject("nvidia_drv.so".into()));
        self.put(format!("/usr/lib/xorg/modules/extensions/{module}"), Entry::SharedObject(module));
        self.put("/run/nvidia-persistenced/socket", Entry::Socket);
    }

    fn control(&mut self, version: &str, caps_major: u32, uvm_major: u32) {
        self.text(
            "/proc/devices",
            format!(
                "Character devices:\n  1 mem\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n{DRM_MAJOR} drm\n{caps_major} nvidia-caps\n{uvm_major} nvidia-uvm\n\nBlock devices:\n259 blkext\n"
            ),
        );
        self.text(
            "/proc/driver/nvidia/version",
            format!("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"),
        );
        self.text("/sys/module/nvidia/version", format!("{version}\n"));
        self.text(
            "/proc/driver/nvidia/params",
            "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n",
        );
        self.text("/proc/driver/nvidia-caps/mig-minors", mig_minors());
        self.text("/proc/driver/nvidia/capabilities/mig/config", capability_file(1, 0o400));
        self.text("/proc/driver/nvidia/capabilities/mig/monitor", capability_file(2, 0o444));
        self.node("/dev/nvidia-caps/nvidia-cap1", caps_major, 1, 0o400);
        self.node("/dev/nvidia-caps/nvidia-cap2", caps_major, 2, 0o444);
        self.node("/dev/nvidiactl", 195, 255, 0o666);
        self.node("/dev/nvidia-modeset", 195, 254, 0o666);
        self.node("/dev/nvidia-uvm", uvm_major, 0, 0o666);
        self.node("/dev/nvidia-uvm-tools", uvm_major, 1, 0o666);
    }

    /// What stands beside the GPUs of a machine that is a part of a cluster.
    pub(super) fn fabric(&mut self) {
        const MAJORS: [(&str, u32); 5] = [
            ("nvidia-caps-imex-channels", 234),
            ("nvidia-nvswitch", 507),
            ("nvidia-fs", 237),
            ("gdrdrv", 236),
            ("infiniband_verbs", 231),
        ];
        let devices = Path::new("/proc/devices");
        if let Some(Entry::Text(text)) = self.0.get_mut(devices) {
            let lines: String = MAJORS.iter().map(|(name, major)| format!("{major} {name}\n")).collect();
            *text = text.replacen("\n\nBlock", &format!("\n 10 misc\n{lines}\nBlock"), 1);
        }
        for channel in 0..2 {
            self.node(format!("/dev/nvidia-caps-imex-channels/channel{channel}"), 234, channel, 0o666);
        }
        for switch in 0..3 {
            self.node(format!("/dev/nvidia-nvswitch{switch}"), 507, switch, 0o666);
        }
        self.node("/dev/nvidia-nvswitchctl", 507, 255, 0o666);
        for file_system in 0..2 {
            self.node(format!("/dev/nvidia-fs{file_system}"), 237, file_system, 0o666);
        }
        self.node("/dev/gdrdrv", 236, 0, 0o666);
        self.node("/dev/infiniband/uverbs0", 231, 192, 0o666);
        self.node("/dev/infiniband/rdma_cm", 10, 122, 0o666);
        self.text("/proc/misc", "122 rdma_cm\n");
        self.text("/run/udev/data/b259:0", "E:ID_MODEL=simulated\n");
        self.text("/etc/cufile.json", "{}\n");
        self.put("/run/nvidia-fabricmanager/socket", Entry::Socket);
    }

    fn gpu(&mut self, gpu: &GpuFacts, caps_major: u32) {
        let minor = gpu.minor.unwrap_or(gpu.index);
        self.node(format!("/dev/nvidia{minor}"), 195, minor, 0o666);
        let address = gpu.pci_address.as_deref().unwrap_or_default().to_ascii_lowercase();
        let address = address.strip_prefix("0000").unwrap_or(&address).to_owned();
        self.text(
            format!("/proc/driver/nvidia/gpus/{address}/information"),
            format!(
                "Model: \t\t {}\nGPU UUID: \t {}\nBus Location: \t {address}\nDevice Minor: \t {minor}\n",
                gpu.name.as_deref().unwrap_or_default(),
                gpu.uuid
            ),
        );
        // The management controller's screen is the first card.
        self.dri_node(&address, &format!("card{}", gpu.index + 1), gpu.index + 1, VIDEO);
        self.dri_node(&address, &format!("renderD{}", gpu.index + 128), gpu.index + 128, RENDER);
        for device in gpu.mig.iter().flat_map(|mig| &mig.devices) {
            let instance =
                format!("/proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{}", device.gpu_instance);
            let gi = gpu_instance_minor(minor, device.gpu_instance);
            let ci = gi + 1 + device.compute_instance;
            let access = [
                (format!("{instance}/access"), gi),
                (format!("{instance}/ci{}/access", device.compute_instance), ci),
            ];
            for (path, cap) in access {
                self.text(path, capability_file(cap, 0o444));
                self.node(format!("/dev/nvidia-caps/nvidia-cap{cap}"), caps_major, cap, 0o444);
            }
        }
    }

    fn dri_node(&mut self, address: &str, name: &str, minor: u32, gid: u32) {
        self.text(format!("/sys/bus/pci/devices/{address}/drm/{name}/dev"), format!("{DRM_MAJOR}:{minor}\n"));
        let node = Node { major: DRM_MAJOR, minor, mode: 0o660, gid };
        self.put(format!("/dev/dri/{name}"), Entry::Node(node));
    }

    /// Follows links within the tree; a directory is a prefix of some path.
    fn real_path(&self, path: &Path) -> Option<PathBuf> {
        match self.0.get(path) {
            Some(Entry::Link(target)) => self.real_path(&path.parent()?.join(target)),
            Some(_) => Some(path.to_path_buf()),
            None => self.below(path).next().map(|_| path.to_path_buf()),
        }
    }

    fn below(&self, dir: &Path) -> impl Iterator<Item = &str> {
        let first_part = |rest: &'_ Path| rest.components().next().map(|part| part.as_os_str().to_owned());
        let mut last = None;
        self.0.keys().filter_map(move |path| {
            let rest = path.strip_prefix(dir).ok()?;
            let name = first_part(rest)?;
            if last.as_ref() == Some(&name) {
                return None;
            }
            last = Some(name);
            rest.components().next()?.as_os_str().to_str()
        })
    }

    fn get(&self, path: &Path) -> io::Result<&Entry> {
        self.0.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The driver's layout of capability minors: 32 GPUs of 15 GPU instances of 8 compute instances.
fn gpu_instance_minor(gpu_minor: u32, gpu_instance: u32) -> u32 {
    3 + 135 * gpu_minor + 9 * gpu_instance
}

/// /proc/driver/nvidia-caps/mig-minors as a driver writes it: every capability that can be, made or not.
fn mig_minors() -> String {
    let mut text = String::from("config 1\nmonitor 2\n");
    for gpu in 0..32 {
        for gi in 0..15 {
            let minor = gpu_instance_minor(gpu, gi);
            text += &format!("gpu{gpu}/gi{gi}/access {minor}\n");
            for ci in 0..8 {
                text += &format!("gpu{gpu}/gi{gi}/ci{ci}/access {}\n", minor + 1 + ci);
            }
        }
    }
    text
}

fn capability_file(minor: u32, mode: u32) -> String {
    format!("DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
}

impl Files for Tree {
    fn text(&self, path: &Path) -> io::Result<String> {
        match self.get(path)? {
            Entry::Text(text) => Ok(text.clone()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let names: Vec<_> = self.below(dir).map(str::to_owned).collect();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }

    fn driver_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        Files::names(self, dir)
    }

    fn device_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        Files::names(self, dir)
    }

    fn driver_real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.real_path(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn driver_file(&self, path: &Path) -> io::Result<PathBuf> {
        let real = self.driver_real_path(path)?;
        match self.get(&real)? {
            Entry::Text(_) | Entry::Program(_) | Entry::SharedObject(_) => Ok(real),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn driver_socket(&self, path: &Path) -> io::Result<PathBuf> {
        match self.get(path)? {
            Entry::Socket => Ok(path.to_path_buf()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn cached_libraries(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    fn soname(&self, path: &Path) -> io::Result<Option<String>> {
        match self.get(path)? {
            Entry::SharedObject(soname) => Ok(Some(soname.clone())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn node_path(&self, path: &Path) -> PathBuf {
        path.to_path_buf()
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        match self.get(path)? {
            Entry::Node(node) => Ok(*node),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a character device")),
        }
    }
}
