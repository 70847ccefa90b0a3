//! NVIDIA's own MPS programs and libcuda, as tests/machine/mps.sh unpacks them: one directory a driver version.

use std::path::PathBuf;

use super::needs::mps_roots;

/// The programs and the library of one driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MpsFiles {
    /// The driver's version, `555.58.02`.
    pub version: String,
    /// The directory that stands for `/`.
    pub root: PathBuf,
}

impl MpsFiles {
    /// nvidia-cuda-mps-control.
    pub fn control(&self) -> PathBuf {
        self.root.join("usr/bin/nvidia-cuda-mps-control")
    }

    /// Where libcuda.so.1 is.
    pub fn library_dir(&self) -> PathBuf {
        self.root.join(format!("usr/lib/{}-linux-gnu/nvidia/current", std::env::consts::ARCH))
    }

    /// The driver's branch, 555 of 555.58.02.
    pub fn branch(&self) -> u32 {
        self.version.split('.').next().and_then(|branch| branch.parse().ok()).unwrap_or_default()
    }

    /// One server serves all users.
    pub fn is_multi_user(&self) -> bool {
        self.branch() >= 555
    }
}

/// All that are there, the oldest driver first. Debian moves its suites: no test may count on a version, but it may on
/// [`MpsFiles::is_multi_user`].
pub fn all() -> Vec<MpsFiles> {
    let roots = mps_roots().into_iter().filter_map(|root| {
        let version = root.file_name()?.to_str()?.to_owned();
        Some(MpsFiles { version, root })
    });
    let mut all: Vec<_> = roots.filter(|files| files.branch() > 0).collect();
    all.sort_by_key(MpsFiles::branch);
    all
}
