//! What others say about the same devices: CDI specs in the engines' directories that divvy did not write, and whether
//! NVIDIA's generator runs on this machine by itself. A name that two files of one directory define is one that no
//! engine resolves, and a name from outside reaches a GPU past its shares. Nothing here fails: a spec that cannot be
//! read is remembered as such.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::files::Files;

/// Where engines look for specs by themselves; a name in the second hides the same name in the first.
pub const SPEC_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Where systemd finds units, the administrator's own first (systemd.unit(5)).
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// How the kinds of NVIDIA's own generator begin, and divvy's.
const NVIDIA_KINDS: [&str; 2] = ["nvidia.com/", "management.nvidia.com/"];

/// NVIDIA's unit that writes /var/run/cdi/nvidia.yaml at boot and after changes of the driver.
const REFRESH_UNIT: &str = "nvidia-cdi-refresh.service";

/// Others' specs and generators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Specs that can be about NVIDIA's devices.
    pub specs: Vec<OtherSpec>,
    /// Spec files that engines may understand and divvy does not, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// nvidia-cdi-refresh is installed and not masked.
    pub refresh_unit: bool,
}

/// One spec, as far as it matters to another generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherSpec {
    /// The file.
    pub path: PathBuf,
    /// Divvy wrote it, at this time or another.
    pub by_divvy: bool,
    /// Its kind, as `nvidia.com/gpu`.
    pub kind: String,
    /// Its devices.
    pub devices: Vec<OtherDevice>,
}

/// One device of such a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherDevice {
    /// Name in its kind.
    pub name: String,
    /// Device nodes on the host that its containers get, those of the whole spec included.
    pub nodes: BTreeSet<PathBuf>,
}

/// The part of a spec that matters here; whatever else stands in it is none of our business.
#[derive(Deserialize, Serialize)]
struct RawSpec {
    kind: String,
    #[serde(default)]
    devices: Vec<RawDevice>,
    #[serde(default, rename = "containerEdits")]
    container_edits: RawEdits,
}

#[derive(Deserialize, Serialize)]
struct RawDevice {
    name: String,
    #[serde(default, rename = "containerEdits")]
    container_edits: RawEdits,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct RawEdits {
    #[serde(default)]
    device_nodes: Vec<RawNode>,
    #[serde(default)]
    hooks: Vec<RawHook>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct RawNode {
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<PathBuf>,
}

#[derive(Deserialize, Serialize)]
struct RawHook {
    #[serde(default)]
    args: Vec<String>,
}

/// Looks into the engines' directories, and into that of `output`, the spec that divvy will write, if it is another.
pub fn read(files: &dyn Files, output: &Path) -> Others {
    let mut others = Others { refresh_unit: refresh_unit(files), ..Others::default() };
    let engine_dirs = SPEC_DIRS.map(Path::new);
    let output_dir = output.parent().filter(|dir| !engine_dirs.contains(dir));
    for dir in engine_dirs.into_iter().chain(output_dir) {
        for name in files.names(dir).unwrap_or_default() {
            let path = dir.join(name);
            match read_spec(files, &path) {
                Ok(Some(spec)) => others.specs.push(spec),
                Ok(None) => {}
                Err(why) => others.unreadable.push((path, why)),
            }
        }
    }
    debug!("other specs: {others:?}");
    others
}

/// Whether engines take a file of this name for a spec.
pub fn is_spec_file(path: &Path) -> bool {
    matches!(path.extension().and_then(|ending| ending.to_str()), Some("json" | "yaml"))
}

/// Whether a spec with this text can be about NVIDIA's devices, whoever's kind it is of. Any other is none of our
/// business, broken or not. (Not `nvidia.com/`: JSON may escape the slash.)
pub fn concerns_nvidia(text: &str) -> bool {
    text.contains("nvidia")
}

/// What a record keeps of a file: of a spec the fields that are read here, since its environment and mounts may tell
/// what is nobody's business; of a unit that it is there. None for a file that is not kept.
pub fn reduced(path: &Path, text: &str) -> Option<String> {
    if path.ends_with(REFRESH_UNIT) {
        return Some(if text.trim().is_empty() { String::new() } else { "[Unit]\n".to_owned() });
    }
    if !is_spec_file(path) {
        return Some(text.to_owned());
    }
    let spec = Some(text).filter(|text| concerns_nvidia(text)).and_then(|text| parse(text).ok())?;
    serde_json::to_string_pretty(&spec).ok().map(|text| text + "\n")
}

/// A spec that concerns NVIDIA's devices; none for any other file.
fn read_spec(files: &dyn Files, path: &Path) -> Result<Option<OtherSpec>, String> {
    if !is_spec_file(path) {
        return Ok(None);
    }
    let text = match files.text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !concerns_nvidia(&text) {
        return Ok(None);
    }
    let raw = parse(&text)?;
    raw.kind.parse::<cdi::Kind>().map_err(|error| error.to_string())?;
    let common: Vec<PathBuf> = host_nodes(&raw.container_edits).collect();
    let device = |device: &RawDevice| OtherDevice {
        name: device.name.clone(),
        nodes: common.iter().cloned().chain(host_nodes(&device.container_edits)).collect(),
    };
    // No engine takes any other name, and a message should not repeat it.
    let devices = raw.devices.iter().filter(|device| device.name.parse::<cdi::DeviceName>().is_ok());
    let devices = devices.map(device).collect();
    Ok(Some(OtherSpec { path: path.to_path_buf(), by_divvy: is_own(&raw), kind: raw.kind, devices }))
}

/// JSON is YAML, but a JSON parser is the faster by far.
fn parse(text: &str) -> Result<RawSpec, String> {
    if let Ok(spec) = serde_json::from_str(text) {
        return Ok(spec);
    }
    serde_saphyr::from_str(text).map_err(|error| {
        // The first line says what is wrong, the others draw it. The words may be the file's.
        let error = error.to_string();
        error.lines().next().unwrap_or("it is not a CDI spec").escape_debug().to_string()
    })
}

fn host_nodes(edits: &RawEdits) -> impl Iterator<Item = PathBuf> {
    edits.device_nodes.iter().map(|node| node.host_path.as_ref().unwrap_or(&node.path).clone())
}

/// The kind of a spec that divvy wrote, wherever it lies and whatever its name; none for any other text.
pub fn divvys_kind(text: &str) -> Option<String> {
    parse(text).ok().filter(is_own).map(|spec| spec.kind)
}

/// The hook, with its phase and the generation, is what makes a spec divvy's.
fn is_own(spec: &RawSpec) -> bool {
    let [hook] = &spec.container_edits.hooks[..] else { return false };
    NVIDIA_KINDS.iter().any(|kinds| spec.kind.starts_with(kinds))
        && hook.args.get(1).is_some_and(|phase| phase == "create-container")
        && hook.args.get(2).is_some_and(|generation| generation.starts_with("--generation="))
}

fn refresh_unit(files: &dyn Files) -> bool {
    let unit = |dir: &str| files.text(&Path::new(dir).join(REFRESH_UNIT)).ok();
    // The first directory that has it decides; a masked unit is a link to /dev/null.
    UNIT_DIRS.iter().find_map(|dir| unit(dir)).is_some_and(|text| !text.trim().is_empty())
}
