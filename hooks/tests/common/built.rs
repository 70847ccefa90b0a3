//! The static hook, as `packaging/build.sh` builds it: what runs on machines, and what is attacked here. The binary that
//! `cargo test` builds is dynamic.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::needs;

/// The C library that the hook is linked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libc {
    Gnu,
    Musl,
}

/// The hook that is shipped from this machine. `DIVVY_HOOK` may name one that is built already, for users who cannot
/// write to the build directory.
pub fn shipped() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match std::env::var_os("DIVVY_HOOK") {
        Some(path) => path.into(),
        None => build(if needs::has_musl() { Libc::Musl } else { Libc::Gnu }),
    })
}

/// Builds the hook, which costs nothing where nothing changed, and gives its path.
pub fn build(libc: Libc) -> PathBuf {
    let target = target(libc);
    let hooks = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(hooks).args(["rustc", "--quiet", "--locked", "--profile", "hook", "--target", &target]);
    cargo.args(["--bin", "divvy-hook"]);
    if libc == Libc::Gnu {
        cargo.args(["--", "-C", "target-feature=+crt-static"]);
    }
    let status = cargo.status().expect("cargo cannot be run");
    assert!(status.success(), "the static hook was not built for {target}");
    directory().join(target).join("hook/divvy-hook")
}

fn target(libc: Libc) -> String {
    let libc = if libc == Libc::Gnu { "gnu" } else { "musl" };
    format!("{}-unknown-linux-{libc}", std::env::consts::ARCH)
}

/// cargo's build directory: that of the binary it built for these tests, DIRECTORY/debug/divvy-hook.
fn directory() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_divvy-hook")).ancestors().nth(2).expect("a build directory")
}
