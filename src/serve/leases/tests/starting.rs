//! Shares of MPS servers that do not run for who was granted one: another device of the pool is tried, and a name is not.

use super::*;

/// Two servers with as many shares.
fn two(shares: u32) -> Kept {
    plan(&format!("m*{shares}:mps | m*{shares}:mps"))
}

#[test]
fn who_asks_for_any_share_is_tried_on_another_device() {
    history(
        two(2),
        "ask 1 m -> 1 has m-0
         unserved 1 1 -> 1 has nothing, 1 has m-2
         served 1 ->
         unserved 1 1 ->
         gone 1 -> 1 ends",
    );
    history(
        plan("m*2:one | m*2:one"),
        "ask 1~1001 m -> 1 has m-0
         unserved 1 3 -> 1 has nothing, 1 has m-2
         served 1 ->
         ask 2~1002 m -> 2 has m-0",
    );
    // Its other hooks hear the same, and who has left nothing.
    history(
        two(2),
        "ask 1 m -> 1 has m-0
         ask 1#11 m -> 11 has m-0
         left 1 ->
         unserved 1 1 -> 1 has nothing, 11 has m-2",
    );
}

#[test]
fn a_name_stays_what_it_is() {
    history(
        two(2),
        "ask 1 m-0 -> 1 has m-0
         unserved 1 5 -> 1 has nothing, 1 refused 5
         ask 2 m-0 -> 2 has m-0
         served 2 ->
         unserved 2 5 ->
         ask 3 m-0 -> 3 refused 3",
    );
}

#[test]
fn each_device_is_tried_once() {
    // The first says why. What is queued for would not help.
    for wait in [0, 60] {
        history(
            plan("m*2:mps | m*1:mps | m*4:mps").wait(wait),
            "ask 1 m -> 1 has m-0
             unserved 1 5 -> 1 has nothing, 1 has m-2
             unserved 1 1 -> 1 has nothing, 1 has m-3
             unserved 1 1 -> 1 has nothing, 1 refused 5
             ask 2 m -> 2 has m-0
             unserved 2 1 -> 2 has nothing, 2 has m-2
             unserved 2 3 -> 2 has nothing, 2 has m-3
             unserved 2 1 -> 2 has nothing, 2 refused 3",
        );
    }
    // A share of another device that is held would do.
    history(
        plan("m*1:mps | m*1:mps"),
        "ask 1 m-0 -> 1 has m-0
         served 1 ->
         ask 2 m -> 2 has m-1
         unserved 2 5 -> 2 has nothing, 2 refused 3",
    );
}

#[test]
fn a_device_that_refused_is_chosen_last_for_a_minute() {
    for order in [plan, |words: &str| plan(words).pack()] {
        history(
            order("m*2:mps | m*2:mps"),
            "ask 1 m -> 1 has m-0
             unserved 1 1 -> 1 has nothing, 1 has m-2
             served 1 ->
             ask 2 m -> 2 has m-3
             served 2 ->
             ask 3 m -> 3 has m-0
             gone 3 -> 3 ends
             gone 2 -> 2 ends
             at 59 ->
             ask 4 m -> 4 has m-3",
        );
    }
    let refused = "ask 1 m -> 1 has m-0
                   unserved 1 1 -> 1 has nothing, 1 has m-2
                   served 1 ->\n";
    history(two(2), &format!("{refused} at 60 -> \n ask 2 m -> 2 has m-0"));
    // Or until its server runs.
    history(
        two(2),
        &format!(
            "{refused} ask 2 m-1 -> 2 has m-1 \n served 2 -> \n gone 2 -> 2 ends \n ask 3 m -> 3 has m-0"
        ),
    );
}

#[test]
fn no_try_begins_when_a_start_has_had_its_time() {
    for (seconds, again) in [(119, "1 has nothing, 1 has m-1"), (120, "1 has nothing, 1 refused 1")] {
        history(
            plan("m*1:mps | m*1:mps | m*1:mps"),
            &format!("ask 1 m -> 1 has m-0 \n at {seconds} -> \n unserved 1 1 -> {again}"),
        );
    }
}

