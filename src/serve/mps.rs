//! What is asked of MPS supervisors (`mps::client`), for containers that are about to start and in the background. Every
//! question may take as long as a server takes to start, so each has a thread of its own, and one device hears of one at a
//! time: nobody is told that a server is ready which another question ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hooks::lease::Lease;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::leases::{Key, Leases, Ticket};
use super::message::Message;
use crate::mps::client::{self, Known};
use crate::mps::protocol::Answer;
use crate::mps::settings::Settings;

/// Between two looks at what supervisors there are.
pub const SELDOM: Duration = Duration::from_secs(30);
/// What a container connects as whose user has no number here (kernel.overflowuid).
const NOBODY: u32 = 65534;

/// What comes back.
#[derive(Debug)]
pub enum News {
    /// What a flight waited for.
    Landed(u64, Answer),
    /// What supervisors there are, and were.
    Seen(Vec<Known>),
    /// The end of what was done in the background, for the device with this UUID.
    Kept(String, Answer),
}

/// A container that starts when its server runs.
#[derive(Debug)]
pub struct Passenger {
    /// The container.
    pub key: Key,
    /// Its hooks that asked.
    pub tickets: Vec<Ticket>,
}

/// One question, for all containers that want the same.
#[derive(Debug)]
struct Flight {
    id: u64,
    settings: Settings,
    uid: u32,
    is_idle: bool,
    is_on_its_way: bool,
    passengers: Vec<Passenger>,
}

/// All questions that are not answered.
#[derive(Debug)]
pub struct Servers {
    state_dir: PathBuf,
    to: UnboundedSender<Message>,
    flights: Vec<Flight>,
    last_flight: u64,
    /// Devices for which something is done in the background.
    busy: BTreeSet<String>,
    is_looking: bool,
    looks_again: bool,
    /// What went wrong last with each device: once is enough for the log.
    said: BTreeMap<String, String>,
}

