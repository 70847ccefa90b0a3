//! Shares that run at once: what each gets, what the server is told, and what is refused before anything starts.

use super::shares::{after, cut_by, problems};
use super::*;
use crate::config::Priority;

const MPS: Limit = Limit { by: Level::Mps, over: Over::Process, against: Against::Mistakes };
const MPS_FOR_ALL: Limit = Limit { against: Against::Anything, ..MPS };

fn with(host: &Host, lines: &str) -> Plan {
    after(host, &cut_by("mps", "\"1\"", lines), &Earlier::default())
}

#[test]
fn equal_shares_have_equal_parts_of_what_is_left() {
    let plan = with(&lab(), "replicas = 3");
    assert_eq!((problems(&plan), &plan.warnings, &plan.notes), (vec![], &vec![], &vec![]));
    let share = device(&plan, "shared-2");
    // 40960 without 620 of the driver's and 64 of the server's; 33 % of 108 are 35.
    assert_eq!((share.mode, share.memory_bytes, share.sms), (Mode::Mps, Some(13425 << 20), Some(34)));
    assert_eq!(share.limits, Limits { memory: Some(MPS), sms: Some(MPS_FOR_ALL) });
    let part = MpsShare { active_thread_percentage: 33, memory_mib: 13425, priority: Priority::Normal };
    assert_eq!(share.mps, Some(part));
    let [settings] = &plan.mps[..] else { panic!("{:?}", plan.mps) };
    assert_eq!(
        *settings,
        Settings {
            uuid: share.uuid.clone(),
            what: "GPU 1".into(),
            gpu_uuid: share.uuid.clone(),
            is_mig: false,
            active_thread_percentage: 33,
            memory_mib: 13425,
            client_limit: 48,
            multi_user: true,
            at_boot: false,
            shared_memory_bytes: None,
            control: "/usr/bin/nvidia-cuda-mps-control".into(),
            server: "/usr/bin/nvidia-cuda-mps-server".into(),
            driver_root: "/".into(),
            driver_version: lab().driver_version,
        }
    );
}

#[test]
fn a_single_share_has_all_there_is() {
    let plan = with(&lab(), "");
    let share = device(&plan, "shared-0");
    assert_eq!((share.memory_bytes, share.sms), (Some(40276 << 20), Some(108)));
    assert_eq!(plan.mps[0].active_thread_percentage, 100);
}

#[test]
fn a_mig_device_is_held_against_mistakes_alone() {
    let plan = after(&lab(), &cut_by("mps", "\"0:0\"", "replicas = 2"), &Earlier::default());
    let share = device(&plan, "shared-1");
    assert_eq!((share.memory_bytes, share.sms), (Some(10016 << 20), Some(28)));
    assert_eq!(share.limits, Limits { memory: Some(MPS), sms: Some(MPS) });
    let settings = &plan.mps[0];
    assert_eq!((settings.what.as_str(), settings.is_mig), ("MIG device 0:0", true));
    assert_eq!((&settings.uuid, &settings.gpu_uuid), (&share.uuid, &lab().gpus[0].uuid));
    assert_eq!(
        plan.notes,
        [
            "MIG device 0:0 has no compute mode, as no MIG device has: a process in a share that avoids MPS has no limits there"
        ]
    );
}

#[test]
fn compute_instances_have_their_memory_together() {
    let plan = after(&lab(), &cut_by("mps", "\"0:2\"", "replicas = 2"), &Earlier::default());
    assert_eq!(
        plan.notes[1],
        "MIG device 0:2 is a compute instance beside 0:1 in one GPU instance, whose memory they have together: what its shares have of that is not theirs alone"
    );
}

