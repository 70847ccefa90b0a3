//! What reaches the one who decides, from connections and from containers that end.

use hooks::lease::{Answer, Request};
use tokio::sync::mpsc::UnboundedSender;

use super::leases::{Key, Ticket};
use super::mps;
use crate::container::caller::{self, Peer};

/// What reaches the one who decides.
#[derive(Debug)]
pub enum Message {
    /// A request came in whole.
    Asked(Box<Asked>),
    /// A connection is over; its request, if it made one, is void.
    Closed(Ticket),
    /// A container's first process is gone.
    FirstProcessGone(Key),
    /// A container is gone.
    Gone(Key),
    /// An answer of an MPS supervisor.
    Mps(mps::News),
}

/// A request, and the way back.
#[derive(Debug)]
pub struct Asked {
    /// The connection.
    pub ticket: Ticket,
    /// Who asks.
    pub peer: Peer,
    /// What it says.
    pub request: Request,
    /// Name of the user who asks, who may have none.
    pub user: Result<Option<String>, caller::Error>,
    /// Where the answers go; when it is dropped, the connection ends.
    pub answers: UnboundedSender<Answer>,
}
