//! Shares of MPS servers, whose supervisors are stand-ins: granted when the server runs, and not if it does not, whatever
//! ends meanwhile.

use std::fs;

use hooks::lease::{Answer, Lease};
use serde_json::Value;

use crate::client::{Call, ask_until_answered, granted, refused};
use crate::container::{Container, Made};
use crate::daemon::Daemon;
use crate::ground::{Ground, wait_until};
use crate::stand_in::{Mood, StandIn};
use crate::support::{divvy, run};

pub const TRIALS: [(&str, fn()); 10] = [
    ("a_share_is_granted_when_its_server_runs", granted_when_it_runs),
    ("a_server_that_does_not_run_refuses", refused_as_the_supervisor_says),
    ("a_daemon_killed_while_a_server_starts", daemon_killed_meanwhile),
    ("a_container_that_ends_while_its_server_starts", container_ends_meanwhile),
    ("users_of_servers_that_serve_one_at_a_time", one_user_at_a_time),
    ("servers_that_start_with_the_daemon", at_boot),
    ("servers_that_the_plan_has_no_more", no_more_in_the_plan),
    ("two_hooks_of_one_container", two_hooks),
    ("ps_shows_how_a_server_is", shown),
    ("release_has_work_ended_before_it_kills", released),
];

/// Two GPUs with MPS, and one in time slices.
pub const MPS: &str = "[[gpu]]\nmatch = [\"0\", \"1\"]\nmode = \"mps\"\nreplicas = 2\nname = \"mps\"\n
[[gpu]]\nmatch = [\"2\"]\nmode = \"time-slice\"\nreplicas = 2\nname = \"slice\"\n";

/// The plan's settings for MPS servers, after a change of each.
pub fn settings(ground: &Ground, change: impl Fn(&mut Value)) -> Vec<Value> {
    let path = ground.state().join("plan.json");
    let mut plan: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    plan["mps"].as_array_mut().unwrap().iter_mut().for_each(change);
    write_plan(ground, &plan);
    plan["mps"].as_array().unwrap().clone()
}

/// The same plan with the same shares in time slices.
pub fn without_mps(ground: &Ground) {
    let plan = fs::read_to_string(ground.state().join("plan.json")).unwrap();
    let mut plan: Value =
        serde_json::from_str(&plan.replace("\"mode\":\"mps\"", "\"mode\":\"time-slice\"")).unwrap();
    plan["mps"] = Value::Array(Vec::new());
    write_plan(ground, &plan);
}

fn write_plan(ground: &Ground, plan: &Value) {
    let (path, new) = (ground.state().join("plan.json"), ground.state().join("plan.new"));
    fs::write(&new, plan.to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

/// A supervisor for each device of the plan in mode mps.
pub fn stand_ins(ground: &Ground) -> Vec<StandIn> {
    let settings = settings(ground, |_| {});
    settings.iter().map(|settings| StandIn::start(ground, settings["uuid"].as_str().unwrap())).collect()
}

#[track_caller]
fn asks(ground: &Ground, container: &Container, device: &str) -> Call {
    let mut call = Call::new(&ground.socket(), &ground.request(container, &[device])).unwrap();
    let first = call.next().unwrap();
    assert!(matches!(first, Some(Answer::Queued { ahead: 0, .. })), "{first:?}");
    call
}

/// The lease is there before the server is asked for, and its container hears of it after. Others are served meanwhile.
fn granted_when_it_runs() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(6);
    servers[0].is(Mood::Silent);
    let mut first = asks(&ground, &containers[0], "gpu=mps-0");
    servers[0].wait_for(1);
    let [lease] = &ground.leases()[..] else { panic!("no lease") };
    let mps = lease.mps.as_ref().unwrap();
    let planned = settings(&ground, |_| {});
    let uuid = planned[0]["uuid"].as_str().unwrap();
    assert_eq!(mps.front, ground.state().join("mps").join(uuid).join("front"));
    assert_eq!((&mps.shared_memory, lease.container.process_uid), (&None, Some(0)));
    assert_eq!(servers[0].heard()[0]["settings"], planned[0]);
    let mut second = asks(&ground, &containers[1], "gpu=mps-1");

    // Of another server, and of none.
    granted(ground.ask(&containers[2], &["gpu=mps-2"]));
    granted(ground.ask(&containers[3], &["gpu=slice"]));
    let slice = ground.leases().into_iter().find(|lease| lease.container.pid == containers[3].pid());
    assert_eq!(slice.unwrap().mps, None);
    granted(ground.ask(&containers[4], &["gpu=mps"]));
    let (status, _) = refused(ground.ask(&containers[5], &["gpu=mps"]));
    assert_eq!(status, 3);
    assert!(first.is_silent() && second.is_silent());

    servers[0].is(Mood::Ready);
    assert_eq!(granted(first.last())[0].name, "mps-0");
    assert_eq!(granted(second.last())[0].name, "mps-1");
    // Who asked meanwhile was answered by the same question.
    assert_eq!(servers[0].ensured(), [(0, true)]);
    assert_eq!(servers[1].ensured(), [(0, true), (0, false)]);
    assert_eq!(ground.leases().len(), 5);
}

fn refused_as_the_supervisor_says() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(2);
    for status in [1, 3, 5] {
        servers[0].is(Mood::Refuses(status, format!("GPU 0 cannot: {status}")));
        let answer = ground.ask(&containers[0], &["gpu=mps-0"]);
        let Answer::Refused { hint, .. } = &answer else { panic!("{answer:?}") };
        assert_eq!(hint.as_deref(), Some("wait"));
        assert_eq!(refused(answer), (status, format!("GPU 0 cannot: {status}")));
        assert!(ground.leases().is_empty());
        let said = fs::read_to_string(ground.state().join("refused.json")).unwrap();
        assert!(said.contains(&format!("GPU 0 cannot: {status}")), "{said}");
    }
    servers[0].is(Mood::Ready);
    granted(ground.ask(&containers[1], &["gpu=mps-0"]));
    // A container that has it keeps it, whatever becomes of a further question.
    servers[0].is(Mood::Refuses(5, "not now".into()));
    assert_eq!(refused(ground.ask(&containers[1], &["gpu=mps-0"])), (5, "not now".to_owned()));
    assert_eq!(ground.leases().len(), 1);
    let ensured = servers[0].ensured();
    assert_eq!(ensured[..4], [(0, true); 4]);
    assert_eq!(ensured[4..], [(0, false)]);
}

/// What the daemon had begun, its hook has the next one do.
fn daemon_killed_meanwhile() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let mut daemon = Daemon::start_on_held_socket(&ground);
    let container = Container::start();
    servers[0].is(Mood::Silent);
    let request = ground.request(&container, &["gpu=mps-0"]);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| ask_until_answered(&ground.socket(), &request));
        for asked in 1..=3 {
            servers[0].wait_for(asked);
            assert_eq!(ground.leases().len(), 1);
            if asked < 3 {
                daemon.kill();
                daemon.start_again();
            }
        }
        let before = ground.leases();
        servers[0].is(Mood::Ready);
        let (answer, retried) = asker.join().unwrap();
        assert_eq!((granted(answer)[0].name.as_str(), retried), ("mps-0", 2));
        assert_eq!(ground.leases(), before);
    });
    // A daemon that is new does not know whether the container runs.
    assert_eq!(servers[0].ensured(), [(0, true), (0, false), (0, false)]);
    // What it was granted it keeps, and so does its server.
    let before: Vec<Lease> = ground.leases();
    daemon.kill();
    daemon.start_again();
    assert_eq!(ground.leases(), before);
    assert_eq!(servers[0].heard().len(), 3);
}

