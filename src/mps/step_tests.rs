//! What follows from what is seen, as a table, and whole courses: from nothing, from what was found, to the end.

use super::*;

/// A time long before all others here.
fn start() -> Instant {
    Instant::now()
}

fn course() -> Course {
    Course { goal: Goal::Run, ..Course::default() }
}

fn seen(daemon: Daemon, answers: Answers) -> Seen {
    Seen { daemon, answers, is_open: false }
}

fn gone() -> Seen {
    seen(Daemon::Gone, Answers::Silent)
}

fn told(defaults_hold: bool, server: Option<Server>) -> Seen {
    seen(Daemon::Running, Answers::Told { defaults_hold, server })
}

fn server(state: ServerState) -> Server {
    Server { pid: 7, state, limits_hold: true, clients: Vec::new() }
}

fn open(seen: Seen) -> Seen {
    Seen { is_open: true, ..seen }
}

#[test]
fn from_nothing_to_a_server_that_serves() {
    let now = start();
    let mut course = course();
    assert_eq!(next(&course, &gone(), now), (State::Starting, Step::Launch));
    course.launched = Some(now);
    let unlocked = seen(Daemon::Unlocked, Answers::Silent);
    assert_eq!(next(&course, &unlocked, now), (State::Starting, Step::Wait));
    assert_eq!(next(&course, &told(false, None), now), (State::Starting, Step::SetLimits));
    course.limits_set = true;
    assert_eq!(next(&course, &told(true, None), now), (State::Starting, Step::StartServer));
    course.server_asked = Some(now);
    assert_eq!(next(&course, &told(true, None), now), (State::Starting, Step::Wait));
    course.server = Some(7);
    let starts = told(true, Some(server(ServerState::Initializing)));
    assert_eq!(next(&course, &starts, now), (State::Starting, Step::Wait));
    // A daemon that waits for its server hears nobody.
    let silent = seen(Daemon::Running, Answers::Silent);
    assert_eq!(next(&course, &silent, now), (State::Starting, Step::Wait));
    let serves = told(true, Some(server(ServerState::Active)));
    assert_eq!(next(&course, &serves, now), (State::Starting, Step::TryGuard));
    course.is_guarded = true;
    assert_eq!(next(&course, &serves, now), (State::Starting, Step::Open));
    assert_eq!(next(&course, &open(serves), now), (State::Ready, Step::Wait));
}

#[test]
fn what_is_found_is_taken_up() {
    let now = start();
    let serves = open(told(true, Some(server(ServerState::Active))));
    assert_eq!(next(&course(), &serves, now), (State::Ready, Step::TryGuard));
    let guarded = Course { is_guarded: true, ..course() };
    assert_eq!(next(&guarded, &serves, now), (State::Ready, Step::Wait));
    let other = Server { limits_hold: false, ..server(ServerState::Active) };
    assert_eq!(next(&guarded, &open(told(true, Some(other))), now), (State::Ready, Step::Renew));
    let of_others = open(told(false, Some(server(ServerState::Active))));
    assert_eq!(next(&guarded, &of_others, now), (State::Ready, Step::SetLimits));
    let set = Course { limits_set: true, ..guarded };
    assert_eq!(next(&set, &of_others, now), (State::Ready, Step::Renew));
    // A server without its daemon, of a supervisor of before.
    let orphan = seen(Daemon::Unlocked, Answers::Silent);
    assert_eq!(next(&course(), &orphan, now), (State::Down, Step::Fail(Trouble::DaemonEnded)));
    let silent = open(seen(Daemon::Running, Answers::Silent));
    assert_eq!(next(&course(), &silent, now), (State::Blocked, Step::Wait));
}

#[test]
fn what_goes_wrong_is_begun_again() {
    let now = start();
    let late = |limit: Duration| now + limit + Duration::from_secs(1);
    let launched = Course { launched: Some(now), ..course() };
    let asked = Course { server_asked: Some(now), limits_set: true, ..launched.clone() };
    let served = Course { server: Some(7), is_guarded: true, ..asked.clone() };
    let unlocked = seen(Daemon::Unlocked, Answers::Silent);
    let starts = told(true, Some(server(ServerState::Initializing)));
    for (course, seen, now, trouble) in [
        (&launched, gone(), now, Trouble::NotStarted),
        (&launched, unlocked.clone(), late(LISTEN_LIMIT), Trouble::NotListening),
        (&asked, told(false, None), now, Trouble::LimitsNotTaken),
        (&asked, told(true, None), late(LISTED_LIMIT), Trouble::NoServer),
        (&served, told(true, None), now, Trouble::NoServer),
        (&served, open(told(true, None)), now, Trouble::ServerEnded),
        (&served, starts, late(SERVER_LIMIT), Trouble::ServerNotReady),
        (&served, seen(Daemon::Running, Answers::Silent), late(SERVER_LIMIT), Trouble::ServerNotReady),
        (&served, gone(), now, Trouble::DaemonEnded),
        (&served, unlocked, now, Trouble::DaemonEnded),
    ] {
        assert_eq!(next(course, &seen, now).1, Step::Fail(trouble), "{seen:?}");
    }
    let waits = Course { retry_at: Some(late(Duration::ZERO)), ..course() };
    assert_eq!(next(&waits, &gone(), now), (State::Down, Step::Wait));
    assert_eq!(next(&waits, &gone(), late(Duration::ZERO)), (State::Starting, Step::Launch));
}

#[test]
fn a_fault_lasts_as_long_as_its_clients() {
    let now = start();
    let served = Course { server: Some(7), is_guarded: true, fault: Some(now), ..course() };
    let clients = Server { clients: vec![9], ..server(ServerState::Fault) };
    let late = now + FAULT_LIMIT + Duration::from_secs(1);
    assert_eq!(next(&served, &open(told(true, Some(clients))), late), (State::Fault, Step::Wait));
    let alone = open(told(true, Some(server(ServerState::Fault))));
    assert_eq!(next(&served, &alone, now), (State::Fault, Step::Wait));
    assert_eq!(next(&served, &alone, late), (State::Down, Step::Fail(Trouble::LastingFault)));
}

#[test]
fn to_the_end_with_growing_force() {
    let now = start();
    let ending = Course { goal: Goal::End, ending: Some(now), ..course() };
    let running = told(true, Some(server(ServerState::Active)));
    for (seconds, force) in [(0, Force::Quit), (5, Force::Quit), (6, Force::Terminate), (11, Force::Kill)] {
        let at = now + Duration::from_secs(seconds);
        assert_eq!(next(&ending, &running, at), (State::Down, Step::End(force)), "{seconds}");
    }
    assert_eq!(next(&ending, &gone(), now), (State::Down, Step::Ended));
    // Whoever did not hear of it hears it again.
    let ended = Course { ending: None, ..ending };
    assert_eq!(next(&ended, &gone(), now), (State::Down, Step::Ended));
    let rests = Course { goal: Goal::Rest, ..Course::default() };
    assert_eq!(next(&rests, &gone(), now), (State::Down, Step::Wait));
}

#[test]
fn pauses_grow_to_a_minute() {
    let pauses: Vec<u64> = (1..=9).map(|failures| pause(failures).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
}
