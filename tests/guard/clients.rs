//! CUDA finds MPS as it does without the guard, and servers are heard however long they take.

use std::fs;

use crate::ground::{Daemon, NOBODY, Named, Server};
use crate::support::mps::MpsFiles;

pub const TRIALS: [Named; 4] = [
    ("cuda_finds_mps_as_without_the_guard", cuda_finds_mps_as_without_the_guard),
    ("clients_come_to_the_server", clients_come_to_the_server),
    ("clients_of_another_user_are_not_heard", clients_of_another_user_are_not_heard),
    ("a_server_is_heard_however_late", a_server_is_heard_however_late),
];

/// CUDA_ERROR_MPS_CONNECTION_FAILED: MPS was there, and its server found no GPU.
const WIRED: &str = "805";

/// With NVIDIA's own server, which starts and says that it failed (type 10). The daemon keeps descriptors of such servers.
fn cuda_finds_mps_as_without_the_guard(files: &MpsFiles) {
    let grown = [Daemon::unguarded(files, Server::Own), Daemon::guarded(files, Server::Own)].map(|daemon| {
        let before = daemon.descriptors();
        for uid in [0, NOBODY] {
            assert_eq!(daemon.cuda(uid), WIRED, "user {uid}: {}", daemon.output());
            // A server for all takes them for root's.
            let named = if files.is_multi_user() { 0 } else { uid };
            assert!(daemon.output().contains(&format!("from user {named}: ")), "{}", daemon.output());
        }
        assert!(daemon.output().contains("Server encountered a fatal exception"), "{}", daemon.output());
        daemon.descriptors() - before
    });
    assert!(grown[1] <= grown[0], "{grown:?}");
}

fn clients_come_to_the_server(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let server = daemon.start_server();
    let environment = fs::read(format!("/proc/{server}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("LD_PRELOAD"));
    assert!(!fs::read_to_string(format!("/proc/{server}/maps")).unwrap().contains("divvy_mps_guard"));
    assert!(fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap().contains("divvy_mps_guard"));
    // CUDA and the stand-in do not understand each other: the server of its own version would be none without a GPU.
    assert_eq!(daemon.cuda(0), WIRED);
    assert!(daemon.output().contains("from user 0: Server already exists"), "{}", daemon.output());
}

/// They fail at once, with or without a server, and the daemon hears nothing of them.
fn clients_of_another_user_are_not_heard(files: &MpsFiles) {
    for server in [Server::Own, Server::StandIn] {
        for (user, heard) in [("0", Some(0)), ("65534", Some(NOBODY)), ("-1", None), ("", None)] {
            let daemon = Daemon::for_one(files, server, user);
            for uid in [0, NOBODY] {
                assert_eq!(daemon.cuda(uid), WIRED, "{user:?}: {uid}: {}", daemon.output());
                let named = if files.is_multi_user() { 0 } else { uid };
                let clients = daemon.output().matches(&format!("from user {named}: ")).count();
                assert_eq!(clients > 0, heard == Some(uid) || heard.is_some() && uid != 0 && named == 0);
            }
        }
    }
}

fn a_server_is_heard_however_late(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    // Three seconds, between its credentials and its type too, are more than a stranger has.
    daemon.behave("slow");
    let server = daemon.start_server();
    assert_eq!(daemon.answer(&format!("get_active_thread_percentage {server}")), "100.0");
}
