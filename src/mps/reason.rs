//! Why something is not done: in an answer, and in the status.

use super::guard::Unguarded;
use super::protocol::Answer;
use super::step::{SERVER_LIMIT, Trouble};

/// A sentence for a person, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Exit status of the hook that asked: 3 not now, 5 a limit cannot be held, 1 anything else.
    pub status: u8,
    /// What and why, without `error:`.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Reason {
    /// It does not work.
    pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: 1, message: message.into(), hint: Some(hint.into()) }
    }

    /// It works at another time.
    pub fn not_now(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: 3, ..Self::failed(message, hint) }
    }

    /// A limit would not hold.
    pub fn not_held(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: 5, ..Self::failed(message, hint) }
    }

    /// Whoever has the front could lift the limits.
    pub fn not_guarded(what: &str, error: &Unguarded) -> Self {
        let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::not_held(format!("{what}: {error}{source}"), error.hint())
    }

    /// What became of MPS on a device (`GPU 0`).
    pub fn of(trouble: Trouble, what: &str, uuid: &str) -> Self {
        let message = match trouble {
            Trouble::NotStarted => "the MPS control daemon ended as soon as it was started".to_owned(),
            Trouble::NotListening => "the MPS control daemon does not listen".to_owned(),
            Trouble::LimitsNotTaken => {
                "the MPS control daemon does not keep the limits that it was given".to_owned()
            }
            Trouble::NoServer => "the MPS server ended before it was ready".to_owned(),
            Trouble::ServerEnded => {
                "the MPS server ended, and with it the work of all its clients".to_owned()
            }
            Trouble::ServerNotReady => {
                format!("the MPS server was not ready after {} seconds", SERVER_LIMIT.as_secs())
            }
            Trouble::DaemonEnded => "the MPS control daemon was ended by somebody else".to_owned(),
            Trouble::LastingFault => "the MPS server did not recover from a client's fault".to_owned(),
        };
        Self::failed(format!("{what}: {message}"), format!("its last words are in mps/{uuid}/log/mps.log"))
    }
}

impl From<Reason> for Answer {
    fn from(reason: Reason) -> Self {
        Self::Refused { status: reason.status, message: reason.message, hint: reason.hint }
    }
}
