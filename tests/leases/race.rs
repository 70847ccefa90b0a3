//! 200 askers for 32 shares, in time slices or of MPS servers, by pool and by name at once, while daemon, callers and containers are killed.
//!
//! What holds after each round, whatever died but containers: 32 leases on disk, each of a container that runs and of a
//! device of its own; whoever was told that it has a share has that lease; whoever was told that it has none has none.
//! It is exact with callers that vanished too, although nobody hears what these got: more than 32 callers that stay ask
//! for the pool, so when the last of them is answered nothing is free, and nothing becomes free. Where containers are
//! killed, what they held goes to others meanwhile: then all that run ask once more, and 32 of them have a lease. At no
//! moment are two containers that run told that they have one device. When all have ended, no lease is left. Where one of
//! the eight MPS servers refuses, all of that holds of the 28 shares of the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Barrier, Mutex};

use hooks::lease::{Answer, DeviceName, Lease, Request};

use crate::client::{Call, ask_until_answered, granted, line};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::{Ground, SHARES, wait_until};
use crate::hook::Bundle;
use crate::mps;
use crate::random::Random;
use crate::stand_in::Mood;

pub const TRIALS: [(&str, fn()); 3] = [
    ("fifty_rounds", fifty_rounds),
    ("twelve_rounds_for_shares_of_mps_servers", twelve_rounds_of_mps),
    ("five_rounds_where_a_server_refuses", five_rounds_of_refusals),
];

/// With the real hook, a process for each caller.
pub const WITH_HOOKS: [(&str, fn()); 1] = [("hooks_race", hooks_race)];

const ASKERS: usize = 200;
const ON_OFFER: usize = 32;
/// Without those of a GPU whose server refuses.
const OF_OTHERS: usize = 28;
/// Of the first round; each has the next one. DIVVY_SEED has another.
const SEED: u64 = 6;

/// Who dies in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Nobody,
    Daemon,
    Callers,
    Containers,
    All,
}

impl Kind {
    const ROUNDS: [(Self, usize); 5] =
        [(Self::Nobody, 10), (Self::Daemon, 15), (Self::Callers, 8), (Self::Containers, 8), (Self::All, 9)];
    /// Of shares of MPS servers, which are granted later.
    const OF_MPS: [(Self, usize); 5] =
        [(Self::Nobody, 1), (Self::Daemon, 4), (Self::Callers, 2), (Self::Containers, 2), (Self::All, 3)];
    /// Where a server refuses. A daemon that starts does not know whether a container of before runs, so that it leaves it
    /// the lease with which its start fails; of the containers here none ends by that.
    const OF_REFUSALS: [(Self, usize); 3] = [(Self::Nobody, 1), (Self::Callers, 2), (Self::Containers, 2)];

    fn kills(self, other: Self) -> bool {
        self == other || self == Self::All
    }
}

/// What came of one round, or of several.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    rounds: usize,
    granted: usize,
    refused: usize,
    void: usize,
    vanished: usize,
    retried: usize,
    daemons: usize,
    containers: usize,
}

/// What came of one caller.
#[derive(Clone, Debug)]
enum Outcome {
    Granted(Vec<DeviceName>),
    Refused,
    /// Its container was killed before it was answered.
    Void,
    /// It left without waiting for its answer.
    Vanished,
}

/// Who was told that it has what, and who was killed.
#[derive(Debug, Default)]
struct Ledger {
    holders: HashMap<DeviceName, usize>,
    killed: HashSet<usize>,
}

impl Ledger {
    /// Two that run have one device: never. (Of a killed one the word may come late.)
    fn note(&mut self, who: usize, devices: &[DeviceName]) {
        assert_eq!(devices.len(), 1, "one was asked for");
        for device in devices {
            let before = self.holders.insert(device.clone(), who).filter(|before| *before != who);
            let is_held = before.is_some_and(|before| !self.killed.contains(&before));
            assert!(!is_held || self.killed.contains(&who), "{device} is {before:?}'s and {who}'s");
        }
    }
}

/// Says which round it was if one fails.
struct Which(usize, Kind, u64);

impl Drop for Which {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in round {}, where {:?} die: DIVVY_SEED={}", self.0, self.1, self.2);
        }
    }
}

fn fifty_rounds() {
    rounds(&[Ground::new(SHARES), Ground::new(SHARES)], &Kind::ROUNDS, ON_OFFER);
}

/// With a supervisor for each of the eight GPUs, whom a daemon that was killed has to ask anew.
fn twelve_rounds_of_mps() {
    let config = SHARES.replace("time-slice", "mps");
    let grounds = [Ground::new(&config), Ground::new(&config)];
    let servers = grounds.each_ref().map(mps::stand_ins);
    rounds(&grounds, &Kind::OF_MPS, ON_OFFER);
    for server in servers.iter().flatten() {
        assert!(server.ensured().len() > 4, "{:?}", server.ensured());
    }
}

