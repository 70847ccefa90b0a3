//! Rules, numbers and limits.

use super::*;

/// The plan for the lab host under a configuration.
fn with(host: &Host, config: &str) -> Plan {
    after(host, config, &Earlier::default())
}

pub(super) fn after(host: &Host, config: &str, earlier: &Earlier) -> Plan {
    let config = Config::parse("c.toml", config).unwrap_or_else(|mistake| panic!("{mistake}"));
    super::super::plan(host, &config, earlier, &places(OUTPUT))
}

/// What a later run would read of this plan.
pub(super) fn remembered(plan: &Plan) -> Earlier {
    Earlier::parse(&earlier::to_json(plan, "580", Path::new(OUTPUT), &[]).unwrap()).unwrap()
}

/// `name of device` for each share; names alone for what is whole.
fn names(plan: &Plan) -> Vec<String> {
    let of = |device: &Device| match &device.share {
        Some(share) => format!("{} of {}", device.name, share.of),
        None => device.name.clone(),
    };
    plan.devices.iter().map(of).collect()
}

pub(super) fn problems(plan: &Plan) -> Vec<String> {
    plan.problems.iter().map(|problem| problem.to_string()).collect()
}

fn cut(matches: &str, lines: &str) -> String {
    cut_by("time-slice", matches, lines)
}

pub(super) fn cut_by(mode: &str, matches: &str, lines: &str) -> String {
    format!("[[gpu]]\nmatch = [{matches}]\nmode = \"{mode}\"\n{lines}\n")
}

#[test]
fn the_first_rule_that_matches_decides() {
    let config =
        cut("\"2\"", "replicas = 3") + "[[gpu]]\nmatch = [\"3\"]\n" + &cut("\"all\"", "replicas = 2");
    let plan = with(&lab(), &config);
    let names = names(&plan);
    assert_eq!(names[..2], ["shared-0 of 0:0", "shared-1 of 0:0"]);
    assert_eq!(
        names[8..14],
        ["shared-8 of 1", "shared-9 of 1", "shared-10 of 2", "shared-11 of 2", "shared-12 of 2", "3"]
    );
    assert_eq!(names.last().unwrap(), "shared-20 of 7");
    assert_eq!((problems(&plan), &plan.warnings), (vec![], &vec![]));
}

#[test]
fn every_form_of_a_match() {
    for (entry, expected) in [
        ("1", vec!["shared-0 of 1"]),
        ("0:2", vec!["shared-0 of 0:2"]),
        ("GPU-36441532-9EF4-0F3A-AFB1-F844C3AB04BF", vec!["shared-0 of 2"]),
        ("MIG-20301a31-77fa-59ec-b0b8-7ef543821f29", vec!["shared-0 of 0:3"]),
        ("1c.2g.10gb", vec!["shared-0 of 0:1", "shared-1 of 0:2"]),
        (
            "*a100*",
            (1..8)
                .map(|gpu| {
                    [
                        "shared-0 of 1",
                        "shared-1 of 2",
                        "shared-2 of 3",
                        "shared-3 of 4",
                        "shared-4 of 5",
                        "shared-5 of 6",
                        "shared-6 of 7",
                    ][gpu - 1]
                })
                .collect(),
        ),
    ] {
        let plan = with(&lab(), &cut(&format!("{entry:?}"), ""));
        let shares: Vec<_> = names(&plan).into_iter().filter(|name| name.contains(" of ")).collect();
        assert_eq!(shares, expected, "{entry}");
        assert_eq!(problems(&plan), Vec::<String>::new(), "{entry}");
    }
    let address = lab().gpus[4].pci_address.clone().unwrap();
    let plan = with(&lab(), &cut(&format!("\"0000{}\"", address.to_uppercase()), ""));
    assert!(names(&plan).contains(&"shared-0 of 4".to_owned()));
}

