//! Black box: divvy's specs against those that NVIDIA's own generator (nvidia-ctk 1.20.0) wrote for the same two hosts:
//! eight whole H100, and two A100 cut by MIG. Their meaning is compared: which nodes, files, links and variables a
//! container gets for a name. Every difference is a row in docs/nvidia-ctk.md, with its reason, and every row there is
//! a difference.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::record::Record;
use support::{divvy, run};

/// What a container gets for one name: the spec's edits and the device's together.
#[derive(Default)]
struct Gets {
    /// Nodes by path: permissions, mode, group.
    nodes: BTreeMap<String, (String, u64, u64)>,
    /// Files by path in the container: path on the host, options.
    files: BTreeMap<String, (String, BTreeSet<String>)>,
    /// Links by path: where they lead, as a path in the container.
    links: BTreeMap<String, PathBuf>,
    env: BTreeSet<String>,
    groups: BTreeSet<u64>,
    /// Directories that the loader's cache covers.
    folders: BTreeSet<String>,
    /// Subcommands of hooks.
    hooks: BTreeSet<String>,
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap())
}

impl Gets {
    fn add(&mut self, edits: &Value) {
        for node in edits["deviceNodes"].as_array().into_iter().flatten() {
            let number = |key: &str| node[key].as_u64().unwrap_or_default();
            let permissions = node["permissions"].as_str().unwrap().to_owned();
            let path = node["path"].as_str().unwrap().to_owned();
            self.nodes.insert(path, (permissions, number("fileMode"), number("gid")));
        }
        for mount in edits["mounts"].as_array().into_iter().flatten() {
            let path = |key: &str| mount[key].as_str().unwrap().to_owned();
            let options = strings(&mount["options"]).map(str::to_owned).collect();
            self.files.insert(path("containerPath"), (path("hostPath"), options));
        }
        self.env.extend(strings(&edits["env"]).map(str::to_owned));
        self.groups.extend(
            edits["additionalGids"].as_array().into_iter().flatten().map(|gid| gid.as_u64().unwrap()),
        );
        for hook in edits["hooks"].as_array().into_iter().flatten() {
            assert!(!hook["env"].as_array().unwrap().is_empty(), "a hook without an environment");
            self.hook(&strings(&hook["args"]).skip(1).collect::<Vec<_>>());
        }
    }

    fn hook(&mut self, args: &[&str]) {
        self.hooks.insert(args[0].to_owned());
        for (at, arg) in args.iter().enumerate() {
            if let Some(library) = arg.strip_prefix("--library=") {
                let (path, soname) = library.split_once('=').unwrap_or((library, ""));
                let dir = Path::new(path).parent().unwrap().to_str().unwrap();
                self.folders.insert(dir.to_owned());
                if !soname.is_empty() {
                    self.link(path.rsplit('/').next().unwrap(), &format!("{dir}/{soname}"));
                }
            } else if let Some(link) =
                arg.strip_prefix("--link=").or_else(|| arg.strip_prefix("--device-link="))
            {
                let (target, path) = link.split_once('=').unwrap();
                // Of links to devices, the hook makes those whose device is there.
                let device = target.rsplit('/').next().unwrap();
                if !arg.starts_with("--device-link") || self.nodes.contains_key(&format!("/dev/dri/{device}"))
                {
                    self.link(target, path);
                }
            } else if *arg == "--link" {
                let (target, path) = args[at + 1].split_once("::").unwrap();
                self.link(target, path);
            } else if *arg == "--folder" {
                self.folders.insert(args[at + 1].to_owned());
            }
        }
    }

    fn link(&mut self, target: &str, path: &str) {
        let mut leads_to = Path::new(path).parent().unwrap().to_owned();
        for part in Path::new(target) {
            if part == ".." {
                leads_to.pop();
            } else {
                leads_to.push(part);
            }
        }
        self.links.insert(path.to_owned(), leads_to);
    }
}

