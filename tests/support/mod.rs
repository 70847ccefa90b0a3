//! Shared by the black box tests: running the built `divvy`, the mock NVML library, machines that are laid out.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod elf;
pub mod inside;
pub mod laid;
pub mod layout;
pub mod mps;
pub mod needs;
pub mod peak;
pub mod place;
pub mod record;
pub mod wait;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The built command, with its hook named so that output does not depend on where it was built.
pub fn divvy(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_divvy"));
    command.args(args).env_remove("LD_LIBRARY_PATH");
    command
}

/// Runs and returns status, standard output and standard error.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Copies a program that is run next. Only `cp` has it open for writing: what another thread starts meanwhile would have it
/// too, if this process had, and a program that somebody may write to is not run (ETXTBSY, execve(2)).
pub fn copy_program(from: &Path, to: &Path) {
    assert!(
        Command::new("cp").arg(from).arg(to).status().unwrap().success(),
        "cannot copy {}",
        from.display()
    );
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Compares with tests/golden/NAME; UPDATE_GOLDEN=1 writes it anew, to be read before it is committed.
pub fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; UPDATE_GOLDEN=1 writes it anew. Actual:\n{actual}",
        path.display()
    );
}

/// The mock library, built on first use, as DIR/libnvidia-ml.so.1 in a directory of the caller's.
pub fn mock_nvml(dir: &Path) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_divvy")).with_file_name("libnvidia_ml.so");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "mock-nvml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "mock-nvml does not build");
    let library = dir.join("libnvidia-ml.so.1");
    std::fs::copy(&built, &library).unwrap();
    library
}

/// Takes a symbol out of a copy of the mock: the name in its string table is changed, as if an older driver had
/// never had it.
pub fn leave_out_symbol(library: &Path, symbol: &str) {
    let mut bytes = std::fs::read(library).unwrap();
    let needle = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let places: Vec<_> =
        bytes.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "the mock has no symbol {symbol}");
    for at in places {
        bytes[at + 1] = b'x';
    }
    std::fs::write(library, bytes).unwrap();
}

/// Facts of a built-in host, for the mock.
pub fn facts(host: &str) -> PathBuf {
    // Two hosts differ in what stands beside the GPUs alone.
    let host = if host == "hgx-h100" { "h100x8" } else { host };
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/discover/sim/{host}.json"))
}
