//! `divvy mps supervise`: one process that keeps MPS on one device. One thread, which waits for what happens to the control
//! daemon and its server, for requests, and for those who knock at the tombstone. It may be killed at any time: the next
//! one goes on with what it finds.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};

use super::ensure::{self, Present, Verdict, Wanted};
use super::foreign;
use super::keeper::Keeper;
use super::kept::{self, Kept};
use super::place::Place;
use super::protocol::{Answer, LINE_LIMIT, Request, Status, VERSION, What};
use super::reason::Reason;
use super::settings::Settings;
use super::step::Goal;
use super::{lock, place};
use crate::failure::Failure;
use crate::{sys, trust};

/// How long a caller may take to say what it wants, or to hear the answer. All are root's.
const CALLER_LIMIT: Duration = Duration::from_secs(2);
/// How long one may wait until MPS is ready: a server that ends, and two that start.
const WAIT_LIMIT: Duration = Duration::from_secs(75);

struct Supervisor {
    keeper: Keeper,
    listener: UnixListener,
    waiting: Vec<Waiting>,
    /// Who waits for its end.
    stopping: Vec<UnixStream>,
    written: Option<Status>,
}

/// Who waits for MPS.
struct Waiting {
    caller: UnixStream,
    wanted: Wanted,
    since: Instant,
    /// Failures that were not of its making.
    failures: u32,
}

/// Keeps the device with this UUID until MPS is ended on it. Returns at once if somebody does already.
///
/// # Errors
/// When the state directory cannot be used.
pub fn run(state_dir: &Path, uuid: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let error = anyhow::anyhow!("only root can start MPS for others");
        return Err(Failure::new(error).hint("`divvy serve` starts this by itself, as root").into());
    }
    if let Err(error) = sys::close_on_exec() {
        // Before Linux 5.11. Who starts this has closed its own.
        debug!("descriptors may be inherited: {error}");
    }
    let place = Place::new(state_dir, uuid);
    prepare(state_dir, &place)?;
    let lock =
        lock::take(&place.lock()).with_context(|| format!("cannot lock {}", place.lock().display()))?;
    let Some(_lock) = lock else {
        info!("{uuid}: another supervisor keeps it");
        // Else this start has failed for systemd, which repeats it as long as the other one lives.
        tell_systemd();
        return Ok(());
    };
    let listener = listen(&place.socket())?;
    let keeper = Keeper::new(state_dir, uuid)
        .with_context(|| format!("cannot take up what is in {}", place.directory().display()))?;
    tell_systemd();
    Supervisor { keeper, listener, waiting: Vec::new(), stopping: Vec::new(), written: None }.serve()
}

/// That the device is kept.
fn tell_systemd() {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

fn prepare(state_dir: &Path, place: &Place) -> Result<()> {
    for directory in [state_dir.to_owned(), state_dir.join(place::DIRECTORY), place.directory().to_owned()] {
        match DirBuilder::new().mode(0o755).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", directory.display()));
            }
            _ => {}
        }
    }
    // Servers of other users than root look for their pipe in there, whatever the umask.
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755));
    open(place.directory()).and_then(|()| open(&state_dir.join(place::DIRECTORY)))?;
    if let Some(weakness) = trust::weakness(place.directory()) {
        let error = anyhow::anyhow!("{} is not used: {weakness}", place.directory().display());
        return Err(Failure::new(error).hint("keep the state directory where only root can write").into());
    }
    Ok(())
}

/// The lock says that nobody else listens there.
fn listen(path: &Path) -> Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
        }
        _ => {}
    }
    // Nobody else may connect, not even for the moment before the permissions are set.
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(umask);
    let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
    listener.set_nonblocking(true).context("cannot set up the socket")?;
    Ok(listener)
}

impl Supervisor {
    fn serve(mut self) -> Result<()> {
        loop {
            let has_ended = self.keeper.go_on();
            if has_ended {
                return self.leave();
            }
            if self.keeper.course.goal == Goal::Close {
                self.stopping.drain(..).for_each(|caller| answer(&caller, &Answer::Stopped));
            }
            // Who is answered may look at once.
            // A full disk is no reason to leave containers without a tombstone.
            self.try_write_status();
            self.answer_waiting();
            while !self.wait()? {
                self.keeper.front.turn_away();
            }
            self.keeper.front.turn_away();
            while let Ok((caller, _)) = self.listener.accept() {
                self.hear(caller);
            }
        }
    }