#[test]
fn who_has_had_its_time_waits_for_what_is_held() {
    let tries = "ask 1 m-2 -> 1 has m-2
                 served 1 ->
                 ask 2 m -> 2 has m-0
                 at 119 ->
                 unserved 2 1 -> 2 has nothing, 2 has m-1
                 at 130 ->\n";
    let three = "m*1:mps | m*1:mps | m*1:mps";
    history(plan(three), &format!("{tries} unserved 2 1 -> 2 has nothing, 2 refused 3"));
    // What is about to end is no more than held.
    history(plan(three), &format!("{tries} first 1 -> \n unserved 2 1 -> 2 has nothing, 2 refused 3"));
    history(
        plan(three).wait(60),
        &format!(
            "{tries}
             unserved 2 1 -> 2 has nothing, 2 queues for 300 s behind 0
             at 178 ->
             gone 1 -> 1 ends, 2 has m-2
             unserved 2 5 -> 2 has nothing, 2 refused 1"
        ),
    );
    // Or for what refused it more than a minute ago.
    let late = "at 238 -> \n unserved 2 1 -> 2 has nothing, 2 queues for 300 s behind 0";
    let mut world = history(plan(three).wait(60), &format!("{tries} {late}"));
    assert!(world.leases.next_deadline() <= Some(Duration::from_secs(238)));
    assert_eq!(world.does("at 238"), ["2 has m-0"]);
    // It is tried on nothing else, though something is free.
    for (held, status) in [("", 1), ("ask 3 m-2 -> 3 has m-2 \n", 3)] {
        history(
            plan(&format!("{three} | m*1:mps")).wait(60),
            &format!(
                "ask 2 m -> 2 has m-0
                 at 119 ->
                 unserved 2 1 -> 2 has nothing, 2 has m-1
                 {held} at 238 ->
                 unserved 2 1 -> 2 has nothing, 2 refused {status}"
            ),
        );
    }
}

#[test]
fn who_may_queue_waits_for_a_share_of_another_device() {
    history(
        plan("m*1:mps | m*1:mps").wait(600),
        "ask 1 m -> 1 has m-0
         served 1 ->
         ask 2 m -> 2 has m-1
         unserved 2 1 -> 2 has nothing, 2 queues for 840 s behind 0
         at 1 ->
         ask 3 m -> 3 has m-1
         unserved 3 1 -> 3 has nothing, 3 queues for 840 s behind 1
         gone 1 -> 1 ends, 2 has m-0
         served 2 ->
         at 60 ->
         at 61 -> 3 has m-1
         unserved 3 1 -> 3 has nothing
         ask 4 m -> 4 has m-1
         unserved 4 1 -> 4 has nothing, 4 queues for 840 s behind 1
         at 120 ->
         at 121 -> 3 has m-1
         unserved 3 1 -> 3 has nothing, 4 has m-1
         served 4 ->
         at 600 ->
         at 601 -> 3 refused 3",
    );
    // What it refused just now may serve another, and then it too.
    history(
        plan("m*2:mps | m*1:mps").wait(600),
        "ask 1 m-2 -> 1 has m-2
         ask 2 m -> 2 has m-0
         unserved 2 3 -> 2 has nothing, 2 queues for 840 s behind 0
         ask 3 m-0 -> 3 has m-0
         served 3 -> 2 has m-1",
    );
}

#[test]
fn who_waits_for_another_device_holds_up_nobody_who_may_have_the_one_that_refused() {
    history(
        plan("m*1:mps | m*4:mps").wait(600),
        "ask 1 m-0 -> 1 has m-0
         served 1 ->
         ask 2 m -> 2 has m-1
         unserved 2 3 -> 2 has nothing, 2 queues for 840 s behind 0
         ask 3 m -> 3 has m-1
         ask 4 m -> 4 has m-2
         gone 1 -> 1 ends, 2 has m-0
         ask 5 m -> 5 has m-3
         ask 6 m -> 6 has m-4
         ask 7 m -> 7 queues for 840 s behind 0",
    );
    // What comes to be free of another is first of all its.
    history(
        plan("m*1:mps | m*1:mps").wait(600),
        "ask 1 m-0 -> 1 has m-0
         served 1 ->
         ask 2 m -> 2 has m-1
         unserved 2 3 -> 2 has nothing, 2 queues for 840 s behind 0
         ask 3 m -> 3 has m-1
         ask 4 m -> 4 queues for 840 s behind 1
         gone 1 -> 1 ends, 2 has m-0
         gone 3 -> 3 ends, 4 has m-1",
    );
}