/// Grants are withdrawn while others are made.
fn five_rounds_of_refusals() {
    let config = SHARES.replace("time-slice", "mps");
    let grounds = [Ground::new(&config), Ground::new(&config)];
    let servers = grounds.each_ref().map(mps::stand_ins);
    for of_ground in &servers {
        of_ground[3].is(Mood::Refuses(3, "GPU 3 is used by python (4711)".into()));
    }
    rounds(&grounds, &Kind::OF_REFUSALS, OF_OTHERS);
    for of_ground in &servers {
        assert!(of_ground[3].ensured().len() > 4, "{:?}", of_ground[3].ensured());
    }
}

fn rounds(grounds: &[Ground; 2], kinds: &[(Kind, usize)], on_offer: usize) {
    let first = std::env::var("DIVVY_SEED").ok().and_then(|seed| seed.parse().ok());
    // One makes its socket anew each time it starts, the other's stays while it is away.
    let mut daemons = [Daemon::start(&grounds[0]), Daemon::start_on_held_socket(&grounds[1])];
    let mut containers = Container::start_many(ASKERS);
    let idle = daemons.each_ref().map(Daemon::descriptors);
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    let kinds = kinds.iter().flat_map(|(kind, rounds)| std::iter::repeat_n(*kind, *rounds));
    for (number, kind) in kinds.enumerate() {
        let seed = first.unwrap_or(SEED + number as u64);
        let _which = Which(number, kind, seed);
        let place = number % grounds.len();
        let mut random = Random::new(seed);
        let daemon = (&mut daemons[place], idle[place]);
        let tally = round(&grounds[place], daemon, &mut containers, kind, on_offer, &mut random);
        tallies.entry(kind).or_default().add(&tally);
    }
    print(&tallies);
}

/// 200 hooks at once. First the daemon alone is killed, and all hooks end as if it had not been. Then hooks are killed
/// too: whose hook was killed may have a lease, and nobody else has one who was not told so.
fn hooks_race() {
    for kills_hooks in [false, true] {
        let ground = Ground::new(SHARES);
        let mut daemon = Daemon::start_on_held_socket(&ground);
        let containers = Container::start_many(ASKERS);
        let mut random = Random::new(SEED);
        let bundles: Vec<Bundle> = containers
            .iter()
            .enumerate()
            .map(|(number, container)| {
                let by_name = format!("gpu=shared-{}", random.below(ON_OFFER));
                Bundle::new(&ground, container, &[if number % 2 == 0 { "gpu=shared" } else { &by_name }])
            })
            .collect();
        let mut hooks: Vec<_> = bundles.iter().map(Bundle::call).collect();
        let mut statuses: Vec<Option<i32>> = Vec::new();
        for number in 0..hooks.len() {
            if number % 40 == 20 {
                daemon.kill();
                daemon.start_again();
            }
            if kills_hooks && number % 10 == 5 {
                let later = number + random.below(hooks.len() - number);
                hooks[later].kill().unwrap();
            }
            statuses.push(hooks[number].wait().unwrap().code());
        }
        let count = |status| statuses.iter().filter(|other| **other == status).count();
        assert_eq!(count(Some(0)) + count(Some(3)) + count(None), ASKERS, "{statuses:?}");
        assert!(
            kills_hooks || (count(Some(0)), count(Some(3))) == (ON_OFFER, ASKERS - ON_OFFER),
            "{statuses:?}"
        );
        // More than 32 hooks ask for the pool to the end, so nothing is free, and nothing becomes free.
        let leases = leases_by_namespace(&ground);
        assert_eq!(leases.len(), ON_OFFER);
        for (container, status) in containers.iter().zip(&statuses) {
            let has_one = leases.contains_key(&container.mount_namespace());
            assert!(status.is_none() || has_one == (*status == Some(0)), "{status:?}");
        }
        drop(containers);
        ground.wait_for_leases(0);
    }
}

