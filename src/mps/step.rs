//! What a supervisor does next, from what it sees: the same steps whatever there was before, so that MPS that is found is
//! taken up as MPS that was started. Pure.

use std::time::{Duration, Instant};

use super::protocol::State;
use super::reply::ServerState;

/// A control daemon listens a few milliseconds after its start, on a machine that has nothing else to do.
const LISTEN_LIMIT: Duration = Duration::from_secs(30);
/// A server makes its contexts first, which took 20 seconds on a machine with eight GPUs.
pub const SERVER_LIMIT: Duration = Duration::from_secs(30);
/// A server that was asked for is in the list at once, and stays there until it has ended.
const LISTED_LIMIT: Duration = Duration::from_secs(3);
/// A server recovers from a fault by itself, when the last client is gone.
const FAULT_LIMIT: Duration = Duration::from_secs(10);
/// After `quit`, before SIGTERM; and as long again before SIGKILL.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// What a supervisor is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Nobody needs MPS yet, or it failed and nobody has a share: what is there may stay away.
    #[default]
    Rest,
    /// MPS runs.
    Run,
    /// It is gone, and stays away from those who still have a share: they meet the tombstone.
    Close,
    /// It is gone, and so is the supervisor.
    End,
}

/// A control daemon, by its lock and its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The lock is free and nothing is left of it.
    Gone,
    /// Its process lives, or its server's, and nobody has the lock.
    Unlocked,
    /// It has the lock.
    Running,
}

/// A server, as the control daemon tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its process.
    pub pid: i32,
    /// How it is.
    pub state: ServerState,
    /// Its limits are those of the settings.
    pub limits_hold: bool,
    /// Its clients' processes.
    pub clients: Vec<i32>,
}

/// What a control daemon said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Nothing, in time.
    Silent,
    /// All that was asked.
    Told {
        /// The limits of servers to come are those of the settings.
        defaults_hold: bool,
        /// The server.
        server: Option<Server>,
    },
}

/// What there is at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The control daemon.
    pub daemon: Daemon,
    /// What it said; it is asked where it runs.
    pub answers: Answers,
    /// Containers reach it.
    pub is_open: bool,
}

/// What was done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// What for.
    pub goal: Goal,
    /// When the control daemon was started.
    pub launched: Option<Instant>,
    /// Limits were set since.
    pub limits_set: bool,
    /// The guard was seen at its work in this control daemon.
    pub is_guarded: bool,
    /// When a server was asked for, or seen to start.
    pub server_asked: Option<Instant>,
    /// The last server that was seen.
    pub server: Option<i32>,
    /// Since when the server is in FAULT without a client.
    pub fault: Option<Instant>,
    /// Since when it is being ended.
    pub ending: Option<Instant>,
    /// Not to be started before.
    pub retry_at: Option<Instant>,
}

/// How hard a control daemon is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// `quit`.
    Quit,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The control daemon ended while it was started.
    NotStarted,
    /// It takes no connections.
    NotListening,
    /// It is not as it was told.
    LimitsNotTaken,
    /// There is no server although one was asked for: it did not get ready, or did not begin to.
    NoServer,
    /// The server that was there is not any more.
    ServerEnded,
    /// The server does not get ready.
    ServerNotReady,
    /// The control daemon that was there is not any more.
    DaemonEnded,
    /// The server stays in FAULT without a client.
    LastingFault,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something happens or the next look.
    Wait,
    /// Check the machine, and start a control daemon.
    Launch,
    /// Tell it the limits.
    SetLimits,
    /// Have it start a server.
    StartServer,
    /// See whether the guard does its work.
    TryGuard,
    /// Let containers in.
    Open,
    /// Keep containers out, and begin again.
    Fail(Trouble),
    /// Begin again with limits that hold, if nobody has a share; else say so.
    Renew,
    /// End it.
    End(Force),
    /// It has ended: clean up.
    Ended,
}

