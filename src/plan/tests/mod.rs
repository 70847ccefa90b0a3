use super::*;
use crate::discover::host::{Capability, Found};
use crate::discover::sim::SimHost;
use crate::discover::{Source, discover};

const OUTPUT: &str = "/var/run/cdi/divvy.json";

fn lab() -> Host {
    discover(&Source::Sim(SimHost::parse("a100-lab").unwrap()), Path::new(OUTPUT)).unwrap()
}

/// A spec there, and everything else where it is by default.
fn places(output: &str) -> Places<'_> {
    Places { output: Path::new(output), state: Path::new("/run/divvy"), driver_root: Path::new("/") }
}

fn plan(host: &Host) -> Plan {
    super::plan(host, &Config::default(), &Earlier::default(), &places(OUTPUT))
}

fn paths(device: &Device) -> Vec<&str> {
    device.nodes.iter().map(|node| node.path.to_str().unwrap()).collect()
}

fn device<'a>(plan: &'a Plan, name: &str) -> &'a Device {
    plan.devices.iter().find(|device| device.name == name).unwrap()
}

#[test]
fn the_lab_host_has_four_mig_devices_and_seven_gpus() {
    let plan = plan(&lab());
    let names: Vec<_> = plan.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["0:0", "0:1", "0:2", "0:3", "1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!((&plan.problems, &plan.notes), (&vec![], &vec![]));
    for (name, profile, memory_mib, sms, gi, ci, placement, caps) in [
        ("0:0", "4g.20gb", 20096, 56, 2, 0, (0, 4), [21, 22]),
        ("0:1", "1c.2g.10gb", 9984, 14, 3, 0, (4, 2), [30, 31]),
        ("0:2", "1c.2g.10gb", 9984, 14, 3, 1, (4, 2), [30, 32]),
        ("0:3", "1g.5gb", 4864, 14, 9, 0, (6, 1), [84, 85]),
    ] {
        let device = device(&plan, name);
        let mig = device.mig.as_ref().unwrap();
        assert_eq!(mig.profile.as_deref(), Some(profile));
        assert_eq!((mig.gpu_instance, mig.compute_instance), (gi, ci));
        assert_eq!(mig.placement.map(|p| (p.start, p.size)), Some(placement));
        assert_eq!(device.memory_bytes, Some(memory_mib << 20));
        assert_eq!(device.sms, Some(sms));
        let capabilities = caps.map(|minor| format!("/dev/nvidia-caps/nvidia-cap{minor}"));
        assert_eq!(paths(device), ["/dev/nvidia0", &capabilities[0], &capabilities[1]]);
    }
    let whole = device(&plan, "1");
    assert_eq!(paths(whole), ["/dev/nvidia1"]);
    assert_eq!((whole.memory_bytes, whole.sms), (Some(40960 << 20), Some(108)));
}

#[test]
fn a_missing_node_leaves_its_device_out_and_says_so() {
    let mut host = lab();
    host.gpus[3].node.as_mut().unwrap().found = Found::Missing;
    host.gpus[4].node.as_mut().unwrap().found = Found::Wrong("not a character device".into());
    host.gpus[5].node = None;
    let plan = plan(&host);
    let said: Vec<_> = plan.problems.iter().map(|p| p.to_string()).collect();
    assert_eq!(
        said,
        [
            "GPU 3 is left out: /dev/nvidia3 is missing",
            "GPU 4 is left out: /dev/nvidia4 cannot be used: not a character device",
            "GPU 5 is left out: its minor number is not known",
        ]
    );
    assert!(plan.devices.iter().all(|device| !["3", "4", "5"].contains(&device.name.as_str())));
}

#[test]
fn a_missing_capability_leaves_out_the_mig_devices_that_need_it() {
    let mut host = lab();
    let Capability::Node(node) = &mut host.gpus[0].mig_devices[1].compute_instance_capability else {
        panic!()
    };
    node.found = Found::Missing;
    host.gpus[0].mig_devices[3].gpu_instance_capability =
        Capability::Unlisted { name: "gpu0/mig/gi9/access".into() };
    let plan = plan(&host);
    let said: Vec<_> = plan.problems.iter().map(|p| p.to_string()).collect();
    assert_eq!(
        said,
        [
            "MIG device 0:1 is left out: /dev/nvidia-caps/nvidia-cap31 is missing",
            "MIG device 0:3 is left out: the driver lists no capability gpu0/mig/gi9/access",
        ]
    );
    assert_eq!(device(&plan, "0:2").nodes.len(), 3);
}

#[test]
fn a_required_control_node_stays_in_the_spec_and_is_a_problem() {
    let mut host = lab();
    host.control_nodes[1].node.found = Found::Missing;
    host.control_nodes[3].node.found = Found::Missing;
    let plan = plan(&host);
    let nodes: Vec<_> = plan.control_nodes.iter().map(|node| node.path.to_str().unwrap()).collect();
    assert_eq!(nodes, ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]);
    assert_eq!(plan.problems.len(), 1);
    assert_eq!(plan.problems[0].what, "/dev/nvidia-uvm");
    assert_eq!(plan.notes, ["/dev/nvidia-modeset is missing; containers go without it"]);
}

#[test]
fn mig_mode_without_mig_devices_is_a_note() {
    let mut host = lab();
    host.gpus[0].mig_devices.clear();
    let plan = plan(&host);
    assert_eq!(plan.devices.len(), 7);
    assert!(plan.problems.is_empty());
    assert!(plan.notes[0].starts_with("GPU 0 is in MIG mode and has no MIG devices"), "{:?}", plan.notes);
}

#[test]
fn a_garbled_uuid_costs_one_device() {
    let mut host = lab();
    host.gpus[1].uuid = "GPU-\u{fffd}/..".into();
    let plan = plan(&host);
    assert_eq!(plan.devices.len(), 10);
    assert_eq!(plan.problems[0].what, "GPU 1");
}

mod mps;
mod names;
mod pools;
mod random;
mod shares;
