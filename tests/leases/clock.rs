//! The time of day is set, years ahead and back: leases end and queues move as if it had not been.

use std::fs;
use std::path::Path;
use std::process::Command;

use hooks::lease::Answer;

use crate::client::{Call, granted, refused};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::Ground;

pub const TRIALS: [(&str, fn()); 1] = [("the_time_of_day_is_set", the_time_of_day_is_set)];

const YEARS: i64 = 10 * 365 * 86_400;
const CONFIG: &str = "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nname = \"long\"\n\n\
    [[gpu]]\nmatch = [\"1\"]\nmode = \"time-slice\"\nname = \"short\"\n\n\
    [pool.long]\nwait = \"10h\"\n\n[pool.short]\nwait = \"1s\"\n";

fn the_time_of_day_is_set() {
    let ground = Ground::new(CONFIG);
    let (library, offset) = (ground.path("clock.so"), ground.path("offset"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/leases/clock.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
        .arg(&library)
        .arg(source)
        .status();
    assert!(built.unwrap().success());
    let set = |seconds: i64| fs::write(&offset, seconds.to_string()).unwrap();
    set(0);
    let environment = [("LD_PRELOAD", library.to_str().unwrap()), ("DIVVY_CLOCK", offset.to_str().unwrap())];
    let mut daemon = Daemon::start_with(&ground, None, &environment);
    let socket = ground.socket();
    let call = |container: &Container, device: &str| {
        Call::new(&socket, &ground.request(container, &[device])).unwrap()
    };

    let [holder, waiter, other, third] = [(); 4].map(|()| Container::start());
    granted(ground.ask(&holder, &["gpu=long-0"]));
    let began = ground.leases()[0].since;
    let mut waiting = call(&waiter, "gpu=long");
    assert!(matches!(waiting.next().unwrap(), Some(Answer::Queued { ahead: 0, .. })));
    for seconds in [YEARS, -YEARS, YEARS, 3 * 86_400] {
        set(seconds);
        // By its name nobody waits: this has been answered, so the daemon has looked at the clock.
        assert_eq!(refused(ground.ask(&other, &["gpu=long-0"])).0, 3);
        assert!(waiting.is_silent(), "answered at {seconds} seconds");
        assert_eq!(ground.leases().len(), 1);
    }
    // It is that clock that leases tell their time by.
    granted(ground.ask(&third, &["gpu=short-0"]));
    let since = ground.leases().iter().map(|lease| lease.since).max().unwrap();
    assert!(since >= began + 3 * 86_400, "{since} is not days after {began}");
    // A second is a second while the clock goes back by years.
    let mut short = call(&other, "gpu=short");
    assert!(matches!(short.next().unwrap(), Some(Answer::Queued { .. })));
    set(-YEARS);
    assert_eq!(refused(short.last()).0, 3);
    // A daemon that starts in another year finds what it left.
    daemon.kill();
    daemon.start_again();
    assert_eq!(ground.leases().len(), 2);
    granted(ground.ask(&holder, &["gpu=long-0"]));
    let mut waiting = call(&waiter, "gpu=long");
    assert!(matches!(waiting.next().unwrap(), Some(Answer::Queued { .. })));
    set(YEARS);
    drop(holder);
    granted(waiting.last());
    drop((waiter, other, third));
    ground.wait_for_leases(0);
}
