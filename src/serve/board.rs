//! The queue for who looks, in the log and as the file of those who wait, which is kept as the queue is. Nothing is decided by it, and a disk that is
//! full costs the file, never anybody's place.

use std::io;

use tracing::{error, info};

use super::leases::Leases;
use super::leases::queue::Place;
use super::store::Store;
use super::waiting::{Daemon, Waiting, Waits};

/// The file, and what it says.
#[derive(Debug)]
pub struct Board {
    daemon: Daemon,
    /// None before the first look, when there may be a file of another daemon's.
    shown: Option<Vec<Waits>>,
    is_broken: bool,
}

impl Board {
    /// That of this process.
    ///
    /// # Errors
    /// Without /proc.
    pub fn new() -> io::Result<Self> {
        Ok(Self { daemon: Daemon::this()?, shown: None, is_broken: false })
    }

    /// Writes who waits, if that is not what was written last.
    pub fn show(&mut self, leases: &Leases, store: &Store) {
        let waiting: Vec<_> = leases.queue().iter().map(Waits::of).collect();
        if self.shown.as_ref() == Some(&waiting) {
            return;
        }
        self.put(&waiting, store);
        self.shown = Some(waiting);
    }

    /// Takes the file away: a daemon that leaves has no queue.
    pub fn take_down(&mut self, store: &Store) {
        self.put(&[], store);
    }

    fn put(&mut self, waiting: &[Waits], store: &Store) {
        let put = if waiting.is_empty() {
            store.remove_waiting()
        } else {
            // What is there is not so any more, and to remove it takes no room.
            let whole = Waiting::new(self.daemon.clone(), waiting.to_vec());
            store.write_waiting(&whole).or_else(|error| store.remove_waiting().and(Err(error)))
        };
        // Once, and not for each of 200 that come.
        if let Err(error) = &put
            && !self.is_broken
        {
            error!("`divvy ps` does not show who waits: {error}");
        }
        self.is_broken = put.is_err();
    }
}

/// Tells the log of a start that waits from now on, so many seconds at most.
pub fn log_arrival(place: &Place<'_>, seconds: u64) {
    let Waits { asked, ahead, id, engine, name, uid, .. } = Waits::of(place);
    info!(container = id, engine, name, uid, asked = asked.join(" "), seconds, ahead, "queues");
}

/// Tells the log of one that waits no more, and was neither granted nor refused anything.
pub fn log_departure(place: &Place<'_>) {
    let Waits { asked, id, engine, name, uid, .. } = Waits::of(place);
    info!(
        container = id,
        engine,
        name,
        uid,
        asked = asked.join(" "),
        "left the queue: its start was given up"
    );
}
