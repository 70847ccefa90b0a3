//! The examples of README.md, for trials that run them as they stand there. The containers in them run `ubuntu` and
//! `nvidia-smi`: the machine's `ubuntu` is the image glibc, and its `nvidia-smi` says what a program met in there.

use std::sync::Once;

use crate::containers::{LOAD, OPEN_ALL, assert_loads, assert_nodes};
use crate::ground::Ground;

const README: &str = include_str!("../../README.md");

/// The fenced block after the one line that begins like this.
#[track_caller]
pub fn block(beginning: &str) -> String {
    let after: Vec<usize> =
        README.match_indices(&format!("\n{beginning}")).map(|(position, _)| position + 1).collect();
    let [after] = after[..] else { panic!("README.md has {} lines {beginning:?}", after.len()) };
    let mut lines = README[after..].lines().skip_while(|line| !line.starts_with("```"));
    assert!(lines.next().is_some(), "README.md has no block after {beginning:?}");
    lines.take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect()
}

/// Whether it says this.
pub fn has(words: &str) -> bool {
    README.split_whitespace().collect::<Vec<_>>().join(" ").contains(words)
}

/// Puts that `nvidia-smi` in its place, in one step: containers of other trials start meanwhile. With `--loop` it
/// stays until it is told to end.
pub fn put_nvidia_smi(ground: &Ground) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let script = format!(
            "cat >/usr/bin/nvidia-smi.new <<'END'
#!/bin/sh
{OPEN_ALL}
{LOAD}
case $1 in --loop=*) trap exit TERM; sleep 1000 & wait ;; esac
END
             chmod 755 /usr/bin/nvidia-smi.new
             mv /usr/bin/nvidia-smi.new /usr/bin/nvidia-smi"
        );
        ground.sh(&script).ok();
    });
}

/// Asserts what it printed: these nodes and the control nodes, all to be opened, no others, and the driver's libraries.
#[track_caller]
pub fn assert_met(printed: &str, nodes: &[&str]) {
    let (opened, loaded): (Vec<&str>, Vec<&str>) =
        printed.lines().partition(|line| line.starts_with("/dev/"));
    assert_nodes(&opened.join("\n"), nodes);
    assert_loads(&loaded.join("\n"));
}
