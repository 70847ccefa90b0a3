//! MPS as a container meets it: through the front alone, as any user, with NVIDIA's own program and library in its hands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Test;
use crate::ground::{Ground, PROHIBITED, control, kill_hard, wait_until};
use crate::peer::Peer;
use crate::support::mps::MpsFiles;
use crate::support::run;

pub const TRIALS: [Test; 2] = [
    ("nobody_rules_through_the_front", nobody_rules_through_the_front),
    ("who_says_nothing_holds_up_nobody", who_says_nothing_holds_up_nobody),
];

pub const WITH_COMPILER: [Test; 1] = [("cuda_fails_where_mps_is_away", cuda_fails_where_mps_is_away)];

/// What ends MPS, or changes what it holds.
const ORDERS: &str = "get_server_list\n\
    set_default_active_thread_percentage 99\n\
    set_default_device_pinned_mem_limit 0 79G\n\
    set_active_thread_percentage SERVER 99\n\
    set_device_pinned_mem_limit SERVER 0 79G\n\
    terminate_client SERVER CLIENT\n\
    start_server -uid 65534\n\
    shutdown_server SERVER -f\n\
    quit -t 0\n";

fn nobody_rules_through_the_front(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control_pid, server) = (ground.control_pid(), ground.server_pid());
    let victim = Peer::client(&ground.state("front"), 0);
    let orders = ORDERS.replace("SERVER", &server.to_string()).replace("CLIENT", &victim.pid().to_string());
    // As root of a container, and as another user of one.
    for uid in [0, 65534] {
        for order in orders.lines() {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={uid}"), "--clear-groups"]);
            command.arg(ground.path("bin/nvidia-cuda-mps-control"));
            let said =
                control(command.env("CUDA_MPS_PIPE_DIRECTORY", ground.state("front")), &format!("{order}\n"));
            // It is hung up on, sooner or later.
            let answers = ["99", &server.to_string(), "rivilege"];
            let is_answered = answers.iter().any(|answer| said.contains(answer));
            assert!(!is_answered, "{uid}: {order}: {said:?}");
        }
    }
    ground.ensured();
    assert_eq!((ground.control_pid(), ground.server_pid()), (control_pid, server));
    let events = ground.received();
    assert_eq!(events.len(), 2, "the server heard of the client, and of no order: {events:?}");
    assert!(victim.leave());
    // By the way that is in no container, all of it works.
    let said = ground.control(&ground.state("pipe"), &format!("set_active_thread_percentage {server} 99\n"));
    assert_eq!(said.trim(), "99.0");
}

/// The guard hangs up on them.
fn who_says_nothing_holds_up_nobody(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let silent: Vec<Peer> = (0..3).map(|_| Peer::silent(&ground.state("front"))).collect();
    wait_until("their end", || ground.ensure()["answer"] == "ready");
    assert_eq!(ground.status()["state"], "ready");
    for peer in silent {
        assert!(!peer.leave());
    }
}

fn cuda_fails_where_mps_is_away(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let program = ground.path("cuinit");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mps/cuinit.c");
    let (status, _, errors) = run(Command::new("cc").arg("-o").arg(&program).arg(source).arg("-ldl"));
    assert_eq!(status, 0, "{errors}");
    let cuda = |pipe: PathBuf| {
        let mut command = Command::new(&program);
        command.arg(files.library_dir().join(format!("libcuda.so.{}", files.version)));
        let (status, said, errors) = run(command.env("CUDA_MPS_PIPE_DIRECTORY", pipe));
        assert_eq!(status, 0, "{errors}");
        said.trim().to_owned()
    };
    let empty = ground.path("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(cuda(empty), "100", "no MPS at all");
    assert_eq!(cuda(ground.state("front")), "805", "MPS that runs");
    ground.behave("stuck");
    kill_hard(ground.control_pid());
    wait_until("a closed GPU", || ground.mode() == PROHIBITED);
    assert_eq!(cuda(ground.state("front")), "805", "a tombstone");
    ground.wait_for("starting");
    assert_eq!(cuda(ground.state("front")), "805", "MPS that starts");
    ground.behave("");
    ground.wait_for("ready");
    assert_eq!(cuda(ground.state("front")), "805", "MPS that is there again");
    assert_eq!(ground.stop(false)["answer"], "stopped");
    ground.wait_for_end();
    assert_eq!(cuda(ground.state("front")), "100", "MPS that was ended, and nobody has a share");
}