#[test]
fn the_server_holds_the_limits_of_the_largest_alone() {
    let shares = "start = \"boot\"\nshm = \"1GiB\"\n[[gpu.share]]\nname = \"large\"\nmemory = \"20GiB\"\nsm_percent = 50\n\
                  [[gpu.share]]\nname = \"small\"\nreplicas = 2\n";
    assert_eq!(
        problems(&with(&lab(), shares)),
        [
            "GPU 1 is left out: nothing holds the memory and SM limits of its shares \"small\": the MPS server has one limit for all, that of the largest"
        ]
    );
    assert_eq!(with(&lab(), shares).mps, []);
    let plan = with(&lab(), &format!("advisory = true\n{shares}priority = \"low\""));
    assert_eq!(problems(&plan), Vec::<String>::new());
    let (large, small) = (device(&plan, "large-0"), device(&plan, "small-1"));
    assert_eq!(large.limits, Limits { memory: Some(MPS), sms: Some(MPS_FOR_ALL) });
    let wish = Limit { by: Level::Advisory, over: Over::Process, against: Against::Nothing };
    assert_eq!(small.limits, Limits { memory: Some(wish), sms: Some(wish) });
    // What the large one leaves, for two.
    let part = MpsShare { active_thread_percentage: 25, memory_mib: 9898, priority: Priority::Low };
    assert_eq!((small.mps, small.sms), (Some(part), Some(26)));
    let settings = &plan.mps[0];
    assert_eq!((settings.memory_mib, settings.active_thread_percentage), (20480, 50));
    assert_eq!((settings.at_boot, settings.shared_memory_bytes), (true, Some(1 << 30)));
    // The same memory, and fewer SMs: each limit by itself.
    let plan = with(
        &lab(),
        "advisory = true\n[[gpu.share]]\nname = \"a\"\nsm_percent = 60\n[[gpu.share]]\nname = \"b\"\nsm_percent = 40",
    );
    assert_eq!(device(&plan, "b-0").limits, Limits { memory: Some(MPS), sms: Some(wish) });
}

#[test]
fn what_cannot_be_shared_through_mps_is_left_out() {
    const HAS: &str = "and it has 40276MiB for them (40960MiB without 620MiB of the driver's and 64MiB of the MPS server's)";
    for (lines, said) in [
        ("replicas = 49", "it has 49 shares, and MPS of this driver serves 48 processes at once".to_owned()),
        (
            "[[gpu.share]]\nname = \"a\"\nreplicas = 40\n[[gpu.share]]\nname = \"b\"\nreplicas = 9",
            "it has 49 shares, and MPS of this driver serves 48 processes at once".into(),
        ),
        ("replicas = 4\nmemory = \"10GiB\"", format!("its shares have 40960MiB of memory together, {HAS}")),
        (
            "[[gpu.share]]\nname = \"a\"\nmemory = \"40GiB\"\n[[gpu.share]]\nname = \"b\"\nmemory = \"1GiB\"",
            format!("its shares have 41984MiB of memory together, {HAS}"),
        ),
        ("memory = \"40277MiB\"", format!("its shares have 40277MiB of memory together, {HAS}")),
        // However much is accepted, one share has no more than there is.
        (
            "memory = \"41GiB\"\novercommit = true\nadvisory = true",
            format!("its shares have 41984MiB of memory together, {HAS}"),
        ),
        (
            "memory = \"1023KiB\"",
            "its shares \"shared\" have less than 1MiB of the 40276MiB for them (40960MiB without 620MiB of the driver's and 64MiB of the MPS server's)".into(),
        ),
        (
            "[[gpu.share]]\nname = \"a\"\nmemory = \"40276MiB\"\n[[gpu.share]]\nname = \"b\"",
            "its shares \"b\" have less than 1MiB of the 40276MiB for them (40960MiB without 620MiB of the driver's and 64MiB of the MPS server's)".into(),
        ),
        (
            "[[gpu.share]]\nname = \"a\"\nsm_percent = 100\n[[gpu.share]]\nname = \"b\"",
            "its shares \"b\" have less than 1 % of the SMs, the smallest part that MPS knows".into(),
        ),
        ("replicas = 3\nsm_percent = 34", "its shares have 102 % of the SMs together".into()),
        (
            "require = \"kernel\"",
            "nothing on this machine holds the memory and SM limits of its shares \"shared\" as require = \"kernel\" wants it"
                .into(),
        ),
        (
            "advisory = true\nrequire = \"mps\"\n[[gpu.share]]\nname = \"a\"\nsm_percent = 60\n[[gpu.share]]\nname = \"b\"\nsm_percent = 40",
            "nothing on this machine holds the SM limit of its shares \"b\" as require = \"mps\" wants it".into(),
        ),
    ] {
        let plan = with(&lab(), lines);
        assert_eq!(problems(&plan), [format!("GPU 1 is left out: {said}")], "{lines}");
        assert!(plan.devices.iter().all(|device| device.gpu != 1) && plan.mps.is_empty(), "{lines}");
    }
    for lines in [
        "replicas = 48",
        "replicas = 4\nmemory = \"10069MiB\"",
        "replicas = 4\nmemory = \"10GiB\"\novercommit = true",
        "replicas = 3\nsm_percent = 34\novercommit = true",
        "replicas = 4\nrequire = \"mps\"",
        "replicas = 4\nmemory = \"1MiB\"",
    ] {
        let plan = with(&lab(), lines);
        assert_eq!((problems(&plan), plan.mps.len()), (vec![], 1), "{lines}");
    }
}

