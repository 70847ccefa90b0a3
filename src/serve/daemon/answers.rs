//! What was decided about a request, carried out and said to who made it.

use std::sync::Arc;

use hooks::lease::{Answer, Container, DeviceName, Lease};
use tracing::{error, info, warn};

use super::{Asker, Daemon, now};
use crate::failure::printable;
use crate::serve::grant;
use crate::serve::leases::refusal::{No, Refusal};
use crate::serve::leases::{Key, Ticket};
use crate::serve::message::Message;
use crate::serve::refused::Refused;
use crate::serve::{board, watch};
use crate::sys;

impl Daemon {
    pub(super) fn queues(&mut self, ticket: Ticket, seconds: u64, ahead: u32) {
        if let Some(place) = self.leases.place_of(ticket) {
            board::log_arrival(&place, seconds);
        }
        self.answer(ticket, Answer::Queued { seconds, ahead });
        let to = self.to.clone();
        if let Some(asker) = self.connections.get_mut(&ticket).and_then(|one| one.asker.as_mut()) {
            let (key, pidfd) = (asker.key, Arc::clone(&asker.pidfd));
            let waiting = tokio::spawn(async move {
                watch::ended(&pidfd).await;
                let _ = to.send(Message::FirstProcessGone(key));
            });
            asker.end = Some(waiting.abort_handle());
        }
    }

    /// Writes the lease, has the cgroup deny what is not in it, and answers. For a container that has it already this
    /// is the second time, and changes nothing.
    pub(super) fn grant(&mut self, ticket: Ticket, mut lease: Lease) -> Option<Key> {
        let key = Key::of(&lease.container);
        // Else it is one of this container's further hooks that asks, or the daemon is a new one.
        let is_new = !self.holders.contains_key(&key);
        if let Err(broken) = grant::make_good(&self.store, &self.plan, &mut lease) {
            self.say_no(ticket, &lease.container, &lease.asked, broken);
            if !is_new {
                return None;
            }
            if let Err(error) = self.store.remove(&lease) {
                error!(container = lease.container.id, "cannot remove the file of a lease: {error}");
            }
            return Some(key);
        }
        let container = &lease.container;
        if is_new && let Some(pidfd) = self.asker(ticket).map(|asker| Arc::clone(&asker.pidfd)) {
            self.holders.insert(key, Arc::clone(&pidfd));
            self.watch(key, Some(pidfd), container.cgroup.clone());
        }
        match lease.mps {
            Some(_) => self.ensure(ticket, &lease),
            None => self.say_granted(ticket, &lease),
        }
        None
    }

    pub(super) fn say_granted(&self, ticket: Ticket, lease: &Lease) {
        let container = &lease.container;
        info!(
            container = container.id,
            engine = container.engine,
            name = container.name,
            uid = container.uid,
            pid = container.pid,
            devices = names(lease),
            "granted"
        );
        let devices = lease.devices.iter().map(|device| device.name.clone()).collect();
        self.answer(ticket, Answer::Granted { devices });
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: &Refusal) {
        let wall = now();
        let clock = |at| sys::local_time(at, wall);
        let (message, hint, status) = (refusal.message(&clock), refusal.hint(), refusal.status());
        self.say_no(ticket, &refusal.container, &refusal.asked, No { status, message, hint });
    }

    /// Answers and remembers.
    pub(super) fn say_no(&mut self, ticket: Ticket, container: &Container, asked: &[DeviceName], no: No) {
        let No { status, message, hint } = no;
        // It names other containers, and it was others who named these.
        let (message, hint) = (printable(&message), hint.as_deref().map(printable));
        self.answer(ticket, Answer::Refused { status, message: message.clone(), hint: hint.clone() });
        let Container { id, engine, name, uid, .. } = container.clone();
        let (at, asked) = (now(), asked.iter().map(ToString::to_string).collect());
        self.remember(Refused { at, asked, id, engine, name, uid, status, message, hint });
    }

    pub(super) fn remember(&mut self, refused: Refused) {
        warn!(
            container = refused.id,
            engine = refused.engine,
            name = refused.name,
            uid = refused.uid,
            asked = refused.asked.join(" "),
            "refused: {}",
            refused.message
        );
        self.refused.push(refused);
        if let Err(error) = self.store.write_refused(&self.refused) {
            error!("the refusal is not kept for `divvy ps --refused`: {error}");
        }
    }

    fn asker(&self, ticket: Ticket) -> Option<&Asker> {
        self.connections.get(&ticket)?.asker.as_ref()
    }

    /// Who is gone hears nothing.
    pub(super) fn answer(&self, ticket: Ticket, answer: Answer) {
        if let Some(asker) = self.asker(ticket) {
            let _ = asker.answers.send(answer);
        }
    }
}

/// `gpu=shared-0 gpu=shared-3`, for the log.
pub(super) fn names(lease: &Lease) -> String {
    lease.devices.iter().map(|device| device.name.to_string()).collect::<Vec<_>>().join(" ")
}
