//! MPS servers that do not run: who asked for any share of a pool is tried on another GPU, whatever ends meanwhile.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use hooks::lease::Answer;

use crate::client::{Call, ask_until_answered, granted, refused};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::hook::Bundle;
use crate::mps::{MPS, stand_ins};
use crate::stand_in::Mood;

pub const TRIALS: [(&str, fn()); 6] = [
    ("another_gpu_is_tried_where_a_server_refuses", another_is_tried),
    ("who_queues_for_a_server_that_does_not_refuse", queues_for_another),
    ("two_hooks_of_a_container_that_is_tried_again", two_hooks),
    ("a_daemon_killed_while_another_gpu_is_tried", daemon_killed_meanwhile),
    ("a_container_that_ends_while_another_gpu_is_tried", container_ends_meanwhile),
    ("a_plan_that_comes_while_a_server_starts", plan_comes_meanwhile),
];

/// With the real hook.
pub const WITH_HOOKS: [(&str, fn()); 1] = [("a_hook_waits_while_another_gpu_is_tried", hook_waits)];

fn no(gpu: usize) -> Mood {
    Mood::Refuses(1, format!("GPU {gpu} is used by python (4711)"))
}

/// Why a process of the container cannot open a GPU's node: there is no driver, unless its cgroup denies it before.
fn cannot_open(container: &Container, gpu: u32) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("read go && exec 3</dev/nvidia{gpu}")]);
    let mut shell = shell.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    container.take_in(shell.id());
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = String::from_utf8(shell.wait_with_output().unwrap().stderr).unwrap();
    let (is_denied, is_driverless) =
        (said.contains("Operation not permitted"), said.contains("No such device or address"));
    assert_ne!(is_denied, is_driverless, "{said}");
    is_denied
}

/// All that the first grant did is undone, and done for the second.
fn another_is_tried() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(4);
    servers[0].is(no(0));
    let request = ground.request(&containers[0], &["gpu=mps"]);
    let mut call = Call::new(&ground.socket(), &request).unwrap();
    // For both.
    assert_eq!(call.next().unwrap(), Some(Answer::Queued { seconds: 240, ahead: 0 }));
    assert_eq!(granted(call.last())[0].name, "mps-2");
    let [lease] = &ground.leases()[..] else { panic!("not one lease") };
    assert_eq!(lease.remove, [std::path::Path::new("/dev/nvidia0")]);
    assert_eq!((servers[0].ensured(), servers[1].ensured()), (vec![(0, true)], vec![(0, true)]));
    assert_eq!([0, 1, 2].map(|gpu| cannot_open(&containers[0], gpu)), [true, false, false]);

    // Who comes next does not wait for that refusal, as long as there is something else.
    assert_eq!(granted(ground.ask(&containers[1], &["gpu=mps"]))[0].name, "mps-3");
    assert_eq!(servers[0].heard().len(), 1);
    let (status, message) = refused(ground.ask(&containers[2], &["gpu=mps"]));
    let said = "GPU 0 is used by python (4711); the others are held: mps-2 by container ";
    assert!(status == 3 && message.starts_with(said), "{status}: {message}");
    let remembered = fs::read_to_string(ground.state().join("refused.json")).unwrap();
    assert_eq!(remembered.matches(said).count(), 1, "{remembered}");
    assert_eq!(refused(ground.ask(&containers[2], &["gpu=mps-0"])).0, 1);
    assert_eq!(servers[0].heard().len(), 3);
    assert_eq!(ground.leases().len(), 2);

    servers[0].is(Mood::Ready);
    assert_eq!(granted(ground.ask(&containers[2], &["gpu=mps"]))[0].name, "mps-0");
    assert_eq!([0, 1, 2].map(|gpu| cannot_open(&containers[2], gpu)), [false, true, false]);
    containers.iter_mut().take(3).for_each(Container::kill);
    ground.wait_for_leases(0);
    // Neither serves.
    servers[0].is(no(0));
    servers[1].is(Mood::Refuses(5, "GPU 1 cannot hold a limit".into()));
    let (status, message) = refused(ground.ask(&containers[3], &["gpu=mps"]));
    assert_eq!((status, &*message), (1, "GPU 0 is used by python (4711); GPU 1 cannot hold a limit"));
    assert!(ground.leases().is_empty());
}

