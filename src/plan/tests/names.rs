//! Names of whole devices, MIG strategies, and the specs of others.

use std::path::PathBuf;

use super::shares::after;
use super::*;
use crate::discover::others::{OtherDevice, OtherSpec};

/// The spec of another generator with these devices, by name and node.
fn other(path: &str, devices: &[(&str, &str)]) -> OtherSpec {
    let device = |(name, node): &(&str, &str)| OtherDevice {
        name: (*name).to_owned(),
        nodes: ["/dev/nvidiactl", node].iter().map(PathBuf::from).collect(),
    };
    OtherSpec {
        path: path.into(),
        by_divvy: false,
        kind: "nvidia.com/gpu".into(),
        devices: devices.iter().map(device).collect(),
    }
}

fn with(host: &Host, config: &str) -> Plan {
    after(host, config, &Earlier::default())
}

const SHARED: &str = "[[gpu]]\nmatch = [\"1\"]\nmode = \"time-slice\"\nreplicas = 2\n";

fn whole(plan: &Plan) -> usize {
    plan.devices.iter().filter(|device| device.kind != Kind::Share).count()
}

#[test]
fn whole_names_are_left_to_a_generator_in_the_same_directory() {
    let mut host = lab();
    host.others.specs =
        vec![other("/var/run/cdi/nvidia.yaml", &[("2", "/dev/nvidia2"), ("all", "/dev/nvidia2")])];
    let plan = with(&host, SHARED);
    assert_eq!((whole(&plan), plan.devices.len()), (0, 2));
    assert_eq!(
        plan.notes,
        [
            "names of whole GPUs and MIG devices are left out, because /var/run/cdi/nvidia.yaml has them (whole_names = \"auto\")"
        ]
    );
    assert_eq!((&plan.problems, &plan.warnings), (&vec![], &vec![]));
    // Asked for all the same, they clash.
    let plan = with(&host, &format!("whole_names = \"yes\"\n{SHARED}"));
    assert_eq!((whole(&plan), plan.problems.len()), (10, 1));
    let problem = &plan.problems[0];
    assert_eq!(
        problem.to_string(),
        "/var/run/cdi/nvidia.yaml defines nvidia.com/gpu=2, all too: engines resolve no name that two specs of one directory have"
    );
}

#[test]
fn whole_names_stay_beside_a_generator_in_another_directory() {
    let mut host = lab();
    host.others.specs = vec![other("/etc/cdi/nvidia.yaml", &[("2", "/dev/nvidia2")])];
    let plan = with(&host, SHARED);
    assert_eq!(whole(&plan), 10);
    assert_eq!((&plan.problems, &plan.notes, &plan.warnings), (&vec![], &vec![], &vec![]));
    // The other way round theirs go first, name by name.
    host.others.specs = vec![other("/var/run/cdi/nvidia.yaml", &[("2", "/dev/nvidia2")])];
    let plan =
        super::super::plan(&host, &Config::default(), &Earlier::default(), &places("/etc/cdi/divvy.json"));
    assert_eq!(whole(&plan), 11);
    assert_eq!(plan.notes, ["/var/run/cdi/nvidia.yaml goes before divvy's spec with nvidia.com/gpu=2"]);
}

#[test]
fn whole_names_are_left_to_the_refresh_unit() {
    let mut host = lab();
    host.others.refresh_unit = true;
    assert_eq!(whole(&with(&host, SHARED)), 0);
    assert_eq!(whole(&with(&host, &format!("whole_names = \"yes\"\n{SHARED}"))), 10);
    let plan = with(&lab(), &format!("whole_names = \"no\"\n{SHARED}"));
    assert_eq!((whole(&plan), plan.notes.len()), (0, 0));
    // With nothing shared there is nothing to write.
    let plan = with(&host, "");
    assert_eq!((plan.devices.len(), plan.whole_names_withheld), (0, true));
}