#[test]
fn a_share_has_the_nodes_of_its_device_and_no_other_name() {
    let plan = with(&lab(), &cut("\"1\", \"0:1\"", "replicas = 2"));
    let share = device(&plan, "shared-0");
    assert_eq!((share.kind, share.mode, share.gpu), (Kind::Share, Mode::TimeSlice, 0));
    assert_eq!(
        paths(share),
        ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]
    );
    assert_eq!(paths(device(&plan, "shared-3")), ["/dev/nvidia1"]);
    // The whole device has no name any more, neither by index nor by UUID.
    let all: Vec<_> = plan.devices.iter().flat_map(Device::names).collect();
    for gone in
        ["1", "0:1", "GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e", "MIG-8970491e-16e0-5140-9f8f-d561baa3c186"]
    {
        assert!(!all.contains(&gone), "{gone}");
    }
    assert_eq!(
        (share.memory_bytes, share.sms, share.limits),
        (Some(9984 << 20), Some(14), Limits::default())
    );
}

#[test]
fn unequal_shares_run_by_name() {
    let shares = "advisory = true\n[[gpu.share]]\nname = \"large\"\nmemory = \"20GiB\"\nsm_percent = 50\n\
                  [[gpu.share]]\nname = \"small\"\nreplicas = 2\nmemory = \"8GiB\"\nsm_percent = 25\n";
    let plan = with(&lab(), &cut("\"1\", \"2\"", shares));
    let shares: Vec<_> = names(&plan).into_iter().filter(|name| name.contains(" of ")).collect();
    assert_eq!(
        shares,
        ["large-0 of 1", "small-0 of 1", "small-1 of 1", "large-1 of 2", "small-2 of 2", "small-3 of 2"]
    );
    let large = device(&plan, "large-1");
    assert_eq!((large.memory_bytes, large.sms), (Some(20 << 30), Some(54)));
    let limit = large.limits.memory.unwrap();
    assert_eq!((limit.by, limit.against), (Level::Advisory, crate::plan::shares::Against::Nothing));
    assert_eq!(large.share.as_ref().unwrap().count, 3);
}

#[test]
fn other_classes_have_numbers_of_their_own() {
    let config = cut("\"1\"", "replicas = 2") + &cut("\"2\"", "replicas = 2\nrename = true");
    let plan = with(&lab(), &config);
    let classes: Vec<_> = plan
        .devices
        .iter()
        .filter(|d| d.kind == Kind::Share)
        .map(|d| (d.classes[0].as_str(), d.name.as_str()))
        .collect();
    assert_eq!(
        classes,
        [("gpu", "shared-0"), ("gpu", "shared-1"), ("gpu.shared", "shared-0"), ("gpu.shared", "shared-1")]
    );
}

#[test]
fn what_does_not_fit_or_hold_is_left_out() {
    const HELD: &str = "GPU 1 is left out: nothing on this machine holds the";
    for (lines, said) in [
        (
            "replicas = 5\nmemory = \"8193MiB\"\nadvisory = true",
            "GPU 1 is left out: its shares have 40965MiB of memory together, and it has 40960MiB".to_owned(),
        ),
        (
            "replicas = 3\nsm_percent = 34\nadvisory = true",
            "GPU 1 is left out: its shares have 102 % of the SMs together".into(),
        ),
        (
            "memory = \"41GiB\"\nadvisory = true",
            "GPU 1 is left out: its shares have 41984MiB of memory together, and it has 40960MiB".into(),
        ),
        ("memory = \"1GiB\"", format!("{HELD} memory limit of its shares \"shared\"")),
        ("sm_percent = 10", format!("{HELD} SM limit of its shares \"shared\"")),
        (
            "memory = \"1GiB\"\nsm_percent = 10",
            format!("{HELD} memory and SM limits of its shares \"shared\""),
        ),
        (
            "replicas = 1024\nmemory = \"17179869183GiB\"\nadvisory = true",
            "GPU 1 is left out: its shares have 17592186044416MiB of memory together, and it has 40960MiB"
                .into(),
        ),
    ] {
        let plan = with(&lab(), &cut("\"1\"", lines));
        assert_eq!(problems(&plan), [said], "{lines}");
        assert!(plan.devices.iter().all(|device| device.gpu != 1), "{lines}");
    }
    for lines in [
        "replicas = 5\nmemory = \"8192MiB\"\nadvisory = true",
        "replicas = 5\nmemory = \"9GiB\"\nadvisory = true\novercommit = true",
        "replicas = 3\nsm_percent = 34\nadvisory = true\novercommit = true",
    ] {
        assert_eq!(problems(&with(&lab(), &cut("\"1\"", lines))), Vec::<String>::new(), "{lines}");
    }
    let mut host = lab();
    host.gpus[1].memory_bytes = None;
    let plan = with(&host, &cut("\"1\"", "memory = \"1GiB\"\nadvisory = true"));
    assert_eq!(
        problems(&plan),
        ["GPU 1 is left out: its memory is not known, so that limits cannot be checked against it"]
    );
}

