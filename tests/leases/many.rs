//! A thousand leases: what they cost the daemon, at rest too, and that it finds them all again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::client::{granted, refused};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::Ground;

pub const TRIALS: [(&str, fn()); 1] = [("a_thousand_leases", a_thousand_leases)];

const LEASES: usize = 1000;
/// What the daemon may have resident besides its program's own file, in KiB. The file is three times as large in a build
/// for tests; a release has less than 16 MiB in all, which `make bench` shows.
const MOST_RESIDENT: u64 = 8 << 10;
/// What the daemon has open besides one descriptor for each lease: the socket, the lock, the log, its own event loop.
const MOST_OPEN_BESIDES: usize = 24;

/// A thousand shares on eight GPUs.
pub const THOUSAND: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 125\n";

fn a_thousand_leases() {
    let ground = Ground::new(THOUSAND);
    let mut daemon = Daemon::start(&ground);
    let containers = Container::start_many(LEASES);
    let ask_all = || -> BTreeSet<String> {
        let granted = containers.iter().map(|one| granted(ground.ask(one, &["gpu=shared"])));
        granted.map(|devices| devices[0].to_string()).collect()
    };
    assert_eq!(ask_all().len(), LEASES);
    let mut before = ground.leases();
    let one_more = Container::start();
    assert_eq!(refused(ground.ask(&one_more, &["gpu=shared"])).0, 3);
    is_small(&daemon);

    // Twice at rest, so that what its last caller left behind is over.
    std::thread::sleep(Duration::from_secs(1));
    let wakes = daemon.status("voluntary_ctxt_switches");
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(daemon.status("voluntary_ctxt_switches"), wakes, "it wakes up at rest");

    daemon.kill();
    daemon.start_again();
    let mut after = ground.leases();
    for leases in [&mut before, &mut after] {
        leases.sort_by_key(|lease| lease.container.pid);
    }
    assert!(before == after, "other leases than before");
    is_small(&daemon);
    assert_eq!(refused(ground.ask(&one_more, &["gpu=shared"])).0, 3);
    // Each has what it had: asking again is no other request.
    assert_eq!(ask_all().len(), LEASES);
    assert_eq!(ground.leases().len(), LEASES);
    drop(containers);
    ground.wait_for_leases(0);
    assert!(daemon.descriptors() < MOST_OPEN_BESIDES, "{} descriptors", daemon.descriptors());
}

fn is_small(daemon: &Daemon) {
    let (resident, open) = (daemon.status("RssAnon") + daemon.status("RssShmem"), daemon.descriptors());
    assert!(resident < MOST_RESIDENT, "{resident} KiB resident");
    assert!(open < LEASES + MOST_OPEN_BESIDES, "{open} descriptors");
}
