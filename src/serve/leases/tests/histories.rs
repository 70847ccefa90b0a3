//! One rule a history.

use super::*;

#[test]
fn a_device_has_one_container_at_a_time() {
    history(
        plan("shared*2 | shared*2"),
        "ask 1 shared-0 -> 1 has shared-0
         ask 2 shared-0 -> 2 refused 3
         ask 2 shared-1 -> 2 has shared-1
         gone 1 -> 1 ends
         gone 1 ->
         ask 3 shared-0 -> 3 has shared-0",
    );
}

#[test]
fn all_or_nothing() {
    history(
        plan("small*2 large*1 | small*1"),
        "ask 1 large-0 -> 1 has large-0
         ask 2 small-0 large-0 -> 2 refused 3
         ask 3 small-0 -> 3 has small-0
         ask 4 small large -> 4 refused 3
         ask 5 small -> 5 has small-2",
    );
}

#[test]
fn a_whole_gpu_and_its_shares_exclude_each_other_by_whatever_name() {
    history(
        plan("whole shared*2 | whole shared*2"),
        "ask 1 shared-0 -> 1 has shared-0
         ask 2 0 -> 2 refused 3
         ask 2 GPU-0 -> 2 refused 3
         ask 2 whole -> 2 has 1
         ask 3 shared-2 -> 3 refused 3
         ask 3 shared -> 3 has shared-1
         ask 4 shared -> 4 refused 3
         gone 2 -> 2 ends
         ask 4 all -> 4 refused 3
         ask 4 GPU-1 -> 4 has 1
         ask 5 shared-2 shared-3 -> 5 refused 1
         ask 6 0 shared-0 -> 6 refused 1",
    );
}

#[test]
fn all_takes_every_leased_whole_device() {
    history(
        plan("whole | open | 1g 1g-open | shared*2"),
        "ask 1 all -> 1 has 0 2:0
         ask 2 whole -> 2 refused 3
         ask 2 mig-1g -> 2 refused 3
         ask 2 1 -> 2 refused 6
         ask 2 shared -> 2 has shared-0",
    );
}

#[test]
fn a_name_twice_is_one_device_and_a_pool_twice_two() {
    history(
        plan("shared*4").any_number(),
        "ask 1 shared-0 shared-0 -> 1 has shared-0
         ask 2 shared shared -> 2 has shared-1 shared-2
         ask 3 shared shared -> 3 refused 3
         ask 4 shared shared shared shared shared -> 4 refused 1",
    );
    history(
        plan("whole | whole"),
        "ask 1 0 GPU-0 -> 1 has 0
         ask 1 GPU-0 0 -> 1 has 0",
    );
}

#[test]
fn one_container_has_as_many_of_a_pool_as_it_may() {
    history(
        plan("shared*4 other*1 | whole | whole"),
        "ask 1 shared shared -> 1 refused 1
         ask 1 shared-0 shared -> 1 refused 1
         ask 1 shared-0 shared-1 -> 1 refused 1
         ask 1 shared other -> 1 has other-0 shared-0
         ask 2 whole whole -> 2 has 1 2",
    );
}

#[test]
fn the_same_container_gets_the_same_again_and_nothing_else() {
    let world = history(
        plan("shared*4").any_number(),
        "ask 1 shared shared-3 -> 1 has shared-3 shared-0
         at 100 ->
         ask 1#7 shared-3 shared -> 7 has shared-3 shared-0
         ask 1 shared -> 1 refused 1
         ask 1 shared shared shared-3 -> 1 refused 1
         failed 1 ->
         ask 2 shared-3 -> 2 has shared-3",
    );
    assert_eq!(world.leases.lease_of(key(2)).unwrap().since, NOON + 100);
    assert_eq!(world.leases.lease_of(key(1)), None);
}

#[test]
fn a_process_id_that_comes_again_is_another_container() {
    let mut world = history(plan("shared*2"), "ask 1 shared -> 1 has shared-0");
    let mut again = ask(&world.plan, 1, &["shared"], 0);
    again.container.start_time = 2;
    again.container.mount_namespace += 100;
    assert_eq!(said(&world.leases.handle(Event::Asked(Box::new(again)))), ["1 has shared-1"]);
    assert_eq!(world.does("gone 1"), ["1 ends"]);
    assert_eq!(world.leases.all().count(), 1);
}

