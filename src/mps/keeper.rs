//! Keeps MPS on one device: looks, has `step` decide, and does it. It takes nothing for granted of what it did before: each
//! round begins with what is there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use tracing::{info, warn};

use super::at_work::AtWork;
use super::control::Control;
use super::front::Front;
use super::gpu::Gpu;
use super::kept::Kept;
use super::place::Place;
use super::process::Process;
use super::protocol::State;
use super::reason::Reason;
use super::settings::Settings;
use super::step::{self, Course, Force, Goal, Step};
use super::{client, compute_mode, foreign, front, guard, launch, log, programs, shared_memory};

/// Between two looks at what changes within milliseconds.
const SOON: Duration = Duration::from_millis(20);
/// Between two looks at what somebody has to mend.
const LATER: Duration = Duration::from_secs(2);
/// Between two looks at a server that serves. Its end and its daemon's are seen at once.
const SELDOM: Duration = Duration::from_secs(10);
/// The guard waits a second and a half for who says nothing, and others, hundreds too, may be before the one who tries it.
const GUARD_LIMIT: Duration = Duration::from_secs(10);
/// A start that held so long was none that failed.
const LASTING: Duration = Duration::from_secs(10);

/// What keeps one device.
#[derive(Debug)]
pub struct Keeper {
    /// Its directories.
    pub place: Place,
    /// What it keeps to.
    pub kept: Option<Kept>,
    /// What was done so far, and what for.
    pub course: Course,
    /// How MPS is.
    pub state: State,
    /// Why that is not as it should be.
    pub reason: Option<Reason>,
    /// Starts after a failure, one after the other.
    pub failures: u32,
    /// All that there were.
    pub failed: u32,
    /// Clients of the server, when it last told.
    pub clients: Vec<i32>,
    /// When to look again, if nothing happens before.
    pub next_look: Option<Instant>,
    /// The control daemon.
    pub daemon: Option<Process>,
    /// The server.
    pub server: Option<Process>,
    /// What containers see.
    pub front: Front,
    /// When all was last read back.
    pub read_back: Option<Instant>,
    /// Looks at which the daemon said nothing, one after the other.
    pub(super) silent: u32,
    pub(super) gpu: Gpu,
    uuid: String,
    state_dir: PathBuf,
    ready_since: Option<Instant>,
    has_served: bool,
    /// Somebody asked since it last failed.
    is_asked_for: bool,
    /// How hard the daemon was told to end.
    forced: Option<Force>,
}

impl Keeper {
    /// Takes up what is there.
    ///
    /// # Errors
    /// When the directories cannot be used.
    pub fn new(state_dir: &Path, uuid: &str) -> io::Result<Self> {
        let place = Place::new(state_dir, uuid);
        let kept = Kept::read(&place)?;
        let goal = match kept {
            Some(_) if place.closed().exists() => Goal::Close,
            Some(_) => Goal::Run,
            None => Goal::Rest,
        };
        Ok(Self {
            front: Front::open(&place)?,
            gpu: Gpu::new(&place),
            place,
            kept,
            course: Course { goal, ..Course::default() },
            state: State::Down,
            reason: None,
            failures: 0,
            failed: 0,
            clients: Vec::new(),
            next_look: None,
            daemon: None,
            server: None,
            read_back: None,
            silent: 0,
            uuid: uuid.to_owned(),
            state_dir: state_dir.to_owned(),
            ready_since: None,
            has_served: false,
            is_asked_for: true,
            forced: None,
        })
    }

    /// The device as people call it.
    pub fn what(&self) -> String {
        self.kept.as_ref().map_or_else(|| self.uuid.clone(), |kept| kept.settings.what.clone())
    }