fn container_ends_meanwhile() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(2);
    servers[0].is(Mood::Silent);
    let mut call = asks(&ground, &containers[0], "gpu=mps-0");
    servers[0].wait_for(1);
    containers[0].kill();
    ground.wait_for_leases(0);
    let mut next = asks(&ground, &containers[1], "gpu=mps-0");
    ground.wait_for_leases(1);
    servers[0].is(Mood::Ready);
    let ended = "the container ended while it waited for its MPS server";
    assert_eq!(refused(call.last()), (1, ended.to_owned()));
    granted(next.last());
    assert_eq!(ground.leases()[0].container.pid, containers[1].pid());
}

/// As drivers before 555 do.
fn one_user_at_a_time() {
    let ground = Ground::new(MPS);
    settings(&ground, |settings| settings["multi_user"] = false.into());
    let servers = stand_ins(&ground);
    let mut daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(5);
    let ask = |container: &Container, user: u32, device: &str| {
        let mut request = ground.request(container, &[device]);
        request.user = user;
        Call::new(&ground.socket(), &request).unwrap().last()
    };
    assert_eq!(granted(ask(&containers[0], 1001, "gpu=mps"))[0].name, "mps-0");
    assert_eq!(granted(ask(&containers[1], 1002, "gpu=mps"))[0].name, "mps-2");
    // Users of a running server, the other device, and neither.
    assert_eq!(granted(ask(&containers[2], 1002, "gpu=mps"))[0].name, "mps-3");
    daemon.kill();
    daemon.start_again();
    let (status, message) = refused(ask(&containers[3], 1002, "gpu=mps-1"));
    assert_eq!(status, 3);
    let said =
        "mps-1 cannot be had: the MPS server of GPU 0 serves one user at a time, now uid 1001 of container";
    assert!(message.starts_with(said), "{message}");
    assert_eq!(refused(ask(&containers[3], 1003, "gpu=mps")).0, 3);
    // A user namespace without numbers: nobody knows who that is.
    let unknown = Container::start_as(&Made { user: Some(64_901), ..Made::default() });
    assert_eq!(refused(ask(&unknown, 1001, "gpu=mps-1")).0, 3);
    containers[0].kill();
    ground.wait_for_leases(2);
    granted(ask(&containers[3], 1003, "gpu=mps-1"));
    assert_eq!(servers[0].ensured(), [(1001, true), (1003, true)]);
    assert_eq!(servers[1].ensured(), [(1002, true), (1002, false)]);
}

