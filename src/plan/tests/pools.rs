//! What is leased, the pools it is in, who may have it, and names that running containers hold.

use std::path::PathBuf;

use hooks::lease::{Container, Lease, LeasedDevice, VERSION};

use super::shares::{after, remembered};
use super::*;
use crate::config::Order;
use crate::discover::others::{OtherDevice, OtherSpec};
use crate::plan::kept::Kept;
use crate::plan::moved::from_under;

fn with(host: &Host, config: &str) -> Plan {
    after(host, config, &Earlier::default())
}

fn rule(matches: &str, lines: &str) -> String {
    format!("[[gpu]]\nmatch = [{matches}]\n{lines}\n")
}

fn cut(matches: &str, lines: &str) -> String {
    rule(matches, &format!("mode = \"time-slice\"\n{lines}"))
}

/// `name pool` of each leased device.
fn leased(plan: &Plan) -> Vec<String> {
    let leased = plan.devices.iter().filter(|device| device.leased);
    leased.map(|device| format!("{} {}", device.name, device.pool.as_deref().unwrap_or("-"))).collect()
}

/// `class=name: devices` of each pool.
fn pools(plan: &Plan) -> Vec<String> {
    let pool = |pool: &Pool| format!("{}={}: {}", pool.class, pool.name, pool.devices.join(" "));
    plan.pools.iter().map(pool).collect()
}

fn said(plan: &Plan) -> Vec<String> {
    plan.problems.iter().map(|problem| format!("{problem}; {}", problem.hint)).collect()
}

#[test]
fn what_is_leased_and_which_pools_there_are() {
    const MIXED: &str = "mig_strategy = \"mixed\"\n";
    for (config, devices, of_pools) in [
        (String::new(), vec![], vec![]),
        (
            cut("\"1\"", "replicas = 2") + &cut("\"2\"", "rename = true"),
            vec!["shared-0 shared", "shared-1 shared", "shared-0 shared"],
            vec!["gpu=shared: shared-0 shared-1", "gpu.shared=shared: shared-0"],
        ),
        (
            cut("\"1\", \"2\"", "[[gpu.share]]\nname = \"large\"\n[[gpu.share]]\nname = \"small\"\n"),
            vec!["large-0 large", "small-0 small", "large-1 large", "small-1 small"],
            vec!["gpu=large: large-0 large-1", "gpu=small: small-0 small-1"],
        ),
        (
            rule("\"6\", \"1c.2g.10gb\"", "exclusive = true")
                + &rule("\"3\"", "mode = \"whole\"\nexclusive = true"),
            vec!["0:1 mig-1c.2g.10gb", "0:2 mig-1c.2g.10gb", "3 whole", "6 whole"],
            vec!["gpu=mig-1c.2g.10gb: 0:1 0:2", "gpu=whole: 3 6"],
        ),
        (
            MIXED.to_owned() + &rule("\"0:3\"", "exclusive = true"),
            vec!["0:3 mig-1g.5gb"],
            vec!["gpu=mig-1g.5gb: 0:3", "mig-1g.5gb=mig-1g.5gb: 0:3"],
        ),
        // What is leased for the sake of its shares is in no pool, unless somebody says so.
        (
            cut("\"1\"", "whole = true") + &cut("\"2\"", "whole = true\nexclusive = true"),
            vec!["1 -", "shared-0 shared", "2 whole", "shared-1 shared"],
            vec!["gpu=shared: shared-0 shared-1", "gpu=whole: 2"],
        ),
        (
            cut("\"0:0\"", "whole = true\nreplicas = 2"),
            vec!["0:0 -", "shared-0 shared", "shared-1 shared"],
            vec!["gpu=shared: shared-0 shared-1"],
        ),
    ] {
        let plan = with(&lab(), &config);
        assert_eq!(
            (leased(&plan), pools(&plan)),
            (
                devices.iter().map(|d| d.to_string()).collect(),
                of_pools.iter().map(|p| p.to_string()).collect()
            ),
            "{config}"
        );
        assert_eq!(said(&plan), Vec::<String>::new(), "{config}");
    }
}

