//! Keys of `[[gpu]]` that are about MPS alone: when its server starts, which memory its containers share, and whose work
//! goes first. In any other mode they are a mode that was forgotten.

use serde::Deserialize;
use toml::Spanned;

use super::{RawGpu, RawQuantity, Source};
use crate::config::{Mistake, Mode, MpsRule, Place, value};

/// The smallest and the largest tmpfs for /dev/shm, bytes: a library's buffers take some MiB, and 1 TiB is more than what
/// machines have.
const SMALLEST_SHARED_MEMORY: u64 = 1 << 20;
const LARGEST_SHARED_MEMORY: u64 = 1 << 40;

/// When the MPS server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the first share that is asked for.
    FirstUse,
    /// With the daemon.
    Boot,
}

impl Source<'_> {
    /// What the table says of MPS.
    pub fn mps(&self, mode: Mode, gpu: &RawGpu) -> Result<MpsRule, Mistake> {
        if mode != Mode::Mps {
            self.nothing_about_mps(gpu)?;
        }
        let shared_memory_bytes = gpu.shm.as_ref().map(|size| self.shared_memory(size)).transpose()?;
        let at_boot = gpu.start.as_ref().is_some_and(|start| *start.get_ref() == Start::Boot);
        Ok(MpsRule { at_boot, shared_memory_bytes })
    }

    fn nothing_about_mps(&self, gpu: &RawGpu) -> Result<(), Mistake> {
        let of_shares = gpu.share.iter().flatten().filter_map(|share| share.get_ref().priority.as_ref());
        let priority = gpu.priority.iter().chain(of_shares).next().map(|at| ("priority", self.place(at)));
        let start = gpu.start.as_ref().map(|at| ("start", self.place(at)));
        let shm = gpu.shm.as_ref().map(|at| ("shm", self.place(at)));
        let Some((key, place)) = start.or(shm).or(priority) else { return Ok(()) };
        Err(needs_mps(key, place))
    }

    fn shared_memory(&self, size: &Spanned<RawQuantity>) -> Result<u64, Mistake> {
        let text = &size.get_ref().0;
        let bytes = value::size(text).map_err(|why| self.mistake(size, format!("shm: {why}")))?;
        match bytes {
            SMALLEST_SHARED_MEMORY..=LARGEST_SHARED_MEMORY => Ok(bytes),
            _ => Err(self.mistake(size, format!("shm is {text:?}: it is 1MiB to 1024GiB"))),
        }
    }
}

fn needs_mps(key: &str, place: Place) -> Mistake {
    Mistake {
        place,
        what: format!("{key} needs mode = \"mps\": it says something about MPS alone"),
        hint: Some("leave it out, or share the GPU with mode = \"mps\"".into()),
    }
}