#[test]
fn spread_takes_the_gpu_with_the_fewest_leases_and_pack_the_one_with_the_most() {
    let four = "shared*2 | shared*2 | shared*2";
    // What is named counts too.
    history(plan(four).any_number(), "ask 1 shared-0 shared -> 1 has shared-0 shared-2");
    history(
        plan(four).any_number(),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 has shared-2
         ask 3 shared shared -> 3 has shared-4 shared-1
         ask 4 shared-3 shared -> 4 has shared-3 shared-5",
    );
    history(
        plan(four).any_number().pack(),
        "ask 1 shared-3 -> 1 has shared-3
         ask 2 shared -> 2 has shared-2
         ask 3 shared -> 3 has shared-0
         ask 4 shared-4 shared -> 4 has shared-4 shared-1",
    );
    // The unit of MIG devices is their GPU.
    history(
        plan("1g 1g 1g | 1g 1g"),
        "ask 1 0:2 -> 1 has 0:2
         ask 2 mig-1g mig-1g -> 2 has 1:0 0:0
         ask 3 mig-1g -> 3 has 1:1",
    );
}

#[test]
fn a_choice_for_one_pool_leaves_the_other_what_it_needs() {
    // By itself the share would come from GPU 0, the only one that is free as a whole.
    history(
        plan("whole shared*2 | whole shared*2"),
        "ask 1 shared-2 -> 1 has shared-2
         ask 2 1 -> 2 refused 3
         ask 2 shared whole -> 2 has shared-3 0",
    );
    history(
        plan("whole a*3 | whole a*2 b*1 | whole a*1 b*2").any_number(),
        "ask 1 a b b b whole -> 1 has a-3 b-1 b-0 b-2 0
         ask 2 whole -> 2 refused 3
         ask 2 b -> 2 refused 3
         ask 2 a a -> 2 has a-4 a-5",
    );
}

#[test]
fn a_start_queues_for_a_pool_in_order() {
    let world = history(
        plan("shared*2").wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 has shared-1
         at 10 ->
         ask 3 shared -> 3 queues for 60 s behind 0
         ask 4 shared -> 4 queues for 60 s behind 1
         ask 5 shared-0 -> 5 refused 3
         at 20 ->
         gone 2 -> 2 ends, 3 has shared-1
         ask 6 shared -> 6 queues for 60 s behind 1
         left 4 ->
         gone 1 -> 1 ends, 6 has shared-0",
    );
    assert_eq!(world.leases.lease_of(key(3)).unwrap().since, NOON + 20);
    assert_eq!(world.leases.next_deadline(), None);
}

#[test]
fn a_wait_ends_with_its_time() {
    let mut world = history(
        plan("shared*1").wait(60),
        "ask 1 shared -> 1 has shared-0
         at 10 ->
         ask 2 shared -> 2 queues for 60 s behind 0
         at 30 ->
         ask 3 shared -> 3 queues for 60 s behind 1",
    );
    assert_eq!(world.leases.next_deadline(), Some(Duration::from_secs(70)));
    assert_eq!(world.does("at 69"), [""; 0]);
    assert_eq!(world.does("at 70"), ["2 refused 3"]);
    assert_eq!(world.leases.next_deadline(), Some(Duration::from_secs(90)));
    assert_eq!(world.does("gone 1"), ["1 ends", "3 has shared-0"]);
}

#[test]
fn nobody_overtakes_who_waits_for_the_same_pool() {
    history(
        plan("shared*3 | whole").any_number().wait(60),
        "ask 1 shared shared -> 1 has shared-0 shared-1
         ask 2 shared shared -> 2 queues for 60 s behind 0
         ask 3 shared -> 3 queues for 60 s behind 1
         ask 4 whole -> 4 has 1
         ask 5 whole -> 5 queues for 60 s behind 0
         ask 6 shared-2 -> 6 has shared-2
         gone 4 -> 4 ends, 5 has 1
         left 2 ->
         gone 6 -> 6 ends, 3 has shared-2",
    );
    // Who leaves makes way.
    history(
        plan("shared*2").any_number().wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared shared -> 2 queues for 60 s behind 0
         ask 3 shared -> 3 queues for 60 s behind 1
         left 2 -> 3 has shared-1",
    );
    // Who waits for one pool does not hold up another pool's.
    history(
        plan("a*1 | b*1").wait(60),
        "ask 1 a -> 1 has a-0
         ask 2 a b -> 2 queues for 60 s behind 0
         ask 3 b -> 3 has b-0
         gone 1 -> 1 ends
         ask 4 a -> 4 has a-0
         ask 5 a -> 5 queues for 60 s behind 1
         gone 3 -> 3 ends
         gone 4 -> 4 ends, 2 has a-0 b-0",
    );
}

#[test]
fn who_lacks_a_pool_without_wait_does_not_queue() {
    let mut plan = plan("a*1 | b*1").wait(60);
    plan.pools[1].wait_seconds = 0;
    history(
        plan,
        "ask 1 b -> 1 has b-0
         ask 2 a b -> 2 refused 3
         ask 3 a -> 3 has a-0
         ask 4 a -> 4 queues for 60 s behind 0
         ask 5 a b -> 5 refused 3
         gone 1 -> 1 ends
         ask 6 a b -> 6 queues for 60 s behind 1",
    );
}

