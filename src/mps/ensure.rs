//! Whether a container may have MPS as it is, whether it has to wait, or whether MPS has to begin anew for it. Pure.

use super::kept::Kept;
use super::protocol::State;
use super::reason::Reason;
use super::settings::Settings;

/// What is asked for a container that is about to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What MPS shall be.
    pub kept: Kept,
    /// Nobody else has a share of the device.
    pub is_idle: bool,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present<'a> {
    /// What it keeps to; none: nobody has asked yet.
    pub kept: Option<&'a Kept>,
    /// How it is.
    pub state: State,
    /// Why it is not as it should be.
    pub reason: Option<&'a Reason>,
    /// It is left alone for a while after a failure, or for good.
    pub is_resting: bool,
    /// Clients, in words; none: there are none.
    pub clients: Option<String>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Ready,
    /// It is answered later.
    Wait,
    /// MPS is started, now.
    Start,
    /// MPS ends, and begins anew as it is wanted.
    Renew,
    /// It is answered.
    Refuse(Reason),
}

/// Decides.
pub fn judge(wanted: &Wanted, present: &Present<'_>) -> Verdict {
    let Some(kept) = present.kept else { return Verdict::Start };
    if let Some(other) = difference(&kept.settings, &wanted.kept.settings) {
        return renew(wanted, present, &format!("MPS runs there with {other}"));
    }
    if !kept.settings.multi_user && kept.uid != wanted.kept.uid {
        let serves = format!("its MPS server serves user {} alone", kept.uid);
        return renew(wanted, present, &serves);
    }
    match (present.state, present.reason) {
        (State::Ready, None) => Verdict::Ready,
        (State::Down, _) if present.is_resting => Verdict::Start,
        (State::Down | State::Starting, _) => Verdict::Wait,
        (State::Fault, _) if wanted.is_idle && present.clients.is_none() => Verdict::Renew,
        (_, Some(reason)) => Verdict::Refuse(reason.clone()),
        (State::Fault | State::Blocked, None) => Verdict::Wait,
    }
}

fn renew(wanted: &Wanted, present: &Present<'_>, how_it_is: &str) -> Verdict {
    let what = &wanted.kept.settings.what;
    match (wanted.is_idle, &present.clients) {
        (true, None) => Verdict::Renew,
        (true, Some(clients)) => Verdict::Refuse(Reason::not_now(
            format!("{what}: {how_it_is}, and {clients} it"),
            format!(
                "end that, or `divvy mps restart {} --force`, which ends its work",
                wanted.kept.settings.uuid
            ),
        )),
        (false, _) => Verdict::Refuse(Reason::not_now(
            format!("{what}: {how_it_is}, and other containers have shares of it"),
            "wait until they have ended; `divvy ps` shows them",
        )),
    }
}

/// What the settings that are kept say of it and the wanted ones do not, in words; none where MPS may stay as it is.
fn difference(kept: &Settings, wanted: &Settings) -> Option<String> {
    let limits = |settings: &Settings| (settings.active_thread_percentage, settings.memory_mib);
    if limits(kept) != limits(wanted) {
        let (percentage, memory) = limits(kept);
        return Some(format!("other limits ({percentage} % of the SMs, {memory} MiB)"));
    }
    if kept.driver_version != wanted.driver_version {
        return Some(format!("the programs of driver {}", kept.driver_version));
    }
    let programs = |settings: &Settings| {
        (settings.control.clone(), settings.server.clone(), settings.driver_root.clone())
    };
    if programs(kept) != programs(wanted) {
        return Some(format!("another program, {}", kept.control.display()));
    }
    let rest =
        |settings: &Settings| (settings.multi_user, settings.shared_memory_bytes, settings.gpu_uuid.clone());
    (rest(kept) != rest(wanted)).then(|| "other settings".to_owned())
}
