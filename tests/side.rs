//! Black box: kinds beside the GPUs', names that an older engine of the host cannot read, and which devices get what
//! draws. On simulated and recorded hosts; no root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::place::Place;
use support::record::Record;
use support::run;

const FABRIC: &str = "--host=sim:hgx-h100";

/// Paths of the nodes of a device.
fn nodes(spec: &Value, device: &str) -> Vec<String> {
    let devices = spec["devices"].as_array().unwrap();
    let device = devices.iter().find(|of| of["name"] == device).unwrap();
    let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
    nodes.iter().map(|node| node["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_kind_has_a_file_and_the_nodes_that_nvidias_has() {
    let place = Place::with("");
    assert_eq!(place.generate(FABRIC).0, 0);
    let specs = [
        "divvy-gdrcopy.json",
        "divvy-gds.json",
        "divvy-imex-channel.json",
        "divvy-mofed.json",
        "divvy-nvswitch.json",
        "divvy.json",
    ];
    assert_eq!(place.specs(), specs);
    // As nvidia-ctk 1.20 writes them with --mode gdrcopy, gds, imex, nvswitch, mofed on the same nodes.
    let channel = |number: u32| format!("/dev/nvidia-caps-imex-channels/channel{number}");
    for (class, device, expected) in [
        ("gdrcopy", "all", vec!["/dev/gdrdrv".to_owned()]),
        ("gds", "all", vec!["/dev/nvidia-fs0".into(), "/dev/nvidia-fs1".into()]),
        ("imex-channel", "0", vec![channel(0)]),
        ("imex-channel", "1", vec![channel(1)]),
        ("imex-channel", "all", vec![channel(0), channel(1)]),
        ("mofed", "all", vec!["/dev/infiniband/uverbs0".into(), "/dev/infiniband/rdma_cm".into()]),
        (
            "nvswitch",
            "all",
            ["ctl", "0", "1", "2"].map(|name| format!("/dev/nvidia-nvswitch{name}")).to_vec(),
        ),
    ] {
        let spec = place.json(&format!("cdi/divvy-{class}.json"));
        assert_eq!(spec["kind"], format!("nvidia.com/{class}"));
        assert_eq!(nodes(&spec, device), expected, "{class}");
        assert_eq!(spec["containerEdits"]["env"], json!(["NVIDIA_VISIBLE_DEVICES=void"]));
        let mounts = spec["containerEdits"]["mounts"].as_array().map_or(0, Vec::len);
        assert_eq!(mounts, if class == "gds" { 2 } else { 0 }, "cufile.json and udev's data, and no driver");
    }
    // Nothing changes, nothing is written.
    let (_, said, _) = place.generate(FABRIC);
    assert!(!said.contains("wrote") && said.matches("unchanged").count() == 6, "{said}");
    // The modules are gone, and with them the names.
    let (_, said, _) = place.generate("--host=sim:h100x8");
    assert_eq!(said.matches("removed DIR/cdi/divvy-").count(), 5, "{said}");
    assert_eq!(place.specs(), ["divvy.json"]);
}

#[test]
fn management_is_given_out_where_the_configuration_says_so() {
    let place = Place::with("management = true\n");
    let (status, _, errors) = place.generate(FABRIC);
    assert_eq!((status, errors.as_str()), (0, ""));
    let spec = place.json("cdi/divvy-management.nvidia.com.json");
    assert_eq!(spec["kind"], "management.nvidia.com/gpu");
    let nodes = nodes(&spec, "all");
    for node in [
        "/dev/nvidiactl",
        "/dev/nvidia7",
        "/dev/nvidia-caps/nvidia-cap1",
        "/dev/nvidia-caps/nvidia-cap2",
        "/dev/nvidia-caps-imex-channels/channel1",
    ] {
        assert!(nodes.iter().any(|path| path == node), "{node} in {nodes:?}");
    }
    assert!(!nodes.iter().any(|path| path.contains("nvswitch") || path.contains("nvidia-fs")), "{nodes:?}");
    let mounts = spec["containerEdits"]["mounts"].to_string();
    assert!(mounts.contains("libnvidia-ml.so.580.95.05") && !mounts.contains("libGLX_nvidia"), "{mounts}");
    // It goes past shares, and says so.
    let place =
        Place::with("management = true\n[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\n");
    let (_, _, errors) = place.generate(FABRIC);
    assert_eq!(errors, "warning: management.nvidia.com/gpu=all reaches shared GPUs past their shares\n");
}

/// Dynamic majors go to other drivers: a node that an unloaded module left is nobody knows what.
#[test]
fn a_node_of_another_driver_is_left_out() {
    let record = Record::of("hgx-h100");
    let devices = record.file("text/proc/devices");
    let text = fs::read_to_string(&devices).unwrap().replace("236 gdrdrv", "236 something");
    fs::write(&devices, text).unwrap();
    let place = Place::with("");
    let (status, said, errors) = place.generate(&format!("--host={}", record.dir().display()));
    assert_eq!(
        (status, errors.as_str()),
        (
            0,
            "note: nvidia.com/gdrcopy goes without /dev/gdrdrv: /proc/devices has no gdrdrv with its number 236\n"
        )
    );
    assert!(!said.contains("gdrcopy"), "{said}");
}

#[test]
fn a_kind_that_another_spec_beside_has_is_left_to_it() {
    let record = Record::of("hgx-h100");
    let theirs = "cdiVersion: 0.5.0\nkind: nvidia.com/gds\ndevices:\n- name: all\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia-fs0\n";
    fs::create_dir_all(record.file("text/var/run/cdi")).unwrap();
    fs::write(record.file("text/var/run/cdi/gds.yaml"), theirs).unwrap();
    record.edit(|host| host["directories"]["/var/run/cdi"] = json!(["gds.yaml"]));
    let place = Place::with("");
    let (status, out, errors) = place.run(&["list", &format!("--host={}", record.dir().display())]);
    assert_eq!(
        (status, errors.as_str()),
        (0, "note: nvidia.com/gds is left out, because /var/run/cdi/gds.yaml has it\n")
    );
    assert!(out.contains("nvidia.com/gdrcopy=all") && !out.contains("nvidia.com/gds"), "{out}");
}

#[test]
fn names_that_an_engine_of_the_host_cannot_read_are_told() {
    let record = Record::of("mixed");
    let with = |engines: Value| {
        record.edit(|host| host["engines"] = engines);
        let host = format!("--host={}", record.dir().display());
        let place = Place::with("[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nrename = true\n");
        let (status, _, listed) = place.run(&["list", &host]);
        assert_eq!(status, 0);
        let (status, _, generated) = place.run(&["generate", &host, "--dry-run"]);
        assert_eq!(status, 0);
        (listed, generated)
    };
    let engine = |name: &str, version: &str| json!({"name": name, "version": version});
    let (listed, generated) = with(json!([engine("docker", "28.5.2"), engine("podman", "5.8.6")]));
    assert_eq!((listed.as_str(), generated.as_str()), ("", ""));
    let (_, generated) = with(json!([engine("docker", "20.10.24"), engine("podman", "4.3.1")]));
    assert_eq!(
        generated,
        "warning: Docker 20.10.24 reads no CDI specs, so it knows none of these names\n\
         hint: Docker reads them since 25.0\n\
         warning: Podman 4.3.1 cannot read nvidia.com/gpu=2, 3 and 3 more: CDI 0.7.0, and it knows up to 0.5.0\n\
         hint: use Podman 5.1 or newer; or do without /dev/dri, whose groups need CDI 0.7.0: [[gpu]] match = [\"all\"] graphics = false\n\
         warning: Podman 4.3.1 cannot read nvidia.com/gpu.shared=shared and shared-0: CDI 0.6.0, and it knows up to 0.5.0\n\
         hint: use Podman 4.7 or newer; kinds with a dot come from rename and mig_strategy\n"
    );
    let (listed, _) = with(json!([engine("podman", "4.9.3")]));
    assert!(
        listed.starts_with("warning: Podman 4.9.3 cannot read nvidia.com/gpu=2, 3 and 3 more: CDI 0.7.0"),
        "{listed}"
    );
    assert!(!listed.contains("gpu.shared"), "{listed}");
}

/// Whole GPUs draw, parts do not, and the configuration may say otherwise of both.
#[test]
fn graphics_is_for_whole_gpus_unless_the_configuration_says_otherwise() {
    let place = Place::with(
        "[[gpu]]\nmatch = [\"0\"]\ngraphics = false\n[[gpu]]\nmatch = [\"3\"]\nmode = \"time-slice\"\nreplicas = 2\ngraphics = true\n",
    );
    assert_eq!(place.generate("--host=sim:mixed").0, 0);
    let (full, compute) = (place.json("cdi/divvy.json"), place.json("cdi/divvy+compute.json"));
    let leased = place.json("cdi/divvy+leased.json");
    let names = |spec: &Value| -> Vec<String> {
        let devices = spec["devices"].as_array().unwrap();
        let names = devices.iter().map(|device| device["name"].as_str().unwrap().to_owned());
        names
            .filter(|name| !name.contains("-0") && !name.starts_with("GPU-") && !name.starts_with("MIG-"))
            .collect()
    };
    assert_eq!(names(&full), ["2", "all"]);
    assert_eq!(names(&leased), ["shared", "shared-1"]);
    assert_eq!(names(&compute), ["0", "1:0", "1:1", "1:3"]);
    assert_eq!(nodes(&leased, "shared-1"), ["/dev/nvidia3", "/dev/dri/card4", "/dev/dri/renderD131"]);
    assert_eq!(nodes(&compute, "0"), ["/dev/nvidia0"]);
    // An older engine reads the one file where it cannot read the other.
    assert_eq!((&full["cdiVersion"], &compute["cdiVersion"]), (&json!("0.7.0"), &json!("0.5.0")));
    let libraries = |spec: &Value| spec["containerEdits"]["mounts"].to_string();
    assert_eq!(libraries(&full), libraries(&leased));
    assert!(libraries(&full).contains("libGLX_nvidia") && libraries(&full).contains("libcuda.so"));
    assert!(
        !libraries(&compute).contains("libGLX_nvidia") && libraries(&compute).contains("libnvidia-encode")
    );
    // Nobody gets what rules over MPS.
    assert!(!libraries(&full).contains("cuda-mps") && !libraries(&compute).contains("cuda-mps"));
}

/// A profile that includes graphics brings the GPU's nodes in /dev/dri, as with NVIDIA's generator.
#[test]
fn a_mig_profile_with_graphics_draws() {
    let record = Record::of("mixed");
    record.edit(|host| {
        let device = &mut host["nvml"]["gpus"][1]["mig"]["devices"][1];
        device["name"] = json!("NVIDIA RTX PRO 6000 MIG 1g.24gb+gfx");
    });
    let host = format!("--host={}", record.dir().display());
    let (status, json, errors) = run(&mut support::divvy(&["list", "--format=json", &host]));
    assert_eq!((status, errors.as_str()), (0, ""));
    let listing: Value = serde_json::from_str(&json).unwrap();
    let devices = listing["devices"].as_array().unwrap();
    for (name, graphics) in [("1:0", false), ("1:1", true), ("1:3", false)] {
        let device = devices.iter().find(|device| device["name"] == name).unwrap();
        assert_eq!(device["graphics"], graphics, "{name}");
        assert_eq!(device.get("dri_nodes").is_some(), graphics, "{name}");
    }
}