impl Servers {
    /// Those of a state directory.
    pub fn new(state_dir: &Path, to: UnboundedSender<Message>) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            to,
            flights: Vec::new(),
            last_flight: 0,
            busy: BTreeSet::new(),
            is_looking: false,
            looks_again: false,
            said: BTreeMap::new(),
        }
    }

    /// Has a server run for a container with this lease; `is_idle`: nobody else has anything of its device, nor has the
    /// container had it before.
    pub fn ensure(&mut self, settings: &Settings, lease: &Lease, is_idle: bool, passenger: Passenger) {
        let aboard = self.flights.iter_mut().flat_map(|flight| &mut flight.passengers);
        if let Some(present) = aboard.into_iter().find(|present| present.key == passenger.key) {
            present.tickets.extend(passenger.tickets);
            return;
        }
        let uid = user(settings, lease);
        let goes_there = |flight: &&mut Flight| flight.uid == uid && flight.settings == *settings;
        if let Some(flight) = self.flights.iter_mut().find(goes_there) {
            flight.passengers.push(passenger);
            return;
        }
        self.last_flight += 1;
        self.flights.push(Flight {
            id: self.last_flight,
            settings: settings.clone(),
            uid,
            is_idle,
            is_on_its_way: false,
            passengers: vec![passenger],
        });
        self.start(&settings.uuid);
    }

    /// Asks for the first flight to a device, unless something else is asked of it.
    fn start(&mut self, uuid: &str) {
        let Some(flight) = self.flights.iter_mut().find(|flight| flight.settings.uuid == uuid) else {
            return;
        };
        if flight.is_on_its_way || self.busy.contains(uuid) {
            return;
        }
        flight.is_on_its_way = true;
        let (id, settings, uid, is_idle) = (flight.id, flight.settings.clone(), flight.uid, flight.is_idle);
        self.ask(move |state_dir| News::Landed(id, client::ensure(state_dir, &settings, uid, is_idle)));
    }

    /// Those who waited for it.
    pub fn landed(&mut self, id: u64) -> Vec<Passenger> {
        let Some(place) = self.flights.iter().position(|flight| flight.id == id) else { return Vec::new() };
        let flight = self.flights.remove(place);
        self.start(&flight.settings.uuid);
        flight.passengers
    }

    /// Sees what supervisors there are.
    pub fn look(&mut self) {
        self.looks_again = self.is_looking;
        if !self.is_looking {
            self.is_looking = true;
            self.ask(|state_dir| News::Seen(client::known(state_dir)));
        }
    }

    /// Starts, and starts again, what should run, and ends what should not: as far as no container has it otherwise.
    pub fn seen(&mut self, known: &[Known], leases: &Leases) {
        self.is_looking = false;
        if std::mem::take(&mut self.looks_again) {
            self.look();
        }
        let planned = leases.mps_settings().map(|settings| settings.uuid.clone());
        let uuids: BTreeSet<String> = planned.chain(known.iter().map(|known| known.uuid.clone())).collect();
        for uuid in uuids {
            let known = known.iter().find(|known| known.uuid == uuid);
            let next = next(leases.mps(&uuid), known, leases.on_mps(&uuid).next());
            match next {
                Some(Next::Run { settings, uid, is_idle }) => {
                    self.keep(uuid, move |state_dir| client::ensure(state_dir, &settings, uid, is_idle));
                }
                Some(Next::End) => {
                    let of = uuid.clone();
                    self.keep(uuid, move |state_dir| client::stop(state_dir, &of, false));
                }
                None => {}
            }
        }
    }

    /// Does it, if nothing else is asked of the device.
    fn keep(&mut self, uuid: String, what: impl FnOnce(&Path) -> Answer + Send + 'static) {
        let is_flown_to = self.flights.iter().any(|flight| flight.settings.uuid == uuid);
        if !is_flown_to && self.busy.insert(uuid.clone()) {
            self.ask(move |state_dir| News::Kept(uuid, what(state_dir)));
        }
    }

    /// Notes what came of it.
    pub fn kept(&mut self, uuid: &str, answer: &Answer) {
        self.busy.remove(uuid);
        match answer {
            Answer::Refused { message, .. } => {
                if self.said.get(uuid) != Some(message) {
                    warn!(uuid, "MPS: {message}");
                    self.said.insert(uuid.to_owned(), message.clone());
                }
            }
            answer => {
                self.said.remove(uuid);
                let what = if matches!(answer, Answer::Stopped) { "ended" } else { "runs" };
                info!(uuid, "the MPS server {what}");
            }
        }
        self.start(uuid);
    }

    /// On a thread of its own, however long it takes.
    fn ask(&self, what: impl FnOnce(&Path) -> News + Send + 'static) {
        let (state_dir, to) = (self.state_dir.clone(), self.to.clone());
        drop(spawn_blocking(move || {
            // Whoever listened is gone with the daemon.
            let _ = to.send(Message::Mps(what(&state_dir)));
        }));
    }
}

/// What is to be done about a server, without anybody asking.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It runs, or its supervisor does again.
    Run { settings: Box<Settings>, uid: u32, is_idle: bool },
    /// It ends, and so does its supervisor.
    End,
}

/// `holder` is one of those that have a share of it: they have it as it was.
fn next(planned: Option<&Settings>, known: Option<&Known>, holder: Option<&Lease>) -> Option<Next> {
    let kept = known.and_then(|known| known.settings.as_ref());
    let is_dead = known.is_some_and(|known| !known.is_supervised);
    let settings = match (planned, holder) {
        // One that was told nothing yet, or is about to leave, needs no end.
        (None, None) => return kept.map(|_| Next::End),
        (_, Some(_)) if is_dead => kept.or(planned)?,
        (Some(planned), None) if is_dead || planned.at_boot && kept != Some(planned) => planned,
        _ => return None,
    };
    // Whom it served it may serve again.
    let served = known.map_or(0, |known| known.uid);
    let uid = holder.map_or(served, |lease| user(settings, lease));
    Some(Next::Run { settings: Box::new(settings.clone()), uid, is_idle: holder.is_none() })
}

/// Who connects from a container.
fn user(settings: &Settings, lease: &Lease) -> u32 {
    if settings.multi_user { 0 } else { lease.container.process_uid.unwrap_or(NOBODY) }
}