#[test]
fn in_the_queue_it_has_the_place_that_it_had() {
    let asks = "ask 1 m -> 1 has m-0
                at 1 ->
                ask 2 m-2 -> 2 has m-2
                served 2 ->
                ask 3 m -> 3 has m-1
                at 2 ->";
    for unserved in [
        "unserved 3 1 -> 3 has nothing, 3 queues for 300 s behind 0
         unserved 1 1 -> 1 has nothing, 1 queues for 300 s behind 0",
        "unserved 1 1 -> 1 has nothing, 1 queues for 300 s behind 0
         unserved 3 1 -> 3 has nothing, 3 queues for 300 s behind 1",
    ] {
        history(
            plan("m*2:mps | m*1:mps").wait(60),
            &format!(
                "{asks}
                 {unserved}
                 ask 4 m -> 4 has m-0
                 ask 5 m -> 5 has m-1
                 ask 6 m -> 6 queues for 300 s behind 2
                 gone 2 -> 2 ends, 1 has m-2
                 served 4 ->
                 gone 5 -> 5 ends, 3 has m-1"
            ),
        );
    }
}

#[test]
fn what_happens_while_a_server_is_asked_for() {
    let asks = "ask 1 m -> 1 has m-0\n";
    for then in [
        "gone 1 -> 1 ends
         unserved 1 1 ->
         ask 2 m -> 2 has m-0",
        "first 1 ->
         unserved 1 1 -> 1 has nothing, 1 refused 1",
        "failed 1 ->
         unserved 1 1 ->",
        // It is remembered, though nobody waits for it.
        "left 1 ->
         unserved 1 1 -> 1 has nothing, 1 refused 1",
        // Another daemon does not know whether the container runs.
        "restart ->
         unserved 1 1 ->
         ask 1 m -> 1 has m-0",
        "plan m*1:mps | m*4:mps ->
         unserved 1 1 -> 1 has nothing, 1 has m-1",
        "plan s*1 ->
         unserved 1 1 -> 1 has nothing, 1 refused 6",
    ] {
        history(two(2), &format!("{asks}{then}"));
    }
    // Who is about to end is waited for.
    history(
        plan("m*1:mps | m*1:mps"),
        "ask 1 m-1 -> 1 has m-1
         served 1 ->
         first 1 ->
         ask 2 m -> 2 has m-0
         unserved 2 1 -> 2 has nothing, 2 queues for 245 s behind 0
         gone 1 -> 1 ends, 2 has m-1",
    );
}

#[test]
fn a_hook_is_told_how_long_all_tries_may_take() {
    let told = |plan: Kept, words: &str| {
        let mut world = World::new(plan);
        world.does(&format!("ask 1 {words}"));
        world.leases.longest_start(key(1))
    };
    assert_eq!(told(two(1), "m-0"), 120);
    assert_eq!(told(plan("m*2:mps"), "m"), 120);
    assert_eq!(told(two(1), "m"), 240);
    assert_eq!(told(two(1).wait(60), "m"), 300);
    assert_eq!(told(plan("m*1:mps | m*1:mps | m*1:mps"), "m"), 240);
    // After two that were in vain it may queue for the third.
    assert_eq!(told(plan("m*1:mps | m*1:mps | m*1:mps").wait(60), "m"), 420);
}

#[test]
fn a_plan_that_comes_meanwhile_changes_nothing_that_was_told() {
    // Places in the plan before, of a pool and of a device, are none in this one, or another's.
    for (before, name, after) in [
        ("a*1 | m*2:mps | m*2:mps", "m", "m*2:mps | m*2:mps"),
        ("a*1 | m*2:mps | m*2:mps", "m", "m*1:mps | s*4"),
        ("a*1 | m*2:mps | m*2:mps", "m", "s*4"),
        ("m*2:mps | m*2:mps", "m-3", "m*2:mps"),
    ] {
        let mut world = World::new(plan(before));
        let granted = world.does(&format!("ask 1 {name}"))[0].clone();
        let told = world.leases.longest_start(key(1));
        assert!(told > 0);
        assert_eq!(world.does(&format!("plan {after}")), [""; 0]);
        assert_eq!(world.does(&format!("ask 1#11 {name}")), [format!("1{granted}")], "{after}");
        assert_eq!(world.leases.longest_start(key(1)), told, "{after}");
    }
    // And what it may be tried on is what the new one has.
    history(
        plan("a*1 | m*1:mps | m*1:mps"),
        "ask 1 m -> 1 has m-0
         plan open | m*1:mps | m*3:mps ->
         unserved 1 1 -> 1 has nothing, 1 has m-1
         unserved 1 3 -> 1 has nothing, 1 refused 3",
    );
}