#[test]
fn a_pool_is_given_out_as_the_configuration_says() {
    let config =
        cut("\"1\"", "") + &rule("\"2\"", "exclusive = true") + &cut("\"3\"", "name = \"ci\"\nreplicas = 2");
    let rules = "[pool.shared]\nwait = \"2m\"\norder = \"pack\"\n[pool.ci]\nper_container = 2\n";
    let plan = with(&lab(), &format!("start_timeout = \"0s\"\n{config}{rules}"));
    let of = |pool: &Pool| (pool.name.clone(), pool.wait_seconds, pool.order, pool.per_container);
    assert_eq!(
        plan.pools.iter().map(of).collect::<Vec<_>>(),
        [
            ("shared".into(), 120, Order::Pack, Some(1)),
            ("whole".into(), 0, Order::Spread, None),
            ("ci".into(), 0, Order::Spread, Some(2)),
        ]
    );
    assert_eq!(plan.start_timeout, Some(0));
    // Each of them makes another plan.
    let generations =
        [config.clone(), format!("{config}{rules}"), format!("start_timeout = \"0s\"\n{config}")];
    let mut generations: Vec<_> = generations.iter().map(|config| with(&lab(), config).generation).collect();
    generations.sort();
    generations.dedup();
    assert_eq!(generations.len(), 3);
}

#[test]
fn a_whole_device_beside_its_shares_keeps_what_a_whole_one_has() {
    let plan = with(&lab(), &cut("\"1\"", "whole = true\nreplicas = 2"));
    let (whole, share) = (device(&plan, "1"), device(&plan, "shared-1"));
    assert_eq!((whole.kind, whole.mode, whole.graphics), (Kind::Gpu, Mode::Whole, true));
    assert_eq!((share.kind, share.mode, share.graphics), (Kind::Share, Mode::TimeSlice, false));
    assert_eq!(whole.names().collect::<Vec<_>>(), ["1", "GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e"]);
    assert_eq!(paths(whole), paths(share));
    let decision = plan.decisions.iter().find(|line| line.starts_with("GPU 1:")).unwrap();
    assert_eq!(
        decision,
        "GPU 1: cut into 2 by c.toml:1:1, shared-0 to shared-1 without graphics, with /dev/nvidia1; leased as a whole too, with graphics, with /dev/nvidia1 /dev/dri/card2 /dev/dri/renderD129"
    );
    let plan = with(&lab(), &rule("\"1\"", "exclusive = true"));
    let decision = plan.decisions.iter().find(|line| line.starts_with("GPU 1:")).unwrap();
    assert!(decision.starts_with("GPU 1: whole by c.toml:1:1, leased, with graphics, with"), "{decision}");
}

#[test]
fn pools_without_a_device_are_told() {
    let config = cut("\"1\"", "name = \"ci\"");
    for (more, problems) in [
        ("[pool.ci]\n[users.ana]\npools = [\"ci\"]\n", vec![]),
        (
            "[pool.shared]\n",
            vec![
                "c.toml:5:7: pool \"shared\" has no device on this machine; a pool of shares has the name of the shares: `divvy list` shows what there is",
            ],
        ),
        (
            "[pool.whole]\n[pool.\"mig-1g.5gb\"]\n",
            vec![
                "c.toml:6:7: pool \"mig-1g.5gb\" has no device on this machine; it is of MIG devices of that profile with exclusive = true",
                "c.toml:5:7: pool \"whole\" has no device on this machine; it is of whole GPUs with exclusive = true",
            ],
        ),
        (
            "[users.ana]\npools = [\"ci\", \"cl\"]\n",
            vec![
                "c.toml:6:16: pool \"cl\" has no device on this machine; a pool of shares has the name of the shares: `divvy list` shows what there is",
            ],
        ),
    ] {
        assert_eq!(said(&with(&lab(), &format!("{config}{more}"))), problems, "{more}");
    }
    // What keeps the shares away is told, and once.
    let mut host = lab();
    host.gpus[1].node = None;
    let plan = with(&host, &format!("{config}[pool.ci]\n"));
    assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
    assert_eq!(plan.problems[0].what, "GPU 1");
}

