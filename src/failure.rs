//! An error with what to do about it, and how errors reach the user: `error: what: why`, then `hint: what to do`.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// Exit statuses of `divvy`. Each has one meaning; ARCHITECTURE.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Done = 0,
    /// Failed; nothing was written.
    Failed = 1,
    /// The command line or a file it names is wrong.
    Usage = 2,
    /// Written, but a device had to be left out.
    Incomplete = 7,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// An error that knows what its reader can do, and which status it ends with.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    hint: Option<String>,
    status: Status,
}

impl Failure {
    /// Wraps an error, or a message.
    pub fn new(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), hint: None, status: Status::Failed }
    }

    /// What to do, as an imperative sentence without its full stop.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Ends the process with another status than `Failed`.
    pub fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Writes a line to standard error. That nobody reads it is no reason to fail.
pub fn say(kind: &str, what: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{kind}: {}", printable(&what.to_string()));
}

/// The text with what a terminal would obey or turn around written as `\u{1b}`. Names and texts in messages come from
/// drivers, other vendors' files and recorded hosts of strangers.
pub fn printable(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_obeyed = |c: char| c != '\t' && c.is_control() || turns(c);
    text.chars().map(|c| if is_obeyed(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// Prints an error with its causes and hints, and says which status the process ends with.
pub fn report(error: &anyhow::Error) -> Status {
    say("error", format_args!("{error:#}"));
    let mut status = Status::Failed;
    for failure in error.chain().filter_map(|cause| cause.downcast_ref::<Failure>()) {
        if let Some(hint) = &failure.hint {
            say("hint", hint);
        }
        status = failure.status;
    }
    status
}
