//! Black box, as root: the driver's files where distributions put them (tests/layouts), laid out and discovered live,
//! and what each container would get of them compared with a golden text. Then the same from a record.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::path::Path;

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::layout::Layout;
use support::needs::{self, Need};
use support::{divvy, golden, run};

const GENERATE: [&str; 3] = ["generate", "--hook-path=/bin/true", "--output=-"];

fn main() {
    let layouts: [(&'static str, &'static str); 6] = [
        ("debian", "layout_debian"),
        ("ubuntu", "layout_ubuntu"),
        ("fedora", "layout_fedora"),
        ("runfile", "layout_runfile"),
        ("nixos", "layout_nixos"),
        ("two-versions", "layout_two_versions"),
    ];
    let needs = &[Need::Root, Need::X86_64];
    let trials: Vec<Trial> =
        layouts.into_iter().map(|(layout, name)| needs::trial(name, needs, || check(layout))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// What is found is as the golden text says, and a record of the host tells the same spec.
fn check(name: &str) {
    let layout = Layout::named(name);
    let root = layout.laid.root().display().to_string();
    let (status, spec, errors) = layout.laid.live(&GENERATE, &[]);
    let spec_of_files = serde_json::from_str(&spec).unwrap_or_else(|error| panic!("{error}: {errors}"));
    let told = format!("status {status}\n{}", errors.replace(&root, "ROOT"));
    golden(&format!("layout-{name}.txt"), &(told + &listing(&spec_of_files, &layout)));

    let record = layout.laid.dir.path().join("record");
    let (recorded, _, errors) = layout.laid.live(&["--quiet", "record", record.to_str().unwrap()], &[]);
    assert_eq!(recorded, 0, "{errors}");
    let flags = [&GENERATE[..], &["--driver-root", &root]].concat();
    let (replayed, replayed_spec, _) = run(divvy(&flags).arg("--host").arg(&record));
    assert_eq!(replayed, status);
    assert!(spec == replayed_spec, "{name}: the record tells another spec than the host");
}

/// One line for each mount (`from` where the host has the file in another place), library and link of the hook, then
/// for each of the layout's files that no container gets; sorted.
fn listing(spec: &Value, layout: &Layout) -> String {
    let edits = &spec["containerEdits"];
    let root = layout.laid.root();
    let (mut lines, mut mounted) = (Vec::new(), Vec::new());
    for mount in edits["mounts"].as_array().unwrap() {
        let host = Path::new(mount["hostPath"].as_str().unwrap());
        let host = Path::new("/").join(host.strip_prefix(&root).unwrap());
        let container = mount["containerPath"].as_str().unwrap();
        let from = (host != Path::new(container)).then(|| format!(" from {}", host.display()));
        lines.push(format!("mount {container}{}", from.unwrap_or_default()));
        mounted.push(fs::canonicalize(layout.on_host(&host)).unwrap());
    }
    for argument in edits["hooks"][0]["args"].as_array().unwrap() {
        let argument = argument.as_str().unwrap();
        for what in ["library", "link"] {
            if let Some(value) = argument.strip_prefix(&format!("--{what}=")) {
                lines.push(format!("{what} {value}"));
            }
        }
    }
    lines.sort();
    let mut without: Vec<_> = layout.files.clone();
    without.retain(|path| !mounted.contains(&fs::canonicalize(layout.on_host(path)).unwrap()));
    without.sort();
    let without = without.iter().map(|path| format!("without {}", path.display()));
    lines.into_iter().chain(without).map(|line| line + "\n").collect()
}
