//! What the driver has besides libraries: programs, descriptions by which loaders find it, firmware, its daemons'
//! sockets, and modules of the X server. Nix's profile directories are searched too; what is found there stands in the
//! container where programs of other distributions look.

use std::path::{Component, Path, PathBuf};

use super::{Files, driver_file};
use crate::discover::host::{DriverFile, DriverFiles, DriverLink, Purpose};

/// Programs of containers. Never those that control MPS: who has them and its pipe directory rules over the others.
const PROGRAMS: [(&str, Purpose); 6] = [
    ("nvidia-smi", Purpose::Compute),
    ("nvidia-debugdump", Purpose::Compute),
    ("nvidia-persistenced", Purpose::Compute),
    ("nvidia-imex", Purpose::Compute),
    ("nvidia-imex-ctl", Purpose::Compute),
    ("nvidia-xconfig", Purpose::Graphics),
];
/// Where programs of the driver are; Debian has the MPS server among those of the system.
pub const PROGRAM_DIRS: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/nvidia/bin", "/run/current-system/sw/bin"];

/// Where loaders look for descriptions, the administrator's first. The last ones are NixOS's.
const DATA_ROOTS: [&str; 5] =
    ["/etc", "/usr/share", "/usr/local/share", "/run/opengl-driver/etc", "/run/opengl-driver/share"];

/// Descriptions, by directory below a data root: which files of it, where a container has the directory if the
/// host has it elsewhere, who needs them.
const DATA: [Data; 8] = [
    Data { dir: "OpenCL/vendors", is: |name| name == "nvidia.icd", root: "/etc", purpose: Purpose::Compute },
    Data::graphics("vulkan/icd.d", |name| is_json(name, "nvidia")),
    Data::graphics("vulkan/implicit_layer.d", |name| is_json(name, "nvidia")),
    Data::graphics("vulkansc/icd.d", |name| is_json(name, "nvidia")),
    Data::graphics("glvnd/egl_vendor.d", |name| is_json(name, "nvidia")),
    Data::graphics("egl/egl_external_platform.d", |name| is_json(name, "nvidia")),
    Data::graphics("nvidia", |name| name == "nvoptix.bin"),
    Data::graphics("X11/xorg.conf.d", |name| X_CONFIGURATION.contains(&name)),
];

/// What the driver's packages bring; other files with its name there are the administrator's, and of this host's screens.
const X_CONFIGURATION: [&str; 3] =
    ["10-nvidia.conf", "10-nvidia-drm-outputclass.conf", "nvidia-drm-outputclass.conf"];

struct Data {
    dir: &'static str,
    is: fn(&str) -> bool,
    root: &'static str,
    purpose: Purpose,
}

impl Data {
    const fn graphics(dir: &'static str, is: fn(&str) -> bool) -> Self {
        Self { dir, is, root: "/usr/share", purpose: Purpose::Graphics }
    }
}

/// A description of the driver that is not for another architecture's programs: `nvidia_icd.i686.json`.
fn is_json(name: &str, of: &str) -> bool {
    let architectures = ["x86_64", "aarch64", "i686", "i386"];
    let mut named = architectures.iter().filter(|architecture| name.contains(**architecture));
    name.contains(of) && name.ends_with(".json") && named.all(|named| *named == std::env::consts::ARCH)
}

/// Where distributions have the X server's modules and the driver's own, with the place of the other module beside each.
const X_DIRS: [(&str, &str); 10] = [
    ("/usr/lib/xorg/modules/extensions", "../drivers"),
    ("/usr/lib64/xorg/modules/extensions", "../drivers"),
    ("/usr/lib/x86_64-linux-gnu/nvidia/xorg", "."),
    ("/usr/lib/aarch64-linux-gnu/nvidia/xorg", "."),
    ("/usr/lib/nvidia/xorg", "../../xorg/modules/drivers"),
    ("/usr/lib64/nvidia/xorg", "../../xorg/modules/drivers"),
    ("/usr/lib/nvidia/current", "."),
    ("/usr/lib/x86_64-linux-gnu/xorg/modules/extensions", "../drivers"),
    ("/usr/lib/aarch64-linux-gnu/xorg/modules/extensions", "../drivers"),
    ("/run/opengl-driver/lib/xorg/modules/extensions", "../drivers"),
];

/// Sockets by which programs talk to the driver's daemons, with the directories that /run had before.
const SOCKETS: [&str; 2] = ["nvidia-persistenced/socket", "nvidia-fabricmanager/socket"];
const RUN: [&str; 2] = ["/run", "/var/run"];

/// Adds everything of driver `version` that is no library.
pub fn find(files: &dyn Files, version: &str, found: &mut DriverFiles) {
    for (name, purpose) in PROGRAMS {
        let file = program(files, name, purpose, &mut found.broken);
        found.files.extend(file);
    }
    for data in &DATA {
        descriptions(files, data, found);
    }
    firmware(files, version, found);
    x_modules(files, version, found);
    for socket in SOCKETS {
        let path = Path::new(RUN[0]).join(socket);
        let answers = RUN.iter().map(|run| files.driver_socket(&Path::new(run).join(socket)));
        match answers.filter(|answer| !is_absent(answer)).find_map(Some) {
            Some(Ok(real_path)) => {
                found.sockets.push(DriverFile { path, real_path, purpose: Purpose::Compute });
            }
            Some(Err(error)) => found.closed_sockets.push((path, error.to_string())),
            None => {}
        }
    }
}