#[test]
fn a_match_in_vain_is_named() {
    let config = cut("\"9\", \"0\", \"1g.10gb\", \"NVIDIA L4\"", "") + &cut("\"1\"", "");
    let config = config + &cut("\"GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e\"", "");
    let plan = with(&lab(), &config);
    assert_eq!(
        problems(&plan),
        [
            "c.toml:2:10: \"9\" matches nothing on this machine",
            "c.toml:2:15: \"0\" matches nothing: GPU 0 is in MIG mode, and only its MIG devices can be used",
            "c.toml:2:20: \"1g.10gb\" matches nothing on this machine",
            "c.toml:2:31: \"NVIDIA L4\" matches nothing on this machine",
        ]
    );
    assert_eq!(
        plan.warnings,
        [
            "c.toml:10:10: \"GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e\" matches only what earlier entries have matched: the first match wins"
        ]
    );
}

#[test]
fn a_compute_mode_that_keeps_others_out_is_named() {
    let mut host = lab();
    host.gpus[1].compute_mode = Some(ComputeMode::ExclusiveProcess);
    let plan = with(&host, &cut("\"1\"", "replicas = 2"));
    assert_eq!(
        plan.warnings,
        [
            "GPU 1 is cut into shares and in compute mode exclusive-process: only one process at a time can use it; `nvidia-smi -i 1 -c DEFAULT` lets shares work"
        ]
    );
}

#[test]
fn a_missing_gpu_keeps_its_numbers() {
    let config = cut("\"all\"", "replicas = 2");
    let first = with(&lab(), &config);
    assert!(names(&first).contains(&"shared-10 of 2".to_owned()));
    let mut host = lab();
    // GPU 1 falls off the bus: NVML counts it no more, and the others move up.
    host.gpus.remove(1);
    for (index, gpu) in host.gpus.iter_mut().enumerate() {
        gpu.index = u32::try_from(index).unwrap();
    }
    let second = after(&host, &config, &remembered(&first));
    let by_name =
        |plan: &Plan, name: &str| plan.devices.iter().find(|d| d.name == name).map(|d| d.uuid.clone());
    for number in [0, 7, 10, 11, 20, 21] {
        let name = format!("shared-{number}");
        assert_eq!(by_name(&first, &name), by_name(&second, &name), "{name}");
    }
    for gone in ["shared-8", "shared-9"] {
        assert_eq!(by_name(&second, gone), None);
    }
    // A further GPU goes, and then all are back.
    host.gpus.remove(3);
    let third = after(&host, &config, &remembered(&second));
    assert_eq!(by_name(&third, "shared-20"), by_name(&first, "shared-20"));
    let fourth = after(&lab(), &config, &remembered(&third));
    assert_eq!(names(&fourth), names(&first));
    assert_eq!(fourth.generation, first.generation);
    assert_eq!(fourth.warnings, Vec::<String>::new());
}