/// One round; afterwards there are as many containers as before, and no lease. `idle` is how many descriptors the daemon
/// has when nobody is connected and nothing is leased.
fn round(
    ground: &Ground,
    (daemon, idle): (&mut Daemon, usize),
    containers: &mut [Container],
    kind: Kind,
    on_offer: usize,
    random: &mut Random,
) -> Tally {
    let ledger = Mutex::new(Ledger::default());
    let mut tally = Tally { rounds: 1, ..Tally::default() };
    let asks: Vec<(Request, Option<usize>)> = containers
        .iter()
        .enumerate()
        .map(|(number, container)| {
            let by_name = format!("gpu=shared-{}", random.below(ON_OFFER));
            let device = if number % 2 == 0 { "gpu=shared" } else { &by_name };
            let vanishes = (kind.kills(Kind::Callers) && random.once_in(4)).then(|| random.below(3));
            (ground.request(container, &[device]), vanishes)
        })
        .collect();
    let begin = Barrier::new(ASKERS);
    let (tell, told) = channel();
    let outcomes: Vec<(Outcome, usize)> = std::thread::scope(|scope| {
        let askers: Vec<_> = asks
            .iter()
            .enumerate()
            .map(|(number, (request, vanishes))| {
                let (tell, ground, begin, ledger) = (tell.clone(), &ground, &begin, &ledger);
                let asker = std::thread::Builder::new().stack_size(256 << 10);
                let run = move || {
                    begin.wait();
                    outcome(ground, number, request, *vanishes, ledger, &tell)
                };
                asker.spawn_scoped(scope, run).unwrap()
            })
            .collect();
        drop(tell);
        // What is killed depends on the seed and on how many have been answered, never on the clock.
        for () in told {
            if kind.kills(Kind::Daemon) && random.once_in(25) {
                tally.daemons += 1;
                if random.once_in(4) {
                    assert!(daemon.stop().success());
                } else {
                    daemon.kill();
                }
                daemon.start_again();
            }
            if kind.kills(Kind::Containers) && random.once_in(6) {
                let number = random.below(ASKERS);
                ledger.lock().unwrap().killed.insert(number);
                containers[number].end();
            }
        }
        askers.into_iter().map(|asker| asker.join().unwrap()).collect()
    });
    // Who left after a whole request may not have been heard yet, and would get a lease in the next round. Callers are
    // accepted in their order: when this one is answered, none of them still waits to be.
    let answer = Call::say(&ground.socket(), b"\n").unwrap().last();
    assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
    let has_heard_all = || daemon.descriptors() <= idle + ground.leases().len();
    wait_until("callers that left", has_heard_all);
    let killed = ledger.into_inner().unwrap().killed;
    killed.iter().for_each(|number| containers[*number].kill());
    tally.containers = killed.len();
    for (outcome, retried) in &outcomes {
        tally.retried += retried;
        match outcome {
            Outcome::Granted(_) => tally.granted += 1,
            Outcome::Refused => tally.refused += 1,
            Outcome::Void => tally.void += 1,
            Outcome::Vanished => tally.vanished += 1,
        }
    }
    if kind.kills(Kind::Containers) {
        ask_again(ground, containers, &killed, on_offer, &mut tally);
    } else {
        check(ground, containers, &asks, &outcomes, (kind, on_offer), &tally);
    }
    end(ground, containers, &killed);
    tally
}

fn outcome(
    ground: &Ground,
    number: usize,
    request: &Request,
    vanishes: Option<usize>,
    ledger: &Mutex<Ledger>,
    tell: &Sender<()>,
) -> (Outcome, usize) {
    if let Some(manner) = vanishes {
        vanish(ground, request, manner);
        let _ = tell.send(());
        return (Outcome::Vanished, 0);
    }
    let (answer, retried) = ask_until_answered(&ground.socket(), request);
    let outcome = match answer {
        Answer::Granted { devices } => {
            ledger.lock().unwrap().note(number, &devices);
            Outcome::Granted(devices)
        }
        Answer::Refused { status: 3, .. } => Outcome::Refused,
        answer => {
            assert!(ledger.lock().unwrap().killed.contains(&number), "{answer:?}");
            Outcome::Void
        }
    };
    let _ = tell.send(());
    (outcome, retried)
}

/// Leaves before it is answered: after its request, in the middle of it, or before.
fn vanish(ground: &Ground, request: &Request, manner: usize) {
    let line = line(request);
    match manner {
        0 => drop(Call::say(&ground.socket(), &line)),
        1 => drop(Call::say(&ground.socket(), &line[..line.len() / 2])),
        _ => drop(UnixStream::connect(ground.socket())),
    }
}

