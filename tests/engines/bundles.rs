//! What a program meets in images of every kind that loads libraries in its own way, on runc and crun themselves, of root's
//! and of a user's: trees made of Debian's packages (tests/machine/bundles.sh). The table of docs/images.md has a row for
//! each tree and a column for each runtime.

use crate::bundle::{RUNTIMES, Run, Runtime};
use crate::ground::{Ground, suite};
use crate::table;

const LIB: &str = "/usr/lib/x86_64-linux-gnu";
const COMPAT: &str = "/usr/local/cuda/compat";
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libnvidia-ml.so.1"];
/// A column of docs/images.md.
const WRITTEN: &str = "what the hook writes";
const DRIVER: &str = "580.126.09";

/// A tree, and what the trial expects in it.
#[derive(Debug)]
pub struct Tree {
    /// The last part of the trials' names, and of its archive's path in `/images`.
    pub name: &'static str,
    /// Its row in docs/images.md.
    row: &'static str,
    archive: &'static str,
    device: &'static str,
    /// The test program in it.
    probe: &'static str,
    finds: Finds,
    /// A library of the image's, which must be found as without a device.
    own: Option<&'static str>,
    /// A file in the tree, and what it must say after the start.
    file: Option<(&'static str, &'static str)>,
}

/// Where a program finds libcuda.so.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finds {
    /// The driver's own.
    Driver,
    /// That of the image's /usr/local/cuda/compat.
    Compat,
    /// The program is static. It has the devices.
    Nothing,
}

const PLAIN: Tree = Tree {
    name: "glibc",
    row: "Debian 13",
    archive: "glibc",
    device: "0:1",
    probe: "probe",
    finds: Finds::Driver,
    own: Some("libm.so.6"),
    file: None,
};

const OWN: Option<&str> = Some("libown.so.1");
/// What musl looks through without such a file, and then the driver's directory.
const MUSL_PATH: (&str, &str) =
    ("etc/ld-musl-x86_64.path", "/lib\n/usr/local/lib\n/usr/lib\n/usr/lib/x86_64-linux-gnu");
const MUSL_OWN_PATH: (&str, &str) =
    ("etc/ld-musl-x86_64.path", "/lib\n/opt/own/lib\n/usr/lib\n/usr/lib/x86_64-linux-gnu");

/// Every tree, in the order of the table.
pub const TREES: [Tree; 17] = [
    PLAIN,
    Tree { name: "split", row: "Debian 12, /usr not merged", archive: "bundles/split", own: OWN, ..PLAIN },
    Tree {
        name: "cache-compat",
        row: "cache in both forms (glibc before 2.32)",
        archive: "bundles/cache-compat",
        own: OWN,
        ..PLAIN
    },
    Tree {
        name: "cache-old",
        row: "cache in the old form (glibc before 2.2)",
        archive: "bundles/cache-old",
        own: OWN,
        ..PLAIN
    },
    Tree { name: "bare", row: "neither cache nor configuration", archive: "bare", ..PLAIN },
    Tree { name: "no-etc", row: "no /etc", archive: "bundles/no-etc", ..PLAIN },
    Tree {
        name: "links",
        row: "/etc, /run, /lib and libraries behind absolute links",
        archive: "bundles/links",
        own: OWN,
        ..PLAIN
    },
    Tree {
        name: "links-gpu",
        row: "the same, and /etc/nvidia, with a whole GPU",
        archive: "bundles/links",
        device: "1",
        own: OWN,
        ..PLAIN
    },
    Tree { name: "musl", row: "musl", archive: "bundles/musl", own: None, file: Some(MUSL_PATH), ..PLAIN },
    Tree {
        name: "musl-path",
        row: "musl with a path file",
        archive: "bundles/musl-path",
        own: OWN,
        file: Some(MUSL_OWN_PATH),
        ..PLAIN
    },
    Tree { name: "both", row: "glibc beside musl", archive: "bundles/both", own: OWN, ..PLAIN },
    Tree {
        name: "both-musl",
        row: "glibc beside musl, a program of musl's",
        archive: "bundles/both",
        probe: "probe-musl",
        own: None,
        ..PLAIN
    },
    Tree {
        name: "compat",
        row: "newer CUDA in /usr/local/cuda/compat",
        archive: "bundles/compat",
        finds: Finds::Compat,
        own: OWN,
        ..PLAIN
    },
    Tree {
        name: "compat-other",
        row: "the same, not for this driver, in the image's cache",
        archive: "bundles/compat-other",
        own: OWN,
        ..PLAIN
    },
    Tree {
        name: "compat-older",
        row: "older CUDA in /usr/local/cuda/compat",
        archive: "bundles/compat-older",
        own: OWN,
        ..PLAIN
    },
    Tree { name: "bb", row: "static busybox", archive: "bb", finds: Finds::Nothing, own: None, ..PLAIN },
    Tree {
        name: "empty",
        row: "one static program and nothing else",
        archive: "bundles/empty",
        finds: Finds::Nothing,
        own: None,
        ..PLAIN
    },
];

/// Nodes of a device that a tree is run with, and last one that it has not.
fn nodes(device: &str) -> &'static [(&'static str, &'static str)] {
    match device {
        "1" => &[("open", "/dev/nvidiactl"), ("open", "/dev/nvidia1"), ("open", "/dev/nvidia0")],
        _ => &[
            ("open", "/dev/nvidiactl"),
            ("open", "/dev/nvidia0"),
            ("read", "/dev/nvidia-caps/nvidia-cap30"),
            ("read", "/dev/nvidia-caps/nvidia-cap31"),
            ("open", "/dev/nvidia1"),
        ],
    }
}

