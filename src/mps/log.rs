//! What supervisor and control daemon say, in a file, where no journal keeps it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::place::Place;

/// The longest file, in bytes; there is one of before beside it.
const LIMIT: u64 = 512 << 10;

/// Opens it to be added to.
///
/// # Errors
/// Those of mkdir(2) and open(2).
pub fn open(place: &Place) -> io::Result<File> {
    DirBuilder::new().mode(0o755).recursive(true).create(place.log())?;
    File::options().append(true).create(true).open(path(place))
}

/// Sets what is there aside once it is long. Who has it open goes on writing, at the beginning of the empty file.
///
/// # Errors
/// When the disk is full, and the like.
pub fn bound(place: &Place) -> io::Result<()> {
    let path = path(place);
    match fs::metadata(&path) {
        Ok(found) if found.len() > LIMIT => {}
        _ => return Ok(()),
    }
    fs::copy(&path, path.with_extension("log.1"))?;
    File::options().write(true).open(&path)?.set_len(0)
}

fn path(place: &Place) -> PathBuf {
    place.log().join("mps.log")
}