/// Where no container died.
fn check(
    ground: &Ground,
    containers: &[Container],
    asks: &[(Request, Option<usize>)],
    outcomes: &[(Outcome, usize)],
    (kind, on_offer): (Kind, usize),
    tally: &Tally,
) {
    let leases = leases_by_namespace(ground);
    assert_eq!(leases.len(), on_offer);
    let mut of_known = 0;
    for (container, (outcome, _)) in containers.iter().zip(outcomes) {
        let lease = leases.get(&container.mount_namespace());
        of_known += usize::from(lease.is_some());
        match outcome {
            Outcome::Granted(devices) => assert_eq!(&names(lease.unwrap()), devices),
            Outcome::Refused => assert!(lease.is_none(), "refused, and holds {lease:?}"),
            Outcome::Void => panic!("nobody was killed"),
            Outcome::Vanished => {}
        }
        if let Some(lease) = lease {
            assert_eq!((lease.container.pid, lease.container.id.as_str()), (container.pid(), &*container.id));
        }
    }
    assert_eq!(of_known, on_offer, "a lease is of no container");
    assert_eq!(tally.granted + tally.refused + tally.vanished, ASKERS);
    if !kind.kills(Kind::Callers) {
        assert_eq!((tally.granted, tally.refused), (on_offer, ASKERS - on_offer));
    }
    // Who asks the same again gets the same, and takes no more.
    let again = asks.iter().zip(outcomes).filter_map(|((request, _), (outcome, _))| match outcome {
        Outcome::Granted(devices) => Some((request, devices)),
        _ => None,
    });
    for (request, devices) in again.take(3) {
        assert_eq!(&granted(ask_until_answered(&ground.socket(), request).0), devices);
    }
    assert_eq!(ground.leases().len(), on_offer);
}

/// Where containers died: all that run and have nothing ask once more.
fn ask_again(
    ground: &Ground,
    containers: &[Container],
    killed: &HashSet<usize>,
    on_offer: usize,
    tally: &mut Tally,
) {
    let running = || containers.iter().enumerate().filter(|(number, _)| !killed.contains(number));
    let namespaces: HashSet<u64> = running().map(|(_, container)| container.mount_namespace()).collect();
    let are_of_running =
        || ground.leases().iter().all(|lease| namespaces.contains(&lease.container.mount_namespace));
    wait_until("the ends of killed containers' leases", are_of_running);
    let held = leases_by_namespace(ground);
    for (_, container) in running().filter(|(_, one)| !held.contains_key(&one.mount_namespace())) {
        match ground.ask(container, &["gpu=shared"]) {
            Answer::Granted { .. } => tally.granted += 1,
            Answer::Refused { status: 3, .. } => tally.refused += 1,
            answer => panic!("{answer:?}"),
        }
    }
    assert_eq!(leases_by_namespace(ground).len(), on_offer);
    assert!(are_of_running());
}

/// Leases on disk, none of a device that another one has.
fn leases_by_namespace(ground: &Ground) -> HashMap<u64, Lease> {
    let leases = ground.leases();
    let devices: BTreeSet<String> = leases.iter().flat_map(names).map(|name| name.to_string()).collect();
    assert_eq!(devices.len(), leases.iter().map(|lease| lease.devices.len()).sum::<usize>());
    leases.into_iter().map(|lease| (lease.container.mount_namespace, lease)).collect()
}

fn names(lease: &Lease) -> Vec<DeviceName> {
    lease.devices.iter().map(|device| device.name.clone()).collect()
}

/// Ends all that have a lease, waits until none is left, and starts others in their places.
fn end(ground: &Ground, containers: &mut [Container], killed: &HashSet<usize>) {
    let held = leases_by_namespace(ground);
    let is_over = |(number, container): (usize, &Container)| {
        killed.contains(&number) || held.contains_key(&container.mount_namespace())
    };
    let over: Vec<usize> =
        containers.iter().enumerate().filter(|one| is_over(*one)).map(|one| one.0).collect();
    over.iter().for_each(|number| containers[*number].kill());
    ground.wait_for_leases(0);
    for (number, fresh) in over.iter().zip(Container::start_many(over.len())) {
        containers[*number] = fresh;
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.granted += other.granted;
        self.refused += other.refused;
        self.void += other.void;
        self.vanished += other.vanished;
        self.retried += other.retried;
        self.daemons += other.daemons;
        self.containers += other.containers;
    }
}

fn print(tallies: &BTreeMap<Kind, Tally>) {
    let mut table = String::from(
        "who dies     rounds  granted  refused  void  vanished  retried  daemon kills  container kills\n",
    );
    for (kind, tally) in tallies {
        let Tally { rounds, granted, refused, void, vanished, retried, daemons, containers } = tally;
        let kind = format!("{kind:?}").to_lowercase();
        table += &format!(
            "{kind:<11}  {rounds:>6}  {granted:>7}  {refused:>7}  {void:>4}  {vanished:>8}  {retried:>7}  {daemons:>12}  {containers:>15}\n"
        );
    }
    // In one piece: other trials print too.
    let _ = std::io::stdout().write_all(table.as_bytes());
}