    /// The device.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Does what is to be done until there is nothing for now. Returns whether MPS has ended for good.
    pub fn go_on(&mut self) -> bool {
        if self.course.goal == Goal::Close && self.holders().is_empty() {
            self.begin_end_for_good();
        }
        if let Err(error) = log::bound(&self.place) {
            warn!("{}: its log grows: {error}", self.what());
        }
        loop {
            let seen = self.look();
            let now = Instant::now();
            let (state, step) = step::next(&self.course, &seen, now);
            if state != self.state {
                info!("{}: {state:?}", self.what());
                self.note_lasting(now);
                self.ready_since = (state == State::Ready).then_some(now);
                self.state = state;
            }
            match step {
                Step::Wait => {
                    self.rest(now);
                    return false;
                }
                Step::Renew if self.is_in_use() => {
                    self.reason = Some(self.other_limits());
                    self.next_look = Some(now + LATER);
                    return false;
                }
                Step::Renew => self.begin_anew(),
                Step::End(force) => {
                    self.end(force);
                    self.next_look = Some(now + SOON);
                    return false;
                }
                Step::Ended => {
                    let goal = self.course.goal;
                    self.course = Course { goal, retry_at: self.course.retry_at, ..Course::default() };
                    self.forced = None;
                    if goal == Goal::End {
                        if self.holders().is_empty() {
                            return true;
                        }
                        self.course.goal = Goal::Close;
                    }
                }
                Step::TryGuard => {
                    if let Err(reason) = self.try_guard() {
                        if self.is_in_use() {
                            self.reason = Some(reason);
                            self.next_look = Some(now + LATER);
                            return false;
                        }
                        self.fail(reason);
                    }
                }
                Step::Fail(trouble) => self.fail(Reason::of(trouble, &self.what(), &self.uuid)),
                Step::Launch if !self.is_asked_for && !self.is_needed() => self.leave_alone(),
                Step::Launch | Step::SetLimits | Step::StartServer => {
                    if let Err(reason) = self.go_up(step, now) {
                        self.fail(reason);
                    }
                }
                Step::Open => {
                    if let Err(reason) = self.check_alone() {
                        self.fail(reason);
                    } else if let Err(error) = self.front.link() {
                        // Those at work have their connections.
                        self.reason = Some(self.not_opened(&error));
                        self.next_look = Some(now + LATER);
                        return false;
                    } else {
                        self.reason = None;
                    }
                }
            }
        }
    }

    /// Nothing is to be done: when to look again.
    fn rest(&mut self, now: Instant) {
        if self.state == State::Ready {
            self.has_served = true;
            // Should somebody change them, they are set once more.
            self.course.limits_set = false;
            self.gpu.leave();
            self.note_lasting(now);
        }
        if self.state == State::Fault {
            self.reason = Some(self.fault());
        }
        if self.course.goal == Goal::Close {
            self.reason = Some(self.closed());
        }
        if self.reason.is_some() {
            // Whether it is mended is to be seen at the next look.
            self.read_back = None;
        }
        self.next_look = match self.state {
            State::Down if self.course.goal == Goal::Run => self.course.retry_at,
            State::Down if self.course.goal == Goal::Close => Some(now + LATER),
            State::Down => None,
            State::Starting => Some(now + SOON),
            State::Ready if self.reason.is_none() => Some(now + SELDOM),
            State::Ready | State::Fault | State::Blocked => Some(now + LATER),
        };
    }

    /// What ends after it served for a while did not fail to start.
    fn note_lasting(&mut self, now: Instant) {
        if self.ready_since.is_some_and(|since| now.saturating_duration_since(since) >= LASTING) {
            self.failures = 0;
        }
    }