#[test]
fn a_gpu_that_does_not_answer_keeps_its_numbers() {
    let config = cut("\"all\"", "replicas = 2");
    let first = with(&lab(), &config);
    let mut host = lab();
    host.gpus.remove(1);
    host.failed.push(crate::discover::host::FailedGpu { index: 1, reason: "GPU is lost".into() });
    // With the memory of the earlier plan, and by the rule alone after a reboot.
    for earlier in [remembered(&first), Earlier::default()] {
        let plan = after(&host, &config, &earlier);
        assert!(names(&plan).contains(&"shared-10 of 2".to_owned()), "{:?}", names(&plan));
        assert!(!names(&plan).contains(&"shared-8 of 2".to_owned()));
    }
    assert_eq!(
        names(&after(&lab(), &config, &remembered(&after(&host, &config, &Earlier::default())))),
        names(&first)
    );
}

#[test]
fn a_device_left_out_keeps_its_numbers() {
    let mut host = lab();
    host.gpus[1].node.as_mut().unwrap().found = Found::Missing;
    let plan = with(&host, &cut("\"1\", \"2\"", "replicas = 2"));
    let shares: Vec<_> = names(&plan).into_iter().filter(|name| name.contains(" of ")).collect();
    assert_eq!(shares, ["shared-2 of 2", "shared-3 of 2"]);
}

#[test]
fn names_that_move_are_told() {
    let first = with(&lab(), &cut("\"1\", \"2\"", "replicas = 3"));
    let second = after(&lab(), &cut("\"1\", \"2\"", "replicas = 2"), &remembered(&first));
    let uuids = ["GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e", "GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf"];
    assert_eq!(
        second.warnings,
        [format!(
            "nvidia.com/gpu=shared-2 means GPU 2 ({}) now, and meant GPU 1 ({}) before",
            uuids[1], uuids[0]
        )]
    );
    let third = after(&lab(), &cut("\"2\"", "replicas = 3"), &remembered(&first));
    assert_eq!(
        third.warnings,
        [format!(
            "nvidia.com/gpu=shared-0 to shared-2 mean GPU 2 ({}) now, and meant GPU 1 ({}) before",
            uuids[1], uuids[0]
        )]
    );
}

/// One MIG device that does not answer for once must not give its neighbours' shares away.
#[test]
fn a_mig_device_that_does_not_answer_keeps_its_numbers() {
    let config = cut("\"all\"", "replicas = 2");
    let first = with(&lab(), &config);
    let mut host = lab();
    let gone = host.gpus[0].mig_devices.remove(1);
    let failed = crate::discover::host::FailedMigDevice { index: gone.index, reason: "unknown".into() };
    let contradiction = crate::discover::host::Contradiction {
        what: String::new(),
        gpu: 0,
        mig: Some(gone.index),
        why: String::new(),
    };
    let mut contradicting = host.clone();
    host.gpus[0].mig_failed.push(failed);
    contradicting.contradictions.push(contradiction);
    for host in [host, contradicting] {
        for earlier in [remembered(&first), Earlier::default()] {
            let plan = after(&host, &config, &earlier);
            let kept: Vec<_> = names(&first).into_iter().filter(|name| !name.ends_with(" of 0:1")).collect();
            assert_eq!(names(&plan), kept);
            assert_eq!(plan.warnings, Vec::<String>::new());
            assert_eq!(names(&after(&lab(), &config, &remembered(&plan))), names(&first));
        }
    }
    // Cut anew, it is gone for good, and so are its numbers.
    let mut host = lab();
    host.gpus[0].mig_devices.remove(1);
    assert_eq!(names(&after(&host, &config, &remembered(&first)))[2], "shared-2 of 0:2");
}

/// NVIDIA's YAML says "every GPU" by a model of any name.
#[test]
fn a_gpu_that_does_not_answer_keeps_its_numbers_under_any_model() {
    let config = cut("\"*\"", "replicas = 2");
    let mut host = lab();
    host.gpus[2].model = None;
    let lost = host.gpus.remove(1);
    host.failed.push(crate::discover::host::FailedGpu { index: lost.index, reason: "GPU is lost".into() });
    assert!(names(&with(&host, &config)).contains(&"shared-2 of 2".to_owned()));
}