/// The next step, and what is there meanwhile.
pub fn next(course: &Course, seen: &Seen, now: Instant) -> (State, Step) {
    let since =
        |then: Option<Instant>| then.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
    match seen.daemon {
        Daemon::Gone if course.ending.is_some() || course.goal == Goal::End => (State::Down, Step::Ended),
        Daemon::Gone if course.goal != Goal::Run => (State::Down, Step::Wait),
        Daemon::Gone if course.server.is_some() => (State::Down, Step::Fail(Trouble::DaemonEnded)),
        Daemon::Gone if course.launched.is_some() => (State::Down, Step::Fail(Trouble::NotStarted)),
        Daemon::Gone if course.retry_at.is_some_and(|at| now < at) => (State::Down, Step::Wait),
        Daemon::Gone => (State::Starting, Step::Launch),
        _ if course.ending.is_some() || matches!(course.goal, Goal::Close | Goal::End) => {
            (State::Down, Step::End(force(since(course.ending))))
        }
        Daemon::Unlocked if course.launched.is_none() => (State::Down, Step::Fail(Trouble::DaemonEnded)),
        Daemon::Unlocked if course.server.is_some() => (State::Down, Step::Fail(Trouble::DaemonEnded)),
        Daemon::Unlocked if since(course.launched) > LISTEN_LIMIT => {
            (State::Down, Step::Fail(Trouble::NotListening))
        }
        Daemon::Unlocked => (State::Starting, Step::Wait),
        Daemon::Running => running(course, seen, &since),
    }
}

fn running(course: &Course, seen: &Seen, since: &impl Fn(Option<Instant>) -> Duration) -> (State, Step) {
    let server = match &seen.answers {
        // Also while a server starts.
        Answers::Silent if course.server_asked.is_some() && !seen.is_open => {
            return not_ready(course, since);
        }
        Answers::Silent => return (State::Blocked, Step::Wait),
        Answers::Told { server: Some(server), .. } => server,
        Answers::Told { server: None, defaults_hold } => {
            return (State::Starting, no_server(course, *defaults_hold, seen.is_open, since));
        }
    };
    match server.state {
        ServerState::Initializing => not_ready(course, since),
        ServerState::Fault if server.clients.is_empty() && since(course.fault) > FAULT_LIMIT => {
            (State::Down, Step::Fail(Trouble::LastingFault))
        }
        ServerState::Fault => (State::Fault, Step::Wait),
        ServerState::Active if !server.limits_hold => (State::Ready, Step::Renew),
        // Of the next server; this one has them.
        ServerState::Active if !defaults_hold(&seen.answers) => {
            let step = if course.limits_set { Step::Renew } else { Step::SetLimits };
            (State::Ready, step)
        }
        ServerState::Active if !course.is_guarded => {
            (if seen.is_open { State::Ready } else { State::Starting }, Step::TryGuard)
        }
        ServerState::Active if !seen.is_open => (State::Starting, Step::Open),
        ServerState::Active => (State::Ready, Step::Wait),
    }
}

fn defaults_hold(answers: &Answers) -> bool {
    matches!(answers, Answers::Told { defaults_hold: true, .. })
}

fn no_server(
    course: &Course,
    defaults_hold: bool,
    is_open: bool,
    since: &impl Fn(Option<Instant>) -> Duration,
) -> Step {
    match (course.server, defaults_hold, course.limits_set) {
        (Some(_), _, _) if is_open => Step::Fail(Trouble::ServerEnded),
        (Some(_), _, _) => Step::Fail(Trouble::NoServer),
        (None, false, true) => Step::Fail(Trouble::LimitsNotTaken),
        (None, false, false) => Step::SetLimits,
        (None, true, _) if course.server_asked.is_none() => Step::StartServer,
        (None, true, _) if since(course.server_asked) > LISTED_LIMIT => Step::Fail(Trouble::NoServer),
        (None, true, _) => Step::Wait,
    }
}

fn not_ready(course: &Course, since: &impl Fn(Option<Instant>) -> Duration) -> (State, Step) {
    if since(course.server_asked) > SERVER_LIMIT {
        return (State::Down, Step::Fail(Trouble::ServerNotReady));
    }
    (State::Starting, Step::Wait)
}

fn force(since: Duration) -> Force {
    match since {
        since if since > 2 * QUIT_LIMIT => Force::Kill,
        since if since > QUIT_LIMIT => Force::Terminate,
        _ => Force::Quit,
    }
}

/// How long to wait before the next start, after so many that failed one after the other.
pub fn pause(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60))
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
