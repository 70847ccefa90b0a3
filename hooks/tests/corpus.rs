//! Every kept input of the hook's fuzz targets, through the functions that the targets call. What fuzzing once found
//! stays found, without a nightly compiler.

// Functions that tests share are tests too; clippy counts only those marked so.
#![allow(clippy::unwrap_used)]

#[path = "../../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

fn every_input(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut kept: Vec<_> = entries
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"kept-")))
        .collect();
    kept.sort();
    assert!(!kept.is_empty(), "{}", directory.display());
    for path in kept {
        // A panic in a check says what is wrong, and this which input it was.
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
    }
}

#[test]
fn library_caches() {
    every_input("library_cache", checks::library_cache);
}

#[test]
fn states() {
    every_input("state", checks::state);
}

#[test]
fn bundle_configs() {
    every_input("bundle_config", checks::bundle_config);
}

#[test]
fn elf_notes() {
    every_input("elf_note", checks::elf_note);
}

#[test]
fn command_lines() {
    every_input("args", checks::args);
}
