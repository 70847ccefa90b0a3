//! MPS as a container meets it: through the front alone, as any user, with NVIDIA's own program and library in its hands.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ground::{Ground, PROHIBITED, control, kill_hard, wait_until};
use crate::support::mps::MpsFiles;
use crate::support::run;

pub const TRIALS: [(&str, fn(&MpsFiles)); 1] =
    [("nobody_rules_through_the_front", nobody_rules_through_the_front)];

pub const WITH_COMPILER: [(&str, fn(&MpsFiles)); 1] =
    [("cuda_fails_where_mps_is_away", cuda_fails_where_mps_is_away)];

/// What ends MPS, or changes what it holds.
const ORDERS: &str = "set_default_active_thread_percentage 99\n\
    set_default_device_pinned_mem_limit 0 79G\n\
    set_active_thread_percentage SERVER 99\n\
    set_device_pinned_mem_limit SERVER 0 79G\n\
    shutdown_server SERVER -f\n\
    quit -t 0\n";

fn nobody_rules_through_the_front(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control_pid, server) = (ground.control_pid(), ground.server_pid());
    let front = ground.state("front");
    for uid in [0, 65534] {
        let ask = |commands: &str| {
            let mut command = Command::new("setpriv");
            // As root of a container: all capabilities, and namespaces of its own. It is root of the machine's users.
            command.args([&format!("--reuid={uid}"), "--clear-groups", "unshare"]);
            command.args(if uid == 0 { &["--mount", "--uts", "--ipc", "--net"][..] } else { &[][..] });
            command.arg(ground.path("bin/nvidia-cuda-mps-control"));
            if uid != 0 {
                command = Command::new(ground.path("bin/nvidia-cuda-mps-control"));
                command.uid(uid);
            }
            control(command.env("CUDA_MPS_PIPE_DIRECTORY", &front), commands)
        };
        for order in ORDERS.replace("SERVER", &server.to_string()).lines() {
            let said = ask(&format!("{order}\n"));
            assert!(said.contains("rivilege"), "{uid}: {order}: {said:?}");
        }
        // What everybody may read, they read.
        assert_eq!(ask("get_default_active_thread_percentage\n").trim(), "25.0");
    }
    ground.ensured();
    assert_eq!((ground.control_pid(), ground.server_pid()), (control_pid, server));
    let events = ground.received();
    assert_eq!(events.len(), 1, "the server heard of none of it: {events:?}");
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
    ground.behave("slow");
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