/// What each name of these specs brings.
fn by_name(specs: &[Value]) -> BTreeMap<String, Gets> {
    let mut names = BTreeMap::new();
    for spec in specs.iter().filter(|spec| spec["kind"] == "nvidia.com/gpu") {
        for device in spec["devices"].as_array().unwrap() {
            let mut gets = Gets::default();
            // The device first: its nodes decide on the spec's links.
            gets.add(&device["containerEdits"]);
            gets.add(&spec["containerEdits"]);
            assert!(names.insert(device["name"].as_str().unwrap().to_owned(), gets).is_none());
        }
    }
    names
}

fn keys<V>(map: &BTreeMap<String, V>) -> BTreeSet<String> {
    map.keys().cloned().collect()
}

/// The differences, each in a line. What differs for a group of files in one way is one difference.
fn differences(theirs: &Gets, ours: &Gets) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut sets = |what: &str, theirs: &BTreeSet<String>, ours: &BTreeSet<String>| {
        found.extend(theirs.difference(ours).map(|item| format!("without {what} {item}")));
        found.extend(ours.difference(theirs).map(|item| format!("with {what} {item}")));
    };
    sets("node", &keys(&theirs.nodes), &keys(&ours.nodes));
    sets("file", &keys(&theirs.files), &keys(&ours.files));
    sets("link", &keys(&theirs.links), &keys(&ours.links));
    sets("variable", &theirs.env, &ours.env);
    sets("folder", &theirs.folders, &ours.folders);
    sets("hook", &theirs.hooks, &ours.hooks);
    for (path, theirs) in &theirs.nodes {
        let Some(ours) = ours.nodes.get(path) else { continue };
        if theirs.0 != ours.0 {
            found.insert(format!("node permissions {}, not {}", ours.0, theirs.0));
        }
        assert_eq!((theirs.1, theirs.2), (ours.1, ours.2), "mode and group of {path}");
    }
    for (path, theirs) in &theirs.files {
        assert!(ours.files.get(path).is_none_or(|ours| ours == theirs), "{path}: {theirs:?}");
    }
    for (path, theirs) in &theirs.links {
        // By one link more or by one less, it is the same file.
        let end = |gets: &Gets, path: &Path| {
            gets.links.get(path.to_str().unwrap()).cloned().unwrap_or_else(|| path.to_owned())
        };
        if let Some(ours_to) = ours.links.get(path) {
            assert_eq!(end(ours, theirs), end(ours, ours_to), "{path}");
        }
    }
    if theirs.groups != ours.groups {
        found.insert(format!("groups {:?}, not {:?}", ours.groups, theirs.groups));
    }
    found
}

fn theirs(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvidia-ctk").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn ours(args: &[&str]) -> Vec<Value> {
    let (status, json, errors) = run(divvy(&["generate", "--output=-"]).args(args));
    assert_eq!((status, errors.as_str()), (0, ""));
    serde_json::Deserializer::from_str(&json).into_iter().collect::<Result<_, _>>().unwrap()
}

/// The rows of docs/nvidia-ctk.md under a heading: what stands in back quotes in the first column.
fn documented(heading: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/nvidia-ctk.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let first = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    first.map(|(row, _)| row.to_owned()).collect()
}

#[track_caller]
fn assert_documented(heading: &str, found: &BTreeSet<String>) {
    let documented = documented(heading);
    let missing: Vec<_> = found.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(found).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in docs/nvidia-ctk.md: {missing:#?}\nthere and no difference: {gone:#?}"
    );
}

#[test]
fn whole_gpus() {
    let (theirs, ours) = (by_name(&[theirs("full.json")]), by_name(&ours(&["--host=sim:hgx-h100"])));
    let is_uuid = |name: &&String| name.starts_with("GPU-");
    assert_eq!(theirs.keys().filter(is_uuid).count(), ours.keys().filter(is_uuid).count());
    let names =
        |of: &BTreeMap<String, Gets>| of.keys().filter(|name| !is_uuid(name)).cloned().collect::<Vec<_>>();
    assert_eq!(names(&theirs), names(&ours));
    let found = names(&theirs).iter().flat_map(|name| differences(&theirs[name], &ours[name])).collect();
    assert_documented("Whole GPUs", &found);
}