fn at_boot() {
    let ground = Ground::new(MPS);
    settings(&ground, |settings| settings["at_boot"] = (settings["what"] == "GPU 1").into());
    let servers = stand_ins(&ground);
    servers[1].is(Mood::Refuses(1, "GPU 1 is used by python (4711)".into()));
    let daemon = Daemon::start(&ground);
    servers[1].wait_for(1);
    assert_eq!(servers[1].ensured(), [(0, true)]);
    wait_until("the log", || daemon.log().contains("GPU 1 is used by python (4711)"));
    let container = Container::start();
    servers[1].is(Mood::Ready);
    granted(ground.ask(&container, &["gpu=mps-2"]));
    assert!(servers[0].heard().is_empty());
}

/// A server ends when nobody has a share of it any more, and its device is not shared so.
fn no_more_in_the_plan() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let mut daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(2);
    granted(ground.ask(&containers[0], &["gpu=mps-0"]));
    granted(ground.ask(&containers[1], &["gpu=mps-2"]));
    containers[1].kill();
    ground.wait_for_leases(1);
    without_mps(&ground);
    // It reads the plan when somebody asks, if not before.
    let next = Container::start();
    assert_eq!(granted(ground.ask(&next, &["gpu=mps"]))[0].name, "mps-2");
    let stops = |server: &StandIn| server.heard().iter().filter(|asked| asked["request"] == "stop").count();
    wait_until("the end of the one that nobody uses", || stops(&servers[1]) == 1);
    let (status, message) = refused(ground.ask(&containers[0], &["gpu=mps-0"]));
    assert_eq!((status, stops(&servers[0])), (6, 0), "{message}");
    daemon.kill();
    daemon.start_again();
    assert_eq!(ground.leases().len(), 2);
    containers[0].kill();
    wait_until("the end of the other", || stops(&servers[0]) == 1);
    let stop = servers[0].heard().into_iter().next_back().unwrap();
    assert_eq!(stop["force"], false);
}

