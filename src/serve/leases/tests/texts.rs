//! Refusals as a person reads them.

use super::*;
use hooks::lease::Unbound;

/// What the last line of a history is refused with: message and hint.
#[track_caller]
fn refused(plan: Kept, lines: &[&str], last: Ask) -> (String, String) {
    let mut world = World::new(plan);
    for line in lines {
        world.does(line);
    }
    text(&world.leases.handle(Event::Asked(Box::new(last))))
}

#[track_caller]
fn text(decisions: &[Decision]) -> (String, String) {
    let clock = |at: u64| format!("14:{:02}", at - NOON);
    match decisions {
        [.., Decision::Refuse(_, refusal)] => (refusal.message(&clock), refusal.hint().unwrap_or_default()),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn message(plan: Kept, lines: &[&str], words: &[&str]) -> String {
    let last = ask(&plan, 99, words, 0);
    refused(plan, lines, last).0
}

#[test]
fn who_has_it_and_what_is_free() {
    let last = ask(&plan("shared*4"), 9, &["shared-0"], 0);
    let (message, hint) = refused(plan("shared*4"), &["at 2", "ask 1@1001 shared", "ask 2 shared-2"], last);
    assert_eq!(
        message,
        "shared-0 is held by podman container web1 (00012b1c3d4e, since 14:02, uid 1001); \
         free in pool shared: shared-1, shared-3"
    );
    assert_eq!(hint, "ask for shared to get any that is free; `divvy ps` shows who has what");

    let mut world = World::new(plan("shared*1"));
    let mut first = ask(&world.plan, 1, &["shared"], 2);
    first.container = Container { engine: None, name: None, ..container(1, 1001) };
    first.user = Some("ana".into());
    world.leases.handle(Event::Asked(Box::new(first)));
    world.does("first 1");
    world.does("ask 2 shared");
    let (message, hint) = text(&world.leases.handle(Event::Time(Duration::from_secs(60))));
    assert_eq!(
        message,
        "the one device of pool shared is held: shared-0 by container (00012b1c3d4e, since 14:02, user ana, ending)"
    );
    assert_eq!(hint, "`divvy ps` shows who has what; with `wait` in [pool.shared] starts queue");
}

#[test]
fn a_whole_gpu_in_the_way_of_shares_and_the_reverse() {
    assert_eq!(
        message(plan("whole shared*2"), &["ask 1 shared-1"], &["0"]),
        "GPU 0 cannot be had: shared-1, a part of it, is held by podman container web1 (00012b1c3d4e, since 14:00, user root); \
         nothing is free in pool whole"
    );
    assert_eq!(
        message(plan("whole shared*2"), &["ask 1 whole"], &["shared"]),
        "all 2 devices of pool shared are held: GPU 0 as a whole by podman container web1 (00012b1c3d4e, since 14:00, user root)"
    );
    assert_eq!(
        message(plan("whole shared*2"), &["ask 1 shared-1"], &["whole"]),
        "the one device of pool whole is held: \
         shared-1 of GPU 0 by podman container web1 (00012b1c3d4e, since 14:00, user root)"
    );
    assert_eq!(
        message(plan("whole shared*2"), &["ask 1 0"], &["shared-0"]),
        "shared-0 cannot be had: GPU 0 is held as a whole by podman container web1 (00012b1c3d4e, since 14:00, user root); \
         nothing is free in pool shared"
    );
    assert_eq!(
        message(plan("1g 1g"), &["ask 1 0:1"], &["0:1"]),
        "MIG device 0:1 is held by podman container web1 (00012b1c3d4e, since 14:00, user root); \
         free in pool mig-1g: 0:0"
    );
    assert_eq!(
        message(plan("whole shared*2 | other*1").any_number(), &[], &["0", "shared-1"]),
        "shared-1 is a part of 0, and both are asked for"
    );
    assert_eq!(
        message(plan("whole a*1 | whole a*1"), &["ask 1 0"], &["whole", "a"]),
        "pools a and whole have free devices, but not at once: whole GPUs of the one are shares of the other"
    );
    assert_eq!(
        message(plan("whole a*1").any_number(), &[], &["whole", "a"]),
        "1 device of pool a (of 1) and 1 device of pool whole (of 1) are asked for: there are not so many at once \
         beside what else is asked for"
    );
}

#[test]
fn long_lists_are_cut() {
    let asks: Vec<_> = (1..=8).map(|pid| format!("ask {pid} shared")).collect();
    let asks: Vec<_> = asks.iter().map(String::as_str).collect();
    let by = |pid| {
        format!("shared-{} by podman container web{pid} (000{pid}2b1c3d4e, since 14:00, user root)", pid - 1)
    };
    assert_eq!(
        message(plan("shared*8"), &asks, &["shared"]),
        format!("all 8 devices of pool shared are held: {}, {}, {} and 5 more", by(1), by(2), by(3))
    );
    assert_eq!(
        message(plan("shared*8").any_number(), &asks[..7], &["shared", "shared"]),
        format!(
            "of 8 devices of pool shared 1 is free, 2 asked for: {}, {}, {} and 4 more",
            by(1),
            by(2),
            by(3)
        )
    );
    let all = ["shared-0", "shared-1", "shared-2", "shared-3"];
    let text = message(plan("shared*12").any_number(), &asks, &all);
    assert!(
        text.ends_with("; 1 more of what is asked for is held; free in pool shared: shared-8, shared-9, shared-10, shared-11"),
        "{text}"
    );
    assert!(message(plan("shared*20"), &asks, &["shared-0"]).ends_with("shared-12, shared-13, 6 more"));
}

#[test]
fn what_is_to_be_set_is_named() {
    let hint = |plan: Kept, lines: &[&str], words: &[&str]| {
        let last = ask(&plan, 99, words, 0);
        refused(plan, lines, last).1
    };
    let mut mig = plan("1g | shared*1");
    mig.pools[0].name = "mig-1g.10gb".into();
    assert_eq!(
        hint(mig.clone(), &["ask 1 mig-1g.10gb"], &["mig-1g.10gb"]),
        "`divvy ps` shows who has what; with `wait` in [pool.\"mig-1g.10gb\"] starts queue"
    );
    // Of two pools the shorter wait counts: there is one already in the other.
    mig.pools[1].wait_seconds = 60;
    assert_eq!(
        hint(mig, &["ask 1 mig-1g.10gb", "ask 2 shared"], &["mig-1g.10gb", "shared"]),
        "`divvy ps` shows who has what; with `wait` in [pool.\"mig-1g.10gb\"] starts queue"
    );
    assert_eq!(
        hint(plan("shared*3"), &[], &["shared", "shared"]),
        "ask for one, or set per_container = 2 in [pool.shared] of /etc/divvy/config.toml and run `sudo divvy generate`"
    );
    let mut two = plan("shared*3");
    two.pools[0].per_container = Some(2);
    assert_eq!(
        hint(two, &[], &["shared", "shared", "shared"]),
        "ask for 2, or set per_container = 3 in [pool.shared] of /etc/divvy/config.toml and run `sudo divvy generate`"
    );
}

#[test]
fn a_wait_in_vain_says_how_long_it_was() {
    let mut world = World::new(plan("shared*1").wait(90));
    world.does("ask 1 shared");
    world.does("ask 2 shared");
    let (message, _) = text(&world.leases.handle(Event::Time(Duration::from_secs(90))));
    assert_eq!(
        message,
        "waited 90 s in vain: the one device of pool shared is held: \
         shared-0 by podman container web1 (00012b1c3d4e, since 14:00, user root)"
    );
}

#[test]
fn what_users_may_not() {
    let of_user = |plan: Kept, words: &[&str]| {
        let mut last = ask(&plan, 99, words, 0);
        last.container = container(99, 1001);
        last.user = Some("ana".into());
        refused(plan, &["ask 1@1001 shared"], last).0
    };
    let plan = || plan("shared*4 | whole").any_number();
    assert_eq!(
        of_user(plan().cap("ana", Some(2), None), &["shared", "shared", "1"]),
        "3 devices are asked for, and user ana may hold 2"
    );
    assert_eq!(
        of_user(plan().cap("1001", Some(2), None), &["shared", "shared"]),
        "user ana holds 1 of the 2 devices they may hold ([users] in the configuration), and 2 more are asked for"
    );
    assert_eq!(
        of_user(plan().cap("ana", Some(1), None), &["shared"]),
        "user ana holds 1 of the 1 device they may hold ([users] in the configuration), and 1 more is asked for"
    );
    assert_eq!(
        of_user(plan().cap("ana", Some(0), None), &["shared"]),
        "1 device is asked for, and user ana may hold 0"
    );
    assert_eq!(
        of_user(plan().cap("*", None, Some(&["shared"])), &["shared", "1"]),
        "user ana may not have 1, but devices of pool shared alone"
    );
    assert_eq!(
        of_user(plan().cap("*", None, Some(&[])), &["whole"]),
        "user ana may not have whole, but devices of no pool"
    );
}

#[test]
fn what_is_wrong_with_the_request() {
    let two = || plan("shared*2 | shared*2 | whole");
    assert_eq!(
        message(two(), &[], &["gpu.shared=shared", "large-0"]),
        "gpu.shared=shared, gpu=large-0 are not in the plan: the spec is of another one"
    );
    assert_eq!(message(two(), &[], &["large"]), "gpu=large is not in the plan: the spec is of another one");
    assert_eq!(
        message(two(), &[], &["shared", "shared"]),
        "2 devices of pool shared are asked for, and one container may have 1"
    );
    assert_eq!(
        message(two(), &["ask 99 shared-0"], &["shared-1"]),
        "the container has asked for gpu=shared-0 before: it cannot have others too"
    );
    let with = |edit: &dyn Fn(&mut Ask)| {
        let mut last = ask(&two(), 99, &["shared"], 0);
        edit(&mut last);
        refused(two(), &[], last)
    };
    let (message, hint) = with(&|ask| ask.request.nodes.push("/dev/nvidia2".into()));
    assert_eq!(message, "the container has /dev/nvidia2 past its lease: GPU 2 is given out by name alone");
    assert_eq!(hint, "leave that device out, or ask for it by its name in `divvy list`");
    let (message, hint) = with(&|ask| ask.request.unbound = Some(Unbound::HostDev));
    assert_eq!(
        message,
        "the container has the host's /dev, or a GPU's node that it did not ask divvy for: a share would bind nothing"
    );
    assert_eq!(hint, "start it without --privileged, --device /dev/nvidia* and volumes of /dev");
    let (message, hint) = with(&|ask| ask.container.cgroup = None);
    assert_eq!(
        message,
        "the container has no cgroup of its own: what pool shared brings beside the granted devices could not be denied"
    );
    assert_eq!(hint, "give the container a cgroup of its own, or ask for a device by its name");
    let last = ask(&two(), 1, &["shared"], 0);
    let (message, hint) = text(&Leases::new("/run/divvy".into()).handle(Event::Asked(Box::new(last))));
    assert_eq!(message, "there is no plan in /run/divvy/plan.json: nobody knows which devices there are");
    assert_eq!(
        hint,
        "run `sudo divvy generate` (with --host, add --state-dir /run/divvy), then start the container again"
    );
}

#[test]
fn an_mps_share_alone() {
    let mps = || plan("m*2:mps | whole | s*1 | open");
    let last = ask(&mps(), 9, &["m-0", "s", "1"], 0);
    let (message, hint) = refused(mps(), &[], last);
    assert_eq!(
        message,
        "m-0 is a share of an MPS server, and 1, s are asked for beside it: a process has one pipe directory"
    );
    assert_eq!(hint, "ask for one share alone, and start another container for the rest");

    for node in ["/dev/nvidia3", "/dev/nvidia9"] {
        let mut last = ask(&mps(), 9, &["m"], 0);
        last.request.nodes.push(node.into());
        let (message, hint) = refused(mps(), &[], last);
        assert_eq!(
            message,
            format!(
                "the container has {node} beside m, a share of an MPS server: a process has one pipe directory"
            )
        );
        assert_eq!(hint, "leave that device out, or use another mode than mps");
    }
    let mut last = ask(&mps(), 9, &["m"], 0);
    last.request.nodes.extend(["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-modeset"].map(Into::into));
    assert!(matches!(
        World::new(mps()).leases.handle(Event::Asked(Box::new(last)))[..],
        [Decision::Grant(..)]
    ));
}

#[test]
fn an_mps_server_that_serves_another_user() {
    let one = || plan("m*3:one");
    let of = |words: &[&str]| {
        let mut last = ask(&one(), 9, words, 0);
        last.container.process_uid = Some(1002);
        refused(one(), &["at 2", "ask 1~1001 m-0"], last)
    };
    let (message, hint) = of(&["m-1"]);
    assert_eq!(
        message,
        "m-1 cannot be had: the MPS server of GPU 0 serves one user at a time, now uid 1001 of \
         podman container web1 (00012b1c3d4e, since 14:02, user root); nothing is free in pool m"
    );
    assert_eq!(
        hint,
        "`divvy ps` shows who has what; MPS of drivers from 555 on serves several users at once"
    );
    let (message, hint) = of(&["m"]);
    assert_eq!(
        message,
        "all 3 devices of pool m are held: m-0 by podman container web1 (00012b1c3d4e, since 14:02, user root) and \
         the MPS server of GPU 0, which serves one user at a time, for uid 1001 by podman container web1 \
         (00012b1c3d4e, since 14:02, user root)"
    );
    assert_eq!(
        hint,
        "`divvy ps` shows who has what; with `wait` in [pool.m] starts queue; \
         MPS of drivers from 555 on serves several users at once"
    );
    assert_eq!(
        message_of_unknown(),
        "m-1 cannot be had: the MPS server of GPU 0 serves one user at a time, now a user without a number here of \
         podman container web1 (00012b1c3d4e, since 14:00, user root); nothing is free in pool m"
    );
}

#[test]
fn servers_that_do_not_run() {
    let refused = |plan: Kept, lines: &[&str], words: &[&str], says: &[(u8, &str)]| {
        let mut world = World::new(plan);
        for line in lines {
            world.does(line);
        }
        let last = ask(&world.plan, 9, words, world.now);
        let mut decisions = world.leases.handle(Event::Asked(Box::new(last)));
        for (status, message) in says {
            let no =
                No { status: *status, message: (*message).into(), hint: Some(format!("mend {message}")) };
            decisions = world.leases.handle(Event::Unserved(key(9), Box::new(no)));
        }
        text(&decisions)
    };
    for (plan, words) in [(plan("m*2:mps | m*2:mps"), "m-0"), (plan("m*2:mps"), "m")] {
        let (message, hint) = refused(plan, &[], &[words], &[(1, "no process may use it")]);
        assert_eq!([&*message, &*hint], ["no process may use it", "mend no process may use it"]);
    }
    // One that does not say which device it is of.
    let says = [(1, "GPU 0 is used by python (4711)"), (5, "it cannot be asked")];
    let (message, hint) = refused(plan("m*2:mps | m*2:mps"), &[], &["m"], &says);
    assert_eq!(message, "GPU 0 is used by python (4711); GPU 1: it cannot be asked");
    assert_eq!(hint, "mend GPU 0 is used by python (4711)");
    let by = |pid: u32, share: u32| {
        format!("m-{share} by podman container web{pid} (000{pid}2b1c3d4e, since 14:00, user root)")
    };
    let (message, hint) = refused(
        plan("m*1:mps | m*5:mps"),
        &["ask 1 m-1", "ask 2 m-2", "ask 3 m-3", "ask 4 m-4", "ask 5 m-5"],
        &["m"],
        &says[..1],
    );
    assert_eq!(
        message,
        format!(
            "GPU 0 is used by python (4711); the others are held: {}, {}, {} and 2 more",
            by(1, 1),
            by(2, 2),
            by(3, 3)
        )
    );
    assert_eq!(hint, "mend GPU 0 is used by python (4711); `divvy ps` shows who has what");
    let words = ["m*1:mps"; 6].join(" | ");
    let (message, _) = refused(plan(&words), &[], &["m"], &[(1, "no"); 6]);
    assert_eq!(message, "GPU 0: no; GPU 1: no; GPU 2: no; GPU 3, GPU 4, GPU 5 refused too");
}

#[test]
fn a_wait_for_another_server_in_vain() {
    let mut world = World::new(plan("m*1:mps | m*1:mps").wait(50));
    for line in ["ask 1 m-1", "ask 2 m", "unserved 2 5"] {
        world.does(line);
    }
    let (message, hint) = text(&world.leases.handle(Event::Time(Duration::from_secs(50))));
    assert_eq!(
        message,
        "waited 50 s in vain: GPU 0: no server: 5; the others are held: \
         m-1 by podman container web1 (00012b1c3d4e, since 14:00, user root)"
    );
    assert_eq!(hint, "wait; `divvy ps` shows who has what");
}

fn message_of_unknown() -> String {
    message(plan("m*3:one"), &["ask 1~? m-0"], &["m-1"])
}

#[test]
fn a_device_whose_mode_changed() {
    let mut world = World::new(plan("s*3"));
    world.does("ask 1 s");
    world.does("plan s*3:mps");
    let refused = |world: &mut World, words: &[&str]| {
        let last = ask(&world.plan, 9, words, 0);
        text(&world.leases.handle(Event::Asked(Box::new(last)))).0
    };
    let holder = "podman container web1 (00012b1c3d4e, since 14:00, user root)";
    assert_eq!(
        refused(&mut world, &["s-1"]),
        format!(
            "s-1 cannot be had: GPU 0 is shared with MPS and without by turns, now as it is for {holder}; \
             nothing is free in pool s"
        )
    );
    assert_eq!(
        refused(&mut world, &["s"]),
        format!(
            "all 3 devices of pool s are held: s-0 by {holder} and GPU 0, shared with MPS and without by turns, by {holder}"
        )
    );
}