#[test]
fn shares_in_turns_hold_nothing_that_is_required() {
    for lines in
        ["require = \"mps\"", "require = \"mps\"\nadvisory = true\nmemory = \"1GiB\"\nsm_percent = 10"]
    {
        let plan = after(&lab(), &cut_by("time-slice", "\"1\"", lines), &Earlier::default());
        assert_eq!(
            problems(&plan),
            [
                "GPU 1 is left out: nothing on this machine holds the memory and SM limits of its shares \"shared\" as require = \"mps\" wants it"
            ]
        );
    }
}

#[test]
fn a_machine_that_has_no_mps_for_it() {
    let refused = |change: &dyn Fn(&mut Host), said: &str| {
        let mut host = lab();
        change(&mut host);
        let plan = with(&host, "replicas = 2");
        assert_eq!(problems(&plan), [format!("GPU 1 is left out: {said}")]);
        assert_eq!(plan.mps, []);
    };
    refused(
        &|host| host.mps.control = None,
        "nvidia-cuda-mps-control is not installed where drivers have their programs, and MPS needs it",
    );
    refused(
        &|host| host.mps.server = None,
        "nvidia-cuda-mps-server is not installed where drivers have their programs, and MPS needs it",
    );
    refused(
        &|host| host.gpus[1].compute_capability = Some("6.1".into()),
        "its compute capability is 6.1, and MPS limits nothing below 7.0",
    );
    refused(
        &|host| host.gpus[1].compute_capability = None,
        "its compute capability is not known, and MPS limits nothing below 7.0",
    );
    refused(
        &|host| host.gpus[1].memory_bytes = None,
        "its memory is not known, so that limits cannot be checked against it",
    );
    let long = format!("GPU-{}", "0".repeat(70));
    refused(
        &|host| host.gpus[1].uuid.clone_from(&long),
        &format!("its MPS pipe directory /run/divvy/mps/{long}/pipe is 94 bytes long, and MPS takes 88"),
    );
    // The first of what MPS limits, and a driver that does not say what it keeps.
    let mut host = lab();
    host.gpus[1].compute_capability = Some("7.0".into());
    host.gpus[1].reserved_memory_bytes = None;
    assert_eq!(with(&host, "").mps[0].memory_mib, 40896);
}