/// They ask the same, and hear the same.
fn two_hooks() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(2);
    for (container, mood) in containers.iter().zip([Mood::Ready, Mood::Refuses(5, "no".into())]) {
        servers[0].is(Mood::Silent);
        let mut first = asks(&ground, container, "gpu=mps-0");
        let mut second = asks(&ground, container, "gpu=mps-0");
        assert!(first.is_silent() && second.is_silent());
        servers[0].is(mood.clone());
        let (first, second) = (first.last(), second.last());
        assert_eq!(first, second);
        if mood == Mood::Ready {
            granted(first);
            container.end();
        }
        ground.wait_for_leases(0);
    }
    assert!(servers[0].ensured().len() >= 2);
}

fn shown() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(2);
    granted(ground.ask(&containers[0], &["gpu=mps-0"]));
    granted(ground.ask(&containers[1], &["gpu=slice"]));
    let ps = |words: &[&str]| {
        let (status, shown, errors) = run(divvy(&["ps", "--state-dir"]).arg(ground.state()).args(words));
        assert_eq!(status, 0, "{errors}");
        (shown, errors)
    };
    let row =
        |shown: &str, device: &str| shown.lines().find(|line| line.starts_with(device)).unwrap().to_owned();
    servers[0].says("ready", None);
    let (shown, notes) = ps(&[]);
    let ready = row(&shown, "mps-0");
    assert!(ready.contains("  mps  ") && !ready.contains("mps ready"), "{shown}");
    assert!(!notes.contains("MPS server"), "{notes}");
    for (state, mark, words) in [
        ("down", "mps down", "CUDA fails with 805"),
        ("starting", "mps starting", "until it is ready"),
        ("fault", "mps fault", "takes no new one until all have left"),
        ("blocked", "mps blocked", "nobody can connect"),
    ] {
        servers[0].says(state, Some("process 4711 says nothing"));
        let (shown, notes) = ps(&[]);
        assert!(row(&shown, "mps-0").ends_with(mark), "{shown}");
        assert!(!row(&shown, "slice-0").contains("mps"), "{shown}");
        assert!(notes.contains("process 4711 says nothing") && notes.contains(words), "{notes}");
        let shown: Value = serde_json::from_str(&ps(&["--format=json"]).0).unwrap();
        assert_eq!(shown["rows"][0]["mps"]["state"], state);
        assert_eq!(shown["rows"][1].get("mps"), None);
    }
}

/// A client that is killed in the middle of its work may take others along.
fn released() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(2);
    for (container, mood) in containers.iter().zip([Mood::Ready, Mood::Refuses(1, "it is blocked".into())]) {
        servers[0].is(Mood::Ready);
        granted(ground.ask(container, &["gpu=mps-0"]));
        servers[0].is(mood.clone());
        let mut release = divvy(&["release", "mps-0", "--kill", "--state-dir"]);
        let (status, said, errors) = run(release.arg(ground.state()));
        assert_eq!(status, 0, "{errors}");
        assert!(said.starts_with("mps-0 is free: "), "{said}");
        assert_eq!(errors.contains("it is blocked"), mood != Mood::Ready, "{errors}");
        let heard = servers[0].heard();
        let last = heard.last().unwrap();
        assert_eq!((&last["request"], &last["pids"]), (&"terminate".into(), &vec![container.pid()].into()));
        ground.wait_for_leases(0);
    }
}
