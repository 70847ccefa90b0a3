//! Shares of MPS servers: alone in their containers, and of one user where their server serves one at a time.

use hooks::lease::LeasedMps;

use super::*;

#[test]
fn a_share_of_an_mps_server_stands_alone() {
    history(
        plan("m*3:mps | s*2 | whole | 1g | m*1:mps").any_number(),
        "ask 1 m-0 m-1 -> 1 refused 1
         ask 1 m-0 s-0 -> 1 refused 1
         ask 1 m-0 2 -> 1 refused 1
         ask 1 m-0 3:0 -> 1 refused 1
         ask 1 m s -> 1 refused 1
         ask 1 m m -> 1 refused 1
         ask 1 m-0 m-0 -> 1 has m-0
         ask 2 m -> 2 has m-3
         ask 3 s-0 s-1 2 -> 3 has s-0 s-1 2
         ask 4 m -> 4 has m-1",
    );
}

#[test]
fn of_users_who_are_served_one_at_a_time_the_others_choose_another_device_or_wait() {
    history(
        plan("m*2:one | m*2:one").pack(),
        "ask 1~1001 m -> 1 has m-0
         ask 2~1002 m -> 2 has m-2
         ask 3~1001 m -> 3 has m-1
         ask 4~1001 m -> 4 refused 3
         ask 4~1001 m-3 -> 4 refused 3
         ask 4~1002 m-3 -> 4 has m-3
         gone 1 -> 1 ends
         ask 5~1002 m-0 -> 5 refused 3
         gone 3 -> 3 ends
         ask 5~1002 m-0 -> 5 has m-0",
    );
    history(
        plan("m*3:one").wait(60),
        "ask 1~1001 m -> 1 has m-0
         ask 2~1002 m -> 2 queues for 180 s behind 0
         ask 3~1001 m -> 3 queues for 180 s behind 1
         first 1 ->
         ask 4~1002 m-1 -> 4 queues for 125 s behind 0
         gone 1 -> 1 ends, 2 has m-0, 4 has m-1
         ask 5~1002 m-2 -> 5 has m-2
         gone 5 -> 5 ends
         gone 2 -> 2 ends
         gone 4 -> 4 ends, 3 has m-0",
    );
    // Where the server serves all, or there is none, users are no matter.
    history(
        plan("m*2:mps | s*2"),
        "ask 1~1001 m -> 1 has m-0
         ask 2~1002 m -> 2 has m-1
         ask 3~1001 s -> 3 has s-0
         ask 4~1002 s -> 4 has s-1",
    );
}

#[test]
fn a_user_without_a_number_is_nobody_else() {
    history(
        plan("m*3:one"),
        "ask 1~? m -> 1 has m-0
         ask 2~? m -> 2 refused 3
         ask 2~0 m -> 2 refused 3
         restart ->
         ask 2~0 m-1 -> 2 refused 3
         gone 1 -> 1 ends
         ask 2~0 m -> 2 has m-0
         ask 3~? m -> 3 refused 3
         ask 4~0 m -> 4 has m-1",
    );
}

#[test]
fn who_is_on_a_device_counts_whatever_the_plan_was() {
    history(
        plan("m*3:mps"),
        "ask 1~1001 m -> 1 has m-0
         plan m*3:one | m*3:one ->
         ask 2~1002 m -> 2 has m-3
         ask 3~1001 m-4 -> 3 refused 3
         gone 1 -> 1 ends
         ask 3~1001 m -> 3 has m-0",
    );
}

#[test]
fn a_device_has_an_mps_server_or_none() {
    history(
        plan("s*3"),
        "ask 1 s -> 1 has s-0
         plan s*3:mps | s*3:mps ->
         ask 2 s-1 -> 2 refused 3
         ask 2 s -> 2 has s-3
         gone 1 -> 1 ends
         ask 3 s-1 -> 3 has s-1
         plan s*3 | s*3 ->
         ask 4 s-2 -> 4 refused 3
         ask 4 s -> 4 refused 3
         gone 3 -> 3 ends
         ask 4 s -> 4 has s-0",
    );
}

#[test]
fn a_lease_says_where_its_mps_server_is() {
    let mut plan = plan("m*1:mps | m*1:mps | s*1");
    plan.mps[1].shared_memory_bytes = Some(1 << 30);
    let world = history(
        plan,
        "ask 1 m-0 -> 1 has m-0
         ask 2 m -> 2 has m-1
         ask 3 s -> 3 has s-0",
    );
    let mps: Vec<_> = world.leases.all().map(|lease| lease.mps.clone()).collect();
    let front = |uuid: &str| format!("/run/divvy/mps/{uuid}/front").into();
    assert_eq!(
        mps,
        [
            Some(LeasedMps { front: front("GPU-0"), shared_memory: None }),
            Some(LeasedMps { front: front("GPU-1"), shared_memory: Some("/run/divvy/mps/GPU-1/shm".into()) }),
            None,
        ]
    );
}