#[test]
fn what_depends_on_the_driver() {
    for (driver, cuda, clients, users) in [
        ("535.261.03", Some("12.2"), 48, false),
        ("550.163.01", Some("12.4"), 48, false),
        ("555.58.02", Some("12.5"), 48, true),
        ("580.95.05", Some("13.0"), 48, true),
        ("590.44.01", Some("13.1"), 60, true),
        ("615.1", Some("14.0"), 60, true),
        ("580.95.05", None, 48, true),
    ] {
        let mut host = lab();
        host.driver_version = driver.into();
        host.cuda_version = cuda.map(str::to_owned);
        let plan = after(&host, &cut_by("mps", "\"1\", \"2\"", "replicas = 2"), &Earlier::default());
        assert_eq!((plan.mps[0].client_limit, plan.mps[0].multi_user), (clients, users), "{driver}");
        let note = format!(
            "MPS of driver {driver} serves one user at a time: a container of another user is refused while one has a share of its device"
        );
        // Once, of however many devices.
        assert_eq!(plan.notes.iter().filter(|said| **said == note).count(), usize::from(!users), "{driver}");
    }
}

/// MPS sets the compute mode itself: a plan must not be another one for that.
#[test]
fn the_compute_mode_of_mps_is_no_news() {
    let plan_in = |mode| {
        let mut host = lab();
        host.gpus[1].compute_mode = mode;
        with(&host, "replicas = 2")
    };
    let before = plan_in(Some(ComputeMode::Default));
    let running = plan_in(Some(ComputeMode::ExclusiveProcess));
    assert_eq!((&running.generation, &running.warnings), (&before.generation, &vec![]));
    let prohibited = plan_in(Some(ComputeMode::Prohibited));
    assert_eq!(prohibited.generation, before.generation);
    assert!(
        prohibited.warnings[0]
            .starts_with("GPU 1 is to be shared through MPS and in compute mode prohibited")
    );
    // What containers get of it is news.
    assert_ne!(with(&lab(), "replicas = 3").generation, before.generation);
    assert_ne!(with(&lab(), "replicas = 2\nstart = \"boot\"").generation, before.generation);
}

#[test]
fn paths_are_those_of_this_machine() {
    let config = Config::parse("c.toml", &cut_by("mps", "\"1\"", "")).unwrap();
    let places = Places { driver_root: Path::new("/run/driver"), ..places(OUTPUT) };
    let plan = super::super::plan(&lab(), &config, &Earlier::default(), &places);
    let settings = &plan.mps[0];
    assert_eq!(settings.control, Path::new("/run/driver/usr/bin/nvidia-cuda-mps-control"));
    assert_eq!(settings.driver_root, Path::new("/run/driver"));
    assert_eq!(plan.generation, with(&lab(), "").generation);
}

#[test]
fn a_pool_tells_the_most_and_gives_one() {
    let config = cut_by("mps", "\"1\"", "replicas = 2") + &cut_by("mps", "\"2\"", "replicas = 4");
    let plan = after(&lab(), &(config.clone() + "[pool.shared]\nper_container = 3\n"), &Earlier::default());
    assert_eq!(plan.pools[0].per_container, Some(1));
    assert_eq!(
        plan.warnings,
        ["pool \"shared\" has shares in mode mps, of which a container can have one: per_container is 1"]
    );
    assert_eq!(
        plan.notes,
        [
            "shares of pool \"shared\" differ: who asks for any of them asks MPS for the most that one has, 20138MiB and 50 % of the SMs, and is held to what the server of the granted one allows"
        ]
    );
    let alike = cut_by("mps", "\"1\", \"2\"", "replicas = 2");
    let plan = after(&lab(), &alike, &Earlier::default());
    assert_eq!((&plan.notes, &plan.warnings, plan.mps.len()), (&vec![], &vec![], 2));
    let beside = cut_by("mps", "\"1\"", "replicas = 2") + &cut_by("time-slice", "\"2\"", "replicas = 2");
    let plan = after(&lab(), &beside, &Earlier::default());
    assert_eq!(
        (&plan.notes, &plan.warnings[..]),
        (
            &vec![],
            &["pool \"shared\" has shares in mode mps and shares without limits (shared-2, shared-3), and who asks for any may get one of these: give them a name of their own".to_owned()][..]
        )
    );
}
