//! What NVIDIA's own nvidia-cuda-mps-control is heard with: nothing, where containers are, and everything over
//! `control_privileged`. Without the guard the daemon obeys root in front, or these tests would show nothing.

use serde_json::Value;

use crate::ground::{Daemon, NOBODY, Named, Server, wait};
use crate::support::mps::MpsFiles;

pub const TRIALS: [Named; 3] = [
    ("root_in_front_is_obeyed_without_the_guard", root_in_front_is_obeyed_without_the_guard),
    ("nobody_in_front_is_obeyed_or_answered", nobody_in_front_is_obeyed_or_answered),
    ("the_privileged_socket_is_as_ever", the_privileged_socket_is_as_ever),
];

/// What the server got to hear, beside clients.
fn orders(daemon: &Daemon) -> Vec<Value> {
    let orders = ["percentage", "memory", "terminate", "end"];
    let is_order = |event: &Value| event["event"].as_str().is_some_and(|name| orders.contains(&name));
    daemon.received().into_iter().filter(is_order).collect()
}

fn root_in_front_is_obeyed_without_the_guard(files: &MpsFiles) {
    let daemon = Daemon::unguarded(files, Server::StandIn);
    let server = daemon.start_server();
    assert_eq!(daemon.answer_in_front(0, "get_default_active_thread_percentage"), "100.0");
    assert_eq!(daemon.answer_in_front(0, &format!("set_active_thread_percentage {server} 90")), "90.0");
    daemon.answer_in_front(0, &format!("set_device_pinned_mem_limit {server} 0 80G"));
    wait("the server is told", || orders(&daemon).iter().any(|order| order["memory"] == 80_u64 << 30));
    daemon.answer_in_front(0, &format!("shutdown_server {server} -f"));
    wait("the server has ended", || daemon.server() != Some(server));
}

fn nobody_in_front_is_obeyed_or_answered(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let server = daemon.start_server();
    let before = orders(&daemon);
    for uid in [0, NOBODY] {
        for command in [
            format!("set_active_thread_percentage {server} 90"),
            format!("set_device_pinned_mem_limit {server} 0 80G"),
            format!("terminate_client {server} 1"),
            format!("shutdown_server {server}"),
            format!("shutdown_server {server} -f"),
            "start_server -uid 1000".into(),
            "set_default_active_thread_percentage 90".into(),
            "set_default_device_pinned_mem_limit 0 80G".into(),
            "set_default_client_priority 1".into(),
            "get_default_active_thread_percentage".into(),
            format!("get_active_thread_percentage {server}"),
            format!("get_client_list {server}"),
            "get_server_list".into(),
            "ps".into(),
            "quit".into(),
            "quit -f".into(),
        ] {
            let answer = daemon.answer_in_front(uid, &command);
            let is_own = answer.is_empty() || answer.starts_with("Cannot ");
            assert!(is_own, "user {uid}, {command}: {answer}");
        }
    }
    // Its answer comes after all that the server was told before.
    assert_eq!(daemon.answer(&format!("get_active_thread_percentage {server}")), "100.0");
    assert_eq!(orders(&daemon), before);
    assert_eq!(daemon.answer("get_default_active_thread_percentage"), "100.0");
    assert_eq!(daemon.answer("get_default_device_pinned_mem_limit 0"), "");
    assert_eq!(daemon.server(), Some(server));
}

fn the_privileged_socket_is_as_ever(files: &MpsFiles) {
    let daemon = Daemon::guarded(files, Server::StandIn);
    let server = daemon.start_server();
    assert_eq!(daemon.answer("set_default_active_thread_percentage 40"), "40.0");
    assert_eq!(daemon.answer(&format!("set_active_thread_percentage {server} 90")), "90.0");
    assert_eq!(daemon.answer(&format!("get_active_thread_percentage {server}")), "90.0");
    daemon.answer(&format!("set_device_pinned_mem_limit {server} 0 8G"));
    assert_eq!(daemon.answer(&format!("get_device_pinned_mem_limit {server} 0")), "8G");
    daemon.answer(&format!("terminate_client {server} 1"));
    daemon.answer(&format!("shutdown_server {server} -f"));
    wait("the server has ended", || daemon.server() != Some(server));
}
