//! What a container's nodes decide: what is taken from it, and what it is refused for.

use super::*;

#[test]
fn what_pools_brought_and_did_not_grant_is_removed() {
    let removed = |text: &str, words: &[&str], more: &[&str]| {
        let mut world = World::new(plan(text));
        let mut ask = ask(&world.plan, 1, words, 0);
        ask.request.nodes.extend(more.iter().map(Into::into));
        world.leases.handle(Event::Asked(Box::new(ask)));
        let remove = world.leases.lease_of(key(1)).unwrap().remove.clone();
        remove.iter().map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let three = "shared*2 | shared*2 | shared*2";
    assert_eq!(removed(three, &["shared"], &[]), ["/dev/nvidia1", "/dev/nvidia2"]);
    assert_eq!(removed(three, &["shared-4"], &[]), [""; 0]);
    assert_eq!(removed("shared*2", &["shared"], &[]), [""; 0]);
    assert_eq!(removed("a*1 b*1 | a*1 | b*1", &["a", "b-1"], &[]), ["/dev/nvidia1"]);
    let mig = "1g 1g-open | 1g";
    assert_eq!(removed(mig, &["1:0"], &[]), [""; 0]);
    let all_but_one = ["/dev/nvidia-caps/ci-1-0", "/dev/nvidia-caps/gi-1-0", "/dev/nvidia1"];
    assert_eq!(removed(mig, &["mig-1g"], &[]), all_but_one);
    // MIG device 1:1 stands in the container too, by its own name, with its GPU's node.
    let open = ["/dev/nvidia-caps/gi-1-1", "/dev/nvidia-caps/ci-1-1"];
    assert_eq!(removed("1g | 1g 1g-open", &["mig-1g"], &open), all_but_one[..2]);
}

#[test]
fn what_cannot_be_denied_is_refused() {
    let asks = |text: &str, uid, words: &[&str]| {
        let mut world = World::new(plan(text).any_number());
        let mut ask = ask(&world.plan, 1, words, 0);
        ask.container = Container { cgroup: None, ..container(1, uid) };
        said(&world.leases.handle(Event::Asked(Box::new(ask)))).join("")
    };
    assert_eq!(asks("shared*2 | shared*2", 0, &["shared"]), "1 refused 5");
    assert_eq!(asks("shared*2 | shared*2", 1000, &["shared"]), "1 has shared-0");
    assert_eq!(asks("shared*2 | shared*2", 0, &["shared-2"]), "1 has shared-2");
    assert_eq!(asks("shared*2", 0, &["shared"]), "1 has shared-0");
    assert_eq!(asks("shared*2 | shared*2", 0, &["shared", "shared"]), "1 has shared-0 shared-2");
}

#[test]
fn a_container_with_more_than_it_asks_for_is_refused() {
    let asks = |text: &str, words: &[&str], more: &[&str]| {
        let mut world = World::new(plan(text));
        let mut ask = ask(&world.plan, 1, words, 0);
        ask.request.nodes.extend(more.iter().map(Into::into));
        said(&world.leases.handle(Event::Asked(Box::new(ask)))).join("")
    };
    let text = "shared*2 | other*2 | open | whole | 1g 1g-open";
    assert_eq!(asks(text, &["shared"], &["/dev/nvidia1"]), "1 refused 5");
    assert_eq!(asks(text, &["shared"], &["/dev/nvidia2", "/dev/null"]), "1 has shared-0");
    assert_eq!(asks(text, &["shared"], &["/dev/nvidia3"]), "1 refused 5");
    assert_eq!(asks(text, &["shared", "3"], &[]), "1 has 3 shared-0");
    assert_eq!(asks(text, &["shared"], &["/dev/nvidia4", "/dev/nvidia-caps/ci-4-1"]), "1 has shared-0");
    assert_eq!(asks(text, &["shared"], &["/dev/nvidia4", "/dev/nvidia-caps/ci-4-0"]), "1 refused 5");
    let mut world = World::new(plan(text));
    for why in
        [hooks::lease::Unbound::Privileged, hooks::lease::Unbound::HostDev, hooks::lease::Unbound::NvidiaHook]
    {
        let mut ask = ask(&world.plan, 1, &["shared"], 0);
        ask.request.unbound = Some(why);
        assert_eq!(said(&world.leases.handle(Event::Asked(Box::new(ask)))), ["1 refused 5"]);
    }
}
