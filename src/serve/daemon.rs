//! The daemon at work: what happens on the socket and to containers becomes events, one after the other, and what is
//! decided about each is done before the next.
//!
//! - `answers`: what was decided, carried out and said
//! - `mps`: grants that wait for an MPS server

mod answers;
mod mps;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hooks::lease::{Answer, Container, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use answers::names;

use super::board::{self, Board};
use super::grant;
use super::leases::refusal::No;
use super::leases::{Ask, Decision, Event, Key, Leases, Ticket};
use super::listen::Listener;
use super::message::{Asked, Message};
use super::mps::{SELDOM, Servers};
use super::plan_file::PlanFile;
use super::refused::{Refusals, Refused};
use super::store::Store;
use super::{connection, watch};
use crate::container::caller::{self, Facts};
use crate::container::person::People;
use crate::sys;
use crate::time_slices::Keeper;

/// Connections of one user at a time, root excepted.
const MOST_OF_USER: usize = 32;
/// Of all users but root, so that root is never shut out; and of all.
const MOST_OF_USERS: usize = 512;
const MOST: usize = 1024;

/// Serves until SIGTERM or SIGINT.
pub async fn serve(state_dir: &Path, store: Store, listener: Listener) -> Result<()> {
    let (to, mut inbox) = mpsc::unbounded_channel();
    let kernel = caller::Daemon::read().context("cannot read from /proc where this daemon is")?;
    let board = Board::new().context("cannot read from /proc what this daemon is")?;
    let mut daemon = Daemon::new(state_dir, store, kernel, board, to);
    daemon.read_plan();
    daemon.take_up()?;
    daemon.servers.look();
    let mut seldom = interval_at(Instant::now() + SELDOM, SELDOM);
    seldom.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let socket = listener.socket.try_clone().and_then(UnixListener::from_std).context("cannot listen")?;
    info!(state_dir = %state_dir.display(), leases = daemon.leases.all().count(), "serving");
    tell_systemd(&[NotifyState::Ready]);
    loop {
        // Once for all that came together.
        if inbox.is_empty() {
            daemon.board.show(&daemon.leases, &daemon.store);
        }
        let deadline = daemon.leases.next_deadline();
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => daemon.admit(stream),
                Err(error) => {
                    // Out of descriptors, as a rule: some will be closed.
                    error!("cannot accept a caller: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(message) = inbox.recv() => daemon.hear(message),
            () = at(daemon.began, deadline) => daemon.happens(Event::Time(daemon.began.elapsed())),
            _ = seldom.tick() => {
                daemon.read_plan();
                daemon.servers.look();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tell_systemd(&[NotifyState::Stopping]);
    daemon.board.take_down(&daemon.store);
    info!(leases = daemon.leases.all().count(), "leaving; containers keep what they have");
    drop(listener);
    Ok(())
}

/// Returns at a time after the beginning, or never.
async fn at(began: Instant, deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => sleep_until(began + deadline).await,
        None => std::future::pending().await,
    }
}

fn tell_systemd(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(state) {
        debug!("systemd was not told: {error}");
    }
}

struct Daemon {
    leases: Leases,
    kernel: caller::Daemon,
    people: People,
    store: Store,
    plan: PlanFile,
    /// Connections by their tickets: who, and once there is a request how to answer.
    connections: HashMap<Ticket, Connection>,
    last_ticket: Ticket,
    /// First processes of containers with leases, as long as these are there.
    holders: HashMap<Key, Arc<AsyncFd<OwnedFd>>>,
    /// Tasks that wait for the ends of leases.
    watches: HashMap<Key, AbortHandle>,
    servers: Servers,
    time_slices: Keeper,
    refused: Refusals,
    board: Board,
    to: UnboundedSender<Message>,
    began: Instant,
}

struct Connection {
    uid: u32,
    asker: Option<Asker>,
}

/// Who waits for an answer.
struct Asker {
    answers: UnboundedSender<Answer>,
    key: Key,
    /// The container's first process.
    pidfd: Arc<AsyncFd<OwnedFd>>,
    /// Waits for its end, while the request waits.
    end: Option<AbortHandle>,
}

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(end) = &self.end {
            end.abort();
        }
    }
}

impl Daemon {
    fn new(
        state_dir: &Path,
        store: Store,
        kernel: caller::Daemon,
        board: Board,
        to: UnboundedSender<Message>,
    ) -> Self {
        Self {
            leases: Leases::new(state_dir.to_owned()),
            plan: PlanFile::new(state_dir),
            connections: HashMap::new(),
            last_ticket: 0,
            holders: HashMap::new(),
            watches: HashMap::new(),
            servers: Servers::new(state_dir, to.clone()),
            time_slices: Keeper::start(state_dir),
            refused: Refusals::read(state_dir).unwrap_or_else(|error| {
                warn!("earlier refusals are forgotten: {error:#}");
                Refusals::default()
            }),
            store,
            kernel,
            people: People::default(),
            board,
            to,
            began: Instant::now(),
        }
    }

    /// Leases of before: those of containers that still run go on.
    fn take_up(&mut self) -> Result<()> {
        for lease in self.store.read()? {
            let key = Key::of(&lease.container);
            let pidfd = self.kernel.still_runs(&lease.container);
            let pidfd = pidfd.context("cannot look for the containers of before")?;
            let pidfd = pidfd.map(sys::watched).transpose().context("cannot wait for a container's end")?;
            let pidfd = pidfd.map(Arc::new);
            let cgroup = lease.container.cgroup.clone();
            let cgroup = cgroup.filter(|_| self.kernel.is_of_this_boot(&lease.container));
            self.happens(Event::Adopted(Box::new(lease)));
            if let Some(pidfd) = &pidfd {
                self.holders.insert(key, Arc::clone(pidfd));
            }
            self.watch(key, pidfd, cgroup);
        }
        Ok(())
    }

    fn watch(&mut self, key: Key, pidfd: Option<Arc<AsyncFd<OwnedFd>>>, cgroup: Option<PathBuf>) {
        let task = tokio::spawn(watch::container(key, pidfd, cgroup, self.to.clone()));
        self.watches.insert(key, task.abort_handle());
    }

    fn no_longer_watch(&mut self, key: Key) {
        self.holders.remove(&key);
        if let Some(watch) = self.watches.remove(&key) {
            watch.abort();
        }
    }

    fn read_plan(&mut self) {
        match self.plan.changed() {
            Ok(None) => {}
            Ok(Some(plan)) => {
                info!(generation = plan.generation, devices = plan.devices.len(), "read the plan");
                self.time_slices.has(&plan.time_slices);
                self.happens(Event::Plan(Box::new(plan)));
                self.servers.look();
            }
            Err(error) => error!("the plan before stays in force: the new one cannot be read: {error}"),
        }
    }

    /// Lets a caller speak, unless there are too many of his.
    fn admit(&mut self, stream: UnixStream) {
        let blocking = |stream: UnixStream| {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok::<_, io::Error>((connection::peer(&stream)?, stream))
        };
        let (peer, stream) = match blocking(stream) {
            Ok(caller) => caller,
            Err(error) => return warn!("turned a caller away: it cannot be known who it is: {error}"),
        };
        let person = self.people.person(peer.uid);
        let of =
            |counts: &dyn Fn(u32) -> bool| self.connections.values().filter(|one| counts(one.uid)).count();
        let is_too_many = of(&|_| true) >= MOST
            || person != 0
                && (of(&|uid| uid == person) >= MOST_OF_USER || of(&|uid| uid != 0) >= MOST_OF_USERS);
        if is_too_many {
            debug!(uid = peer.uid, "turned a caller away: too many connections");
            return connection::turn_away(stream);
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.connections.insert(ticket, Connection { uid: person, asker: None });
        tokio::spawn(connection::converse(stream, ticket, peer, person, self.to.clone()));
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Asked(asked) => self.asked(*asked),
            Message::Closed(ticket) => {
                self.leases.place_of(ticket).iter().for_each(board::log_departure);
                // It may be granted something in this very moment, whose end is then waited for by what is here.
                self.happens(Event::Left(ticket));
                self.connections.remove(&ticket);
            }
            Message::FirstProcessGone(key) => self.first_process_gone(key),
            Message::Gone(key) => self.happens(Event::Gone(key)),
            Message::Mps(news) => self.hear_of_mps(news),
        }
    }

    fn first_process_gone(&mut self, key: Key) {
        self.holders.remove(&key);
        self.happens(Event::FirstProcessGone(key));
    }

    fn asked(&mut self, asked: Asked) {
        let Asked { ticket, peer, request, user, answers } = asked;
        self.read_plan();
        self.notice_ends();
        let wall = now();
        let facts = user.and_then(|user| {
            let Facts { mut container, pidfd } = self.kernel.facts(peer, &request)?;
            container.uid = self.people.person(container.uid);
            let unwatched =
                |source| caller::Error::Unreadable { what: "the pidfd", pid: container.pid, source };
            let pidfd = sys::watched(pidfd).map_err(unwatched)?;
            Ok((container, Arc::new(pidfd), user))
        });
        match facts {
            Ok((container, pidfd, user)) => {
                self.end_predecessors(&container);
                if let Some(connection) = self.connections.get_mut(&ticket) {
                    connection.asker = Some(Asker { answers, key: Key::of(&container), pidfd, end: None });
                }
                let now = self.began.elapsed();
                let ask = Ask { ticket, container, request, user, wall, now };
                self.happens(Event::Asked(Box::new(ask)));
            }
            Err(error) => {
                let hint = Some(error.hint().to_owned());
                let message = format!("{:#}", anyhow::Error::new(error));
                let _ =
                    answers.send(Answer::Refused { status: 1, message: message.clone(), hint: hint.clone() });
                let Request { id, devices, .. } = request;
                let asked = devices.iter().map(ToString::to_string).collect();
                let (engine, name, uid) = (None, None, self.people.person(peer.uid));
                self.remember(Refused { at: wall, asked, id, engine, name, uid, status: 1, message, hint });
            }
        }
    }

    /// Whoever asks again at once for what a container had that has just ended shall find it free.
    fn notice_ends(&mut self) {
        let holders: Vec<(Key, Arc<AsyncFd<OwnedFd>>)> =
            self.holders.iter().map(|(key, pidfd)| (*key, Arc::clone(pidfd))).collect();
        let mut polled: Vec<PollFd<'_>> =
            holders.iter().map(|(_, pidfd)| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut polled, PollTimeout::ZERO).is_err() {
            return;
        }
        let is_gone: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        for ((key, _), _) in holders.iter().zip(is_gone).filter(|(_, is_gone)| *is_gone) {
            let cgroup = self.leases.lease_of(*key).map(|lease| lease.container.cgroup.clone());
            self.first_process_gone(*key);
            if cgroup.is_some_and(|cgroup| cgroup.as_deref().is_none_or(watch::is_empty)) {
                self.happens(Event::Gone(*key));
            }
        }
    }

    /// A container that was started again has the cgroup of the one before. Nobody else is in there, so that one is gone,
    /// although the cgroup has not been seen empty: this daemon may have been away.
    fn end_predecessors(&mut self, container: &Container) {
        if container.cgroup.is_none() {
            return;
        }
        let own = Key::of(container);
        let leases = self.leases.all().filter(|lease| lease.container.cgroup == container.cgroup);
        let others = leases.map(|lease| Key::of(&lease.container));
        let gone: Vec<Key> = others.filter(|key| *key != own && !self.holders.contains_key(key)).collect();
        for key in gone {
            self.first_process_gone(key);
            self.happens(Event::Gone(key));
        }
    }

    /// Decides, and does what was decided. What cannot be done is one more event.
    fn happens(&mut self, event: Event) {
        // Time first: a lease begins when it does.
        let mut events = vec![event, Event::Time(self.began.elapsed())];
        while let Some(event) = events.pop() {
            let mut failed = Vec::new();
            for decision in self.leases.handle(event) {
                // Another hook of a container that was told no is told the same.
                if let Decision::Grant(ticket, lease) = &decision
                    && failed.contains(&Key::of(&lease.container))
                {
                    let no = No { status: 1, message: "the lease could not be made good".into(), hint: None };
                    self.say_no(*ticket, &lease.container, &lease.asked, no);
                    continue;
                }
                failed.extend(self.carry_out(decision));
            }
            events.extend(failed.into_iter().map(Event::Failed));
        }
    }

    /// Does it; gives the container whose grant could not be carried out.
    fn carry_out(&mut self, decision: Decision) -> Option<Key> {
        match decision {
            Decision::Grant(ticket, lease) => return self.grant(ticket, *lease),
            Decision::Refuse(ticket, refusal) => self.refuse(ticket, &refusal),
            Decision::Queue(ticket, seconds, ahead) => self.queues(ticket, seconds, ahead),
            Decision::Warn(what) => warn!("{what}"),
            Decision::Withdraw(lease) => {
                self.no_longer_watch(Key::of(&lease.container));
                if let Err(error) = grant::take_back(&self.store, &self.plan, &lease) {
                    error!(container = lease.container.id, "a lease is not withdrawn as a whole: {error:#}");
                }
            }
            Decision::End(lease) => {
                let key = Key::of(&lease.container);
                self.no_longer_watch(key);
                if lease.mps.is_some() {
                    self.servers.look();
                }
                info!(container = lease.container.id, devices = names(&lease), "ended a lease");
                if let Err(error) = self.store.remove(&lease) {
                    // The next start of the daemon finds that its container is gone.
                    error!(
                        container = lease.container.id,
                        "cannot remove the file of an ended lease: {error}"
                    );
                }
            }
        }
        None
    }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