#[test]
fn a_start_waits_for_a_container_that_is_about_to_end() {
    let lines = |who: &str, ahead: u32| {
        format!(
            "ask 1 {who} -> 1 has shared-0
             first 1 ->
             ask 2 {who} -> 2 queues for 5 s behind 0
             at 4 ->
             ask 2#12 {who} -> 12 queues for 1 s behind 0
             ask 3 {who} -> 3 queues for 5 s behind {ahead}
             gone 1 -> 1 ends, 2 has shared-0, 12 has shared-0, 3 refused 3
             first 2 ->
             ask 4 {who} -> 4 queues for 5 s behind 0
             at 8 ->
             at 9 -> 4 refused 3
             gone 2 -> 2 ends"
        )
    };
    history(plan("shared*1"), &lines("shared", 1));
    history(plan("shared*1"), &lines("shared-0", 0));
    let world = history(
        plan("shared*1"),
        "ask 1 shared -> 1 has shared-0
         first 1 ->
         ask 2 shared -> 2 queues for 5 s behind 0",
    );
    assert_eq!(world.leases.queue().len(), 0);
    assert_eq!(world.leases.next_deadline(), Some(Duration::from_secs(5)));
    // Where pools queue, it queues at once.
    history(
        plan("shared*2").wait(60),
        "ask 1 shared-0 -> 1 has shared-0
         ask 2 shared -> 2 has shared-1
         first 1 ->
         ask 3 shared -> 3 queues for 60 s behind 0
         ask 4 shared-0 -> 4 queues for 5 s behind 0
         gone 1 -> 1 ends, 3 has shared-0, 4 refused 3",
    );
    // A named device that is about to be free, and a pool to queue for: what its hook is told first is long enough.
    history(
        plan("a*1 | b*1").wait(60),
        "ask 1 a-0 -> 1 has a-0
         ask 2 b -> 2 has b-0
         first 1 ->
         ask 3 a-0 b -> 3 queues for 65 s behind 0
         gone 1 -> 1 ends, 3 queues for 60 s behind 0
         gone 2 -> 2 ends, 3 has a-0 b-0",
    );
}

#[test]
fn hooks_of_one_container_are_answered_together() {
    history(
        plan("shared*1").wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 queues for 60 s behind 0
         ask 3 shared -> 3 queues for 60 s behind 1
         at 10 ->
         ask 2#12 shared -> 12 queues for 50 s behind 0
         ask 2#13 shared-0 -> 13 refused 1
         left 2 ->
         gone 1 -> 1 ends, 12 has shared-0",
    );
    history(
        plan("shared*1").wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 queues for 60 s behind 0
         ask 2#12 shared -> 12 queues for 60 s behind 0
         gone 1 -> 1 ends, 2 has shared-0, 12 has shared-0",
    );
}

#[test]
fn a_container_that_ends_while_it_waits_gets_nothing() {
    for end in ["first 2", "gone 2"] {
        history(
            plan("shared*1").wait(60),
            &format!(
                "ask 1 shared -> 1 has shared-0
                 ask 2 shared -> 2 queues for 60 s behind 0
                 {end} -> 2 refused 1
                 gone 1 -> 1 ends
                 ask 3 shared -> 3 has shared-0"
            ),
        );
    }
}

#[test]
fn a_grant_that_could_not_be_carried_out_serves_the_next() {
    history(
        plan("shared*1").wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 queues for 60 s behind 0
         failed 1 -> 2 has shared-0
         failed 1 ->",
    );
}

#[test]
fn users_hold_what_they_may() {
    let plan = || plan("shared*4 | whole | whole");
    history(
        plan().any_number().cap("1001", Some(2), None),
        "ask 1@1001 shared shared shared -> 1 refused 1
         ask 1@1001 shared -> 1 has shared-0
         ask 2@1001 shared whole -> 2 refused 3
         ask 2@1001 whole -> 2 has 1
         ask 3@1001 shared -> 3 refused 3
         ask 3@1002 shared -> 3 has shared-1
         ask 4 shared -> 4 has shared-2
         first 1 ->
         ask 5@1001 shared -> 5 queues for 5 s behind 0
         ask 6@1002 shared -> 6 has shared-3
         gone 1 -> 1 ends, 5 has shared-0",
    );
    history(
        plan().cap("*", None, Some(&["shared"])).cap("1001", None, Some(&["whole", "other"])),
        "ask 1@1001 shared -> 1 refused 1
         ask 1@1001 shared-0 -> 1 refused 1
         ask 1@1001 GPU-1 -> 1 has 1
         ask 2@1002 whole -> 2 refused 1
         ask 2@1002 2 -> 2 refused 1
         ask 2@1002 shared-0 -> 2 has shared-0
         ask 3 shared whole -> 3 has shared-1 2",
    );
}