    /// Until something happens, or it is time to look: then it is true. Not where somebody knocks at the tombstone, as
    /// anybody may, as often as he likes.
    fn wait(&self) -> Result<bool> {
        let keeper = &self.keeper;
        let mut fds = vec![self.listener.as_fd()];
        fds.extend(keeper.daemon.as_ref().map(AsFd::as_fd));
        fds.extend(keeper.server.as_ref().map(AsFd::as_fd));
        let of_interest = fds.len();
        fds.extend(keeper.front.tombstone());
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = keeper.next_look.map_or(PollTimeout::NONE, |at| {
            // A millisecond more, so that it is not a little too early.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(true),
            Ok(_) => {}
            Err(error) => bail!("cannot wait: {error}"),
        }
        let is_time = keeper.next_look.is_some_and(|at| Instant::now() >= at);
        Ok(is_time || polled[..of_interest].iter().any(|fd| fd.any().unwrap_or(true)))
    }

    fn hear(&mut self, caller: UnixStream) {
        let request = match read_request(&caller) {
            Ok(request) => request,
            Err(error) => {
                let reason = Reason::failed(
                    format!("the MPS supervisor does not understand the request: {error}"),
                    "divvy was upgraded: systemctl restart 'divvy-mps@*', which harms no client",
                );
                return answer(&caller, &reason.into());
            }
        };
        match request.what {
            // It is answered by the next supervisor.
            What::Ensure { .. } | What::Restart { .. } if self.keeper.course.goal == Goal::End => {}
            What::Ensure { settings, uid, is_idle } => {
                // Whoever it serves, it serves as root.
                let uid = if settings.multi_user { 0 } else { uid };
                let wanted = Wanted { kept: Kept { settings: *settings, uid }, is_idle };
                // It is not answered by what was true a while ago.
                self.keeper.read_back = None;
                self.await_it(caller, wanted);
            }
            What::Terminate { pids } => answer(&caller, &self.terminate(&pids)),
            What::Restart { force, settings } => {
                self.restart(caller, force, settings.map(|settings| *settings))
            }
            What::Stop { force } => self.stop(caller, force),
        }
    }

    fn answer_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            let verdict = self.judge(&waiting);
            debug!("{}: {verdict:?}", self.keeper.what());
            match verdict {
                Verdict::Ready => {
                    self.keep(&waiting.wanted.kept);
                    answer(&waiting.caller, &self.ready());
                    continue;
                }
                Verdict::Refuse(reason) => {
                    answer(&waiting.caller, &reason.into());
                    continue;
                }
                Verdict::Wait => {}
                Verdict::Start | Verdict::Renew => {
                    self.keep(&waiting.wanted.kept);
                    if verdict == Verdict::Renew {
                        self.keeper.begin_anew()
                    } else {
                        self.keeper.begin()
                    }
                    self.keeper.next_look = Some(Instant::now());
                }
            }
            self.waiting.push(waiting);
        }
    }

    /// What it waited for may have come to nothing.
    fn judge(&self, waiting: &Waiting) -> Verdict {
        let keeper = &self.keeper;
        if let Some(reason) = keeper.reason.as_ref().filter(|_| keeper.failed != waiting.failures) {
            return Verdict::Refuse(reason.clone());
        }
        match ensure::judge(&waiting.wanted, &self.present()) {
            Verdict::Wait if waiting.since.elapsed() > WAIT_LIMIT => {
                let limit = WAIT_LIMIT.as_secs();
                let message = format!("{}: MPS is not ready after {limit} seconds", keeper.what());
                Verdict::Refuse(Reason::not_now(message, "`divvy mps` shows its state"))
            }
            verdict => verdict,
        }
    }

    fn present(&self) -> Present<'_> {
        let keeper = &self.keeper;
        let clients = &keeper.clients;
        Present {
            kept: keeper.kept.as_ref(),
            state: keeper.state,
            reason: keeper.reason.as_ref(),
            is_resting: keeper.course.goal != Goal::Run || keeper.course.retry_at.is_some(),
            clients: (!clients.is_empty()).then(|| foreign::list(clients, "uses", "use")),
        }
    }

    fn keep(&mut self, kept: &Kept) {
        if self.keeper.kept.as_ref() == Some(kept) {
            return;
        }
        if let Err(error) = kept.write(&self.keeper.place) {
            warn!("{}: what MPS shall be cannot be written down: {error}", self.keeper.what());
        }
        self.keeper.kept = Some(kept.clone());
    }

    fn ready(&self) -> Answer {
        let place = &self.keeper.place;
        let has_shm =
            self.keeper.kept.as_ref().is_some_and(|kept| kept.settings.shared_memory_bytes.is_some());
        Answer::Ready { front: place.front(), shared_memory: has_shm.then(|| place.shared_memory()) }
    }

    fn terminate(&mut self, pids: &[i32]) -> Answer {
        self.keeper.read_back = None;
        self.keeper.go_on();
        self.try_write_status();
        let Some((control, server)) = self.keeper.control().zip(self.keeper.server.as_ref()) else {
            return Answer::Terminated { pids: Vec::new() };
        };
        let mut terminated = Vec::new();
        // Those that are no clients, or none any more, have nothing to end.
        for pid in pids.iter().filter(|pid| self.keeper.clients.contains(pid)) {
            match control.ask(&format!("terminate_client {} {pid}", server.pid)) {
                Ok(_) => terminated.push(*pid),
                Err(error) => {
                    let message =
                        format!("{}: the work of process {pid} cannot be ended: {error}", self.keeper.what());
                    return Reason::failed(message, "`divvy mps` shows the state of MPS").into();
                }
            }
        }
        Answer::Terminated { pids: terminated }
    }

    /// Why MPS is not ended: somebody would miss it.
    fn use_of_it(&mut self, force: bool) -> Option<Reason> {
        self.keeper.read_back = None;
        if self.keeper.course.goal == Goal::Run {
            self.keeper.go_on();
        }
        let what = self.keeper.what();
        let clients = &self.keeper.clients;
        let use_of_it = match (force, &self.keeper.holders()[..], &clients[..]) {
            (true, _, _) | (_, [], []) => return None,
            (_, [], _) => format!("{} MPS", foreign::list(clients, "uses", "use")),
            (_, holders, _) => format!("{} has a share", holders.join(", ")),
        };
        let hint = "end that first, or add --force, which ends its work";
        Some(Reason::not_now(format!("{what}: {use_of_it}"), hint))
    }

    /// Why there is nothing: it has just begun, or is for a device that nobody shares.
    fn untold(&self) -> Reason {
        let hint = format!(
            "it begins when a container asks for a share; if `divvy list` has no {}, end its supervisor",
            self.keeper.uuid()
        );
        Reason::failed("nobody has said yet what MPS shall be there", hint)
    }

    fn restart(&mut self, caller: UnixStream, force: bool, settings: Option<Settings>) {
        let Some(mut kept) = self.keeper.kept.clone() else {
            let reason = self.untold();
            let message = format!("{}: {}", self.keeper.what(), reason.message);
            return answer(&caller, &Reason { message, ..reason }.into());
        };
        // What is closed already is nobody's work.
        let is_closed = self.keeper.course.goal == Goal::Close;
        if let Some(reason) = self.use_of_it(force || is_closed) {
            return answer(&caller, &reason.into());
        }
        if let Some(settings) = settings {
            let uid = if settings.multi_user { 0 } else { kept.uid };
            kept = Kept { settings, uid };
            self.keep(&kept);
        }
        info!("{}: ending MPS, to begin anew", self.keeper.what());
        self.keeper.begin_anew();
        self.await_it(caller, Wanted { kept, is_idle: false });
    }

    fn await_it(&mut self, caller: UnixStream, wanted: Wanted) {
        let failures = self.keeper.failed;
        self.waiting.push(Waiting { caller, wanted, since: Instant::now(), failures });
    }

    fn stop(&mut self, caller: UnixStream, force: bool) {
        if self.keeper.course.goal == Goal::Close {
            return answer(&caller, &Answer::Stopped);
        }
        if let Some(reason) = self.use_of_it(force) {
            return answer(&caller, &reason.into());
        }
        let what = self.keeper.what();
        info!("{what}: ending MPS");
        for holder in self.keeper.holders() {
            warn!("{what}: CUDA fails in {holder} from now on");
        }
        self.stopping.push(caller);
        for waiting in self.waiting.drain(..) {
            let reason = Reason::not_now(format!("{what}: MPS is being ended"), "start the container again");
            answer(&waiting.caller, &reason.into());
        }
        self.keeper.begin_end_for_good();
    }

    /// MPS has ended: nothing is left to keep.
    fn leave(mut self) -> Result<()> {
        self.keeper.clean_up();
        let _ = fs::remove_file(self.keeper.place.socket());
        for caller in self.stopping {
            answer(&caller, &Answer::Stopped);
        }
        Ok(())
    }

    fn try_write_status(&mut self) {
        if let Err(error) = self.write_status() {
            warn!("{}: {error:#}", self.keeper.what());
        }
    }

    fn write_status(&mut self) -> Result<()> {
        let keeper = &self.keeper;
        let untold = keeper.kept.is_none() && keeper.course.goal != Goal::End;
        let untold = untold.then(|| self.untold());
        let reason = keeper.reason.as_ref().or(untold.as_ref());
        let status = Status {
            version: VERSION,
            state: keeper.state,
            why: reason.map(|reason| reason.message.clone()),
            hint: reason.and_then(|reason| reason.hint.clone()),
            supervisor_pid: i32::try_from(std::process::id()).unwrap_or_default(),
            control_pid: keeper.daemon.as_ref().map(|daemon| daemon.pid),
            server_pid: keeper.server.as_ref().map(|server| server.pid),
            clients: keeper.clients.clone(),
            failures: keeper.failures,
            since: now(),
        };
        let since = self
            .written
            .as_ref()
            .filter(|written| written.state == status.state)
            .map(|written| written.since);
        let status = Status { since: since.unwrap_or(status.since), ..status };
        if self.written.as_ref() != Some(&status) {
            let path = keeper.place.status();
            kept::write(&path, &status).with_context(|| format!("cannot write {}", path.display()))?;
            self.written = Some(status);
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read_request(caller: &UnixStream) -> Result<Request> {
    caller.set_nonblocking(false)?;
    caller.set_read_timeout(Some(CALLER_LIMIT))?;
    caller.set_write_timeout(Some(CALLER_LIMIT))?;
    let mut line = Vec::new();
    BufReader::new(caller.take(LINE_LIMIT as u64)).read_until(b'\n', &mut line)?;
    let version: serde_json::Value = serde_json::from_slice(&line)?;
    if version["version"] != VERSION {
        bail!("it is of version {}, and this is version {VERSION}", version["version"]);
    }
    Ok(serde_json::from_value(version)?)
}

/// That nobody listens any more is the caller's affair.
fn answer(mut caller: &UnixStream, answer: &Answer) {
    let line = serde_json::to_string(answer).unwrap_or_default() + "\n";
    if let Err(error) = caller.write_all(line.as_bytes()) {
        debug!("an answer is not heard: {error}");
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn who_knocks_at_the_tombstone_has_nothing_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "GPU-0");
        fs::create_dir_all(place.pipe()).unwrap();
        let mut keeper = Keeper::new(dir.path(), "GPU-0").unwrap();
        keeper.front.close().unwrap();
        let listener = UnixListener::bind(place.socket()).unwrap();
        let mut supervisor =
            Supervisor { keeper, listener, waiting: Vec::new(), stopping: Vec::new(), written: None };
        let caller = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
        connect(caller.as_raw_fd(), &UnixAddr::new(&place.front().join("control")).unwrap()).unwrap();
        assert!(!supervisor.wait().unwrap());
        supervisor.keeper.next_look = Some(Instant::now());
        assert!(supervisor.wait().unwrap(), "it is time");
        supervisor.keeper.next_look = None;
        let _caller = UnixStream::connect(place.socket()).unwrap();
        assert!(supervisor.wait().unwrap(), "somebody asks");
    }
}
