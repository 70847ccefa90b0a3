//! What a keeper sees: the lock, processes, and what the control daemon says.

use std::time::{Duration, Instant};

use tracing::info;

use super::at_work::AtWork;
use super::blocked;
use super::control::{Control, Unanswered};
use super::foreign;
use super::keeper::Keeper;
use super::kept::Kept;
use super::lock;
use super::process::{Process, is_here, runs, users};
use super::protocol::State;
use super::reason::Reason;
use super::reply::{self, ServerState};
use super::settings::Settings;
use super::step::{Answers, Daemon, Goal, Seen, Server};

/// The lock that a control daemon holds as long as it lives.
const LOCK: &str = "control_lock";
/// As often all is read back of a server that serves.
const READ_BACK: Duration = Duration::from_secs(60);
/// One time without an answer is a busy machine.
const SILENT: u32 = 2;

impl Keeper {
    /// Looks at everything.
    pub(super) fn look(&mut self) -> Seen {
        if self.server.as_mut().is_some_and(Process::has_ended) {
            self.server = None;
            self.read_back = None;
        }
        let mut daemon = self.look_for_daemon();
        if daemon != Daemon::Running {
            self.clients.clear();
        }
        if daemon != Daemon::Running || !self.front.is_open() {
            // Whoever has the front finds somebody who turns him away.
            let _ = self.front.close();
        }
        let is_asked =
            daemon == Daemon::Running && self.course.ending.is_none() && self.course.goal == Goal::Run;
        let mut answers = Answers::Silent;
        if is_asked {
            match self.ask() {
                Ok(told) => answers = told,
                Err(Unanswered::Nobody) => daemon = Daemon::Unlocked,
                Err(error) => self.note_silence(&error),
            }
        }
        if let Answers::Told { server, .. } = &answers {
            self.silent = 0;
            self.take_note(server.as_ref());
        }
        Seen { daemon, answers, is_open: self.front.is_open() }
    }

    fn look_for_daemon(&mut self) -> Daemon {
        if self.daemon.as_mut().is_some_and(Process::has_ended) {
            self.daemon = None;
            self.forget_daemon();
        }
        // Who cannot look takes it that there is one.
        let Ok(holder) = lock::holder(&self.place.pipe().join(LOCK)) else { return Daemon::Running };
        if let Some(pid) = holder {
            if self.daemon.as_ref().is_some_and(|daemon| daemon.pid == pid) {
                return Daemon::Running;
            }
            if let Some(found) = self.find_daemon(pid) {
                if self.daemon.is_some() {
                    self.forget_daemon();
                }
                info!("{}: process {pid} is its MPS control daemon", self.what());
                self.daemon = Some(found);
                return Daemon::Running;
            }
        }
        let is_left = self.daemon.is_some()
            || self.server.is_some()
            || self.at_work().iter().any(|process| process.is_server);
        if is_left { Daemon::Unlocked } else { Daemon::Gone }
    }

    /// What was known of the last daemon is not true of the next, to which nobody is let before it is known as well.
    fn forget_daemon(&mut self) {
        let _ = self.front.close();
        self.course.is_guarded = false;
        self.read_back = None;
    }

    /// Takes hold of who has the lock, if it is a control daemon: root's own, of this machine. As long as nobody said which
    /// program it is, by its name.
    fn find_daemon(&self, pid: i32) -> Option<Process> {
        if pid <= 0 {
            return None;
        }
        let mut found = Process::find(pid).ok()?;
        let is_program = match &self.kept {
            Some(kept) => runs(pid, &kept.settings.control),
            None => AtWork::read(pid).is_some_and(|process| !process.is_server),
        };
        let is_daemon = is_program && users(pid) == Some([0, 0]) && is_here(pid);
        // Else all of this was said of another.
        (is_daemon && !found.has_ended()).then_some(found)
    }

    /// Refuses to start a control daemon that would not get the lock.
    pub(super) fn check_lock(&self) -> Result<(), Reason> {
        let lock = self.place.pipe().join(LOCK);
        match lock::holder(&lock) {
            Ok(Some(pid)) => Err(foreign::refuse(&self.what(), &lock, (pid > 0).then_some(pid))),
            _ => Ok(()),
        }
    }

    /// MPS programs that run here for this device. Which they are is to be known: a name is anybody's.
    pub(super) fn at_work(&self) -> Vec<AtWork> {
        let Some(kept) = &self.kept else { return Vec::new() };
        let pipe = self.place.pipe();
        AtWork::all().into_iter().filter(|process| process.is_of(&pipe) && process.is_kept(kept)).collect()
    }

