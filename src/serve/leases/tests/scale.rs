//! As many containers as the largest hosts have.

use super::*;

fn words() -> String {
    ["shared*60"; 16].join(" | ")
}

#[test]
fn a_thousand_ask_for_960_shares_and_come_again() {
    let mut world = World::new(plan(&words()));
    let mut asks = |pid| world.does(&format!("ask {pid} shared")).join("");
    let granted = (0..1000).filter(|pid| asks(*pid).contains("has")).count();
    assert_eq!((granted, world.leases.all().count()), (960, 960));
    for pid in 0..1000 {
        world.does(&format!("first {pid}"));
        world.does(&format!("gone {pid}"));
        assert_eq!(world.does(&format!("ask {} shared", pid + 1000)).len(), 1);
    }
    let mut devices: Vec<_> = world.leases.all().map(|lease| lease.devices[0].name.name.clone()).collect();
    devices.sort();
    devices.dedup();
    assert_eq!(devices.len(), 960);
}

#[test]
fn a_thousand_wait_and_are_served_in_order() {
    let mut world = World::new(plan(&words()).wait(3600));
    for pid in 0..1960 {
        world.does(&format!("ask {pid} shared"));
    }
    assert_eq!(world.leases.all().count(), 960);
    for pid in 0..1000 {
        let served = world.does(&format!("gone {pid}"));
        assert!(served[1].starts_with(&format!("{} has", pid + 960)), "{served:?}");
    }
    assert_eq!(world.leases.next_deadline(), None);
}