#[test]
fn what_others_give_out_cannot_be_leased() {
    let mut host = lab();
    let nvidia = |path: &str| OtherSpec {
        path: path.into(),
        by_divvy: false,
        kind: "nvidia.com/gpu".into(),
        devices: vec![OtherDevice {
            name: "1".into(),
            nodes: ["/dev/nvidiactl", "/dev/nvidia1"].iter().map(PathBuf::from).collect(),
        }],
    };
    host.others.specs = vec![nvidia("/var/run/cdi/nvidia.yaml")];
    let exclusive = rule("\"1\", \"2\"", "exclusive = true");
    let plan = with(&host, &exclusive);
    assert_eq!((leased(&plan), pools(&plan)), (vec![], vec![]));
    assert_eq!(
        said(&plan),
        [
            "GPU 1 and 1 more cannot be leased: names of whole GPUs and MIG devices are left out, because /var/run/cdi/nvidia.yaml has them; mask nvidia-cdi-refresh.service and remove the other spec, or leave out exclusive and whole"
        ]
    );
    let plan = with(&host, &format!("whole_names = \"no\"\n{}", cut("\"1\"", "whole = true")));
    assert_eq!(pools(&plan), ["gpu=shared: shared-0"]);
    assert!(said(&plan)[0].ends_with("; leave out whole_names, or exclusive and whole"), "{:?}", said(&plan));
    assert_eq!(
        plan.warnings,
        ["GPU 1 can be had past its shares, as nvidia.com/gpu=1 of /var/run/cdi/nvidia.yaml"]
    );
    // In the other directory both have names.
    host.others.specs = vec![nvidia("/etc/cdi/nvidia.yaml")];
    host.others.specs[0].devices[0].name = "first".into();
    let plan = with(&host, &exclusive);
    assert_eq!(leased(&plan), ["1 whole", "2 whole"]);
    assert_eq!(
        plan.warnings,
        ["GPU 1 can be had past its lease, as nvidia.com/gpu=first of /etc/cdi/nvidia.yaml"]
    );
    // A pool's name is a name too.
    host.others.specs = vec![nvidia("/var/run/cdi/theirs.yaml")];
    host.others.specs[0].devices[0].name = "whole".into();
    assert!(said(&with(&host, &exclusive))[0].contains("defines nvidia.com/gpu=whole too"));
}

/// What the daemon reads is what was planned.
#[test]
fn the_plan_is_read_back_as_it_was_written() {
    let config = cut("\"1\"", "replicas = 2\nwhole = true\nmemory = \"1GiB\"\nadvisory = true")
        + &rule("\"0:3\", \"2\"", "exclusive = true")
        + "[pool.shared]\nwait = \"1h\"\n[users.ana]\nshares = 1\n[users.\"*\"]\npools = [\"whole\"]\n";
    let mut host = lab();
    let node = host.gpus[2].node.as_mut().unwrap();
    node.host_path = PathBuf::from("/mnt").join(node.path.strip_prefix("/").unwrap());
    let plan = with(&host, &config);
    let kept: Kept =
        serde_json::from_str(&earlier::to_json(&plan, "580", Path::new(OUTPUT), &[]).unwrap()).unwrap();
    assert_eq!((&kept.generation, &kept.pools, &kept.users), (&plan.generation, &plan.pools, &plan.users));
    assert_eq!(kept.devices.len(), plan.devices.len());
    for (kept, device) in kept.devices.iter().zip(&plan.devices) {
        assert_eq!((&kept.name, &kept.classes, &kept.uuid), (&device.name, &device.classes, &device.uuid));
        assert_eq!((kept.kind, kept.mode, kept.gpu), (device.kind, device.mode, device.gpu));
        assert_eq!(
            (kept.memory_bytes, kept.sms, kept.limits),
            (device.memory_bytes, device.sms, device.limits)
        );
        assert_eq!((kept.leased, &kept.share), (device.leased, &device.share));
        for (kept, planned) in [(&kept.nodes, &device.nodes), (&kept.dri_nodes, &device.dri_nodes)] {
            assert_eq!(kept.len(), planned.len());
            for (kept, planned) in kept.iter().zip(planned) {
                let on_host = kept.host_path.as_ref().unwrap_or(&kept.path);
                assert_eq!((&kept.path, on_host), (&planned.path, &planned.host_path));
            }
        }
    }
    let elsewhere =
        kept.devices.iter().flat_map(|device| &device.nodes).filter(|node| node.host_path.is_some());
    assert_eq!(elsewhere.count(), 1);
    assert_eq!(remembered(&plan).generation.as_ref(), Some(&plan.generation));
}