#[test]
fn a_cap_by_name_is_that_users_alone() {
    let mut world = World::new(plan("shared*4").cap("ana", Some(0), None).cap("*", Some(1), None));
    let mut asks = |pid, uid, user: Option<&str>| {
        let mut ask = ask(&world.plan, pid, &["shared"], 0);
        ask.container = container(pid, uid);
        ask.user = user.map(str::to_owned);
        said(&world.leases.handle(Event::Asked(Box::new(ask)))).join("")
    };
    assert_eq!(asks(1, 1001, Some("ana")), "1 refused 1");
    assert_eq!(asks(2, 1002, Some("bob")), "2 has shared-0");
    assert_eq!(asks(3, 1003, None), "3 has shared-1");
    assert_eq!(asks(4, 0, None), "4 has shared-2");
}

#[test]
fn names_of_another_plan_are_refused_and_hold_on() {
    history(
        plan("shared*2 | shared*2").wait(60),
        "ask 1 shared-3 -> 1 has shared-3
         ask 2 large -> 2 refused 6
         ask 2 shared large-0 -> 2 refused 6
         ask 3 shared-2 -> 3 has shared-2
         plan shared*2 | whole ->
         ask 4 shared-3 -> 4 refused 6
         ask 4 whole -> 4 refused 3
         gone 1 -> 1 ends
         ask 4 1 -> 4 refused 3
         gone 3 -> 3 ends
         ask 4 1 -> 4 has 1
         plan shared*1 | shared*3 ->
         ask 5 shared-1 -> 5 refused 3
         ask 5 shared -> 5 has shared-0",
    );
}

#[test]
fn who_waits_is_looked_at_again_under_another_plan() {
    history(
        plan("a*1 b*1").wait(60),
        "ask 1 a -> 1 has a-0
         ask 2 b -> 2 has b-0
         ask 3 a -> 3 queues for 60 s behind 0
         ask 4 b -> 4 queues for 60 s behind 0
         plan a*2 -> 4 refused 6
         ask 5 a -> 5 refused 3
         gone 2 -> 2 ends, 3 has a-1",
    );
}

#[test]
fn nothing_is_granted_without_a_plan_but_what_was() {
    let mut world = history(plan("shared*2"), "ask 1 shared -> 1 has shared-0");
    let lease = world.leases.lease_of(key(1)).unwrap().clone();
    world.leases = Leases::new("/run/divvy".into());
    assert_eq!(world.leases.handle(Event::Adopted(Box::new(lease))), []);
    assert_eq!(world.does("ask 2 shared"), ["2 refused 1"]);
    assert_eq!(world.does("ask 1 shared"), ["1 has shared-0"]);
    assert_eq!(world.does("plan shared*2"), [""; 0]);
    assert_eq!(world.does("ask 2 shared-0"), ["2 refused 3"]);
    assert_eq!(world.does("gone 1"), ["1 ends"]);
    assert_eq!(world.does("ask 2 shared-0"), ["2 has shared-0"]);
}

#[test]
fn leases_from_before_are_kept_even_where_they_contradict_each_other() {
    let mut world = history(
        plan("shared*2").wait(60),
        "ask 1 shared -> 1 has shared-0
         ask 2 shared -> 2 has shared-1
         ask 3 shared -> 3 queues for 60 s behind 0
         restart ->
         ask 3 shared -> 3 queues for 60 s behind 0
         left 3 ->",
    );
    let mut twin = world.leases.lease_of(key(1)).unwrap().clone();
    assert_eq!(world.leases.handle(Event::Adopted(Box::new(twin.clone()))), []);
    twin.since += 1;
    assert_eq!(said(&world.leases.handle(Event::Adopted(Box::new(twin.clone())))), ["warning"]);
    twin.container = container(9, 0);
    assert_eq!(said(&world.leases.handle(Event::Adopted(Box::new(twin)))), ["warning"]);
    assert_eq!(world.does("gone 1"), ["1 ends"]);
    assert_eq!(world.does("ask 4 shared-0"), ["4 refused 3"]);
    assert_eq!(world.does("gone 9"), ["9 ends"]);
    assert_eq!(world.does("ask 4 shared-0"), ["4 has shared-0"]);
}

/// The kernel uses numbers of namespaces again, for another container than had it when its lease was written.
#[test]
fn a_number_of_a_mount_namespace_is_nobodys_for_good() {
    let mut world = history(plan("shared*3"), "ask 1 shared -> 1 has shared-0");
    let mut other = ask(&world.plan, 2, &["shared"], 0);
    other.container.mount_namespace = container(1, 0).mount_namespace;
    assert_eq!(said(&world.leases.handle(Event::Asked(Box::new(other)))), ["2 has shared-1"]);
}