    /// A step towards a server that serves.
    fn go_up(&mut self, step: Step, now: Instant) -> Result<(), Reason> {
        let Some(Kept { settings, uid }) = self.kept.clone() else { return Ok(()) };
        let failed = |error: io::Error| {
            let hint = "`divvy mps` shows its state, and the log is beside it";
            Reason::failed(format!("{}: MPS cannot be started: {error}", settings.what), hint)
        };
        match step {
            Step::Launch => {
                info!("{}: starting {}", settings.what, settings.control.display());
                self.check_lock()?;
                let option = programs::check(&settings)?;
                self.gpu.check(&settings, &self.place)?;
                // Until the server is told to start, which is when it gets the GPU.
                self.gpu.close(&settings)?;
                let child = launch::control_daemon(&settings, uid, &self.place, option)?;
                self.daemon = Some(Process::of(child).map_err(failed)?);
                self.course.launched = Some(now);
            }
            Step::SetLimits => {
                self.course.limits_set = true;
                let Settings { active_thread_percentage, memory_mib, .. } = settings;
                self.tell(&format!("set_default_active_thread_percentage {active_thread_percentage}"));
                self.tell(&format!("set_default_device_pinned_mem_limit 0 {memory_mib}M"));
                self.read_back = None;
            }
            _ => {
                self.gpu.admit_server(&settings)?;
                self.tell(&format!("start_server -uid {uid}"));
                // The daemon may have been busy until now.
                self.course.server_asked = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Nobody was faster on the GPU than its server.
    fn check_alone(&mut self) -> Result<(), Reason> {
        let Some(Kept { settings, .. }) = self.kept.clone() else { return Ok(()) };
        self.gpu.admit_server(&settings)?;
        let mut own = self.clients.clone();
        own.extend(self.server.as_ref().map(|server| server.pid));
        self.gpu.check_alone(&settings, &own)
    }

    /// A control daemon that was started by an older divvy, or by hand, may have none.
    fn try_guard(&mut self) -> Result<(), Reason> {
        let checked = guard::check(&self.place.pipe().join(front::CONTROL), GUARD_LIMIT);
        self.course.is_guarded = checked.is_ok();
        checked.map_err(|error| Reason::unguarded(&self.what(), &error))
    }

    /// What it does with it is read back.
    pub(super) fn tell(&self, command: &str) {
        let Some(control) = self.control() else { return };
        if let Err(error) = control.ask(command) {
            warn!("{}: {command}: {error}", self.what());
        }
    }

    /// None as long as nobody said which program it is.
    pub(super) fn control(&self) -> Option<Control> {
        self.kept.as_ref().map(|kept| Control::new(&kept.settings.control, self.place.pipe()))
    }

    /// Keeps containers out, and ends what is there. It is started again after a while, if anybody may need it.
    fn fail(&mut self, reason: Reason) {
        self.failures += 1;
        self.failed += 1;
        let pause = step::pause(self.failures);
        self.course.retry_at = Some(Instant::now() + pause);
        self.begin_end();
        self.is_asked_for = false;
        match self.is_needed() {
            true => warn!("{}; the next start is in {} seconds", reason.message, pause.as_secs()),
            false => {
                warn!("{}", reason.message);
                self.leave_alone();
            }
        }
        self.reason = Some(reason);
    }

    /// Whether somebody may miss MPS, who does not ask for it now.
    fn is_needed(&self) -> bool {
        self.has_served
            || self.kept.as_ref().is_some_and(|kept| kept.settings.at_boot)
            || !self.holders().is_empty()
    }

    /// It did not come to be, and nobody misses it: the GPU is as it was.
    fn leave_alone(&mut self) {
        self.course.goal = Goal::Rest;
        self.restore_mode();
    }

    /// Starts MPS, if it does not run.
    pub fn begin(&mut self) {
        self.is_asked_for = true;
        if let Err(error) = remove(&self.place.closed()) {
            warn!("{}: {} stays: {error}", self.what(), self.place.closed().display());
        }
        self.course.goal = Goal::Run;
        self.course.retry_at = None;
        self.reason = None;
    }

    /// Ends MPS, and starts it with what is kept to now.
    pub fn begin_anew(&mut self) {
        self.begin();
        self.begin_end();
    }

    /// Ends MPS for good, once nobody has a share any more: until then its containers find no GPU without limits.
    pub fn begin_end_for_good(&mut self) {
        self.course.goal = Goal::End;
        // The next supervisor keeps to it, if this one is killed.
        if !self.holders().is_empty()
            && let Err(error) = std::fs::write(self.place.closed(), "")
        {
            warn!("{}: {} cannot be written: {error}", self.what(), self.place.closed().display());
        }
        self.begin_end();
    }

    fn begin_end(&mut self) {
        if let Err(error) = self.front.close() {
            warn!("{}: no tombstone can be put up: {error}", self.what());
        }
        if let Some(settings) = self.kept.as_ref().map(|kept| kept.settings.clone())
            && let Err(reason) = self.gpu.admit_nobody(&settings)
        {
            warn!("{}", reason.message);
        }
        self.course.server = None;
        self.course.ending.get_or_insert_with(Instant::now);
        self.read_back = None;
        self.clients.clear();
    }

    /// Ends the control daemon and its servers, each way once, and the last way until nothing is left.
    fn end(&mut self, force: Force) {
        let is_told = self.forced.replace(force) == Some(force);
        if is_told && force != Force::Kill {
            return;
        }
        let signal = match force {
            // Without a time of its own it waits until the last client has left.
            Force::Quit if self.daemon.is_some() && self.control().is_some() => {
                return self.tell("quit -t 1");
            }
            Force::Quit | Force::Terminate => libc::SIGTERM,
            Force::Kill => libc::SIGKILL,
        };
        for known in [&self.daemon, &self.server].into_iter().flatten() {
            known.signal(signal);
        }
        for server in self.at_work() {
            if !is_told {
                warn!("{}: ending process {}", self.what(), server.pid);
            }
            // It may be another's by now.
            if let Ok(process) = Process::find(server.pid)
                && AtWork::read(server.pid).as_ref() == Some(&server)
            {
                process.signal(signal);
            }
        }
    }

    /// After MPS has ended for good: nothing of it is left, but the directory that containers may have.
    pub fn clean_up(&mut self) {
        self.restore_mode();
        let undone = [
            self.front.remove(),
            shared_memory::unmount(&self.place),
            remove(&self.place.settings()),
            remove(&self.place.status()),
            remove(&self.place.closed()),
        ];
        for error in undone.into_iter().filter_map(Result::err) {
            warn!("{}: something of MPS is left: {error}", self.what());
        }
    }

    fn restore_mode(&mut self) {
        let Some(settings) = self.kept.as_ref().map(|kept| kept.settings.clone()) else { return };
        match self.gpu.restore(&settings) {
            Ok(None) => {}
            Ok(Some(other)) => {
                info!(
                    "{}: its compute mode stays {}, to which somebody set it",
                    settings.what,
                    compute_mode::word(other)
                );
            }
            Err(reason) => warn!("{}", reason.message),
        }
    }

    /// Whether ending MPS would cost anybody something.
    fn is_in_use(&self) -> bool {
        !self.clients.is_empty() || !self.holders().is_empty()
    }

    /// Who has a share of the device, in words.
    pub fn holders(&self) -> Vec<String> {
        client::holders(&self.state_dir, &self.uuid)
    }

    fn fault(&self) -> Reason {
        let left = match self.clients[..] {
            [] => "it recovers".to_owned(),
            _ => format!("{} it", foreign::list(&self.clients, "still has", "still have")),
        };
        Reason::not_now(
            format!("{}: a client's fault ended the work of all; {left}", self.what()),
            "containers whose work was lost have to end; then MPS serves again",
        )
    }

    fn not_opened(&self, error: &io::Error) -> Reason {
        let front = self.place.front();
        Reason::failed(
            format!("{}: containers cannot reach MPS through {}: {error}", self.what(), front.display()),
            "a container with CAP_SYS_ADMIN can have changed that directory: see what is in it",
        )
    }

    fn closed(&self) -> Reason {
        let (what, holders) = (self.what(), self.holders());
        Reason::not_now(
            format!("{what}: MPS was ended, and CUDA fails in what has a share: {}", holders.join(", ")),
            format!("end that, or begin MPS again: divvy mps restart {}", self.uuid),
        )
    }

    fn other_limits(&self) -> Reason {
        Reason::not_held(
            format!("{}: the MPS server that runs has other limits than the configuration", self.what()),
            format!("`divvy mps restart {} --force` ends the work of all its clients", self.uuid),
        )
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