fn queues_for_another() {
    let ground = Ground::new(&format!("{MPS}\n[pool.mps]\nwait = \"30m\"\n"));
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(4);
    for (container, share) in containers.iter().zip(["gpu=mps-2", "gpu=mps-3"]) {
        granted(ground.ask(container, &[share]));
    }
    servers[0].is(no(0));
    let queued = |ahead| Some(Answer::Queued { seconds: 2040, ahead });
    let asks = |container: &Container| {
        Call::new(&ground.socket(), &ground.request(container, &["gpu=mps"])).unwrap()
    };
    let mut first = asks(&containers[2]);
    // Once for both tries and the wait, and once more when it was refused.
    assert_eq!([(); 2].map(|()| first.next().unwrap()), [queued(0), queued(0)]);
    let mut second = asks(&containers[3]);
    // It is tried where the first was refused.
    assert_eq!([(); 2].map(|()| second.next().unwrap()), [queued(0), queued(1)]);
    assert!(first.is_silent() && second.is_silent());
    assert_eq!((ground.leases().len(), servers[0].heard().len()), (2, 2));
    containers[0].kill();
    assert_eq!(granted(first.last())[0].name, "mps-2");
    containers[1].kill();
    assert_eq!(granted(second.last())[0].name, "mps-3");
    assert_eq!(ground.leases().len(), 2);
}

/// They ask the same, and hear the same.
fn two_hooks() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(2);
    for (container, mood) in containers.iter().zip([Mood::Ready, no(1)]) {
        servers.iter().for_each(|server| server.is(Mood::Silent));
        let heard = [0, 1].map(|server| servers[server].heard().len());
        let request = ground.request(container, &["gpu=mps"]);
        let mut calls = [(); 3].map(|()| Call::new(&ground.socket(), &request).unwrap());
        calls.iter_mut().for_each(|call| assert!(matches!(call.next(), Ok(Some(Answer::Queued { .. })))));
        let [first, second, third] = calls;
        drop(third);
        // It was chosen last.
        let place = usize::from(heard[0] > 0);
        servers[place].wait_for(heard[place] + 1);
        servers[place].is(no(place));
        servers[1 - place].wait_for(heard[1 - place] + 1);
        servers[1 - place].is(mood.clone());
        let answers = [first, second].map(|mut call| call.last());
        assert_eq!(answers[0], answers[1]);
        assert_eq!(matches!(answers[0], Answer::Granted { .. }), mood == Mood::Ready, "{answers:?}");
        container.end();
        ground.wait_for_leases(0);
    }
}

/// What the daemon had begun, its hook has the next one do.
fn daemon_killed_meanwhile() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let mut daemon = Daemon::start_on_held_socket(&ground);
    let container = Container::start();
    servers[0].is(no(0));
    servers[1].is(Mood::Silent);
    let request = ground.request(&container, &["gpu=mps"]);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| ask_until_answered(&ground.socket(), &request));
        for asked in 1..=3 {
            servers[1].wait_for(asked);
            let leases = ground.leases();
            assert_eq!((leases.len(), leases[0].devices[0].name.name.as_str()), (1, "mps-2"));
            if asked < 3 {
                daemon.kill();
                daemon.start_again();
            }
        }
        servers[1].is(Mood::Ready);
        let (answer, retried) = asker.join().unwrap();
        assert_eq!((granted(answer)[0].name.as_str(), retried), ("mps-2", 2));
    });
    assert_eq!((ground.leases().len(), servers[0].heard().len()), (1, 1));
    assert_eq!([0, 1].map(|gpu| cannot_open(&container, gpu)), [true, false]);
    container.end();
    ground.wait_for_leases(0);
}