#[cfg(test)]
mod tests {
    use hooks::lease::{Container, VERSION};

    use super::*;

    fn settings(at_boot: bool, percentage: u32, multi_user: bool) -> Settings {
        Settings {
            uuid: "GPU-0".into(),
            what: "GPU 0".into(),
            gpu_uuid: "GPU-0".into(),
            is_mig: false,
            active_thread_percentage: percentage,
            memory_mib: 1024,
            client_limit: 48,
            multi_user,
            at_boot,
            shared_memory_bytes: None,
            control: "/usr/bin/nvidia-cuda-mps-control".into(),
            server: "/usr/sbin/nvidia-cuda-mps-server".into(),
            driver_root: "/".into(),
            driver_version: "550.163.01".into(),
        }
    }

    fn lease(process_uid: Option<u32>) -> Lease {
        let container = Container {
            mount_namespace: 1,
            pid: 1,
            start_time: 1,
            boot_id: "boot".into(),
            cgroup: None,
            uid: 0,
            process_uid,
            id: "c".into(),
            bundle: "/b".into(),
            engine: None,
            name: None,
        };
        let (asked, devices, remove) = (Vec::new(), Vec::new(), Vec::new());
        Lease { version: VERSION, container, since: 0, asked, devices, remove, denied_by: None, mps: None }
    }

    #[test]
    fn what_runs_is_what_is_planned_or_held() {
        let (boot, other, first_use) =
            (settings(true, 50, true), settings(true, 25, true), settings(false, 50, true));
        let known = |settings: &Settings, is_supervised| {
            let (uuid, settings) = (settings.uuid.clone(), Some(settings.clone()));
            Some(Known { uuid, settings, status: None, uid: 0, is_supervised })
        };
        let new =
            Some(Known { uuid: "GPU-0".into(), settings: None, status: None, uid: 0, is_supervised: true });
        let run = |settings: &Settings, is_idle| {
            Some(Next::Run { settings: Box::new(settings.clone()), uid: 0, is_idle })
        };
        let held = lease(Some(1001));
        let held = Some(&held);
        for (planned, known, holder, expected) in [
            (None, None, None, None),
            // Whoever had a share has it still, and then it ends.
            (None, known(&boot, true), held, None),
            (None, known(&boot, false), held, run(&boot, false)),
            (None, new.clone(), None, None),
            (None, known(&boot, true), None, Some(Next::End)),
            (None, known(&boot, false), None, Some(Next::End)),
            (Some(&first_use), None, None, None),
            (Some(&first_use), None, held, None),
            (Some(&first_use), known(&first_use, true), None, None),
            (Some(&first_use), known(&first_use, false), None, run(&first_use, true)),
            (Some(&first_use), known(&other, true), None, None),
            (Some(&first_use), known(&other, false), held, run(&other, false)),
            (Some(&first_use), known(&other, false), None, run(&first_use, true)),
            (Some(&boot), None, None, run(&boot, true)),
            (Some(&boot), new.clone(), None, run(&boot, true)),
            (Some(&boot), known(&boot, true), None, None),
            (Some(&boot), known(&boot, true), held, None),
            (Some(&boot), known(&other, true), None, run(&boot, true)),
            (Some(&boot), known(&other, true), held, None),
        ] {
            assert_eq!(next(planned, known.as_ref(), holder), expected, "{planned:?} {known:?} {holder:?}");
        }
    }

    #[test]
    fn a_server_of_one_user_at_a_time_is_that_of_who_has_a_share() {
        let one = settings(false, 50, false);
        let dead = Known {
            uuid: one.uuid.clone(),
            settings: Some(one.clone()),
            status: None,
            uid: 0,
            is_supervised: false,
        };
        for (process_uid, expected) in [(Some(1001), 1001), (Some(0), 0), (None, NOBODY)] {
            let next = next(Some(&one), Some(&dead), Some(&lease(process_uid)));
            assert!(matches!(next, Some(Next::Run { uid, .. }) if uid == expected), "{next:?}");
        }
    }
}
