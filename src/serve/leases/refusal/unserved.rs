//! What supervisors of MPS servers said, as one refusal.

use super::{Held, MOST_LISTED, listed};

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct No {
    /// Exit status of the hook.
    pub status: u8,
    /// Why.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A device whose MPS server does not run for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    /// The device.
    pub uuid: String,
    /// The same as people call it, `GPU 0`.
    pub what: String,
    /// What its supervisor says.
    pub no: No,
}

/// The first one's; but what was held meanwhile, or is refused for now, may be had another time.
pub fn status(tried: &[Unserved], held: &[Held]) -> u8 {
    let first = tried.first().map_or(1, |first| first.no.status);
    let is_for_now = !held.is_empty() || tried.iter().any(|tried| tried.no.status == 3);
    if is_for_now { 3 } else { first }
}

/// The words of those that were tried, and who has the rest.
pub fn message(tried: &[Unserved], held: &[Held], more: usize, clock: &dyn Fn(u64) -> String) -> String {
    if let ([only], []) = (tried, held) {
        return only.no.message.clone();
    }
    let (told, others) = tried.split_at(tried.len().min(MOST_LISTED));
    let mut text: Vec<_> = told.iter().map(Unserved::text).collect();
    if !others.is_empty() {
        text.push(format!("{} refused too", listed(others.iter().map(|other| &other.what))));
    }
    if !held.is_empty() {
        let by: Vec<_> = held.iter().map(|held| held.short(clock)).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push(format!("the others are held: {}{more}", by.join(", ")));
    }
    text.join("; ")
}

impl Unserved {
    /// Its words, which name the device as a rule.
    fn text(&self) -> String {
        let Self { what, no, .. } = self;
        if no.message.contains(what) { no.message.clone() } else { format!("{what}: {}", no.message) }
    }
}
