//! Black box, as root: the driver's files where distributions put them (tests/layouts), laid out and discovered live,
//! and what each container would get of them compared with a golden text. Then the same from a record.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::layout::Layout;
use support::needs::{self, Need};
use support::{divvy, golden, run};

const GENERATE: [&str; 3] = ["generate", "--hook-path=/bin/true", "--output=-"];

fn main() {
    let layouts: [(&'static str, &'static str); 7] = [
        ("debian", "layout_debian"),
        ("ubuntu", "layout_ubuntu"),
        ("fedora", "layout_fedora"),
        ("runfile", "layout_runfile"),
        ("arch", "layout_arch"),
        ("nixos", "layout_nixos"),
        ("two-versions", "layout_two_versions"),
    ];
    let cases: [(&'static str, fn()); 10] = [
        ("what_is_no_library_is_named", what_is_no_library_is_named),
        ("links_that_lead_nowhere_are_passed_over", links_that_lead_nowhere_are_passed_over),
        ("a_library_without_a_soname_goes_by_its_name", a_library_without_a_soname_goes_by_its_name),
        ("a_directory_that_only_the_loaders_cache_knows", a_directory_that_only_the_loaders_cache_knows),
        ("an_unreadable_directory", an_unreadable_directory),
        ("roots_with_strange_names", roots_with_strange_names),
        ("a_root_that_is_not_utf_8_is_refused", a_root_that_is_not_utf_8_is_refused),
        ("a_link_to_a_path_that_is_not_utf_8", a_link_to_a_path_that_is_not_utf_8),
        ("only_regular_files_are_mounted", only_regular_files_are_mounted),
        ("sockets_that_others_could_replace_stay_outside", sockets_that_others_could_replace_stay_outside),
    ];
    let needs = &[Need::Root, Need::X86_64];
    let layouts = layouts.into_iter().map(|(layout, name)| needs::trial(name, needs, || check(layout)));
    let cases = cases.into_iter().map(|(name, case)| needs::trial(name, needs, case));
    let mut trials: Vec<Trial> = layouts.chain(cases).collect();
    trials.push(needs::trial(
        "ten_thousand_other_files_cost_no_calls",
        &[Need::Root, Need::X86_64, Need::Strace],
        ten_thousand_other_files_cost_no_calls,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// What is found is as the golden text says, and a record of the host tells the same spec.
fn check(name: &str) {
    let layout = Layout::named(name);
    let root = layout.laid.root().display().to_string();
    let (status, spec, errors) = layout.laid.live(&GENERATE, &[]);
    let spec_of_files = serde_json::from_str(&spec).unwrap_or_else(|error| panic!("{error}: {errors}"));
    let told = format!("status {status}\n{}", errors.replace(&root, "ROOT"));
    let found = listing(&spec_of_files, &layout) + &mps_programs(&layout);
    golden(&format!("layout-{name}.txt"), &(told + &found));

    let record = layout.laid.dir.path().join("record");
    let (recorded, _, errors) = layout.laid.live(&["--quiet", "record", record.to_str().unwrap()], &[]);
    assert_eq!(recorded, 0, "{errors}");
    let flags = [&GENERATE[..], &["--driver-root", &root]].concat();
    let (replayed, replayed_spec, _) = run(divvy(&flags).arg("--host").arg(&record));
    assert_eq!(replayed, status);
    assert!(spec == replayed_spec, "{name}: the record tells another spec than the host");
}

/// Where the programs are that would run MPS on the host, a line each.
fn mps_programs(layout: &Layout) -> String {
    let config = layout.laid.dir.path().join("mps.toml");
    fs::write(&config, "[[gpu]]\nmatch = [\"all\"]\nmode = \"mps\"\n").unwrap();
    // MPS takes no long paths, which a build directory's often are.
    let state = tempfile::tempdir().unwrap();
    let in_state = |flag: &str, name: &str| format!("--{flag}={}", state.path().join(name).display());
    let (output, state_dir) = (in_state("output", "divvy.json"), in_state("state-dir", "state"));
    let config = format!("--config={}", config.display());
    let flags = ["generate", "--quiet", "--hook-path=/bin/true", &output, &state_dir, &config];
    let (_, _, errors) = layout.laid.live(&flags, &[]);
    let Ok(plan) = fs::read_to_string(state.path().join("state/plan.json")) else {
        return format!("mps {}\n", errors.lines().next().unwrap());
    };
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let program = |key: &str| {
        let path = Path::new(plan["mps"][0][key].as_str().unwrap());
        format!("mps {}\n", Path::new("/").join(path.strip_prefix(layout.laid.root()).unwrap()).display())
    };
    program("control") + &program("server")
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
    without.retain(|path| fs::canonicalize(layout.on_host(path)).is_ok_and(|path| !mounted.contains(&path)));
    without.sort();
    let without = without.iter().map(|path| format!("without {}", path.display()));
    lines.into_iter().chain(without).map(|line| line + "\n").collect()
}

/// The least that a driver has, where most put it.
const SMALL: &str = "version 580.95.05
in /usr/lib/x86_64-linux-gnu
lib libcuda.so.{v} libcuda.so.1 libcuda.so
lib libnvidia-ml.so.{v} libnvidia-ml.so.1
lib libnvidia-ptxjitcompiler.so.{v} libnvidia-ptxjitcompiler.so.1
in /usr/bin
program nvidia-smi
";
const LIB: &str = "/usr/lib/x86_64-linux-gnu";
/// SMALL's library that a case breaks, and another that it leaves whole.
const BROKEN: &str = "/usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.580.95.05";
const WHOLE: &str = "mount /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05\n";

/// Status, listing (empty without a spec) and errors of a live run, with the root called ROOT; a run that hangs fails.
fn generate(layout: &Layout, runner: &[&str]) -> (i32, String, String) {
    let runner = [&["timeout", "60"], runner].concat();
    let (status, spec, errors) = layout.laid.live_under(&runner, &GENERATE, &[]);
    let listing = serde_json::from_str(&spec).map_or(String::new(), |spec| listing(&spec, layout));
    (status, listing, errors.replace(&*layout.laid.root().to_string_lossy(), "ROOT"))
}

/// Something else stands where SMALL has a library: it is named, and the others are given.
fn what_is_no_library_is_named() {
    type Replace = fn(&Path);
    let replace: [(&str, Replace); 5] = [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a FIFO", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap()),
        ("an empty file", |path| fs::write(path, "").unwrap()),
        ("another file", |path| fs::write(path, "INPUT(libnvidia.so)\n").unwrap()),
        ("a file of zeros", |path| fs::write(path, [0; 4096]).unwrap()),
    ];
    for (what, replace) in replace {
        let layout = Layout::of(SMALL);
        fs::remove_file(layout.on_host(BROKEN)).unwrap();
        replace(&layout.on_host(BROKEN));
        let (status, listing, errors) = generate(&layout, &[]);
        assert_eq!(status, 7, "{what}: {errors}");
        assert!(errors.starts_with(&format!("warning: {BROKEN} is left out: it cannot be read")), "{errors}");
        assert!(
            listing.contains(WHOLE) && !listing.contains(&format!("mount {BROKEN}")),
            "{what}: {listing}"
        );
    }
}

/// Links that lead nowhere or in a circle, to a library or to a directory of some, are passed over.
fn links_that_lead_nowhere_are_passed_over() {
    let layout = Layout::of(&format!(
        "{SMALL}
        in {LIB}
        link libnvidia-opencl.so.{{v}} -> gone
        link libnvidia-encode.so.{{v}} -> libnvidia-encode.so.1
        link libnvidia-encode.so.1 -> libnvidia-encode.so.{{v}}
        link vdpau -> vdpau
        link nvidia -> ..
        in /usr
        link lib64 -> lib64
        link local -> gone
        in /etc/OpenCL/vendors
        link nvidia.icd -> nvidia.icd
        "
    ));
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert!(listing.contains(WHOLE) && !listing.contains("encode") && !listing.contains(".icd"), "{listing}");

    // libcuda.so.1 is there and leads nowhere.
    fs::remove_file(layout.on_host(format!("{LIB}/libcuda.so.580.95.05"))).unwrap();
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!(status, 7);
    assert!(errors.starts_with("warning: libcuda.so.580.95.05 was not found "), "{errors}");
    assert!(!listing.contains("libcuda"), "{listing}");
}

fn a_library_without_a_soname_goes_by_its_name() {
    let layout = Layout::of(&format!("{SMALL}in {LIB}\nlib libnvidia-tls.so.{{v}} -\n"));
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert!(listing.contains(&format!("library {LIB}/libnvidia-tls.so.580.95.05\n")), "{listing}");
}

fn a_directory_that_only_the_loaders_cache_knows() {
    let layout = Layout::of(
        &SMALL.replace(LIB, "/opt/nvidia/lib").replace("in /usr/bin", "cache /opt/nvidia/lib\nin /usr/bin"),
    );
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(listing.matches("mount /opt/nvidia/lib/").count(), 3, "{listing}");
}

/// As root without the right to read everything. What cannot be listed cannot be given.
fn an_unreadable_directory() {
    let layout = Layout::of(&format!("{SMALL}in /usr/lib64\nlib libnvidia-tls.so.{{v}} =\n"));
    let dir = layout.on_host("/usr/lib64");
    nix::unistd::chown(&dir, Some(65534.into()), Some(65534.into())).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let less = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"];
    let (status, listing, errors) = generate(&layout, &less);
    assert_eq!(status, 7, "{errors}");
    assert!(errors.contains("/usr/lib64 is left out: "), "{errors}");
    assert!(listing.contains(WHOLE) && !listing.contains("mount /usr/lib64/"), "{errors}{listing}");
}

/// The directories of a machine's libraries are large: what is not the driver's costs a name in a list, no call.
fn ten_thousand_other_files_cost_no_calls() {
    let layout = Layout::of(SMALL);
    let calls = |layout: &Layout| {
        let file = layout.laid.dir.path().join("calls");
        let (status, _, errors) = generate(layout, &["strace", "-f", "-o", file.to_str().unwrap()]);
        assert_eq!(status, 0, "{errors}");
        fs::read_to_string(file).unwrap().lines().filter(|line| line.contains(" = ")).count()
    };
    let few = calls(&layout);
    for number in 0..10_000 {
        fs::write(layout.on_host(format!("{LIB}/libother{number}.so.1")), "").unwrap();
    }
    let many = calls(&layout);
    assert!(many < few + 200, "{many} system calls, {few} without them");
}

/// Host paths are exact, whatever the root is called, in JSON and in YAML.
fn roots_with_strange_names() {
    for name in ["with a space", "with\na line", "mit Ümläut", "quote\"'\\ and #: - [x]", " -tail\t"] {
        let mut layout = Layout::of(SMALL);
        layout.laid.rename_root(name.as_ref());
        let (status, spec, errors) = layout.laid.live(&GENERATE, &[]);
        assert_eq!((status, errors.as_str()), (0, ""), "{name:?}");
        let spec: Value = serde_json::from_str(&spec).unwrap();
        assert!(listing(&spec, &layout).contains(WHOLE), "{name:?}");
        let (_, yaml, _) = layout.laid.live(&[&GENERATE[..], &["--format=yaml"]].concat(), &[]);
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), spec, "{name:?}");
    }
}

/// A spec is text: such a root cannot be written down.
fn a_root_that_is_not_utf_8_is_refused() {
    let mut layout = Layout::of(SMALL);
    layout.laid.rename_root(OsStr::from_bytes(b"not\xffutf8"));
    let spec = layout.laid.dir.path().join("divvy.json");
    let output = format!("--output={}", spec.display());
    let (status, out, errors) = layout.laid.live(&["generate", "--hook-path=/bin/true", &output], &[]);
    assert_eq!((status, out.as_str()), (2, ""), "{errors}");
    assert!(errors.starts_with("error: ") && errors.contains("/not\u{fffd}utf8"), "{errors}");
    assert!(errors.contains("not UTF-8") && errors.contains("\nhint: "), "{errors}");
    assert!(!spec.exists());
}

/// One file that cannot be written down costs that file.
fn a_link_to_a_path_that_is_not_utf_8() {
    let layout = Layout::of(SMALL);
    let place = layout.on_host("/etc/OpenCL/vendors/nvidia.icd");
    let target = layout.on_host("/srv").join(OsStr::from_bytes(b"\xff"));
    fs::create_dir_all(&target).unwrap();
    fs::write(target.join("icd"), "").unwrap();
    let _ = fs::remove_file(&place);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(Path::new("/srv").join(OsStr::from_bytes(b"\xff/icd")), &place).unwrap();
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!(status, 7, "{errors}");
    assert!(errors.contains("/etc/OpenCL/vendors/nvidia.icd is left out: "), "{errors}");
    assert!(listing.contains(WHOLE), "{listing}");
}

/// A link in a program's place could lead a container to anything.
fn only_regular_files_are_mounted() {
    let layout = Layout::of(SMALL);
    let bin = layout.on_host("/usr/bin");
    fs::create_dir_all(&bin).unwrap();
    let _ = fs::remove_file(bin.join("nvidia-smi"));
    std::os::unix::fs::symlink("/", bin.join("nvidia-smi")).unwrap();
    nix::unistd::mkfifo(&bin.join("nvidia-debugdump"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (status, listing, errors) = generate(&layout, &[]);
    assert_eq!(status, 7, "{errors}");
    for name in ["nvidia-smi", "nvidia-debugdump"] {
        assert!(errors.contains(&format!("/usr/bin/{name} is left out: ")), "{errors}");
        assert!(!listing.contains(&format!("mount /usr/bin/{name}")), "{listing}");
    }
}

/// Engines follow links when a container starts: whoever may change a socket's directory chooses what is mounted.
fn sockets_that_others_could_replace_stay_outside() {
    let layout = Layout::of(SMALL);
    let dir = layout.on_host("/run/nvidia-persistenced");
    fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("socket");
    let spec = || layout.laid.live(&GENERATE, &[]).1;
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(spec().contains("/run/nvidia-persistenced/socket"));
    nix::unistd::chown(&dir, Some(65534.into()), None).unwrap();
    assert!(!spec().contains("nvidia-persistenced/socket"));
    nix::unistd::chown(&dir, Some(0.into()), None).unwrap();
    drop(listener);
    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink("/", &socket).unwrap();
    assert!(!spec().contains("nvidia-persistenced/socket"));
}