    fn ask(&mut self) -> Result<Answers, Unanswered> {
        let (Some(control), Some(Kept { settings, .. })) = (self.control(), self.kept.clone()) else {
            return Err(Unanswered::Silent);
        };
        let is_fresh = self.read_back.is_some_and(|then| then.elapsed() < READ_BACK);
        if let Some(server) = self.server.as_ref().filter(|_| is_fresh && self.state == State::Ready) {
            // Its limits were read back a short while ago, and nobody else may set them.
            let server = quick(&control, server.pid)?;
            return Ok(Answers::Told { defaults_hold: true, server: Some(server) });
        }
        let percentage = control.ask("get_default_active_thread_percentage")?;
        let memory = control.ask("get_default_device_pinned_mem_limit 0")?;
        let defaults_hold = hold(&settings, &percentage, &memory);
        let servers = reply::pids(&control.ask("get_server_list")?);
        // There is one, or the last one and the next.
        let server = match servers.last().filter(|pid| Process::find(**pid).is_ok()) {
            Some(pid) => Some(thorough(&control, *pid, &settings)?),
            None => None,
        };
        if self.front.is_open() {
            self.reason = self.gpu.disturbance(&settings);
        }
        let is_good = server.as_ref().is_some_and(|server| server.limits_hold) && defaults_hold;
        self.read_back = is_good.then(Instant::now);
        Ok(Answers::Told { defaults_hold, server })
    }

    fn note_silence(&mut self, error: &Unanswered) {
        self.silent += 1;
        if self.silent < SILENT || self.state == State::Starting {
            info!("{}: {error}", self.what());
            return;
        }
        let server = self.server.as_ref().map(|server| server.pid);
        if let Some(daemon) = &self.daemon {
            self.reason = Some(blocked::reason(&self.what(), self.uuid(), daemon.pid, server));
        }
    }

    /// Remembers the server and its clients.
    fn take_note(&mut self, server: Option<&Server>) {
        let Some(server) = server else {
            self.clients.clear();
            self.course.fault = None;
            return;
        };
        self.clients.clone_from(&server.clients);
        if self.course.server != Some(server.pid) {
            info!("{}: process {} is its MPS server", self.what(), server.pid);
            // Another user's comes in the place of the last one by itself, and takes its time as well.
            self.course.server_asked = Some(Instant::now());
        }
        self.course.server = Some(server.pid);
        if self.server.as_ref().map(|known| known.pid) != Some(server.pid) {
            self.server = Process::find(server.pid).ok();
        }
        let is_in_fault = server.state == ServerState::Fault && server.clients.is_empty();
        self.course.fault = is_in_fault.then(|| self.course.fault.unwrap_or_else(Instant::now));
    }
}

/// How a server is, of which everything else is known.
fn quick(control: &Control, pid: i32) -> Result<Server, Unanswered> {
    let state = reply::state(&control.ask(&format!("get_server_status {pid}"))?);
    let clients = reply::pids(&control.ask(&format!("get_client_list {pid}"))?);
    Ok(Server { pid, state: state.unwrap_or(ServerState::Active), limits_hold: true, clients })
}

fn thorough(control: &Control, pid: i32, settings: &Settings) -> Result<Server, Unanswered> {
    let state = reply::state(&control.ask(&format!("get_server_status {pid}"))?);
    let percentage = control.ask(&format!("get_active_thread_percentage {pid}"))?;
    // Without a word of its state, one that knows its limits is one that serves: it has them from then on.
    let unsaid = if percentage.trim().is_empty() { ServerState::Initializing } else { ServerState::Active };
    let state = state.unwrap_or(unsaid);
    if state == ServerState::Initializing {
        return Ok(Server { pid, state, limits_hold: true, clients: Vec::new() });
    }
    let memory = control.ask(&format!("get_device_pinned_mem_limit {pid} 0"))?;
    let clients = reply::pids(&control.ask(&format!("get_client_list {pid}"))?);
    Ok(Server { pid, state, limits_hold: hold(settings, &percentage, &memory), clients })
}

fn hold(settings: &Settings, percentage: &str, memory: &str) -> bool {
    reply::is_percentage(percentage, settings.active_thread_percentage)
        && reply::is_memory(memory, settings.memory_mib)
}