/// Runs a tree without a device, and then with one, twice.
pub fn bundle(ground: &Ground, runtime: &Runtime, tree: &Tree) {
    let mut args = vec![tree.probe, "load"];
    args.extend(LIBRARIES.into_iter().chain(tree.own));
    let without = runtime.config(&args);
    for (verb, node) in nodes(tree.device) {
        args.extend(["--", verb, node]);
    }
    let with = runtime.with_device(ground, &args, tree.device);
    // By name: out here an absolute link of the tree's leads elsewhere.
    let look = format!(
        "find . -name libcuda.so.1 ! -path './usr/local/*' -printf '%l\\n'; [ ! -e '{0}' ] || cat '{0}'",
        tree.file.map_or("none", |(path, _)| path)
    );
    let (runs, look) = runtime.run(ground, tree.archive, &[without, with.clone(), with], &look);
    let [before, first, second] = &runs[..] else { panic!("{runs:?}") };

    for run in &runs {
        assert_eq!(run.status, 0, "{}", run.stderr);
    }
    for run in [first, second] {
        assert_nodes(run, nodes(tree.device));
        let found: Vec<&str> = answers(run).into_iter().take(LIBRARIES.len()).collect();
        assert_eq!(found, expected(tree), "{run:?}");
    }
    assert_eq!(second.changed, [], "the second start changed something");
    assert_eq!(second.stdout, first.stdout);
    if tree.finds != Finds::Nothing {
        assert_eq!(answers(first).len(), LIBRARIES.len() + usize::from(tree.own.is_some()), "{first:?}");
        for answer in &answers(before)[..LIBRARIES.len()] {
            assert!(!answer.contains(&format!(": {LIB}/")), "without a device: {answer}");
        }
        assert_eq!(answers(first).get(2), answers(before).get(2), "a library of the image's own");
        assert!(answers(first).get(2).is_none_or(|answer| answer.contains(": /")), "{first:?}");
        let (link, file) = look.split_once('\n').unwrap_or((&look, ""));
        assert_eq!(link, format!("libcuda.so.{DRIVER}"));
        assert_eq!(file, tree.file.map_or("", |(_, content)| content));
    }

    let said = match tree.finds {
        Finds::Driver => "finds the driver's",
        Finds::Compat => "finds compat's",
        Finds::Nothing => "has the nodes",
    };
    documented(runtime.name, tree, said.to_owned());
    if runtime.name == RUNTIMES[0].name {
        documented(WRITTEN, tree, written(first));
    }
}

/// Asserts that the cell of a tree is as docs/images.md has it.
#[track_caller]
fn documented(column: &str, tree: &Tree, cell: String) {
    let columns: Vec<&str> = RUNTIMES.iter().map(|runtime| runtime.name).chain([WRITTEN]).collect();
    let place = table::Place {
        page: "images.md",
        heading: "What is found in them",
        columns: &columns,
        rows: &TREES.each_ref().map(|tree| tree.row),
        trials: "bundles",
        // One table for both: that which runtime it is makes no difference is what it says.
        is_only_compared: suite() != "sid",
    };
    place.compare(column, &[(tree.row, cell)]);
}

/// What the hook wrote, by what is new after the start besides what something could be mounted on.
fn written(run: &Run) -> String {
    let written = run.changed.iter().filter(|(path, kind, size)| {
        let is_content = kind == "l" || kind == "f" && *size > 0;
        // Made by the runtime for what it always mounts.
        is_content && !path.starts_with("dev/")
    });
    let mut places: Vec<String> = Vec::new();
    let mut links = 0;
    for (path, kind, _) in written {
        if kind == "l" {
            links += 1;
        } else {
            places.push(format!("/{path}"));
        }
    }
    let links = (links > 0).then(|| format!("{links} links"));
    links.into_iter().chain(places).collect::<Vec<_>>().join(", ")
}

/// The answers of `probe load`: for the driver's libraries, and then for the image's own.
fn answers(run: &Run) -> Vec<&str> {
    run.stdout.lines().filter(|line| line.starts_with("lib")).collect()
}

fn expected(tree: &Tree) -> Vec<String> {
    let place = |library: &str| match tree.finds {
        Finds::Nothing => format!("{library}: a static program loads nothing"),
        Finds::Compat if library == "libcuda.so.1" => format!("{library}: {COMPAT}/{library}"),
        _ => format!("{library}: {LIB}/{library}"),
    };
    LIBRARIES.map(place).into()
}

/// ENXIO is the answer of a node without a driver behind it. Where the host has one it answers for some.
#[track_caller]
fn assert_nodes(run: &Run, nodes: &[(&str, &str)]) {
    let opened: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("/dev/")).collect();
    assert_eq!(opened.len(), nodes.len(), "{run:?}");
    let absent = nodes.last().map(|(_, node)| *node);
    for ((_, node), line) in nodes.iter().zip(&opened) {
        let answer = line.strip_prefix(node).and_then(|rest| rest.strip_prefix(": ")).unwrap_or_default();
        assert!(!["", "EPERM", "EACCES"].contains(&answer), "{line}");
        assert_eq!(answer == "ENOENT", Some(*node) == absent, "{line}");
    }
}