/// A plan of before there were leases.
#[test]
fn an_older_plan_is_read() {
    let plan = with(&lab(), &cut("\"1\"", "replicas = 2"));
    let mut file: serde_json::Value =
        serde_json::from_str(&earlier::to_json(&plan, "580", Path::new(OUTPUT), &[]).unwrap()).unwrap();
    for key in ["pools", "users"] {
        file.as_object_mut().unwrap().remove(key);
    }
    for device in file["devices"].as_array_mut().unwrap() {
        device.as_object_mut().unwrap().remove("leased");
        device.as_object_mut().unwrap().remove("pool");
    }
    let text = file.to_string();
    assert_eq!(Earlier::parse(&text).unwrap(), remembered(&plan));
    let kept: Kept = serde_json::from_str(&text).unwrap();
    assert!(kept.pools.is_empty() && kept.devices.iter().all(|device| !device.leased));
}

fn lease(devices: &[(&str, &str)]) -> Lease {
    let device = |(name, uuid): &(&str, &str)| LeasedDevice {
        name: name.parse().unwrap(),
        uuid: (*uuid).to_owned(),
        is_share: name.contains("shared"),
        pool: None,
    };
    Lease {
        version: VERSION,
        container: Container {
            mount_namespace: 1,
            pid: 1,
            start_time: 1,
            boot_id: String::new(),
            cgroup: None,
            uid: 0,
            process_uid: Some(0),
            id: "3f2a".into(),
            bundle: "/b".into(),
            engine: Some("podman".into()),
            name: Some("web".into()),
        },
        since: 0,
        asked: Vec::new(),
        devices: devices.iter().map(device).collect(),
        remove: Vec::new(),
        denied_by: None,
        mps: None,
    }
}

#[test]
fn a_held_name_that_would_move_is_told() {
    let (one, two) = ("GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e", "GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf");
    let before = cut("\"1\", \"2\"", "replicas = 2");
    let earlier = remembered(&with(&lab(), &before));
    let held = lease(&[("gpu=shared-1", one), ("gpu=shared-2", two)]);
    let moves = |host: &Host, config: &str| {
        let plan = after(host, config, &earlier);
        from_under(std::slice::from_ref(&held), &earlier, host, &plan)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(moves(&lab(), &before), Vec::<String>::new());
    assert_eq!(moves(&lab(), &cut("\"1\", \"2\"", "replicas = 2\nwhole = true")), Vec::<String>::new());
    assert_eq!(
        moves(&lab(), &cut("\"1\", \"2\"", "replicas = 3")),
        [format!(
            "nvidia.com/gpu=shared-2, held by podman container web, would mean GPU 1 ({one}) and means GPU 2 ({two})"
        )]
    );
    assert_eq!(
        moves(&lab(), ""),
        [
            format!(
                "nvidia.com/gpu=shared-1, held by podman container web, would go; it means GPU 1 ({one})"
            ),
            format!(
                "nvidia.com/gpu=shared-2, held by podman container web, would go; it means GPU 2 ({two})"
            ),
        ]
    );
    // A GPU that is gone keeps its numbers, and one without a node too.
    let mut host = lab();
    host.gpus.remove(2);
    assert_eq!(moves(&host, &before), Vec::<String>::new());
    let mut host = lab();
    host.gpus[1].node = None;
    assert_eq!(moves(&host, &before), Vec::<String>::new());
    // What is gone as a whole is lost to its holder already; its index is not, where another GPU has it now.
    let held = [lease(&[("gpu=7", "GPU-gone"), ("gpu=1", "GPU-gone-too"), ("gpu=2", two)])];
    let mut host = lab();
    host.gpus.truncate(7);
    let plan = with(&host, &rule("\"1\", \"2\"", "exclusive = true"));
    let moved = from_under(&held, &Earlier::default(), &host, &plan);
    assert_eq!(
        moved.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!(
            "nvidia.com/gpu=1, held by podman container web, would mean GPU 1 ({one}) and means GPU-gone-too"
        )]
    );
}
