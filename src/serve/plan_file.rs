//! The plan that is in force: plan.json, read anew when it changed. `generate` replaces it by a rename, so a look at it
//! before each request is all that is needed, and nothing wakes up for it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::plan::kept::Kept;

/// As much as `generate` reads of one, in bytes.
const LIMIT: u64 = 64 << 20;

/// The file, and what is remembered of it.
#[derive(Debug)]
pub struct PlanFile {
    path: PathBuf,
    stamp: Option<Stamp>,
    host_paths: HashMap<PathBuf, PathBuf>,
}

/// Tells one file from the one that replaced it: device, inode, size, and time of the last change.
type Stamp = (u64, u64, u64, i64, i64);

impl PlanFile {
    /// The plan of a state directory, not read yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(crate::publish::PLAN), stamp: None, host_paths: HashMap::new() }
    }

    /// The plan, if it is another than at the last call. A missing one is no plan; one that cannot be read is an error
    /// once, and the plan before stays in force.
    pub fn changed(&mut self) -> io::Result<Option<Kept>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        let stamp = (found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec());
        if self.stamp.replace(stamp) == Some(stamp) {
            return Ok(None);
        }
        let mut text = Vec::new();
        Read::by_ref(&mut file).take(LIMIT).read_to_end(&mut text)?;
        let kept: Kept = serde_json::from_slice(&text)?;
        let nodes = kept.devices.iter().flat_map(|device| device.nodes.iter().chain(&device.dri_nodes));
        let renamed = nodes.filter_map(|node| Some((node.path.clone(), node.host_path.clone()?)));
        self.host_paths = renamed.collect();
        Ok(Some(kept))
    }

    /// Major and minor of a node that the plan has at this path in containers.
    pub fn numbers(&self, path: &Path) -> io::Result<(u32, u32)> {
        let host_path = self.host_paths.get(path).map_or(path, PathBuf::as_path);
        let device = fs::metadata(host_path)?.rdev();
        let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
        Ok((number(nix::sys::stat::major(device))?, number(nix::sys::stat::minor(device))?))
    }
}