/// The driver's table of capabilities for two GPUs, by GPU instance and compute instance.
fn mig_minors() -> String {
    let mut text = String::new();
    for (gpu, gi) in (0..2).flat_map(|gpu| (0..15).map(move |gi| (gpu, gi))) {
        let minor = 3 + 135 * gpu + 9 * gi;
        text += &format!("gpu{gpu}/gi{gi}/access {minor}\n");
        text += &(0..8)
            .map(|ci| format!("gpu{gpu}/gi{gi}/ci{ci}/access {}\n", minor + 1 + ci))
            .collect::<String>();
    }
    text
}

#[test]
fn mig_devices() {
    // The hosts' driver and layout are the same; the GPUs are cut, and nothing draws.
    let record = Record::of("hgx-h100");
    let spec = theirs("mig.json");
    let minors = record.file("text/proc/driver/nvidia-caps/mig-minors");
    fs::create_dir_all(minors.parent().unwrap()).unwrap();
    fs::write(minors, mig_minors()).unwrap();
    record.edit(|host| {
        let gpus = host["nvml"]["gpus"].as_array_mut().unwrap();
        gpus.truncate(2);
        let uuids: Vec<&str> = spec["devices"].as_array().unwrap().iter().map(|device| device["name"].as_str().unwrap()).filter(|name| name.starts_with("MIG-")).collect();
        // GPU instance and compute instance of each, by the numbers of the capabilities that NVIDIA's spec has.
        let instances = [[(7, 0), (8, 0), (9, 0), (10, 0), (11, 0), (12, 0), (13, 0)].to_vec(), [(1, 0), (2, 0), (2, 1)].to_vec()];
        let mut uuids = uuids.into_iter();
        for (gpu, instances) in gpus.iter_mut().zip(&instances) {
            let devices = instances.iter().enumerate().map(|(index, (gi, ci))| {
                json!({"index": index, "uuid": uuids.next().unwrap(), "gpu_instance": gi, "compute_instance": ci})
            });
            gpu["mig"] = json!({"enabled": true, "max_devices": 7, "devices": devices.collect::<Vec<_>>()});
        }
        for device in spec["devices"].as_array().unwrap() {
            for node in device["containerEdits"]["deviceNodes"].as_array().unwrap() {
                let path = node["path"].as_str().unwrap();
                if path.contains("nvidia-caps") {
                    host["nodes"][path] = json!({"major": 235, "minor": node["minor"], "mode": node["fileMode"]});
                }
            }
        }
    });
    let theirs = by_name(&[spec]);
    let host = format!("--host={}", record.dir().display());
    let found = |args: &[&str]| -> BTreeSet<String> {
        let ours = by_name(&ours(args));
        assert_eq!(theirs.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
        theirs.iter().flat_map(|(name, theirs)| differences(theirs, &ours[name])).collect()
    };
    let config = record.place().join("graphics.toml");
    fs::write(&config, "[[gpu]]\nmatch = [\"all\"]\ngraphics = true\n").unwrap();
    let drawing = found(&[&host, &format!("--config={}", config.display())]);
    // What only graphics = true brings back is one row.
    let by_default = found(&[&host]);
    let files = by_default.difference(&drawing).collect::<Vec<_>>();
    assert!(files.len() > 30, "{files:?}");
    let is_file = |line: &&String| {
        ["without file /", "without link /", "without folder /"].iter().any(|start| line.starts_with(start))
    };
    assert!(files.iter().all(is_file), "{files:?}");
    assert_documented(
        "MIG devices",
        &drawing.into_iter().chain(["without files for graphics".to_owned()]).collect(),
    );
}
