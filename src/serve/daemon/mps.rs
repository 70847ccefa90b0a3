//! A grant of a share of an MPS server: the lease is there, and the answer waits until the server runs. If it does not,
//! `leases` says what the container gets instead. Nothing here blocks: what supervisors are asked, `serve::mps` asks.

use hooks::lease::{Answer, Lease};
use tracing::info;

use super::Daemon;
use super::answers::names;
use crate::failure::printable;
use crate::mps::protocol::Answer as Of;
use crate::serve::leases::refusal::No;
use crate::serve::leases::{Event, Key, Ticket};
use crate::serve::mps::{News, Passenger};

impl Daemon {
    /// Has the server run that a lease is of a share of. Its container may have it already, and asks again.
    pub(super) fn ensure(&mut self, ticket: Ticket, lease: &Lease) {
        let key = Key::of(&lease.container);
        let device = lease.devices.iter().find(|device| device.is_share);
        let settings = device.and_then(|device| self.leases.mps(&device.uuid)).cloned();
        let Some(settings) = settings else {
            let message = "the plan is another by now: its device has no MPS server any more".into();
            let hint = Some("start the container again".into());
            return self.say_no(ticket, &lease.container, &lease.asked, No { status: 6, message, hint });
        };
        self.answer(ticket, Answer::Queued { seconds: self.leases.longest_start(key), ahead: 0 });
        let is_idle = self.leases.is_starting(key) && !self.leases.is_used_beside(&settings.uuid, key);
        self.servers.ensure(&settings, lease, is_idle, Passenger { key, tickets: vec![ticket] });
    }

    /// What supervisors answered.
    pub(super) fn hear_of_mps(&mut self, news: News) {
        match news {
            News::Landed(flight, answer) => {
                for passenger in self.servers.landed(flight) {
                    self.arrives(passenger, &answer);
                }
            }
            News::Seen(known) => self.servers.seen(&known, &self.leases),
            News::Kept(uuid, answer) => self.servers.kept(&uuid, &answer),
        }
    }

    fn arrives(&mut self, passenger: Passenger, answer: &Of) {
        let Passenger { key, tickets } = passenger;
        let Some(lease) = self.leases.lease_of(key).cloned() else {
            let message = "the container ended while it waited for its MPS server".to_owned();
            let gone = Answer::Refused { status: 1, message, hint: None };
            return tickets.into_iter().for_each(|ticket| self.answer(ticket, gone.clone()));
        };
        let no = match answer {
            Of::Ready { front, shared_memory }
                if lease
                    .mps
                    .as_ref()
                    .is_some_and(|mps| mps.front == *front && mps.shared_memory == *shared_memory) =>
            {
                tickets.into_iter().for_each(|ticket| self.say_granted(ticket, &lease));
                return self.happens(Event::Served(key));
            }
            Of::Refused { status, message, hint } => {
                No { status: *status, message: message.clone(), hint: hint.clone() }
            }
            _ => No {
                status: 1,
                message: "the MPS supervisor is of another divvy: its directories are others".into(),
                hint: Some("divvy mps stop, once no container uses it".into()),
            },
        };
        if self.leases.is_starting(key) {
            let (container, devices) = (&lease.container.id, names(&lease));
            info!(container, devices, "its MPS server does not run: {}", printable(&no.message));
            return self.happens(Event::Unserved(key, Box::new(no)));
        }
        // A container may run that has it from before, and only this question was in vain.
        for ticket in tickets {
            self.say_no(ticket, &lease.container, &lease.asked, no.clone());
        }
    }
}