fn hook_waits() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let daemon = Daemon::start(&ground);
    for mood in [Mood::Ready, no(1)] {
        servers.iter().for_each(|server| server.is(Mood::Silent));
        let heard = [0, 1].map(|server| servers[server].heard().len());
        let container = Container::start();
        let mut hook = Bundle::new(&ground, &container, &["gpu=mps"]).call();
        servers[0].wait_for(heard[0] + 1);
        servers[0].is(no(0));
        servers[1].wait_for(heard[1] + 1);
        assert_eq!(hook.try_wait().unwrap(), None, "{}", daemon.log());
        servers[1].is(mood.clone());
        let ended = hook.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        if mood == Mood::Ready {
            assert_eq!((ended.status.code(), &*said), (Some(0), ""));
            container.end();
            ground.wait_for_leases(0);
            // Else it would be chosen last.
            servers[0].is(Mood::Ready);
            granted(ground.ask(&Container::start(), &["gpu=mps-0"]));
            ground.wait_for_leases(0);
        } else {
            let both = "GPU 0 is used by python (4711); GPU 1 is used by python (4711)";
            assert!(ended.status.code() == Some(1) && said.contains(both), "{said}");
            assert!(ground.leases().is_empty());
        }
    }
}

fn container_ends_meanwhile() {
    let ground = Ground::new(MPS);
    let servers = stand_ins(&ground);
    let _daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(2);
    let asks = |container: &Container| {
        Call::new(&ground.socket(), &ground.request(container, &["gpu=mps"])).unwrap()
    };
    servers.iter().for_each(|server| server.is(Mood::Silent));
    // Before the first answer: there is no second try.
    let mut call = asks(&containers[0]);
    servers[0].wait_for(1);
    containers[0].kill();
    ground.wait_for_leases(0);
    servers[0].is(no(0));
    let ended = (1, "the container ended while it waited for its MPS server".to_owned());
    assert_eq!(refused(call.last()), ended);
    assert!(servers[1].heard().is_empty());
    // In the second.
    let mut call = asks(&containers[1]);
    servers[1].wait_for(1);
    assert_eq!(ground.leases().len(), 1);
    containers[1].kill();
    ground.wait_for_leases(0);
    servers[1].is(Mood::Ready);
    assert_eq!(refused(call.last()), ended);
    assert!(ground.leases().is_empty());
}

/// What was asked for before has another place in it.
fn plan_comes_meanwhile() {
    let gpu = |gpus: &str, mode: &str, name: &str| {
        format!("[[gpu]]\nmatch = [{gpus}]\nmode = \"{mode}\"\nreplicas = 2\nname = \"{name}\"\n\n")
    };
    let mps = gpu("\"1\", \"2\"", "mps", "mps");
    let ground = Ground::new(&format!("{}{mps}", gpu("\"0\"", "time-slice", "slice")));
    let servers = stand_ins(&ground);
    let daemon = Daemon::start(&ground);
    let container = Container::start();
    servers.iter().for_each(|server| server.is(Mood::Silent));
    let request = ground.request(&container, &["gpu=mps"]);
    let mut first = Call::new(&ground.socket(), &request).unwrap();
    let queued = Some(Answer::Queued { seconds: 240, ahead: 0 });
    assert_eq!(first.next().unwrap(), queued);
    ground.plan(&mps);
    let mut second = Call::new(&ground.socket(), &request).unwrap();
    assert_eq!(second.next().unwrap(), queued, "{}", daemon.log());
    servers.iter().for_each(|server| server.is(Mood::Ready));
    assert_eq!(granted(first.last()), granted(second.last()));
    assert_eq!(ground.leases().len(), 1);
}