fn is_absent<T>(answer: &std::io::Result<T>) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn program(
    files: &dyn Files,
    name: &str,
    purpose: Purpose,
    broken: &mut Vec<(PathBuf, String)>,
) -> Option<DriverFile> {
    let mut file = PROGRAM_DIRS
        .iter()
        .find_map(|dir| driver_file(files, &Path::new(dir).join(name), purpose, broken))?;
    // No image has Nix's directory in its PATH, nor the loader that Nix has the program ask for: nixpkgs keeps the
    // driver's own beside it, for containers.
    if file.path.starts_with("/run/current-system") {
        file.path = Path::new(PROGRAM_DIRS[0]).join(name);
        let original = file.real_path.parent().map(|bin| bin.with_file_name("origBin").join(name));
        if let Some(original) = original.and_then(|path| files.driver_file(&path).ok()) {
            file.real_path = original;
        }
    }
    Some(file)
}

/// Of a name in several data roots the first counts: loaders would take the two for two drivers.
fn descriptions(files: &dyn Files, data: &Data, found: &mut DriverFiles) {
    let mut seen: Vec<String> = Vec::new();
    for root in DATA_ROOTS {
        let dir = Path::new(root).join(data.dir);
        let in_container =
            if root.starts_with("/run") { Path::new(data.root).join(data.dir) } else { dir.clone() };
        for name in files.driver_names(&dir).unwrap_or_default() {
            if !(data.is)(&name) || seen.contains(&name) {
                continue;
            }
            if let Some(file) = driver_file(files, &dir.join(&name), data.purpose, &mut found.broken) {
                found.files.push(DriverFile { path: in_container.join(&name), ..file });
                seen.push(name);
            }
        }
    }
}

/// GSP firmware, where the kernel looks for it (Documentation/driver-api/firmware/fw_search_path.rst): the first
/// directory that has any.
fn firmware(files: &dyn Files, version: &str, found: &mut DriverFiles) {
    let text = |path: &str| files.text(Path::new(path)).unwrap_or_default().trim().to_owned();
    let custom = text("/sys/module/firmware_class/parameters/path");
    let kernel = text("/proc/sys/kernel/osrelease");
    let kernel = Some(kernel).filter(|kernel| !kernel.is_empty() && !kernel.contains('/'));
    let below = |dir: &str| {
        let dir = PathBuf::from(dir);
        kernel.as_ref().map(|kernel| dir.join(kernel)).into_iter().chain([dir])
    };
    let custom = Some(PathBuf::from(custom)).filter(|dir| dir.is_absolute());
    let nix = PathBuf::from("/run/current-system/firmware");
    let dirs =
        custom.into_iter().chain(below("/lib/firmware/updates")).chain(below("/lib/firmware")).chain([nix]);
    for dir in dirs {
        let dir = dir.join("nvidia").join(version);
        let names = files.driver_names(&dir).unwrap_or_default();
        let before = found.files.len();
        for name in names.iter().filter(|name| is_firmware(name)) {
            let file = driver_file(files, &dir.join(name), Purpose::Compute, &mut found.broken);
            found.files.extend(file);
        }
        if found.files.len() > before {
            return;
        }
    }
}

fn is_firmware(name: &str) -> bool {
    ["gsp", "ucodes"].iter().any(|start| name.starts_with(start)) && name.ends_with(".bin")
}

/// The X server in a container looks for its modules where the host's does; the extension by a name without version.
/// nvidia_drv.so never has one, so it counts only beside an extension of the version that runs.
fn x_modules(files: &dyn Files, version: &str, found: &mut DriverFiles) {
    const PLAIN: &str = "libglxserver_nvidia.so";
    let versioned = format!("{PLAIN}.{version}");
    let broken = &mut found.broken;
    let mut module = |path: PathBuf| driver_file(files, &path, Purpose::Graphics, broken);
    let glx = X_DIRS.iter().find_map(|(dir, beside)| {
        let dir = Path::new(dir);
        // Where the plain name is the file itself, there is no telling its version.
        let is_of_version =
            |file: &DriverFile| file.real_path.ends_with(&versioned) || file.real_path.ends_with(PLAIN);
        let by_version = module(dir.join(&versioned));
        let file = by_version.or_else(|| module(dir.join(PLAIN)).filter(is_of_version))?;
        Some((file, dir.join(beside)))
    });
    let Some((glx, beside)) = glx else { return };
    found.files.extend(module(plain(&beside).join("nvidia_drv.so")));
    if glx.path.ends_with(&versioned) {
        found.links.push(DriverLink {
            path: glx.path.with_file_name(PLAIN),
            target: versioned,
            purpose: Purpose::Graphics,
        });
    }
    found.files.push(glx);
}

/// A path without `.` and `..`, by its names alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}