#[test]
fn names_from_outside_that_reach_a_shared_gpu_are_told() {
    let mut host = lab();
    host.others.specs = vec![other(
        "/etc/cdi/nvidia.yaml",
        &[("0", "/dev/nvidia0"), ("1", "/dev/nvidia1"), ("gpu1", "/dev/nvidia1"), ("all", "/dev/nvidia1")],
    )];
    let plan = with(&host, SHARED);
    assert_eq!(
        plan.warnings,
        ["GPU 1 can be had past its shares, as nvidia.com/gpu=1, gpu1 of /etc/cdi/nvidia.yaml"]
    );
    // A MIG device is reached only by who has its capabilities too.
    let mig = "[[gpu]]\nmatch = [\"0:1\"]\nmode = \"time-slice\"\n";
    assert_eq!(with(&host, mig).warnings, Vec::<String>::new());
    host.others.specs[0].devices[0]
        .nodes
        .extend(["/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"].map(PathBuf::from));
    assert_eq!(
        with(&host, mig).warnings,
        ["MIG device 0:1 can be had past its shares, as nvidia.com/gpu=0 of /etc/cdi/nvidia.yaml"]
    );
}

/// What `generate` is going to replace or remove is no clash; any other spec of divvy's is like anybody's.
#[test]
fn specs_of_divvys_own() {
    let mut host = lab();
    let own = |path: &str| OtherSpec {
        by_divvy: true,
        ..other(path, &[("1", "/dev/nvidia1"), ("2", "/dev/nvidia2")])
    };
    let earlier = Earlier { specs: vec!["/var/run/cdi/old.json".into()], ..Earlier::default() };
    for (path, is_replaced) in [
        ("/var/run/cdi/divvy.json", true),
        ("/var/run/cdi/divvy-gpu.shared.json", false),
        ("/var/run/cdi/old.json", true),
        ("/var/run/cdi/divvy2.json", false),
        ("/var/run/cdi/divvy.yaml", true),
        ("/var/run/cdi/mine.json", false),
    ] {
        host.others.specs = vec![own(path)];
        let plan = after(&host, SHARED, &earlier);
        assert_eq!((whole(&plan) > 0, plan.warnings.is_empty()), (is_replaced, is_replaced), "{path}");
    }
    host.others.specs = vec![own("/etc/cdi/divvy.json")];
    let plan = with(&host, SHARED);
    assert_eq!(
        plan.warnings,
        ["GPU 1 can be had past its shares, as nvidia.com/gpu=1 of /etc/cdi/divvy.json"]
    );
}

#[test]
fn shares_that_another_spec_defines_are_a_problem() {
    let mut host = lab();
    host.others.specs = vec![other("/var/run/cdi/mine.json", &[("shared-1", "/dev/null")])];
    let plan = with(&host, SHARED);
    assert!(plan.problems[0].why.starts_with("defines nvidia.com/gpu=shared-1 too"), "{:?}", plan.problems);
    assert_eq!(whole(&plan), 10);
}

#[test]
fn mig_strategies() {
    let plan = with(&lab(), "mig_strategy = \"none\"\n");
    assert_eq!((plan.devices.len(), plan.notes.len()), (7, 1));
    let plan = with(&lab(), "mig_strategy = \"mixed\"\n");
    assert_eq!(device(&plan, "0:1").classes, ["gpu", "mig-1c.2g.10gb"]);
    assert_eq!(device(&plan, "1").classes, ["gpu"]);
    let plan = with(&lab(), "mig_strategy = \"single\"\n");
    assert_eq!(plan.devices.len(), 0);
    assert_eq!(
        plan.problems[0].to_string(),
        "GPU 1 is not in MIG mode, and mig_strategy = \"single\" means that all devices are the same"
    );
    let mut host = lab();
    host.gpus.truncate(1);
    let plan = with(&host, "mig_strategy = \"single\"\n");
    assert_eq!(
        plan.problems[0].to_string(),
        "this machine has MIG devices of several profiles: 1c.2g.10gb, 1g.5gb, 4g.20gb, and mig_strategy = \"single\" means that all devices are the same"
    );
    host.gpus[0].mig_devices.drain(0..1);
    host.gpus[0].mig_devices.pop();
    let plan = with(&host, "mig_strategy = \"single\"\n");
    assert_eq!((plan.devices.len(), plan.problems.len()), (2, 0));
    // With + a dot, and a name that no class can have costs the class alone.
    host.gpus[0].mig_devices[0].profile = Some("1g.10gb+me".into());
    host.gpus[0].mig_devices[1].profile = Some("a b".into());
    let plan = with(&host, "mig_strategy = \"mixed\"\n");
    assert_eq!(plan.devices[0].classes, ["gpu", "mig-1g.10gb.me"]);
    assert_eq!(plan.devices[1].classes, ["gpu"]);
}
